"""Random histories of one wallet under the test clock, against a slow and obvious model: every answer, every refusal, every
total and what is left of every grant must agree. The seed is printed; SEED=… repeats a run, HISTORIES=… makes it longer.
"""

import datetime
import os
import unittest
import uuid
from dataclasses import dataclass, field

from support import LiveTestCase, Refused, apply_catalog, call, code_of, rows, seeded, total, value

START = datetime.datetime(2026, 1, 20, tzinfo=datetime.timezone.utc)
NEVER = datetime.datetime(9999, 1, 1, tzinfo=datetime.timezone.utc)
FLAT = {"call": 1, "page": 7, "view": 0}
THIRD = "third"  # one credit for three of it, over the calendar month
HOURS = datetime.timedelta(hours=1)


class Refusal(Exception):
    """What the model refuses, by its code."""


@dataclass
class Grant:
    """A lot of credit."""

    grant_id: int
    remaining: int
    paid: bool
    priority: int
    metrics: tuple
    effective_at: datetime.datetime
    expires_at: datetime.datetime
    voided: bool = False

    def is_dead(self, now):
        """Nothing of it can be spent any more."""
        return self.voided or self.expires_at <= now

    def is_spendable(self, now, metric):
        """On the metric, now."""
        return not self.is_dead(now) and self.effective_at <= now and (not self.metrics or metric in self.metrics)

    def burn_order(self):
        """Scoped before general, priority, expiry, promotional before paid, effective, id."""
        return (not self.metrics, self.priority, self.expires_at, self.paid, self.effective_at, self.grant_id)


@dataclass
class Hold:
    """Credit set aside, with the grants that it was taken from."""

    metric: str
    parts: list
    expires_at: datetime.datetime
    open: bool = True


@dataclass
class Model:
    """A wallet as the documentation describes it, everything recomputed at every step."""

    now: datetime.datetime = START
    grants: dict = field(default_factory=dict)
    holds: dict = field(default_factory=dict)
    burned: dict = field(default_factory=dict)  # operation: [[grant, credits, refunded]]
    used: dict = field(default_factory=dict)    # (year, month): quantity of THIRD

    def pass_time(self, moment):
        """What time does: holds end, grants end."""
        self.now = moment
        for hold in self.holds.values():
            if hold.open and hold.expires_at <= moment:
                hold.open = False
                self.give_back(hold.parts)
        for grant in self.grants.values():
            if grant.is_dead(moment):
                grant.remaining = 0

    def give_back(self, parts):
        """To the very grants; what is dead stays empty."""
        for grant_id, credits in parts:
            grant = self.grants[grant_id]
            grant.remaining += 0 if grant.is_dead(self.now) else credits

    def total(self, metric=None):
        """Spendable now."""
        return sum(grant.remaining for grant in self.grants.values() if grant.is_spendable(self.now, metric))

    def burn(self, credits, metric=None):
        """Takes it in burn order, or refuses; gives the parts."""
        if credits > self.total(metric):
            raise Refusal("PT402 insufficient_credits")
        parts = []
        for grant in sorted(self.grants.values(), key=Grant.burn_order):
            part = min(credits, grant.remaining) if grant.is_spendable(self.now, metric) else 0
            if part:
                grant.remaining -= part
                credits -= part
                parts.append((grant.grant_id, part))
        return parts

    def cost(self, metric, quantity):
        """Flat, or by the month's total."""
        if metric != THIRD:
            return FLAT[metric] * quantity
        used = self.used.get((self.now.year, self.now.month), 0)
        return -(-(used + quantity) // 3) - -(-used // 3)

    def consume(self, metric, quantity):
        """Gives the credits and the parts."""
        credits = self.cost(metric, quantity)
        parts = self.burn(credits, metric)
        if metric == THIRD:
            month = (self.now.year, self.now.month)
            self.used[month] = self.used.get(month, 0) + quantity
        return credits, parts

    def capture(self, hold_id, quantity):
        """First what was held, in the order in which it was taken, even if it has expired since; then the burn order."""
        hold = self.holds[hold_id]
        if not hold.open:
            raise Refusal("PT409 hold_closed")
        missing, parts, rest = self.cost(hold.metric, quantity), [], []
        for grant_id, credits in hold.parts:
            part = min(credits, missing)
            missing -= part
            if part:
                parts.append((grant_id, part))
            if credits > part:
                rest.append((grant_id, credits - part))
        if missing:
            for grant_id, credits in self.burn(missing, hold.metric):
                parts.append((grant_id, credits))
        hold.open = False
        self.give_back(rest)
        return sum(credits for _, credits in parts), parts

    def release(self, hold_id):
        """Everything back."""
        hold = self.holds[hold_id]
        if not hold.open:
            raise Refusal("PT409 hold_closed")
        hold.open = False
        self.give_back(hold.parts)
        return sum(credits for _, credits in hold.parts)

    def refund(self, operation, credits):
        """In the recorded order, never more than was burned."""
        parts = self.burned[operation]
        left = sum(burned - refunded for _, burned, refunded in parts)
        wanted = left if credits is None else credits
        if wanted > left or left == 0:
            raise Refusal("PT409 refund_exceeds")
        missing = wanted
        for part in parts:
            back = min(missing, part[1] - part[2])
            part[2] += back
            missing -= back
            self.give_back([(part[0], back)])
        return wanted

    def void(self, grant_id):
        """What is left of it."""
        grant = self.grants[grant_id]
        voided, grant.remaining, grant.voided = grant.remaining, 0, True
        return voided


class History:
    """One org, played in the database and in the model."""

    def __init__(self, test, rng):
        self.test, self.db, self.rng = test, test.db, rng
        self.org, self.model = uuid.uuid4(), Model()
        self.log, self.answers, self.keys, self.refusals = [], [], 0, 0
        self.set_clock(START)
        call(self.db, "create_wallet", self.org)

    def set_clock(self, moment):
        """In both."""
        value(self.db, "select set_config('billing.test_clock', %s, false)", moment.isoformat())
        self.model.pass_time(moment)

    def expect(self, mirror, function, *arguments, keyed=True, **named):
        """Calls the database, then the model; both refuse alike, or both answer. Gives the row and the model's answer."""
        if keyed:
            self.keys += 1
            named["idempotency_key"] = f"key {self.keys}"
        self.log.append(f"{self.model.now.isoformat()} {function}{arguments} {named}")
        row = answer = None
        try:
            row = call(self.db, function, self.org, *arguments, **named)
            said = "ok"
        except Refused as error:
            said = code_of(error)
        try:
            answer = mirror()
            expected = "ok"
        except Refusal as refusal:
            expected = str(refusal)
        self.test.assertEqual(said, expected, self.story())
        if row is None:
            self.refusals += 1
            return None, None
        if keyed:
            self.answers.append((function, arguments, named, row))
        self.log[-1] += f" -> {row}"
        return row, answer

    def equal(self, found, expected):
        """With the history as the message."""
        self.test.assertEqual(found, expected, self.story())

    def story(self):
        """How it came to this."""
        return f"\nSEED={self.test.seed}, org {self.org}\n" + "\n".join(self.log[-60:])

    # The steps. Each is chosen at random.

    def grant(self):
        """Credit of any sort, of now or later, for ever or not, general or scoped."""
        rng, model = self.rng, self.model
        amount, source = rng.randint(1, 60), rng.choice(["purchase", "bonus", "plan", "voucher"])
        effective = model.now + rng.randint(1, 200) * HOURS if rng.random() < 0.15 else None
        expires = (effective or model.now) + rng.randint(1, 400) * HOURS if rng.random() < 0.6 else None
        metrics = rng.choice([["call"], ["page", "call"], [THIRD]]) if rng.random() < 0.3 else None
        priority = rng.choice([50, 50, 50, 10, 90])
        row, _ = self.expect(lambda: None, "grant_credits", amount, source, None, "credit", metrics, priority, effective, expires)
        model.grants[row.grant_id] = Grant(row.grant_id, amount, source == "purchase", priority, tuple(metrics or ()),
                                           effective or model.now, expires or NEVER)

    def consume(self):
        """Often more than there is."""
        metric, quantity = self.rng.choice([*FLAT, THIRD]), self.rng.randint(1, 25)
        before = self.model.total(metric)
        row, answer = self.expect(lambda: self.model.consume(metric, quantity), "consume_credits", metric, quantity)
        if row:
            credits, parts = answer
            self.equal((row.credits, row.balance_before, row.balance_after), (credits, before, before - credits))
            self.model.burned[row.operation_id] = [[*part, 0] for part in parts]

    def reserve(self):
        """For some hours."""
        metric, quantity, hours = self.rng.choice(["call", "page"]), self.rng.randint(1, 12), self.rng.randint(1, 100)
        row, parts = self.expect(lambda: self.model.burn(self.model.cost(metric, quantity), metric),
                                 "reserve_credits", metric, quantity, datetime.timedelta(hours=hours))
        if row:
            self.equal((row.credits, row.expires_at), (sum(credits for _, credits in parts), self.model.now + hours * HOURS))
            self.model.holds[row.hold_id] = Hold(metric, parts, row.expires_at)

    def some_hold(self):
        """An open one mostly."""
        opened = [hold_id for hold_id, hold in self.model.holds.items() if hold.open]
        return self.rng.choice(opened if opened and self.rng.random() < 0.9 else list(self.model.holds))

    def capture(self):
        """Less, as much, or more than was reserved."""
        if self.model.holds:
            hold_id, quantity = self.some_hold(), self.rng.randint(1, 15)
            row, answer = self.expect(lambda: self.model.capture(hold_id, quantity), "capture_credits", hold_id, quantity)
            if row:
                self.equal(row.credits, answer[0])
                self.model.burned[row.operation_id] = [[*part, 0] for part in answer[1]]

    def release(self):
        """Of an open hold: what a second release says is not the model's business."""
        opened = [hold_id for hold_id, hold in self.model.holds.items() if hold.open]
        if opened:
            hold_id = self.rng.choice(opened)
            row, credits = self.expect(lambda: self.model.release(hold_id), "release_credits", hold_id, keyed=False)
            self.equal(row.credits, credits)

    def refund(self):
        """Of any consumption that cost something, all or a part, too much now and then."""
        operations = [operation for operation, parts in self.model.burned.items() if parts]
        if operations:
            operation = self.rng.choice(operations)
            credits = self.rng.choice([None, self.rng.randint(1, 8), self.rng.randint(1, 80)])
            row, refunded = self.expect(lambda: self.model.refund(operation, credits), "refund_credits", operation, credits)
            if row:
                self.equal(row.credits, refunded)

    def void(self):
        """Seldom, and each grant once."""
        grants = [grant_id for grant_id, grant in self.model.grants.items() if not grant.voided]
        if grants and self.rng.random() < 0.5:
            grant_id = self.rng.choice(grants)
            row, voided = self.expect(lambda: self.model.void(grant_id), "void_grant", grant_id, "withdrawn")
            self.equal(row.voided, voided)

    def adjust(self):
        """Up: a promotional grant for ever. Down: a burn of general credit."""
        amount = self.rng.choice([-1, 1]) * self.rng.randint(1, 20)
        row, _ = self.expect(lambda: self.model.burn(-amount) if amount < 0 else None, "adjust_credits", amount, "correction")
        if row and amount > 0:
            self.model.grants[row.grant_id] = Grant(row.grant_id, amount, False, 50, (), self.model.now, NEVER)

    def pass_time(self):
        """Hours or weeks; sometimes to the very moment at which something ends or begins."""
        model = self.model
        moments = [m for m in [g.expires_at for g in model.grants.values()] + [g.effective_at for g in model.grants.values()]
                   + [h.expires_at for h in model.holds.values() if h.open] if model.now < m < NEVER]
        if moments and self.rng.random() < 0.5:
            moment = min(moments) - self.rng.choice([0, 0, 1]) * datetime.timedelta(microseconds=1)
        else:
            moment = model.now + self.rng.randint(1, 60) * HOURS
        self.log.append(f"clock {moment.isoformat()}")
        self.set_clock(moment)

    def repeat(self):
        """Any earlier call again with its key: the first answer again, and nothing moves."""
        if self.answers:
            function, arguments, named, first = self.rng.choice(self.answers)
            self.log.append(f"again: {named['idempotency_key']}")
            self.equal(call(self.db, function, self.org, *arguments, **named), first._replace(replayed=True))

    def book(self):
        """What pg_cron would do; changes no total. After it, the grants as stored must be those of the model."""
        self.log.append("book_expiries")
        booked = [value(self.db, "select billing.book_expiries()") for _ in range(3)]
        self.equal(booked[-1], 0)
        left = dict(rows(self.db, "select grant_id, remaining from billing.grants where org_id = %s", self.org))
        self.equal(left, {grant_id: grant.remaining for grant_id, grant in self.model.grants.items()})
        opened = {hold_id: sum(c for _, c in hold.parts) for hold_id, hold in self.model.holds.items() if hold.open}
        self.equal(dict(rows(self.db, "select hold_id, credits from billing.holds where org_id = %s and status = 'open'", self.org)), opened)

    def check(self):
        """Totals, as they are read before anything is booked."""
        for metric in (None, *FLAT, THIRD):
            self.equal((metric, total(self.db, self.org, "credit", metric)), (metric, self.model.total(metric)))
        reserved = sum(c for hold in self.model.holds.values() if hold.open for _, c in hold.parts)
        self.equal(call(self.db, "get_wallet", self.org).reserved, reserved)

    def lanes(self):
        """Split into lanes, or joined again: nobody can tell."""
        count = self.rng.choice([1, 2, 3, 8])
        self.log.append(f"set_wallet_lanes {count}")
        if self.model.grants:
            call(self.db, "set_wallet_lanes", self.org, count)

    def explain(self):
        """The dry run says what the model would burn."""
        metric, quantity = self.rng.choice(["call", "page"]), self.rng.randint(1, 6)
        credits = self.model.cost(metric, quantity)
        if 0 < credits <= self.model.total(metric):
            found = rows(self.db, "select grant_id, credits from billing.explain_consumption(%s, %s, %s)", self.org, metric, quantity)
            kept = {grant_id: grant.remaining for grant_id, grant in self.model.grants.items()}
            self.equal([tuple(part) for part in found], self.model.burn(credits, metric))
            for grant_id, remaining in kept.items():
                self.model.grants[grant_id].remaining = remaining


STEPS = {"grant": 12, "consume": 20, "reserve": 9, "capture": 7, "release": 3, "refund": 6, "void": 2, "adjust": 2,
         "pass_time": 10, "repeat": 5, "book": 3, "explain": 4, "lanes": 3}


class Property(LiveTestCase):
    """The engine and the model tell the same story."""

    def test_random_histories(self):
        """Each history of its own org; all of them in one database at the end."""
        apply_catalog(self.db, {"metrics": {**{metric: {"price": price} for metric, price in FLAT.items()},
                                            THIRD: {"price": {"steps": [{"credits": 1, "per": 3}]}}}})
        rng, self.seed = seeded()
        steps, refusals = 0, 0
        for _ in range(int(os.environ.get("HISTORIES", "40"))):
            history = History(self, rng)
            for _ in range(rng.randint(20, 120)):
                getattr(history, rng.choices(list(STEPS), list(STEPS.values()))[0])()
                history.check()
                steps += 1
            history.book()
            history.check()
            refusals += history.refusals
            self.equal_sound(history)
        self.assertGreater(refusals, steps // 100, "the histories never came to the edge")
        self.assert_sound()
        rows(self.db, "reset billing.test_clock")

    def equal_sound(self, history):
        """The ledger of the org is sound."""
        history.equal(rows(self.db, "select * from billing.verify_ledger(%s)", history.org), [])


if __name__ == "__main__":
    unittest.main()

"""One random history of metered orgs over months of the test clock, played in a database and in the model of metering_model.py."""

import bisect
import datetime
import random
import uuid
from collections import Counter, defaultdict

import psycopg2.extras

from metering_model import (END, HOUR, MEMBERS, ORIGIN, START, TICK, Account, Event, Period, Plan, Subscription, Use, month_start,
                            months_later, random_metrics, random_plan, shown)
from support import Refused, adapt, apply_catalog, call, code_of, connect, rows, total, value, violations


class Org:
    """An org as the history remembers it."""

    def __init__(self, metrics, plans):
        self.org = uuid.uuid4()
        self.account = Account(metrics, plans)
        self.names = []        # of events
        self.answers = []      # (function, arguments, named, answer) of calls with a key
        self.holds = {}        # hold: (metric, quantity, credits, end)
        self.had_holds = False
        self.units = set()     # in which it has a wallet
        self.begun_until = ORIGIN   # when somebody last may have begun its periods
        self.decided = ORIGIN       # when somebody last may have charged what was recorded


class History:
    """A catalog and some orgs, played in a database of their own and in the model."""

    def __init__(self, test, seed):
        self.test, self.seed, self.rng = test, seed, random.Random(seed)
        rng = self.rng
        self.db = connect(test.fresh_database())
        planned, other = random_metrics(rng)
        self.metrics = {**planned, **other}
        self.plans = {"solo": random_plan(rng, planned), "team": random_plan(rng, planned), "weekly": random_plan(rng, planned, "week")}
        if rng.random() < 0.8:
            self.plans["basis"] = random_plan(rng, planned, default=True)
        self.log, self.keys, self.now, self.done = [], 0, START, Counter()
        self.set_clock(START + rng.randint(0, 4000) * HOUR)
        apply_catalog(self.db, {"metrics": {name: metric.document() for name, metric in self.metrics.items()},
                                "plans": {name: plan.document() for name, plan in self.plans.items()}})
        self.orgs = [Org(self.metrics, self.plans) for _ in range(rng.randint(1, 4))]
        self.began = self.now

    # ---- talking to the database

    def story(self, org=None):
        """How it came to this."""
        lines = [line for about, line in self.log if org is None or about in (None, org)]
        catalog = [f"{metric.name}: {metric.document()}" for metric in self.metrics.values()] + [f"{name}: {plan}" for name, plan in self.plans.items()]
        return f"\nhistory {self.seed} (HISTORY={self.seed} repeats it)\n" + "\n".join([*catalog, *lines[-120:]])

    def equal(self, found, expected, org=None):
        """With the history as the message."""
        if found != expected:
            self.test.fail(f"\nfound    {shown(found)}\nexpected {shown(expected)}{self.story(org)}")

    def note(self, org, text):
        """For the story."""
        self.log.append((org, f"{self.now.isoformat()} {shown(text)}"))

    def say(self, org, function, *arguments, **named):
        """Calls a function for an org; gives the row, or the code of the refusal."""
        if function in ("subscribe", "change_plan", "cancel_subscription"):
            org.decided = org.begun_until = self.now
            org.units.add("credit")
        # What ended before it is charged by the call that begins a period.
        org.decided = max([org.decided, *self.turns(org)])
        self.note(org, f"{function}{arguments} {named}")
        self.done[function] += 1
        try:
            row = call(self.db, function, org.org, *arguments, **named)
        except Refused as error:
            self.note(org, f"  -> {code_of(error)} {error.diag.message_primary} {error.diag.message_detail}")
            return code_of(error)
        self.note(org, f"  -> {tuple(row)[1:]}")
        return row

    def get(self, org, function, *arguments, **named):
        """The same for what cannot be refused."""
        row = self.say(org, function, *arguments, **named)
        if isinstance(row, str):
            self.test.fail(f"\nrefused: {row}{self.story(org)}")
        return row

    def set_clock(self, moment):
        """Of the session."""
        self.now = moment
        value(self.db, "select set_config('billing.test_clock', %s, false)", moment.isoformat())

    def key(self):
        """A new one."""
        self.keys += 1
        return f"key {self.keys}"

    def some(self):
        """Any org."""
        return self.rng.choice(self.orgs)

    # ---- the steps: time

    def pass_time(self):
        """Hours or days, sometimes months; often to the very edge of a period."""
        rng, chance = self.rng, self.rng.random()
        if chance < 0.35:
            edges = sorted({edge for period in self.some().account.periods() for edge in (period.start, period.end) if edge > self.now})
            moment = edges[0] + rng.choice([0, 0, -1, -1, 1, 1_000_000]) * TICK
        elif chance < 0.42:
            moment = self.now + rng.randint(20 * 24, 80 * 24) * HOUR
        else:
            moment = self.now + rng.randint(1, 120) * HOUR
        if self.now < moment < END:
            self.set_clock(moment)
            self.note(None, "clock")

    # ---- the steps: recorded usage

    def some_event(self, org, now=None):
        """An event of any metric, of now or of some time before; None where the model would have no clear answer."""
        rng, now = self.rng, now or self.now
        metric = rng.choice(list(self.metrics.values()))
        at, chance = now, rng.random()
        if chance < 0.25:
            at = now - rng.randint(0, 72) * HOUR
        elif chance < 0.4:
            at = now - rng.randint(0, 24 * 100) * HOUR
        elif chance < 0.5:
            edges = [period.start for period in org.account.periods() if period.start <= now]
            at = rng.choice(edges[-4:]) + rng.choice([0, 0, -1, 1]) * TICK
        at = max(ORIGIN, min(at, now))
        quantity = rng.choice([1, 1, rng.randint(1, 12), rng.randint(1, 40)])
        if metric.aggregation == "unique":
            value_of = str(rng.choice(MEMBERS)) if metric.unique_by is None else f"user {rng.randint(1, 9)}"
            return Event(metric.name, quantity, at, value_of)
        if metric.aggregation in ("max", "last"):
            event = Event(metric.name, rng.choice([0, quantity, quantity]), at)
            return event if self.is_clear(org, event) else None
        return Event(metric.name, quantity, at)

    def is_clear(self, org, event):
        """What was charged is not taken back: so a late level is clear where it lowers nothing that may have been charged.

        Nor are two levels of one moment.
        """
        account = org.account
        if any(event.metric == other.metric and event.at == other.at for other in account.events):
            return False
        after = Account(self.metrics, self.plans, [*account.events, event], account.uses, account.subscriptions)
        for period in account.periods():
            known = period.start if self.metrics[event.metric].aggregation == "max" else period.end
            if known > org.decided + TICK:
                continue
            if after.total(event.metric, period) < account.total(event.metric, period):
                return False
            # Reports keep what a period began with.
            if after.level(event.metric, period.start) < account.level(event.metric, period.start):
                return False
        return True

    def details(self, event):
        """What of an event goes beyond metric, quantity and time."""
        if event.value is None:
            return {}
        if self.metrics[event.metric].unique_by is None:
            return {"member_id": event.value}
        return {"properties": {"user": event.value, "noise": self.rng.randint(1, 3)}}

    def record(self):
        """One event."""
        org = self.some()
        event = self.some_event(org)
        if event is None:
            return
        named = self.details(event)
        if event.at != self.now or self.rng.random() < 0.3:
            named["occurred_at"] = event.at
        if self.rng.random() < 0.7:
            named["event_id"] = f"event {len(org.names)}"
            org.names.append((event, named))
        self.equal(self.say_value(org, "record_usage", event.metric, event.quantity, **named), True, org)
        org.account.events.append(event)

    def say_value(self, org, function, *arguments, **named):
        """For a function that gives one value."""
        self.done[function] += 1
        self.note(org, f"{function}{arguments} {named}")
        places = ["%s"] * (len(arguments) + 1) + [f"{name} => %s" for name in named]
        try:
            return value(self.db, f"select billing.{function}({', '.join(places)})", org.org, *[adapt(given) for given in [*arguments, *named.values()]])
        except Refused as error:
            self.test.fail(f"\nrefused: {code_of(error)} {error.diag.message_detail}{self.story(org)}")

    def record_ahead(self):
        """By a clock that is ahead of ours; then time passes."""
        org, ahead = self.some(), datetime.timedelta(seconds=self.rng.randint(1, 300))
        event = Event(self.rng.choice(["calls", "plain", "third"]), self.rng.randint(1, 20), self.now + ahead)
        self.equal(self.say_value(org, "record_usage", event.metric, event.quantity, occurred_at=event.at), True, org)
        org.account.events.append(event)
        self.look(org)
        self.set_clock(self.now + HOUR)

    def repeat(self):
        """An event again, sometimes long after and sometimes garbled: its id is known."""
        org = self.some()
        if org.names:
            event, named = self.rng.choice(org.names)
            quantity = event.quantity if self.rng.random() < 0.6 else event.quantity + 5
            named = {name: given for name, given in named.items() if name != "occurred_at" or self.rng.random() < 0.5}
            self.equal(self.say_value(org, "record_usage", event.metric, quantity, **named), False, org)

    def record_batch(self):
        """Events of several orgs; some twice, some known."""
        items, fresh, duplicates = [], [], 0
        for _ in range(self.rng.randint(1, 14)):
            org = self.some()
            event = self.some_event(org)
            if event is None or any(event.metric == other.metric and self.metrics[event.metric].aggregation in ("max", "last") for _, other in fresh):
                continue
            item = {"org_id": str(org.org), "metric": event.metric, "quantity": event.quantity, "occurred_at": event.at.isoformat(), **self.details(event)}
            known = org.names and self.rng.random() < 0.2
            if known or self.rng.random() < 0.6:
                item["event_id"] = self.rng.choice(org.names)[1]["event_id"] if known else f"event {len(org.names)}"
            items.append(item)
            if known:
                duplicates += 1
                continue
            fresh.append((org, event))
            if "event_id" in item:
                org.names.append((event, {**self.details(event), "event_id": item["event_id"]}))
                if self.rng.random() < 0.3:
                    items.append({**item, "quantity": event.quantity + 1})
                    duplicates += 1
        if self.rng.random() < 0.15:
            self.refuse_batch(items)
        self.done["record_usage_batch"] += 1
        self.note(None, f"record_usage_batch({items})")
        (found,) = rows(self.db, "select * from billing.record_usage_batch(%s)", psycopg2.extras.Json(items))
        self.equal(tuple(found), (len(fresh), duplicates))
        for org, event in fresh:
            org.account.events.append(event)

    def refuse_batch(self, items):
        """One bad event, and none counts."""
        bad = {"org_id": str(self.some().org), **self.rng.choice([{"metric": "calls", "quantity": 0}, {"metric": "nothing"},
                                                                  {"metric": "calls", "occurred_at": (self.now + HOUR).isoformat()}])}
        place = self.rng.randint(0, len(items))
        try:
            rows(self.db, "select * from billing.record_usage_batch(%s)", psycopg2.extras.Json([*items[:place], bad, *items[place:]]))
            self.test.fail("a bad event was taken" + self.story())
        except Refused as error:
            self.test.assertIn(f'"item": {place + 1}', (error.diag.message_detail or "").replace('":', '": ').replace('":  ', '": '), self.story())

    # ---- the steps: consumption

    def asked(self, org):
        """A metric that can be consumed, a quantity, what it costs now, and the refusal that has to come; None: who knows."""
        rng, account = self.rng, org.account
        # Levels are reported: consuming them adds to a count that is none.
        metrics = [metric for metric in self.metrics.values() if metric.aggregation in ("sum", "unique") and metric.unit in org.units]
        if not metrics:
            return None
        metric, quantity = rng.choice(metrics), rng.choice([1, 1, rng.randint(1, 10), rng.randint(1, 40)])
        period = account.period(self.now)
        used = account.total(metric.name, period)
        cost = account.cost(metric.name, period, used + quantity) - account.cost(metric.name, period, used)
        beyond = account.overage(metric.name, period, used + quantity) - account.overage(metric.name, period, used)
        refusal = "ok"
        if metric.steps is None and beyond and self.ends_at_allowance(metric, period):
            refusal = "PT402 plan_limit"
        elif cost and self.is_due(org):
            # What comes with the period may pay for it, and what is charged before may leave nothing.
            refusal = None
        elif cost > total(self.db, org.org, metric.unit, metric.name):
            refusal = "PT402 insufficient_credits"
        return metric, quantity, cost, refusal

    def ends_at_allowance(self, metric, period):
        """Without a price, nothing comes after it."""
        plan = self.plans[period.plan] if period.plan else Plan()
        limit = plan.limits.get(metric.name)
        return limit == "hard" or (limit is None and metric.name in plan.allowances and metric.tier != "core")

    def is_due(self, org):
        """A period began that brings credits, or a subscription ended, and perhaps nobody noted it in the books."""
        return any(org.begun_until < at for at in self.turns(org))

    def is_plain(self, metric):
        """In no plan, and each unit costs the same."""
        planned = any(metric.name in plan.allowances or metric.name in plan.limits for plan in self.plans.values())
        return not planned and (metric.steps is None or (len(metric.steps) == 1 and metric.steps[0][1] % metric.steps[0][2] == 0))

    def turns(self, org):
        """When whoever calls next finds something to begin or to end."""
        found, before = [], None
        for period in org.account.periods():
            credits = period.plan and self.plans[period.plan].credits
            if period.start <= self.now and (period.subscribed or credits or (before and before.subscribed)):
                found.append(period.start)
            before = period
        return found

    def consume(self):
        """At once, or not at all."""
        org = self.some()
        asked = self.asked(org)
        if asked is None:
            return
        metric, quantity, cost, refusal = asked
        self.look(org, metric.name, quantity)
        arguments, named = (metric.name, quantity), {"idempotency_key": self.key()} if self.rng.random() < 0.7 else {}
        row = self.say(org, "consume_credits", *arguments, **named)
        said = row if isinstance(row, str) else "ok"
        if refusal is None and said != "ok":
            refusal = "PT402 insufficient_credits"
        self.equal(said, refusal or "ok", org)
        org.decided = self.now
        if said == "ok":
            self.equal(row.credits, cost, org)
            org.account.uses.append(Use(metric.name, quantity, self.now))
            if named:
                org.answers.append(("consume_credits", arguments, named, row))

    def replay(self):
        """An earlier call with its key, whatever happened since."""
        org = self.some()
        if org.answers:
            function, arguments, named, first = self.rng.choice(org.answers)
            self.equal(self.get(org, function, *arguments, **named), first._replace(replayed=True), org)

    def reserve(self):
        """Counts when it is captured, costs what it would cost now."""
        org = self.some()
        asked = self.asked(org)
        if asked is None:
            return
        metric, quantity, cost, refusal = asked
        ttl = self.rng.choice([1, 30, 400, 2000]) * HOUR
        row = self.say(org, "reserve_credits", metric.name, quantity, ttl, idempotency_key=self.key())
        said = row if isinstance(row, str) else "ok"
        if refusal is None and said != "ok":
            refusal = "PT402 insufficient_credits"
        self.equal(said, refusal or "ok", org)
        org.decided = self.now
        if said == "ok":
            self.equal((row.credits, row.expires_at), (cost, self.now + ttl), org)
            org.holds[row.hold_id] = (metric, quantity, cost, self.now + ttl)
            org.had_holds = True

    def capture(self):
        """Less, as much or more than was reserved, sometimes in a later period; or too late."""
        org = self.some()
        if not org.holds:
            return
        hold = self.rng.choice(list(org.holds))
        metric, reserved, credits, end = org.holds[hold]
        if self.rng.random() < 0.3:
            row = self.say(org, "release_credits", hold)
            self.equal(row if isinstance(row, str) else row.credits, "PT409 hold_closed" if end <= self.now else credits, org)
            del org.holds[hold]
            return
        account, quantity = org.account, self.rng.choice([reserved, self.rng.randint(1, 2 * reserved)])
        period = account.period(self.now)
        used = account.total(metric.name, period)
        cost = account.cost(metric.name, period, used + quantity) - account.cost(metric.name, period, used)
        beyond = account.overage(metric.name, period, used + quantity) - account.overage(metric.name, period, used)
        expected = "ok"
        if end <= self.now:
            expected = "PT409 hold_closed"
        elif metric.steps is None and beyond and self.ends_at_allowance(metric, period):
            expected = "PT402 plan_limit"
        elif cost > credits and self.is_due(org):
            expected = None
        elif cost > credits and cost - credits > total(self.db, org.org, metric.unit, metric.name):
            expected = "PT402 insufficient_credits"
        key = self.key()
        row = self.say(org, "capture_credits", hold, quantity, idempotency_key=key)
        said = row if isinstance(row, str) else "ok"
        if expected is None and said != "ok":
            expected = "PT402 insufficient_credits"
        self.equal(said, expected or "ok", org)
        org.decided = self.now
        if said == "ok":
            self.equal((row.credits, row.quantity), (cost, quantity), org)
            account.uses.append(Use(metric.name, quantity, self.now))
            org.answers.append(("capture_credits", (hold, quantity), {"idempotency_key": key}, row))
        if said in ("ok", "PT409 hold_closed"):
            del org.holds[hold]

    # ---- the steps: credit

    def top_up(self):
        """Pays what is owed first."""
        org, rng = self.some(), self.rng
        unit = rng.choice(["credit", "credit", "USD"])
        named = {"unit": unit, "source": rng.choice(["purchase", "bonus"])}
        if rng.random() < 0.4:
            named["expires_at"] = self.now + rng.randint(1, 2000) * HOUR
        if unit == "credit" and rng.random() < 0.2:
            named["metrics"] = rng.sample(["calls", "third", "users", "peak", "level", "plain"], 2)
        self.get(org, "grant_credits", rng.choice([rng.randint(1, 20), rng.randint(1, 300)]), **named)
        org.units.add(unit)
        self.check_debts(org, [unit])

    def check_debts(self, org, units=("credit", "USD")):
        """Nothing is owed where there is credit for it."""
        for metric, unpaid in rows(self.db, """
                select metric, sum(credits)::int8 from billing.unpaid_overage where org_id = %s and unit = any (%s) group by 1""", org.org, list(units)):
            self.equal((metric, unpaid, total(self.db, org.org, self.metrics[metric].unit, metric)), (metric, unpaid, 0), org)

    # ---- the steps: plans

    def subscribe(self):
        """Now or some time ahead; who is subscribed changes, cancels, or thinks better of it."""
        # Nobody reported anything of the very moment in which a period is cut short.
        self.set_clock(self.now + datetime.timedelta(seconds=7))
        org, rng, now = self.some(), self.rng, self.now
        account = org.account
        last = list(account.subscribed_periods(account.subscriptions[-1])) if account.subscriptions else []
        plan = rng.choice([name for name in self.plans if name != "basis"])
        if last and last[0].start > now:
            if rng.random() < 0.4:
                self.equal(self.get(org, "cancel_subscription").status, "canceled", org)
                account.subscriptions[-1].decisions.append((now, "stop", None))
        elif last and last[-1].end > now:
            self.decide(org, account.subscriptions[-1], next(period for period in last if period.start <= now < period.end), plan)
        else:
            start = now if rng.random() < 0.6 else now + rng.randint(1, 40 * 24) * HOUR
            row = self.get(org, "subscribe", plan, **({} if start == now else {"starts_at": start}))
            account.subscriptions.append(Subscription(start, plan))
            self.equal((row.plan, row.status, row.starts_at), (plan, "active" if start == now else "scheduled", start), org)
            self.equal((row.period_start, row.period_end), account.period(start)[:2], org)
        self.look(org)
        self.set_clock(self.now + HOUR)

    def decide(self, org, subscription, period, plan):
        """What becomes of a subscription that runs. Changes of plan within a period are for other tests: what they come to
        depends on what was charged before them.
        """
        chance = self.rng.random()
        if chance < 0.4:
            what = "change" if plan != period.plan else "go on"
            if self.rng.random() < 0.5:
                row = self.get(org, "change_plan", plan, True)
            else:
                row = self.get(org, "subscribe", plan, **({"starts_at": period.end} if what == "change" else {}))
            self.equal((row.pending_plan, row.cancel_at_period_end), (plan if what == "change" else None, False), org)
        elif chance < 0.7:
            what, row = "cancel", self.get(org, "cancel_subscription")
            self.equal((row.status, row.pending_plan, row.cancel_at_period_end), ("active", None, True), org)
        elif chance < 0.8:
            what, row = "go on", self.get(org, "subscribe", period.plan)
            self.equal((row.pending_plan, row.cancel_at_period_end), (None, False), org)
        elif self.now > period.start:
            what, row = "stop", self.get(org, "cancel_subscription", False)
            self.equal((row.status, row.ends_at), ("canceled", self.now), org)
            org.begun_until -= TICK
        else:
            return
        if what != "stop":
            self.equal((row.plan, row.period_start, row.period_end), (period.plan, period.start, period.end), org)
        subscription.decisions.append((self.now, what, plan))

    # ---- looking

    def look(self, org, metric=None, quantity=None):
        """check_limit() of a metric against what the model counts."""
        metric = self.metrics[metric or self.rng.choice(list(self.metrics))]
        quantity = quantity or self.rng.choice([1, self.rng.randint(1, 30)])
        account, period = org.account, org.account.period(self.now)
        used, allowance = account.total(metric.name, period), account.allowance(metric.name, period)
        required = account.cost(metric.name, period, used + quantity) - account.cost(metric.name, period, used)
        self.note(org, f"check_limit({metric.name}, {quantity})")
        row = call(self.db, "check_limit", org.org, metric.name, quantity)
        remaining = None if allowance is None else max(0, allowance - used)
        # What nothing limits is counted by whole days.
        seen = used if self.is_plain(metric) else row.used
        self.equal((metric.name, seen, row.included, row.remaining, row.credits_required, row.resets_at),
                   (metric.name, used, allowance, remaining, required, period.end), org)
        available = self.available(org, metric)
        if available is not None:
            self.equal(("credits_available", row.credits_available), ("credits_available", available), org)
            self.equal((row.allowed, row.reason), self.verdict(metric, period, used, quantity, required, available), org)

    def available(self, org, metric):
        """Credit less what is owed; None where levels are charged at moments of their own, or credit is about to come."""
        account = org.account
        if self.is_due(org) or any(self.metrics[event.metric].aggregation in ("max", "last") and self.metrics[event.metric].unit == metric.unit for event in account.events):
            return None
        mine = {event.metric for event in account.events} | {use.metric for use in account.uses}
        cost = sum(account.cost(name, period) for period in account.periods() for name in mine if self.metrics[name].unit == metric.unit)
        paid = value(self.db, "select -coalesce(sum(amount), 0)::int8 from billing.entries where org_id = %s and unit = %s and kind = 'usage'", org.org, metric.unit)
        return max(0, total(self.db, org.org, metric.unit, metric.name) - (cost - paid))

    def verdict(self, metric, period, used, quantity, required, available):
        """The order of the reasons."""
        plan = self.plans[period.plan] if period.plan else Plan()
        hard, included = plan.limits.get(metric.name) == "hard", metric.name in plan.allowances
        allowance = plan.allowance(metric.name)
        if allowance is None or used + quantity <= allowance:
            return True, "included"
        if plan.limits.get(metric.name) == "soft":
            return True, "soft_limit"
        if metric.steps is not None and required <= available:
            return True, "credits"
        if metric.steps is None and not included and not hard:
            return True, "included"
        if metric.tier == "core" and not hard:
            return True, "core"
        if metric.steps is None or (included or hard) and available == 0:
            return False, "plan_limit"
        return False, "insufficient_credits"

    def look_at_months(self):
        """What adds up is exact in usage_by_month at any moment."""
        org = self.some()
        self.check_months(org, [name for name, metric in self.metrics.items() if metric.aggregation in ("sum", "unique")])

    def check_months(self, org, metrics):
        """usage_by_month against the model."""
        account, periods = org.account, org.account.periods()
        found = {(metric, month): quantity for metric, month, quantity in
                 rows(self.db, "select metric, month, quantity from billing.usage_by_month where org_id = %s", org.org)}
        last = max([self.now, *(event.at for event in account.events)])
        month, seen = ORIGIN, set()
        while month <= last:
            for metric in metrics:
                expected = account.used_in_month(metric, month.date(), periods, self.now)
                seen.add((metric, month.date()))
                if expected is not None:
                    self.equal((metric, month.date(), found.get((metric, month.date())) or 0), (metric, month.date(), expected), org)
            month = months_later(month, 1)
        self.equal({name for name in found if name[0] in metrics} - seen, set(), org)

    # ---- settlement

    def settle_org(self):
        """One org; all must be as the model has it then."""
        org = self.some()
        self.get(org, "settle_org")
        again = self.get(org, "settle_org")
        self.equal((again.charged, again.renewed, again.events), (0, 0, 0), org)
        self.check_settled(org)

    def settle_all(self):
        """As the scheduler does."""
        self.done["settle"] += 1
        self.note(None, "call settle()")
        rows(self.db, "call billing.settle()")
        self.equal([tuple(row) for row in rows(self.db, "select org_id, sqlstate, message, detail from billing.settlement_faults")], [])
        for org in self.orgs:
            self.check_settled(org)

    def check_settled(self, org):
        """Right after a settlement."""
        org.decided = org.begun_until = self.now
        if org.account.events:
            org.units |= {unit for (unit,) in rows(self.db, "select unit from billing_internal.lanes where org_id = %s", org.org)}
        self.check_charges(org)
        self.check_debts(org)
        self.check_months(org, list(self.metrics))
        self.check_renewals(org)

    def check_charges(self, org):
        """What each period was charged for each metric, by the ledger."""
        account, periods, charged = org.account, org.account.periods(), defaultdict(int)
        starts = [period.start for period in periods]
        for metric, at, credits in rows(self.db, """
                select metric, case when source = 'settlement' then source_id::timestamptz else created_at end, -amount
                  from billing.entries where org_id = %s and kind = 'usage'
                union all
                select metric, period_start, credits from billing.unpaid_overage where org_id = %s""", org.org, org.org):
            charged[metric, starts[bisect.bisect_right(starts, at) - 1]] += credits
        counted = {(metric, start): (quantity, overage) for metric, start, quantity, overage in
                   rows(self.db, "select metric, period_start, quantity, overage from billing_internal.period_usage where org_id = %s", org.org)}
        self.equal({start for _, start in counted} - set(starts), set(), org)
        costs = Counter()
        for name in {event.metric for event in account.events} | {use.metric for use in account.uses}:
            for period in periods:
                # A level is charged in the last moment of the period, a peak from its beginning.
                aggregation = self.metrics[name].aggregation
                is_due = period.end <= self.now + TICK if aggregation == "last" else period.start <= self.now or aggregation != "max"
                quantity = account.total(name, period) if is_due else 0
                cost = account.cost(name, period, quantity)
                costs[name] += cost
                self.equal((name, period, charged[name, period.start]), (name, period, cost), org)
                if is_due and not self.is_plain(self.metrics[name]):
                    overage = account.overage(name, period, quantity)
                    self.equal((name, period, counted.get((name, period.start), (0, 0))), (name, period, (quantity, overage)), org)
        reported = Counter(dict(rows(self.db, "select metric, sum(credits)::int8 from billing.usage_by_month where org_id = %s group by 1", org.org)))
        self.equal({name: n for name, n in reported.items() if n}, {name: n for name, n in costs.items() if n}, org)

    def check_renewals(self, org):
        """Each period that has begun brought its credits, once."""
        granted, rest = defaultdict(list), defaultdict(int)
        for plan, at, amount, expired in rows(self.db, """
                select split_part(e.source_id, ' ', 1) as plan, split_part(e.source_id, ' ', 2)::timestamptz as at, e.amount,
                       (select coalesce(-sum(x.amount), 0) from billing.entries x where x.org_id = e.org_id and x.grant_id = e.grant_id and x.kind = 'expiry') as expired
                  from billing.entries e where e.org_id = %s and e.kind = 'plan' order by e.entry_id""", org.org):
            granted[plan, at].append(amount)
            rest[at] += expired
        expected, before, cut = {}, None, []
        for period in org.account.periods():
            credits = self.plans[period.plan].credits if period.subscribed else None
            if credits and period.start <= self.now:
                amount, found = credits["amount"], granted.get((period.plan, period.start), [])
                if any(period.start == subscription.start for subscription in org.account.subscriptions):
                    # Who ended one in the middle of a period has the credits for the rest of it.
                    amount = max(0, amount - sum(earlier.part(given, period.start) for earlier, given in cut))
                if period.end < period.whole[1]:
                    cut.append((period, amount))
                amounts = [amount] if amount else []
                if credits["rollover"] == "capped" and before and before.subscribed and before.end == period.start:
                    over = min(credits["cap"], rest[before.start])
                    if org.had_holds and sum(found[1:]) <= credits["cap"]:
                        # What was reserved came back too late.
                        over = sum(found[1:])
                    amounts += [over] if over else []
                if amounts:
                    expected[period.plan, period.start] = amounts
            before = period
        self.equal({name: amounts for name, amounts in granted.items() if name[0] != "basis"}, expected, org)
        self.check_default_credits(org, {at: amounts for (plan, at), amounts in granted.items() if plan == "basis"})

    def check_default_credits(self, org, granted):
        """The default plan's credits: for the calendar month that runs, and never twice."""
        credits = self.plans["basis"].credits if "basis" in self.plans else None
        if not credits:
            self.equal(granted, {}, org)
            return
        # One that begins as a subscription does lasts no time, and may have been begun.
        periods = {period.start: period for period in org.account.periods() if not period.subscribed}
        most, rollover = credits["amount"], credits.get("cap", 0)
        for at, amounts in granted.items():
            self.equal((at in periods or any(at == begun.start for begun in org.account.subscriptions), len(amounts) <= 2), (True, True), org)
            # For the rest of the month; what was given for a part that a subscription cut short counts.
            month = month_start(at)
            share = Period(at, at, None, False, (month, months_later(month, 1)))
            first = share.part(most, at) - sum(share.part(granted[other][0], at) for other in granted if month <= other < at)
            found = ([0] if first <= 0 else []) + amounts
            self.equal((found[0], sum(found) <= max(0, first) + rollover), (max(0, first), True), org)
        current = org.account.period(self.now)
        if not current.subscribed and org.units and current[:2] == current.whole:
            self.equal(current.start in granted, True, org)

    def finish(self):
        """Everything settled and everything sound."""
        self.set_clock(self.now + self.rng.choice([0, 1, 24 * 40]) * HOUR)
        self.settle_all()
        for org in self.orgs:
            for metric in self.metrics:
                self.look(org, metric)
        self.equal(violations(self.db), [])
        self.db.close()


STEPS = {"record": 30, "record_ahead": 1, "repeat": 5, "record_batch": 6, "consume": 14, "replay": 4, "reserve": 4, "capture": 4, "top_up": 8,
         "subscribe": 7, "settle_org": 5, "settle_all": 2, "pass_time": 22, "look_at_months": 3}

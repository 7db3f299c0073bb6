"""Random histories of metered orgs over months of the test clock, against a slow and obvious model that keeps all events and
counts from scratch. Seeds are printed; SEED=… repeats a run, HISTORY=… plays one history of it, HISTORIES=… makes it longer.
"""

import bisect
import calendar
import datetime
import math
import os
import random
import re
import unittest
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, Optional

import psycopg2.extras

from support import LiveTestCase, Refused, adapt, apply_catalog, call, code_of, connect, rows, seeded, total, value, violations

UTC = datetime.timezone.utc
HOUR, DAY, TICK = datetime.timedelta(hours=1), datetime.timedelta(days=1), datetime.timedelta(microseconds=1)
START = datetime.datetime(2027, 11, 20, tzinfo=UTC)
ORIGIN = datetime.datetime(2027, 8, 1, tzinfo=UTC)     # nothing is reported for a time before
END = datetime.datetime(2028, 10, 1, tzinfo=UTC)
HORIZON = datetime.datetime(2029, 3, 1, tzinfo=UTC)    # nor after
MEMBERS = [uuid.UUID(int=n) for n in range(1, 9)]


def months_later(moment, count):
    """The same day and time, or the last day of a month that is shorter."""
    month = moment.month - 1 + count
    year, month = moment.year + month // 12, month % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def shown(what):
    """Short."""
    text = what if isinstance(what, str) else repr(what)
    return re.sub(r"datetime\.datetime\(([\d, ]+), tzinfo=datetime\.timezone\.utc\)", lambda found: "-".join(found[1].split(", ")), text)


def month_of(moment):
    """The first of its month."""
    return moment.date().replace(day=1)


@dataclass
class Metric:
    """As the catalog has it."""

    name: str
    aggregation: str
    steps: Optional[list]  # [(up to, credits, per)]; None: free
    unit: str = "credit"
    unique_by: Optional[str] = None
    tier: Optional[str] = None

    def price(self, quantity):
        """Of so much overage: exact, rounded up once."""
        if quantity == 0:
            return 0
        exact, start = Fraction(0), 0
        for up_to, credits, per in self.steps or []:
            end = quantity if up_to is None else min(quantity, up_to)
            exact += Fraction(credits, per) * max(0, end - start)
            start = max(start, end)
        return math.ceil(exact)

    def document(self):
        """For apply_catalog()."""
        found = {"aggregation": self.aggregation, "unique_by": self.unique_by, "tier": self.tier}
        if self.steps is not None:
            steps = [{"credits": credits, "per": per, **({} if up_to is None else {"up_to": up_to})} for up_to, credits, per in self.steps]
            found["price"] = {"unit": self.unit, "steps": steps}
        return {name: given for name, given in found.items() if given is not None}


@dataclass
class Plan:
    """As the catalog has it."""

    period: str = "month"
    allowances: dict = field(default_factory=dict)  # None: unlimited
    limits: dict = field(default_factory=dict)
    credits: Optional[dict] = None
    default: bool = False

    def allowance(self, metric):
        """None: no limit."""
        return None if self.limits.get(metric) == "unlimited" else self.allowances.get(metric, 0)

    def boundary(self, anchor, count):
        """Start of a period counted from the anchor."""
        return months_later(anchor, count) if self.period == "month" else anchor + count * {"week": 7, "day": 1}[self.period] * DAY

    def document(self):
        """For apply_catalog()."""
        allowances = {metric: "unlimited" if allowance is None else allowance for metric, allowance in self.allowances.items()}
        found = {"period": self.period, "allowances": allowances, "limits": self.limits, "default": self.default}
        return {**found, "credits": self.credits} if self.credits else found


class Event(NamedTuple):
    """What was reported."""

    metric: str
    quantity: int
    at: datetime.datetime
    value: Optional[str] = None


class Use(NamedTuple):
    """What was consumed or captured."""

    metric: str
    quantity: int
    at: datetime.datetime


class Period(NamedTuple):
    """A billing period; of a subscription, or a calendar month without one."""

    start: datetime.datetime
    end: datetime.datetime
    plan: Optional[str]
    subscribed: bool
    whole: tuple  # from when to when it would run if nothing cut it short

    def part(self, amount, moment):
        """What of an amount for the whole of it falls on the time from a moment."""
        start, end = self.whole
        return amount * (end - min(max(moment, start), end)) // (end - start)


@dataclass
class Subscription:
    """What was asked for, in order: (when, what, plan)."""

    start: datetime.datetime
    plan: str
    decisions: list = field(default_factory=list)


@dataclass
class Account:
    """All that ever happened to an org; every answer is counted anew from it."""

    metrics: dict
    plans: dict
    events: list = field(default_factory=list)
    uses: list = field(default_factory=list)
    subscriptions: list = field(default_factory=list)

    def subscribed_periods(self, subscription):
        """Its periods, one after the other."""
        plan, anchor, count, start = subscription.plan, subscription.start, 0, subscription.start
        while start < HORIZON:
            end = self.plans[plan].boundary(anchor, count + 1)
            made = [decision for decision in subscription.decisions if decision[0] < end and (decision[0] >= start or start == subscription.start)]
            stop = next((at for at, what, _ in made if what == "stop"), None)
            if stop is not None:
                if stop > start:
                    yield Period(start, stop, plan, True, (start, end))
                return
            yield Period(start, end, plan, True, (start, end))
            _, what, wanted = made[-1] if made else (None, "go on", None)
            if what == "cancel":
                return
            if what == "change" and self.plans[wanted].period != self.plans[plan].period:
                anchor, count = end, -1
            if what == "change":
                plan = wanted
            start, count = end, count + 1

    def periods(self):
        """Those of the subscriptions, and calendar months before, between and after them."""
        default = next((name for name, plan in self.plans.items() if plan.default), None)
        found, free = [], ORIGIN

        def fill(until):
            start = free
            while start < until:
                month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
                end = min(until, months_later(month, 1))
                found.append(Period(start, end, default, False, (month, months_later(month, 1))))
                start = end

        for subscription in self.subscriptions:
            mine = list(self.subscribed_periods(subscription))
            if mine:
                fill(mine[0].start)
                found += mine
                free = mine[-1].end
        fill(HORIZON)
        return found

    def period(self, moment):
        """The one around a moment."""
        return next(period for period in self.periods() if period.start <= moment < period.end)

    def level(self, metric, before):
        """What was reported last of the time before."""
        known = [(event.at, n) for n, event in enumerate(self.events) if event.metric == metric and event.at < before]
        return self.events[max(known)[1]].quantity if known else 0

    def total(self, metric, period):
        """What was used of a metric in a period."""
        inside = [event for event in self.events if event.metric == metric and period.start <= event.at < period.end]
        consumed = sum(use.quantity for use in self.uses if use.metric == metric and period.start <= use.at < period.end)
        aggregation = self.metrics[metric].aggregation
        if aggregation == "sum":
            return sum(event.quantity for event in inside) + consumed
        if aggregation == "unique":
            return len({event.value for event in inside}) + consumed
        if aggregation == "max":
            return max([self.level(metric, period.start), *(event.quantity for event in inside)])
        return self.level(metric, period.end)

    def allowance(self, metric, period):
        """None: no limit."""
        return self.plans[period.plan].allowance(metric) if period.plan else 0

    def overage(self, metric, period, quantity):
        """The part of a quantity that goes beyond."""
        allowance = self.allowance(metric, period)
        return 0 if allowance is None else max(0, quantity - allowance)

    def cost(self, metric, period, quantity=None):
        """Of the overage of a quantity in a period; without one, of what was used."""
        quantity = self.total(metric, period) if quantity is None else quantity
        return self.metrics[metric].price(self.overage(metric, period, quantity))

    def used_in_month(self, metric, month, periods, now):
        """What usage_by_month shows, once all is settled; None where nothing has to stand there."""
        aggregation = self.metrics[metric].aggregation
        mine = [event for event in self.events if event.metric == metric]
        inside = [event for event in mine if month_of(event.at) == month]
        if aggregation == "sum":
            quantity = sum(event.quantity for event in inside)
        elif aggregation == "unique":
            # A value counts where its period heard of it first.
            seen, quantity = set(), 0
            for event in mine:
                name = (next(period for period in periods if period.start <= event.at < period.end), event.value)
                quantity += name not in seen and month_of(event.at) == month
                seen.add(name)
        elif aggregation == "max":
            begun = [self.level(metric, period.start) for period in periods if period.start <= now and month_of(period.start) == month]
            quantity = max([0, *begun, *(event.quantity for event in inside)])
        else:
            end = min(months_later(datetime.datetime(month.year, month.month, 1, tzinfo=UTC), 1), now + HOUR)
            ended = [period for period in periods if period.end <= now + TICK and month_of(period.end - TICK) == month]
            return self.level(metric, end) if inside or ended else None
        return quantity + sum(use.quantity for use in self.uses if use.metric == metric and month_of(use.at) == month)


def random_steps(rng):
    """A graduated price."""
    up_to, steps = 0, []
    for _ in range(rng.choice([0, 1, 1, 2])):
        up_to += rng.randint(1, 25)
        steps.append((up_to, rng.randint(0, 6), rng.randint(1, 4)))
    return [*steps, (None, rng.randint(0, 4), rng.randint(1, 5))]


def random_metrics(rng):
    """Of every kind; the last ones are in no plan."""
    tier = lambda: rng.choice([None, "core", "premium"])
    planned = [Metric("calls", "sum", random_steps(rng), tier=tier()), Metric("third", "sum", [(None, 1, 3)], tier=tier()),
               Metric("flat", "sum", [(None, 2, 1)], tier=tier()), Metric("free", "sum", None, tier=tier()),
               Metric("money", "sum", random_steps(rng), unit="USD", tier=tier()), Metric("peak", "max", random_steps(rng)),
               Metric("level", "last", random_steps(rng)), Metric("users", "unique", random_steps(rng), unique_by="user"),
               Metric("members", "unique", [(None, 3, 1)])]
    other = [Metric("plain", "sum", [(None, 1, 1)]), Metric("steps", "sum", random_steps(rng)), Metric("height", "max", [(None, 1, 1)]),
             Metric("depth", "last", [(None, 1, 2)]), Metric("gratis", "sum", None)]
    return {metric.name: metric for metric in planned}, {metric.name: metric for metric in other}


def random_plan(rng, metrics, period="month", default=False):
    """Allowances that are often reached."""
    plan = Plan(period, default=default)
    for metric in metrics:
        if rng.random() < 0.7:
            plan.allowances[metric] = None if rng.random() < 0.06 else rng.choice([0, rng.randint(1, 15), rng.randint(10, 60)])
        if rng.random() < 0.4:
            plan.limits[metric] = rng.choice(["hard", "soft", "soft", "unlimited"])
    if rng.random() < (0.25 if default else 0.75):
        plan.credits = {"amount": rng.randint(5, 120), "rollover": rng.choice(["none", "all", "capped"])}
        if plan.credits["rollover"] == "capped":
            plan.credits["cap"] = rng.randint(0, 40)
    return plan


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


def month_start(moment):
    """Midnight of the first."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


STEPS = {"record": 30, "record_ahead": 1, "repeat": 5, "record_batch": 6, "consume": 14, "replay": 4, "reserve": 4, "capture": 4, "top_up": 8,
         "subscribe": 7, "settle_org": 5, "settle_all": 2, "pass_time": 22, "look_at_months": 3}


class MeteringProperty(LiveTestCase):
    """Metering and the model tell the same story."""

    def fresh_database(self):
        """With the extension and nothing else."""
        name = f"{self.database}_{self.count}"
        self.count += 1
        rows(self.admin, f'create database "{name}" template "{self.model_database}"')
        self.addCleanup(rows, self.admin, f'drop database if exists "{name}" with (force)')
        return name

    @classmethod
    def install(cls, connection):
        """The two steps, without a catalog; the database is copied for each history."""
        rows(connection, "create extension pg_billing")
        rows(connection, "select billing.install()")
        cls.model_database, cls.count = cls.database, 0
        connection.close()

    def test_random_histories(self):
        """Each in a database of its own."""
        one = os.environ.get("HISTORY")
        rng, done = random.Random(0) if one else seeded()[0], Counter()
        for _ in range(1 if one else int(os.environ.get("HISTORIES", "10"))):
            history = History(self, int(one) if one else rng.randrange(2**32))
            for _ in range(history.rng.randint(40, 220)):
                getattr(history, history.rng.choices(list(STEPS), list(STEPS.values()))[0])()
                if history.rng.random() < 0.3:
                    history.look(history.some())
            history.finish()
            done += history.done
        if not one:
            missing = {"record_usage", "consume_credits", "settle", "subscribe", "cancel_subscription", "change_plan"} - set(done)
            self.assertEqual(missing, set(), "the histories left something out")


class Edges(LiveTestCase):
    """Short stories of what random ones come to now and then."""

    @classmethod
    def install(cls, connection):
        """A catalog of its own."""
        rows(connection, "create extension pg_billing")
        rows(connection, "select billing.install()")
        cls.clock(connection, "2027-01-01")
        cls.metrics = {"api": {"price": 1}, "plain": {"price": 1}, "disk": {"aggregation": "last", "price": 1}, "peak": {"aggregation": "max", "price": 1}}
        cls.plans = {"solo": {"allowances": {"api": 5}}, "team": {"allowances": {"api": 100}}, "weekly": {"period": "week", "allowances": {"api": 50}},
                     "free": {"default": True, "allowances": {"api": 0, "disk": 0, "peak": 0}}}
        apply_catalog(connection, {"metrics": cls.metrics, "plans": cls.plans})

    @staticmethod
    def clock(connection, moment):
        """Of the session."""
        value(connection, "select set_config('billing.test_clock', %s, false)", f"{moment}+00" if " " in moment else f"{moment} 00:00+00")

    def at(self, moment):
        """Goes on to it."""
        self.clock(self.db, moment)

    def setUp(self):
        self.at("2027-01-01")
        self.org_id = self.org(1000)

    def tearDown(self):
        self.assert_sound()

    def record(self, metric, quantity, occurred_at=None):
        """An event."""
        self.assertTrue(call(self.db, "record_usage", self.org_id, metric, quantity, occurred_at=occurred_at and f"{occurred_at} 00:00+00")[0])

    def plan(self, function, *arguments):
        """A call about the subscription."""
        return call(self.db, function, self.org_id, *arguments)

    def settle(self):
        """What that charged."""
        return call(self.db, "settle_org", self.org_id).charged

    def limit(self, metric):
        """Used, included, and the day on which that ends."""
        row = call(self.db, "check_limit", self.org_id, metric)
        return row.used, row.included, row.resets_at.astimezone(UTC).date().isoformat()

    # ---- which period, and by whose terms

    def test_a_period_that_a_subscription_cuts_short_keeps_its_terms(self):
        """What comes late for it is not included in the new plan."""
        self.at("2027-01-10")
        self.record("api", 1)
        self.assertEqual(self.settle(), 1)
        self.at("2027-01-20")
        self.plan("subscribe", "team")
        self.at("2027-01-25")
        self.record("api", 50, "2027-01-12")
        self.assertEqual(self.settle(), 50)

    def test_a_period_that_was_cancelled_at_once_keeps_its_terms(self):
        """What was recorded before is included in the plan of then."""
        self.at("2027-01-10")
        self.plan("subscribe", "solo")
        self.at("2027-01-12")
        self.record("api", 5)
        self.at("2027-01-14")
        self.plan("cancel_subscription", False)
        self.assertEqual(self.settle(), 0)
        self.at("2027-01-16")
        self.record("api", 2, "2027-01-13")
        self.assertEqual(self.settle(), 2)

    def test_a_cancellation_holds_before_it_is_settled(self):
        """After the last period, usage belongs to calendar months, though no settlement ran."""
        self.at("2027-01-20")
        self.plan("subscribe", "solo")
        self.plan("cancel_subscription")
        self.at("2027-03-05")
        self.assertEqual(self.limit("api"), (0, 0, "2027-04-01"))
        self.record("api", 4)
        self.assertEqual(self.limit("api"), (4, 0, "2027-04-01"))
        self.assertEqual(self.settle(), 4)
        self.assertEqual(self.limit("api"), (4, 0, "2027-04-01"))

    def test_a_change_of_plan_holds_before_it_is_settled(self):
        """From the end of the period on, also where the new plan has other periods."""
        self.at("2027-01-20")
        self.plan("subscribe", "solo")
        self.plan("change_plan", "team", True)
        self.at("2027-02-25")
        self.assertEqual(self.limit("api"), (0, 100, "2027-03-20"))
        self.plan("change_plan", "weekly", True)
        self.at("2027-04-05")
        self.assertEqual(self.limit("api"), (0, 50, "2027-04-10"))
        self.record("api", 60)
        self.assertEqual(self.settle(), 10)
        self.assertEqual(self.limit("api"), (60, 50, "2027-04-10"))

    def test_a_scheduled_subscription_leaves_the_default_plan_alone(self):
        """Until it begins, the period runs on and the next ones begin."""
        self.addCleanup(apply_catalog, self.db, {"plans": self.plans})
        apply_catalog(self.db, {"plans": {**self.plans, "free": {**self.plans["free"], "credits": {"amount": 7, "rollover": "none"}}}})
        self.at("2027-02-05")
        self.assertEqual(self.settle(), 0)
        self.assertEqual(call(self.db, "consume_credits", self.org_id, "api", 10).credits, 10)
        self.at("2027-02-10")
        self.plan("subscribe", "solo", "2027-04-10 00:00+00")
        self.assertEqual(self.limit("api"), (10, 0, "2027-03-01"))
        self.at("2027-03-20")
        self.assertEqual(call(self.db, "settle_org", self.org_id).renewed, 1)
        self.assertEqual(rows(self.db, "select sum(amount) from billing.entries where org_id = %s and kind = 'plan'", self.org_id), [(14,)])

    # ---- levels

    def test_a_level_outlives_a_subscription(self):
        """Charged at the end of every period, wherever those begin."""
        self.at("2027-01-15")
        self.plan("subscribe", "solo")
        self.record("disk", 10)
        self.plan("cancel_subscription")
        found = []
        for day in ("2027-02-15", "2027-02-28", "2027-03-01", "2027-04-01", "2027-04-15"):
            self.at(day)
            found.append(self.settle())
        self.assertEqual(found, [10, 0, 10, 10, 0])
        self.plan("subscribe", "weekly")
        for day in ("2027-04-16", "2027-04-22", "2027-04-23"):
            self.at(day)
            found.append(self.settle())
        self.assertEqual(found[5:], [0, 10, 0])
        self.assertEqual(value(self.db, "select sum(quantity) from billing_internal.period_usage where org_id = %s", self.org_id), 50)

    def test_a_level_outlives_a_subscription_that_never_began(self):
        """The month is whole again."""
        self.at("2027-01-05")
        self.plan("subscribe", "solo", "2027-01-15 00:00+00")
        self.record("disk", 10)
        self.at("2027-01-10")
        self.plan("cancel_subscription")
        self.at("2027-01-20")
        self.assertEqual(self.settle(), 0)
        self.at("2027-02-20")
        self.assertEqual(self.settle(), 10)
        self.assertEqual(self.limit("disk"), (10, 0, "2027-03-01"))

    def test_a_late_level_of_nothing(self):
        """What was charged stays, but the level is gone from then on."""
        self.at("2027-01-10")
        self.record("disk", 10)
        self.record("peak", 10)
        self.at("2027-02-10")
        self.assertEqual(self.settle(), 10 + 10 + 10)
        self.record("disk", 0, "2027-01-20")
        self.record("peak", 0, "2027-01-20")
        self.assertEqual(self.limit("disk")[0], 0)
        self.assertEqual(self.settle(), 0)
        self.assertEqual(self.limit("disk")[0], 0)
        self.at("2027-04-10")
        self.assertEqual(self.settle(), 0)
        self.assertEqual((self.limit("disk")[0], self.limit("peak")[0]), (0, 0))

    def test_a_late_peak_is_seen_at_once(self):
        """check_limit() knows the level that the period will begin with."""
        self.at("2027-01-10")
        self.record("peak", 10)
        self.at("2027-02-10")
        self.record("peak", 3)
        self.settle()
        self.record("peak", 20, "2027-01-30")
        self.assertEqual(self.limit("peak")[0], 20)
        self.assertEqual(self.settle(), 10 + 10)
        self.assertEqual(self.limit("peak")[0], 20)

    def test_a_peak_is_charged_when_the_period_begins(self):
        """Not a moment before."""
        self.at("2027-01-10")
        self.record("peak", 10)
        self.at("2027-01-31 23:59:59.999999")
        self.assertEqual(self.settle(), 10)
        self.at("2027-02-01")
        self.assertEqual(self.settle(), 10)

    # ---- prices

    def test_a_price_that_changes(self):
        """Usage costs what it cost when it occurred, however late it comes and whenever it is settled."""
        self.at("2027-03-01")
        apply_catalog(self.db, {"metrics": {**self.metrics, "text": {"price": 3}}})
        self.record("text", 4)
        self.assertEqual(self.settle(), 12)
        self.at("2027-03-05")
        apply_catalog(self.db, {"metrics": {**self.metrics, "text": {"price": {"credits": 10, "effective_at": "2027-03-11"}}}})
        self.record("text", 2)
        self.at("2027-03-10 23:59:59.999999")
        self.assertEqual(call(self.db, "check_limit", self.org_id, "text", 5).credits_required, 15)
        self.record("text", 1)
        self.at("2027-03-11")
        self.assertEqual(call(self.db, "check_limit", self.org_id, "text", 5).credits_required, 50)
        self.record("text", 1)
        self.assertEqual(call(self.db, "consume_credits", self.org_id, "text", 2).credits, 20)
        self.assertEqual(self.settle(), 2 * 3 + 1 * 3 + 1 * 10)
        self.at("2027-03-20")
        self.record("text", 3, "2027-03-02")
        self.record("text", 3, "2027-03-12")
        self.assertEqual(self.settle(), 3 * 3 + 3 * 10)
        self.at("2027-05-20")
        self.record("text", 2, "2027-03-03")
        self.record("text", 2)
        self.assertEqual(self.settle(), 2 * 3 + 2 * 10)


if __name__ == "__main__":
    unittest.main()

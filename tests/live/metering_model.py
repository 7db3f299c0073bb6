"""The model of metering: slow and obvious, it keeps all events of an org and counts from scratch whatever it is asked.

test_metering_property.py holds the extension to it.
"""

import calendar
import datetime
import math
import re
import uuid
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, Optional


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


def month_start(moment):
    """Midnight of the first."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


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

#!/usr/bin/env python3
"""Plays a quarter of a product with plans: some hundred organizations, their daily usage, a settlement four times a day.

The clock is billing.test_clock, so that three months pass in less than a minute. At the end every charge is compared with a
calculation of its own, made from the events and the two tables in data/, without the catalog and the database. bin/demo
starts this after replay.py; the connection comes from the PG* variables.
"""

import argparse
import bisect
import collections
import concurrent.futures
import csv
import datetime
import fractions
import itertools
import json
import math
import random
import sys
import time

import psycopg2
import psycopg2.extras

from replay import APP_ROLE, BOLD, DIM, GREEN, PLAIN, RED, TERMINAL, connect, detail_of, identifier, query, say, screen, title

UTC = datetime.timezone.utc
DAY, HOUR = datetime.timedelta(days=1), datetime.timedelta(hours=1)
START, END = datetime.datetime(2027, 1, 1, tzinfo=UTC), datetime.datetime(2027, 4, 1, tzinfo=UTC)
MIB, GIB = 2**20, 2**30
CREDITS_PER_USD = 10_000
# The column of data/capgo_plans.csv that holds the allowance of a metric.
ALLOWANCE = {"mau": "mau", "storage": "storage_bytes", "bandwidth": "bandwidth_bytes", "build_time": "build_seconds"}
PLANS = ("Solo", "Maker", "Team", "Enterprise")
# Of a hundred organizations, and devices that an organization sees on a day.
SHARE = {"Solo": 56, "Maker": 28, "Team": 12, "Enterprise": 4}
DEVICES = {"Solo": 4, "Maker": 8, "Team": 16, "Enterprise": 40}
FIRST = (
    "Amber Arctic Basalt Birch Bright Cedar Cobalt Coral Crimson Delta Ember Fable Fern Flint Garnet Harbor Hazel Indigo Ivory Jade "
    "Juniper Lunar Maple Meadow Nimbus Ochre Onyx Opal Orchid Prairie Quartz River Rowan Sable Scarlet Sierra Silver Tundra Velvet Willow"
).split()
SECOND = "Apps Bank Cargo Clinic Crafts Dental Farms Fitness Foods Games Homes Labs Maps Media Music Parks Pets Radio Rides Shop".split()

STOPPED = "Pixel Pantry"    # stores until nothing is left, and has no credits
PAYER = "Kite Courier"      # buys credits and pays its overage with them
DEBTOR = "Late Bloom"       # overuses without credits, and tops up later
GROWER = "Pine Post"        # moves from Solo to Maker in mid-month
DEBT_FROM, DEBT_UNTIL = START.replace(month=2, day=10), START.replace(month=2, day=25)
TOP_UP_AT = START.replace(month=3, day=10, hour=12)
GROWS_AT = START.replace(month=2, day=15, hour=12)
RETRY_AT = START.replace(month=1, day=20, hour=6)
UPLOAD = 40 * MIB
TOP_UP = 5  # USD


class Org:
    """A customer: what it subscribed to and when, and how much it uses."""

    def __init__(self, name, plan, joined, fill, window=None):
        self.name = name
        self.org_id = identifier("org", name)
        self.joined = joined
        self.stretches = [(joined, plan)]   # plans and since when
        self.left = None                    # end of the subscription
        self.fill = fill                    # metric → typical share of the allowance
        self.window = window                # it reports once a day, in one of four windows of six hours
        self.level = 0                      # of the storage
        self.devices = DEVICES[plan]
        self.serial = 0
        self.events = []                    # what was reported: (metric, quantity or device, when)

    def plan(self, at):
        """The plan at a moment."""
        return [plan for since, plan in self.stretches if since <= at][-1]

    def event(self, metric, occurred_at, quantity=1, device=None):
        """An event for record_usage_batch; also kept here."""
        self.serial += 1
        self.events.append((metric, quantity if device is None else device, occurred_at))
        event = {"org_id": self.org_id, "metric": metric, "quantity": quantity, "event_id": f"{metric}-{self.serial}",
                 "occurred_at": occurred_at.isoformat()}
        if device is not None:
            event["properties"] = {"device": f"device-{device}"}
        return event


# ---------------------------------------------------------------- the independent calculation


def read_plans(path):
    """{plan: {metric: allowance}} of the table of facts."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["plan"]: {metric: int(row[column]) for metric, column in ALLOWANCE.items()} for row in csv.DictReader(file)}


def read_steps(path):
    """{metric: [(from, to or None, credits per unit)]}, exactly."""
    steps = collections.defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            steps[row["metric"]].append((int(row["step_min"]), int(row["step_max"]) if row["step_max"] else None,
                                         fractions.Fraction(row["price_usd"]) * CREDITS_PER_USD / int(row["per_units"])))
    return steps


def price(steps, quantity):
    """The exact price of so many units, rounded up once."""
    return math.ceil(sum((min(quantity, end or quantity) - start) * each for start, end, each in steps if quantity > start))


def months_after(anchor, months):
    """The same day some months later; the last day of a month that has no such day."""
    year, month = divmod(anchor.month - 1 + months, 12)
    year, month = anchor.year + year, month + 1
    last = (datetime.datetime(year + month // 12, month % 12 + 1, 1) - DAY).day
    return anchor.replace(year=year, month=month, day=min(anchor.day, last))


def periods(org):
    """The billing periods that began by the end of the quarter."""
    for number in itertools.count():
        start, end = months_after(org.joined, number), months_after(org.joined, number + 1)
        if start > END or (org.left and start >= org.left):
            return
        yield start, end


def allowance(org, plans, metric, start, end):
    """What the plans of a period include, in proportion to the time that each was held."""
    inside = [(max(since, start), plan) for (since, plan), (until, _) in
              itertools.zip_longest(org.stretches, org.stretches[1:], fillvalue=(end, None)) if since < end and until > start]
    if len({plan for _, plan in inside}) == 1:
        return plans[inside[0][1]][metric]
    ends = [since for since, _ in inside[1:]] + [end]
    microsecond = datetime.timedelta(microseconds=1)
    held = sum(plans[plan][metric] * ((until - since) // microsecond) for (since, plan), until in zip(inside, ends))
    return held // ((end - start) // microsecond)


def expected(org, plans, steps):
    """(period, metric, used, allowance, overage, credits) of every billing period with usage."""
    level = 0
    for start, end in periods(org):
        of = collections.defaultdict(list)
        for metric, value, occurred_at in org.events:
            if start <= occurred_at < end:
                of[metric].append((occurred_at, value))
        used = {metric: sum(value for _, value in of[metric]) for metric in ("bandwidth", "build_time") if metric in of}
        if "mau" in of:
            used["mau"] = len({value for _, value in of["mau"]})
        # What was stored at the end of a month is stored at the start of the next.
        if level or "storage" in of:
            used["storage"] = max([level, *(value for _, value in of.get("storage", ()))])
        if "storage" in of:
            level = max(of["storage"])[1]
        for metric, quantity in used.items():
            included = allowance(org, plans, metric, start, end)
            overage = max(quantity - included, 0)
            yield start, metric, quantity, included, overage, price(steps[metric], overage)


# ---------------------------------------------------------------- the customers


def make_orgs(count, dice):
    """The four of the stories, and the crowd: in the same way on every run."""
    some = {"mau": 0.1, "storage": 0.5, "bandwidth": 0.4, "build_time": 0.3}
    orgs = [
        Org(STOPPED, "Solo", START + 9 * DAY, some, window=1),
        Org(PAYER, "Maker", START, {**some, "bandwidth": 1.25, "build_time": 1.5}, window=2),
        Org(DEBTOR, "Solo", START, some, window=3),
        Org(GROWER, "Solo", START, {**some, "bandwidth": 0.9}, window=0),
    ]
    names = [f"{first} {second}" for first in FIRST for second in SECOND]
    dice.shuffle(names)
    plans = list(itertools.accumulate(SHARE[plan] for plan in PLANS))
    for name in names[:count - len(orgs)]:
        plan = PLANS[bisect.bisect_right(plans, dice.random() * plans[-1])]
        # Two thirds were there before; the others come during January, some of them on days that other months lack.
        joined = START if dice.random() < 0.66 else START + dice.randrange(1, 31) * DAY + dice.randrange(24) * HOUR
        fill = {metric: dice.uniform(0.1, 0.8) for metric in ALLOWANCE}
        if dice.random() < 0.15:
            fill[dice.choice(["storage", "bandwidth", "build_time"])] = dice.uniform(1.1, 1.8)
        orgs.append(Org(name, plan, joined, fill, window=dice.randrange(4)))
    return orgs


class Quarter:
    """The product and its customers, from day to day."""

    def __init__(self, options):
        self.dice = random.Random(2027)
        self.plans, self.steps = read_plans(options.plans), read_steps(options.steps)
        self.orgs = make_orgs(options.orgs, self.dice)
        self.by_name = {org.name: org for org in self.orgs}
        self.by_id = {org.org_id: org for org in self.orgs}
        self.admins = [connect(), connect()]
        self.apps = [connect(), connect()]
        self.pool = concurrent.futures.ThreadPoolExecutor(2)
        self.events = self.duplicates = self.refused = self.downloads = 0
        self.sent = None
        self.refused_first = None
        self.plan_orgs()

    def plan_orgs(self):
        """Who changes plan, who leaves, and who launches a product."""
        crowd = [org for org in self.orgs[4:] if org.joined == START and max(org.fill.values()) < 1]
        solos = [org for org in crowd if org.plan(START) == "Solo"]
        teams = [org for org in crowd if org.plan(START) == "Team"]
        self.growers = {self.by_name[GROWER]: GROWS_AT}
        for org in solos[:6]:
            self.growers[org] = START.replace(month=3) + self.dice.randrange(8, 22) * DAY + self.dice.randrange(4) * 6 * HOUR
        self.shrinkers, self.leavers, self.launchers = teams[:2], solos[6:9], solos[9:12]

    # -- the clock and the two roles ------------------------------------------------------------------------------

    @staticmethod
    def at(conn, moment, role="none"):
        """Sets the clock, which only a superuser may, and then the role."""
        query(conn, f"reset role; select set_config('billing.test_clock', '{moment.isoformat()}', false); set role {role}")

    def each(self, work):
        """Does work(0) and work(1) at the same time."""
        for future in [self.pool.submit(work, half) for half in (0, 1)]:
            future.result()

    def settle(self, moment):
        """What pg_cron would call, twice at once: each takes half of the organizations."""
        def half(shard):
            self.at(self.admins[shard], moment)
            query(self.admins[shard], "call billing.settle(shard => %s, \"of\" => 2)", shard)
        self.each(half)

    def record(self, moment, events, late=()):
        """The app's own collectors report what was used, each for half of the organizations."""
        events.sort(key=lambda event: event["org_id"])
        middle = len(events) // 2
        halves = [events[:middle], events[middle:] + list(late)]

        def half(number):
            conn = self.apps[number]
            self.at(conn, moment, APP_ROLE)
            return query(conn, "select accepted, duplicates from billing.record_usage_batch(%s)", json.dumps(halves[number]))[0]
        for future in [self.pool.submit(half, number) for number in (0, 1) if halves[number]]:
            accepted, duplicates = future.result()
            self.events += accepted
            self.duplicates += duplicates

    # -- what customers do ----------------------------------------------------------------------------------------

    def usage(self, org, start):
        """What one organization reports of six hours."""
        dice = self.dice
        plan = org.plan(start)
        included = self.plans[plan]
        moment = lambda: start + datetime.timedelta(seconds=dice.randrange(6 * 3600))
        growth = 1 + (start - START) / DAY / 600
        workday = start.weekday() < 5
        many = org.devices
        if org in self.launchers and start.month == 3 and start.day > 5:
            many = 150
        for _ in range(max(1, round(many * dice.uniform(0.6, 1.4)))):
            yield org.event("mau", moment(), device=int(many * 30 * dice.random() ** 2))

        if org.name == STOPPED:
            yield from self.upload_and_download(start)
        else:
            share = org.fill["bandwidth"] * growth * dice.uniform(0.6, 1.4)
            if org.name == DEBTOR and DEBT_FROM <= start < DEBT_UNTIL:
                share *= 16
            yield org.event("bandwidth", moment(), max(1, int(included["bandwidth"] / 30 * share)))
            if dice.random() < 0.3:
                org.level = int(included["storage"] * org.fill["storage"] * growth * dice.uniform(0.85, 1.05))
                yield org.event("storage", moment(), org.level)

        if workday and dice.random() < 0.5:
            share = org.fill["build_time"] * growth * dice.uniform(0.5, 1.5)
            yield org.event("build_time", moment(), max(1, int(included["build_time"] / 10.5 * share)))

    def upload_and_download(self, start):
        """An app that asks before it lets a customer go on: check_limit, metric by metric."""
        org, conn = self.by_name[STOPPED], self.apps[0]
        self.at(conn, start + HOUR, APP_ROLE)
        ask = "select allowed, reason, used, included from billing.check_limit(%s, %s, %s)"
        [(allowed, reason, used, included)] = query(conn, ask, org.org_id, "storage", UPLOAD)
        if allowed:
            org.level += UPLOAD
            yield org.event("storage", start + HOUR, org.level)
        else:
            self.refused += 1
            if self.refused_first is None:
                self.refused_first = start
                self.story(start, f"{org.name} wants to upload {UPLOAD // MIB} MiB: {RED}{reason}{PLAIN} (check_limit), "
                                  f"{used // MIB:,} of {included // MIB:,} MiB used")
        size = self.dice.randrange(150 * MIB, 350 * MIB)
        [(allowed, _, _, _)] = query(conn, ask, org.org_id, "bandwidth", size)
        if allowed:
            yield org.event("bandwidth", start + 2 * HOUR, size)
            if self.refused:
                self.downloads += 1

    def buy(self, org, moment, usd, key):
        """Buys credits: 10,000 for a dollar."""
        self.at(self.apps[0], moment, APP_ROLE)
        query(self.apps[0], """select grant_id from billing.grant_credits(%s, %s, source => 'purchase', cost_minor => %s, currency => 'USD',
                                                                          idempotency_key => %s)""",
              org.org_id, usd * CREDITS_PER_USD, usd * 100, key)

    def join(self, until):
        """Those whose first day has come subscribe."""
        while self.joining and self.joining[0].joined <= until:
            org = self.joining.pop(0)
            self.at(self.apps[0], org.joined, APP_ROLE)
            query(self.apps[0], "select plan from billing.subscribe(%s, %s, idempotency_key => 'sign-up')", org.org_id, org.stretches[0][1])

    def happen(self, moment):
        """What customers decide at this hour."""
        app = self.apps[0]
        first_of_month = moment.day == 1 and moment.hour == 0
        for org in self.orgs if first_of_month else []:
            # Who expects to go over its plan buys enough beforehand.
            over = [metric for metric, share in org.fill.items() if share > 1]
            if over:
                cost = sum(price(self.steps[metric], self.plans[org.stretches[0][1]][metric] // 2) for metric in over)
                self.buy(org, max(moment, org.joined), max(5, math.ceil(cost / CREDITS_PER_USD)), f"{moment:%Y-%m}")
                if org.name == PAYER and moment == START:
                    self.story(moment, f"{org.name} on Maker expects more than its plan has, and buys credits each month")
        if moment.hour == 0:
            self.pay_debts(moment)
        self.at(app, moment, APP_ROLE)
        for org, grows_at in self.growers.items():
            if moment == grows_at:
                [(plan, start, end)] = query(app, "select plan, period_start, period_end from billing.change_plan(%s, 'Maker')", org.org_id)
                org.stretches.append((moment, plan))
                org.fill["bandwidth"] = 1.4 if org.name == GROWER else 0.7
                if org.name == GROWER:
                    included = query(app, "select included from billing.check_limit(%s, 'bandwidth')", org.org_id)[0][0]
                    self.story(moment, f"{org.name} changes from Solo to {plan}: for {start:%B} it has {included / GIB:,.1f} GiB of "
                                       f"bandwidth now,")
                    self.story(None, f"between Solo's {self.plans['Solo']['bandwidth'] / GIB:,.0f} and Maker's "
                                     f"{self.plans['Maker']['bandwidth'] / GIB:,.0f} in proportion to the time")
        if moment == START.replace(month=2, day=20):
            for org in self.shrinkers:
                [(end,)] = query(app, "select period_end from billing.change_plan(%s, 'Maker', at_period_end => true)", org.org_id)
                org.stretches.append((end, "Maker"))
            for org in self.leavers:
                [(org.left,)] = query(app, "select period_end from billing.cancel_subscription(%s)", org.org_id)
            self.story(moment, f"{len(self.shrinkers)} organizations go from Team to Maker with March, {len(self.leavers)} leave; "
                               f"{len(self.growers) - 1} will grow in mid-March")
        if moment == TOP_UP_AT:
            self.top_up(moment)

    def pay_debts(self, moment):
        """Who found more used than its credits could pay buys some the morning after."""
        self.at(self.admins[0], moment)
        for org_id, usd in query(self.admins[0], """
                select org_id::text, 5 * ceil(sum(credits) / 50000.0)::int from billing.unpaid_overage group by org_id order by org_id"""):
            if org_id != self.by_name[DEBTOR].org_id:
                self.buy(self.by_id[org_id], moment, usd, f"{moment:%Y-%m-%d}")

    def top_up(self, moment):
        """The purchase pays at once what was owed: no settlement in between."""
        org = self.by_name[DEBTOR]
        owed = "select coalesce(sum(credits), 0)::bigint from billing.unpaid_overage where org_id = %s"
        self.at(self.admins[0], moment)
        [(before,)] = query(self.admins[0], owed, org.org_id)
        self.buy(org, moment, TOP_UP, "top-up")
        [(after,)] = query(self.admins[0], owed, org.org_id)
        [(balance,)] = query(self.admins[0], "select billing.get_total_credits(%s)", org.org_id)
        self.story(moment, f"{org.name} buys {TOP_UP * CREDITS_PER_USD:,} credits: {GREEN}{before:,} pay at once{PLAIN} for what it owed, "
                           f"{balance:,} are left")
        if not before or after or balance != TOP_UP * CREDITS_PER_USD - before:
            raise SystemExit(f"error: owed {before:,} before the top-up and {after:,} after it, balance {balance:,}")

    def story(self, moment, text):
        """A line between the bars."""
        say(f"  {BOLD}{f'{moment:%d %b}' if moment else '':<6}{PLAIN} {text}")

    # -- the days -------------------------------------------------------------------------------------------------

    def run(self):
        """The quarter in steps of six hours."""
        self.joining = sorted(self.orgs, key=lambda org: org.joined)
        late, late_at = [], None
        begin = time.monotonic()
        moment = START
        while moment < END:
            until = moment + 6 * HOUR
            self.join(moment)
            self.happen(moment)
            self.join(until)
            events = []
            for org in self.orgs:
                if org.window != moment.hour // 6 or org.joined > moment or (org.left and org.left <= moment):
                    continue
                events += self.usage(org, moment)
                if org.left and org.left - moment <= DAY:
                    # Who leaves takes its files along.
                    org.level = 0
                    events.append(org.event("storage", until - datetime.timedelta(seconds=1), 0))
            # A file of downloads comes days late now and then.
            if moment.day in (6, 26) and moment.hour == 6:
                late = [event for event in events if event["metric"] == "bandwidth"][:5]
                events = [event for event in events if event not in late]
                late_at = until + 3 * DAY
            delayed, late = (late, []) if until == late_at else ([], late)
            self.record(until, events, delayed)
            if until == RETRY_AT:
                self.retry(until, events)
            self.settle(until)
            self.progress(until, begin)
            moment = until
        if late:
            raise SystemExit("error: late events were never reported")
        say(f"  {self.events:,} events and 360 settlements in {time.monotonic() - begin:.1f} s")

    def retry(self, moment, events):
        """A collector that got no answer sends the same again."""
        accepted = self.events
        self.record(moment, events)
        self.story(moment, f"a collector sends the same {len(events):,} events again: {self.duplicates:,} duplicates, "
                           f"{self.events - accepted} counted twice")
        if self.events != accepted:
            raise SystemExit("error: events were counted twice")

    def progress(self, until, begin):
        """A bar on a terminal, else a line for each month."""
        share = (until - START) / (END - START)
        line = f"{until - HOUR:%d %b} · {self.events:,} events · {time.monotonic() - begin:.0f} s"
        if TERMINAL:
            with screen:
                print(f"\r\033[K  {'█' * int(share * 30)}{'░' * (30 - int(share * 30))} {line}", end="", flush=True)
        elif until.day == 1 and until.hour == 0:
            say("  " + line)

    # -- after the quarter ----------------------------------------------------------------------------------------

    def check(self):
        """Writes what the events come to, calculated here, beside what was charged; the report compares the two again."""
        admin = self.admins[0]
        rows = [(org.org_id, *row) for org in self.orgs for row in expected(org, self.plans, self.steps)]
        with admin.cursor() as cursor:
            psycopg2.extras.execute_values(cursor, "insert into app.expected values %s", rows, page_size=1000)
        [(wrong, periods_seen, credits)] = query(admin, """
            select count(*) filter (where e.credits is distinct from c.credits or e.used is distinct from c.used
                                       or e.overage is distinct from c.overage), count(*), sum(e.credits)
              from app.expected e full join app.charged c using (org_id, period_start, metric)""")
        [(faults,)] = query(admin, "select count(*) from billing.settlement_faults")
        violations = query(admin, "select violation, detail from billing.verify_ledger()")
        say(f"  {periods_seen:,} sums (by organization, month, metric), {credits:,} credits calculated from the events:"
            + (" as charged" if not wrong else f" {RED}{wrong} DIFFER{PLAIN}"))
        say(f"  verify_ledger(): {len(violations)} violations; settlement_faults: {faults}")
        [(stopped_reason,)] = query(admin, "select reason from billing.check_limit(%s, 'storage', %s)", self.by_name[STOPPED].org_id, UPLOAD)
        say(f"  {STOPPED} since {self.refused_first:%d %b}: {self.refused} uploads refused, {self.downloads} downloads went on")
        if wrong or violations or faults or stopped_reason != "plan_limit" or self.downloads != self.refused:
            for row in query(admin, """select o.name, period_start, metric, e.used, c.used, e.overage, c.overage, e.credits, c.credits
                                         from app.expected e full join app.charged c using (org_id, period_start, metric)
                                         left join app.orgs o using (org_id)
                                        where e.credits is distinct from c.credits or e.used is distinct from c.used
                                           or e.overage is distinct from c.overage limit 10"""):
                say(f"    {row}")
            for row in violations[:5] + query(admin, "select sqlstate, message, detail from billing.settlement_faults limit 5"):
                say(f"    {row}")
            raise SystemExit("error: the quarter did not come out as it should")


def main():
    """Everything, in its order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", required=True, help="metrics and plans, a JSON document")
    parser.add_argument("--plans", required=True, help="CSV file: plan and its allowances")
    parser.add_argument("--steps", required=True, help="CSV file: price steps")
    parser.add_argument("--orgs", type=int, default=200)
    options = parser.parse_args()

    quarter = Quarter(options)
    admin = quarter.admins[0]
    quarter.at(admin, START - DAY)
    with open(options.catalog, encoding="utf-8") as file:
        catalog = file.read()
    title("A product with plans: metrics and plans in one document (billing.apply_catalog)")
    for name, plan in json.loads(catalog)["plans"].items():
        has = plan["allowances"]
        say(f"  {name:<10}  ${plan['price']['USD'] / 100:>4,.0f} a month  {has['mau']:>9,} users  {has['storage'] / GIB:>2,.0f} GiB stored "
            f"{has['bandwidth'] / GIB:>5,.0f} GiB bandwidth {has['build_time'] // 60:>6,} build minutes")
    query(admin, "select count(*) from billing.apply_catalog(%s)", catalog)
    query(admin, "select billing.configure_alerts(shares => array[80, 100])")
    for org in quarter.orgs:
        query(admin, "insert into app.orgs values (%s, %s)", org.org_id, org.name)

    counts = collections.Counter(org.stretches[0][1] for org in quarter.orgs)
    title(f"January to March 2027: {len(quarter.orgs)} organizations ("
          + ", ".join(f"{counts[plan]} {plan}" for plan in PLANS) + ")")
    say(f"  {DIM}on the test clock: record_usage_batch as usage comes in, settle() every six hours in two shards{PLAIN}")
    quarter.run()
    title("Is it right?")
    quarter.check()
    # Whoever looks around finds the clock at the end of the quarter.
    [(database,)] = query(admin, "select quote_ident(current_database())")
    query(admin, f"alter database {database} set billing.test_clock = '{END.isoformat()}'")


if __name__ == "__main__":
    try:
        main()
    except psycopg2.Error as failure:
        say(f"{RED}error{PLAIN} {failure.pgcode or 'connection'}: {(failure.diag.message_primary or str(failure)).strip()}")
        for label, text in [("detail", detail_of(failure)), ("hint", failure.diag.message_hint), ("context", failure.diag.context)]:
            if text:
                say(f"  {label}: {text}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)

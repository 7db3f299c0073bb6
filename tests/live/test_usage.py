"""Recorded usage under load and over time: writers never wait, every count is exact, every charge is made once.

Expected figures are computed here, by hand or by the plain formula, never by the extension.
"""

import datetime
import fractions
import json
import math
import random
import threading
import unittest
import uuid

import psycopg2.extensions
import psycopg2.extras

from support import LiveTestCase, Refused, apply_catalog, await_condition, call, code_of, rows, seeded, statements_of, together, total, value

STEPS = [{"up_to": 50, "credits": 5, "per": 3}, {"credits": 1, "per": 7}]
METRICS = {
    "call": {"price": 1},
    "api": {"price": {"steps": STEPS}},
    "peak": {"aggregation": "max", "price": 2},
    "disk": {"aggregation": "last", "price": 3},
    "mau": {"aggregation": "unique", "unique_by": "user", "price": 5},
    "seat": {"aggregation": "unique", "price": 4},
}
PLANS = {
    "hundred": {"allowances": {"api": 100, "call": 100}},
    "solo": {"credits": {"amount": 100, "rollover": "none"}, "allowances": {"call": 100, "peak": 10, "disk": 5, "mau": 2}},
}
# Whoever waits for another transaction waits in vain: none of them ends before all have written.
NO_WAIT = "-c lock_timeout=1s -c statement_timeout=10s"
NOON = "2027-03-10T12:00Z"


def price(quantity, steps=STEPS):
    """What so much costs: the exact sum of the steps, rounded up once."""
    exact, done = fractions.Fraction(0), 0
    for step in steps:
        part = max(0, min(quantity, step.get("up_to", quantity)) - done)
        exact += fractions.Fraction(part * step["credits"], step["per"])
        done += part
    return math.ceil(exact)


def utc(text):
    """A moment."""
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)


def record(connection, org, metric, quantity=1, **named):
    """record_usage: whether it was new."""
    return call(connection, "record_usage", org, metric, quantity, **named)[0]


def batch(connection, events):
    """record_usage_batch: (accepted, duplicates)."""
    return tuple(rows(connection, "select * from billing.record_usage_batch(%s)", psycopg2.extras.Json(events))[0])


def used(connection, org, metric):
    """What check_limit says is used."""
    return call(connection, "check_limit", org, metric).used


class Usage(LiveTestCase):
    """What all tests of recorded usage need."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        apply_catalog(cls.db, {"metrics": METRICS, "plans": PLANS})

    def setUp(self):
        self.clock(NOON)

    def tearDown(self):
        self.assert_sound()

    def clock(self, moment, connection=None):
        """Sets billing time."""
        rows(connection or self.db, "set billing.test_clock = %s", moment)

    def at(self, moment, count, options="", **named):
        """Connections that live at this moment."""
        return self.connections(count, options=f"-c billing.test_clock={moment} {options}", **named)

    def settle(self, org, as_of=None, connection=None):
        """settle_org."""
        return call(connection or self.db, "settle_org", org, as_of)

    def charged(self, org, metric=None):
        """What the ledger says was burned for usage, and what is still unpaid."""
        return value(self.db, """select (coalesce((select -sum(amount) from billing.entries where org_id = %s and kind = 'usage' and metric = coalesce(%s, metric)), 0)
                                         + coalesce((select sum(credits) from billing.unpaid_overage where org_id = %s and metric = coalesce(%s, metric)), 0))::bigint""",
                     org, metric, org, metric)

    def count(self, table, org):
        """Rows of an org."""
        return value(self.db, f"select count(*) from {table} where org_id = %s", org)

    def stored(self, org):
        """All that recording writes."""
        return {table: rows(self.db, f"select * from {table} where org_id = %s order by 1, 2, 3", org) for table in
                ("billing.usage_events", "billing_internal.unsettled_usage", "billing_internal.usage_uniques")} | {"keys": self.count("billing_internal.usage_event_keys", org)}


class Writers(Usage):
    """Many connections at once."""

    def test_writers_never_wait(self):
        """Sixteen open transactions write the same count, also while a settlement of it is open; who rolls back does not count."""
        writers = self.at(NOON, 16, NO_WAIT, autocommit=False)
        (settler,) = self.at(NOON, 1, NO_WAIT, autocommit=False)
        start = utc("2027-03-10T06:00")
        for metric in ("call", "api", "peak", "disk", "mau"):
            org, committed = self.org(10_000_000), []

            def expected(metric=metric, committed=committed):
                if not committed:
                    return 0
                return {"peak": max, "disk": lambda _: max(committed, key=lambda e: e[1])[0], "mau": lambda _: len({e[2] for e in committed})}.get(
                    metric, sum)(e[0] for e in committed)

            # Settlement is absent, or open while they write and commits before them, or after them.
            for turn, settlement in enumerate(("absent", "commits first", "commits last", "rolls back", "absent")):
                with self.subTest(metric, settlement=settlement):
                    before = expected()
                    if settlement != "absent":
                        self.settle(org, connection=settler)

                    def write(i, barrier, metric=metric, org=org, turn=turn, before=before, settlement=settlement):
                        events = [(1 + (7 * i + 5 * k + 11 * turn) % 37, start + datetime.timedelta(minutes=turn * 60 + (i * 13 + k * 16) % 48, seconds=i), f"{turn}/{i}/{k}")
                                  for k in range(3)]
                        if i == 16:
                            barrier.wait()
                            # All have written, nobody has committed.
                            self.assertEqual(used(self.db, org, metric), before)
                            if settlement == "commits first":
                                settler.commit()
                                self.assertEqual(used(self.db, org, metric), before)
                            barrier.wait()
                            return []
                        for quantity, occurred_at, user in events:
                            self.assertTrue(record(writers[i], org, metric, quantity, event_id=user, occurred_at=occurred_at, properties={"user": user}))
                        barrier.wait()
                        barrier.wait()
                        if i % 4 == 3:
                            writers[i].rollback()
                            return []
                        writers[i].commit()
                        return events

                    for events in together(17, write):
                        committed.extend(events)
                    if settlement == "rolls back":
                        settler.rollback()
                    elif settlement == "commits last":
                        settler.commit()
                    self.assertEqual(used(self.db, org, metric), expected())
            # As many rows as there were writers at once, and the events that they wrote.
            self.assertLessEqual(self.count("billing_internal.unsettled_usage", org), 2 * 16 + 1)
            self.assertEqual(self.count("billing.usage_events", org), len(committed))
            self.assertEqual(len(committed), 5 * 12 * 3)
            self.assertEqual(self.count("billing_internal.usage_event_keys", org), len(committed), "the ids of what was rolled back are free")
            self.settle(org)
            self.assertEqual(used(self.db, org, metric), expected())
            in_period = {"call": lambda q: q, "api": price, "peak": lambda q: 2 * q, "disk": lambda q: 0, "mau": lambda q: 5 * q}[metric]
            self.assertEqual(self.charged(org), in_period(expected()))
            # Levels go on into the next period.
            self.clock("2027-04-10T12:00Z")
            self.settle(org)
            newest = max(committed, key=lambda e: e[1])[0]
            self.assertEqual(self.charged(org), in_period(expected()) + {"peak": 2, "disk": 3}.get(metric, 0) * newest)
            self.clock(NOON)

    def test_who_reads_does_not_hold_writers(self):
        """A check_limit and a consumption in open transactions leave writers alone, and a writer leaves them alone."""
        org = self.org(1000)
        reader, consumer, writer = self.at(NOON, 3, NO_WAIT, autocommit=False)
        record(self.db, org, "api", 5)
        self.assertEqual(used(reader, org, "api"), 5)
        call(consumer, "consume_credits", org, "api", 3)
        record(writer, org, "api", 2)
        record(self.db, org, "api", 4)
        self.assertEqual(used(self.db, org, "api"), 9)
        with self.assertRaises(Refused) as caught:
            rows(self.db, "set lock_timeout = '50ms'")
            self.settle(org)
        self.assertEqual(caught.exception.pgcode, "55P03", "the settlement does wait for the consumption")
        rows(self.db, "reset lock_timeout")
        writer.commit()
        consumer.commit()
        reader.commit()
        self.settle(org)
        self.assertEqual((used(self.db, org, "api"), self.charged(org)), (14, price(14)))

    def test_partitions_are_made_meanwhile(self):
        """Settlement that makes partitions does not hold up writers whose month has none, though one of them has not committed."""
        org = self.org(1000)
        moment = "2040-03-10T12:00Z"
        first, second, maker = self.at(moment, 3, NO_WAIT, autocommit=False)
        record(first, org, "call")

        made = threading.Event()

        def body(i, barrier):
            barrier.wait()
            if i:
                try:
                    rows(maker, "select billing_internal.make_partitions(%s)", moment)
                    return maker.commit()
                finally:
                    made.set()
            written = 0
            while written < 20 or not made.is_set():
                record(second, org, "call")
                second.commit()
                written += 1
            return written

        written, _ = together(2, body)
        first.commit()
        self.clock(moment)
        self.assertEqual(used(self.db, org, "call"), 1 + written)

    def test_every_isolation_level(self):
        """Writers on old snapshots write all the same, and are never told to try again."""
        for level in (psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ, psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE):
            for metric, result in (("call", 36 + 5), ("peak", 8), ("disk", 8), ("mau", 9)):
                with self.subTest(level=level, metric=metric):
                    org = self.org(1000)
                    writers = self.at(NOON, 8, NO_WAIT, autocommit=False)
                    for connection in writers:
                        connection.set_session(isolation_level=level)
                        rows(connection, "select from pg_class limit 1")  # takes the snapshot
                    record(self.db, org, metric, 5, occurred_at=utc("2027-03-10T11:00"), properties={"user": "x"})

                    def write(i, barrier, org=org, metric=metric, writers=writers):
                        barrier.wait()
                        for _ in range(2):
                            record(writers[i], org, metric, i + 1, event_id=str(i), occurred_at=utc(f"2027-03-10T11:{10 + i}"), properties={"user": str(i)})
                        barrier.wait()
                        writers[i].commit()

                    together(8, write)
                    self.assertEqual(used(self.db, org, metric), result)
                    self.settle(org)
                    self.assertEqual(used(self.db, org, metric), result)
                    for connection in writers:
                        connection.close()

    def test_plans_under_every_isolation_level(self):
        """What a plan includes, and a period that is due, count alike whatever a transaction sees of others."""
        for level in ("read committed", "repeatable read", "serializable"):
            with self.subTest(level):
                org = self.org(1000)
                call(self.db, "subscribe", org, "solo")
                record(self.db, org, "call", 30)
                self.assertEqual(total(self.db, org), 1100)
                (session,) = self.at("2027-04-11T12:00Z", 1, autocommit=False)
                rows(session, f"set transaction isolation level {level}")
                # The period begins: its credits take the place of those before, and nothing of it is used yet.
                first = call(session, "consume_credits", org, "call", 40)
                self.assertEqual((first.included, first.credits, first.balance_after), (40, 0, 1100))
                record(session, org, "call", 50)
                limit = call(session, "check_limit", org, "call", 20)
                self.assertEqual((limit.used, limit.remaining, limit.credits_required, limit.credits_available), (90, 10, 10, 1100))
                hold = call(session, "reserve_credits", org, "call", 25)
                self.assertEqual((hold.credits, hold.balance_after), (15, 1085))
                self.assertEqual(call(session, "capture_credits", org, hold.hold_id).credits, 15)
                self.assertEqual(call(session, "check_limit", org, "call").used, 115)
                session.commit()
                session.close()

    def test_one_snapshot(self):
        """A transaction with one snapshot charges by what that sees of recorded usage, a transaction without by what there is; settled, they are the same."""
        for level, included in (("read committed", 50), ("repeatable read", 70), ("serializable", 70)):
            with self.subTest(level):
                org = self.org(1000)
                call(self.db, "subscribe", org, "hundred")
                call(self.db, "consume_credits", org, "call")
                session, other = self.at(NOON, 2, autocommit=False)
                rows(session, f"set transaction isolation level {level}")
                rows(session, "select from pg_class limit 1")  # takes the snapshot
                record(other, org, "call", 49)
                other.commit()
                done = call(session, "consume_credits", org, "call", 70)
                self.assertEqual((done.included, done.credits), (included, 70 - included))
                session.commit()
                self.settle(org)
                self.assertEqual((self.charged(org), used(self.db, org, "call")), (20, 120))
                session.close()
                other.close()

    def test_changed_by_the_same_statement(self):
        """The tables' owner changes the rows that count in the statement that also charges: what it has changed counts."""
        org = self.org(1000)
        call(self.db, "subscribe", org, "hundred")
        self.assertEqual(call(self.db, "consume_credits", org, "api", 3).included, 3)
        (session,) = self.at(NOON, 1, "-c statement_timeout=20s")
        moved = "with moved as materialized (update billing.subscriptions set plan = 'solo' where org_id = %s returning 1)"
        counted = "counted as materialized (update billing_internal.period_usage set quantity = quantity where org_id = %s returning 1)"
        charge = "select (billing.consume_credits(%s, 'api', 3)).included from moved, counted"
        self.assertEqual(value(session, f"{moved}, {counted} {charge}", org, org, org), 0)
        rows(session, "update billing.subscriptions set plan = 'hundred' where org_id = %s", org)

    def test_common_calls_run_no_statement(self):
        """Of a metric in a plan, too: what was used is looked at in the rows that count."""
        # Now: events have a partition where settlement, or the installation, has made it.
        (session,) = self.connections(1)
        rows(session, "set billing.direct_rows = on")
        org, key = str(uuid.uuid4()), lambda: str(uuid.uuid4())
        call(session, "grant_credits", org, 1_000_000)
        call(session, "subscribe", org, "hundred")
        steps = {
            "consume": lambda: call(session, "consume_credits", org, "api", 1, key()),
            "record": lambda: record(session, org, "api", 1, event_id=key()),
            "check": lambda: call(session, "check_limit", org, "api"),
            "allows": lambda: value(session, "select billing.allows(%s, 'api')", org),
        }
        # What a session learns, and the first rows of reports, take statements.
        for _ in range(100):
            for step in steps.values():
                step()
        for name, step in steps.items():
            with self.subTest(name):
                statements = statements_of(session, step)
                self.assertEqual(len(statements), 1, statements)

    def test_same_event_at_the_same_instant(self):
        """Twenty connections report one event: exactly one is told that it is new, whatever the aggregation."""
        connections = self.at(NOON, 20)
        for attempt, metric in enumerate(["call", "api", "peak", "disk", "mau"] * 2):
            org = self.org(1000)

            def report(i, barrier, org=org, metric=metric, attempt=attempt):
                barrier.wait()
                if i % 4 == 3:
                    return batch(connections[i], [{"org_id": str(org), "metric": metric, "quantity": 7, "event_id": f"e{attempt}", "properties": {"user": "u"}}] * 2)[0] == 1
                return record(connections[i], org, metric, 7, event_id=f"e{attempt}", properties={"user": "u"})

            self.assertEqual(sum(together(20, report)), 1)
            self.assertEqual((used(self.db, org, metric), self.count("billing.usage_events", org)), (1 if metric == "mau" else 7, 1))

    def test_the_first_reporter_fails(self):
        """Who repeats an event whose first report is still open waits for it, and is the first when that is rolled back."""
        for ends, expected in (("rollback", True), ("commit", False)):
            org = self.org(1000)
            first, = self.at(NOON, 1, autocommit=False)
            second, = self.at(NOON, 1)
            record(first, org, "mau", event_id="e", properties={"user": "u"})

            def body(i, barrier, org=org, first=first, second=second, ends=ends):
                barrier.wait()
                if i:
                    return record(second, org, "mau", event_id="e", properties={"user": "u"})
                await_condition(lambda: value(self.db, "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", second.info.backend_pid), 30, "the wait")
                return getattr(first, ends)()

            self.assertEqual(together(2, body)[1], expected)
            self.assertEqual((used(self.db, org, "mau"), self.count("billing.usage_events", org)), (1, 1))

    def test_batches_in_opposite_order(self):
        """Batches of the same events in different orders: no deadlock, each event once."""
        orgs = [self.org(100_000) for _ in range(4)]
        connections = self.at(NOON, 6)

        def report(i, barrier):
            barrier.wait()
            accepted = 0
            for turn in range(10):
                events = [{"org_id": str(org), "metric": metric, "quantity": 3, "event_id": f"{turn}/{metric}/{n}", "properties": {"user": f"{n}"}}
                          for org in orgs for metric in ("call", "peak", "mau") for n in range(5)]
                accepted += batch(connections[i], events[::-1] if i % 2 else events)[0]
            return accepted

        self.assertEqual(sum(together(6, report)), 10 * 4 * 3 * 5)
        for org in orgs:
            self.assertEqual([used(self.db, org, metric) for metric in ("call", "peak", "mau")], [150, 3, 5])

    def test_unique_under_concurrency(self):
        """Overlapping users and members from many connections: each counts once per period, and who rolls back leaves his to others."""
        org = self.org(100_000)
        connections = self.at(NOON, 12)
        loser, = self.at(NOON, 1, autocommit=False)
        members = [str(uuid.UUID(int=n + 1)) for n in range(30)]
        record(loser, org, "mau", properties={"user": 7})
        record(loser, org, "mau", properties={"user": "gone"})
        loser.rollback()
        rng, _ = seeded()
        seeds = [rng.random() for _ in connections]

        def report(i, barrier):
            mine = random.Random(seeds[i])
            barrier.wait()
            for _ in range(40):
                member, user = mine.choice(members), mine.randrange(50)
                record(connections[i], org, "mau", mine.randint(1, 9), properties={"user": user})
                batch(connections[i], [{"org_id": str(org), "metric": "seat", "member_id": member}, {"org_id": str(org), "metric": "mau", "properties": {"user": user}}])

        together(12, report)
        for n in range(50):  # whoever was not drawn
            record(self.db, org, "mau", properties={"user": n})
        batch(self.db, [{"org_id": str(org), "metric": "seat", "member_id": member} for member in members * 2])
        self.assertEqual((used(self.db, org, "mau"), used(self.db, org, "seat")), (50, 30))
        self.settle(org)
        self.assertEqual((used(self.db, org, "mau"), self.charged(org, "mau"), self.charged(org, "seat")), (50, 250, 120))
        # A number and its text are the same user.
        record(self.db, org, "mau", properties={"user": "7"})
        self.assertEqual(used(self.db, org, "mau"), 50)
        # Next period they count anew; the last one is not touched.
        self.clock("2027-04-02T00:00Z")
        record(self.db, org, "mau", properties={"user": 7})
        record(self.db, org, "mau", properties={"user": 8}, occurred_at=utc("2027-03-31T23:59:59"))
        self.settle(org)
        self.assertEqual((used(self.db, org, "mau"), self.charged(org, "mau")), (1, 255))

    def test_consumed_and_recorded_together(self):
        """However consumption, recording and settlement mix, the period costs the price of what lies beyond the allowance, once."""
        org = self.org(10_000_000)
        call(self.db, "subscribe", org, "hundred")
        connections = self.at(NOON, 13)
        rng, _ = seeded()
        seeds = [rng.random() for _ in connections]

        def use(i, barrier):
            mine, quantity = random.Random(seeds[i]), 0
            barrier.wait()
            for n in range(40):
                amount = mine.randint(1, 4)
                if i == 12:
                    self.settle(org, connection=connections[i])
                    continue
                if i % 2:
                    call(connections[i], "consume_credits", org, "api", amount, f"{i}/{n}")
                else:
                    self.assertTrue(record(connections[i], org, "api", amount, event_id=f"{i}/{n}"))
                quantity += amount
            return quantity

        everything = sum(together(13, use))
        self.assertEqual(used(self.db, org, "api"), everything)
        self.settle(org)
        self.assertEqual(self.settle(org).charged, 0)
        counter, = rows(self.db, "select * from billing_internal.period_usage where org_id = %s", org)
        self.assertEqual((counter.quantity, counter.overage, counter.credits), (everything, everything - 100, price(everything - 100)))
        self.assertEqual(self.charged(org), price(everything - 100))
        self.assertEqual(total(self.db, org), 10_000_000 - price(everything - 100))

    def test_ten_thousand_events(self):
        """The count of ten thousand unsettled events is a few rows, and check_limit reads no more than for one event."""
        org, small = self.org(100_000), self.org(100_000)
        record(self.db, small, "call")
        connections = self.at(NOON, 8)

        def report(i, barrier):
            barrier.wait()
            with connections[i].cursor() as cursor:
                # As many statements and transactions as events, without the way to and from the client.
                cursor.execute("do $do$ begin for n in 1..1250 loop perform billing.record_usage(%s, 'call', 2, %s || n); commit; end loop; end $do$", (org, f"{i}/"))

        together(8, report)
        self.assertEqual(self.count("billing.usage_events", org), 10_000)
        self.assertEqual(used(self.db, org, "call"), 20_000)
        self.assertLessEqual(self.count("billing_internal.unsettled_usage", org), 3 * 8)

        def blocks(which):
            statement = "explain (analyze, buffers, format json) select * from billing.check_limit(%s, 'call')"
            best = []
            for _ in range(3):
                plan = value(self.db, statement, which)[0]["Plan"]
                best.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
            return min(best)

        self.assertLessEqual(blocks(org), blocks(small) + 60)
        events = self.settle(org).events
        self.assertEqual((events, self.count("billing_internal.unsettled_usage", org), self.charged(org)), (10_000, 0, 20_000))


class Events(Usage):
    """What is accepted, when, and where it counts."""

    def test_batch_is_all_or_nothing(self):
        """Each kind of fault, anywhere in a batch: named by its item, and nothing is stored."""
        org = self.org(100)
        good = {"org_id": str(org), "metric": "call", "event_id": "good"}
        stored = self.stored(org)
        invalid = "22023 invalid_argument"
        cases = [
            ("event", 5), ("event", None), ("event", "text"), ("event", []), ("event", {**good, "quantities": 1}),
            ("org_id", {**good, "org_id": None}), ("org_id", {"metric": "call"}), ("org_id", {**good, "org_id": "acme"}), ("org_id", {**good, "org_id": 7}),
            ("metric", {**good, "metric": None}), ("metric", {"org_id": str(org)}),
            ("quantity", {**good, "quantity": 0}), ("quantity", {**good, "quantity": -1}), ("quantity", {**good, "quantity": 1.5}), ("quantity", {**good, "quantity": "3"}),
            ("quantity", {**good, "quantity": 2**63}), ("quantity", {**good, "quantity": True}), ("quantity", {**good, "quantity": [1]}),
            ("quantity", {**good, "metric": "peak", "quantity": -1}), ("quantity", {**good, "metric": "disk", "quantity": -1}),
            ("event_id", {**good, "event_id": ""}), ("event_id", {**good, "event_id": "x" * 256}),
            ("occurred_at", {**good, "occurred_at": "yesterday"}), ("occurred_at", {**good, "occurred_at": "infinity"}), ("occurred_at", {**good, "occurred_at": "-infinity"}),
            ("occurred_at", {**good, "occurred_at": 1_800_000_000}), ("occurred_at", {**good, "occurred_at": "2027-03-10T12:05:01Z"}), ("occurred_at", {**good, "occurred_at": "2027-02-30"}),
            ("member_id", {**good, "member_id": "me"}), ("member_id", {**good, "metric": "seat"}),
            ("properties", {**good, "properties": []}), ("properties", {**good, "properties": "{}"}), ("properties", {**good, "properties": 1}),
            ("properties", {**good, "metric": "mau"}), ("properties", {**good, "metric": "mau", "properties": {"user": None}}),
            ("metric", {**good, "metric": "teleport"}),
        ]
        for n, (argument, event) in enumerate(cases):
            item = 1 + n % 3
            events = [{**good, "event_id": f"{k}"} for k in range(2)]
            events.insert(item - 1, event)
            with self.subTest(event=event), self.assertRaises(Refused) as caught:
                batch(self.db, events)
            self.assertEqual(code_of(caught.exception), "PT404 unknown_metric" if event == cases[-1][1] else invalid, event)
            detail = json.loads(caught.exception.diag.message_detail)
            self.assertEqual(detail["item"], item, event)
            if event != cases[-1][1]:
                self.assertEqual(detail["argument"], argument, event)
        for events in (None, {}, 5, "text", [{}] * 100_001):
            with self.subTest("no array"), self.assertRaises(Refused) as caught:
                batch(self.db, events) if events is not None else call(self.db, "record_usage_batch", None)
            self.assertEqual(code_of(caught.exception), invalid)
        # What adds up beyond 63 bits is no count.
        with self.assertRaises(Refused) as caught:
            batch(self.db, [{**good, "event_id": f"{k}", "quantity": 2**62} for k in range(3)])
        self.assertIn(caught.exception.pgcode, ("22023", "22003"))
        self.assertEqual(self.stored(org), stored)
        self.assertEqual(used(self.db, org, "call"), 0)
        # The empty batch, and what repeats within one and over several.
        self.assertEqual(batch(self.db, []), (0, 0))
        self.assertEqual(batch(self.db, [good, {**good, "metric": "peak", "quantity": 5}, {**good, "event_id": None}, {**good, "event_id": None}]), (3, 1))
        self.assertEqual(batch(self.db, [good, {**good, "event_id": "other", "quantity": 2**40, "properties": None}]), (1, 1))
        self.assertEqual((used(self.db, org, "call"), used(self.db, org, "peak")), (3 + 2**40, 0))

    def test_the_future(self):
        """Five minutes and no more; what lies beyond the end of the period counts there."""
        org = self.org(100)
        self.clock("2027-01-31T23:58:00Z")
        self.assert_refused("22023 invalid_argument", "record_usage", org, "call", occurred_at=utc("2027-02-01T00:03:00.000001"))
        self.assert_refused("22023 invalid_argument", "record_usage", org, "call", occurred_at=utc("2028-02-01T00:00"))
        with self.assertRaises(Refused) as caught:
            rows(self.db, "select billing.record_usage(%s, 'call', occurred_at => 'infinity')", org)
        self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
        self.assertEqual(self.count("billing.usage_events", org), 0)
        self.assertTrue(record(self.db, org, "call", 3, occurred_at=utc("2027-02-01T00:03:00")))
        self.assertTrue(record(self.db, org, "call", 4, occurred_at=utc("2027-01-31T23:59:59.999999")))
        self.assertEqual(used(self.db, org, "call"), 4)
        self.settle(org)
        self.clock("2027-02-01T00:00:00Z")
        self.assertEqual(used(self.db, org, "call"), 3)
        self.settle(org)
        self.assertEqual(rows(self.db, "select period_start, quantity, credits from billing_internal.period_usage where org_id = %s order by 1", org),
                         [(utc("2027-01-01T00:00"), 4, 4), (utc("2027-02-01T00:00"), 3, 3)])

    def test_settled_periods_are_corrected(self):
        """What comes late is charged in the period in which it occurred, beyond what that one included, at the price of its day; no other period changes."""
        org = self.org(10_000)
        self.clock("2027-01-01T00:00Z")
        call(self.db, "subscribe", org, "hundred")
        periods = [utc(f"2027-0{month}-01T00:00") for month in (1, 2, 3, 4)]

        def state():
            return [(row.period_start, row.quantity, row.overage, row.credits) for row in
                    rows(self.db, "select * from billing_internal.period_usage where org_id = %s and metric = 'api' order by 1, 2, 3", org)]

        self.clock("2027-01-20T00:00Z")
        record(self.db, org, "api", 90)
        self.clock("2027-02-20T00:00Z")
        record(self.db, org, "api", 120)
        self.clock("2027-03-20T00:00Z")
        record(self.db, org, "api", 10)
        self.settle(org)
        self.assertEqual(state(), [(periods[0], 90, 0, 0), (periods[1], 120, 20, price(20)), (periods[2], 10, 0, 0)])
        late = [(0, "2027-01-05T00:00", 30), (0, "2027-01-31T23:59:59", 41), (1, "2027-02-01T00:00", 33), (1, "2027-02-28T12:00", 1), (2, "2027-03-01T00:00", 200)]
        self.clock("2027-04-01T00:00Z")
        self.settle(org)
        quantities = [90, 120, 10]
        for n, (period, when, quantity) in enumerate(late):
            before = self.charged(org)
            self.clock(f"2027-04-0{n + 1}T06:00Z")
            self.assertTrue(record(self.db, org, "api", quantity, event_id=str(n), occurred_at=utc(when)))
            self.assertEqual(used(self.db, org, "api"), 0, "April has nothing of it")
            charge = price(max(0, quantities[period] + quantity - 100)) - price(max(0, quantities[period] - 100))
            self.assertEqual(call(self.db, "check_limit", org, "api").credits_available, 10_000 - before - charge)
            quantities[period] += quantity
            self.assertEqual(self.settle(org).charged, charge)
            entries = rows(self.db, "select kind, metric, quantity, source, source_id, created_at, amount from billing.entries where org_id = %s order by entry_id desc limit 1", org)
            if charge:
                self.assertEqual(entries[0], ("usage", "api", None, "settlement", periods[period].isoformat(), utc(f"2027-04-0{n + 1}T06:00"), -charge))
        self.assertEqual(state(), [(periods[k], q, q - 100, price(q - 100)) for k, q in enumerate(quantities)])
        self.assertEqual(self.charged(org), sum(price(q - 100) for q in quantities))

    def test_late_levels(self):
        """A level that is reported after its period was settled and carried counts there, and in the periods that it reaches."""
        org = self.org(10_000)
        self.clock("2027-01-10T00:00Z")
        for metric in ("peak", "disk"):
            record(self.db, org, metric, 5, occurred_at=utc("2027-01-10T00:00"))
        self.clock("2027-04-10T00:00Z")
        self.settle(org)

        def levels(metric):
            return [row.quantity for row in rows(self.db, "select quantity from billing_internal.period_usage where org_id = %s and metric = %s order by period_start", org, metric)]

        self.assertEqual((levels("peak"), levels("disk")), ([5, 5, 5, 5], [5, 5, 5, 0]))
        self.assertEqual((self.charged(org, "peak"), self.charged(org, "disk")), (2 * 20, 3 * 15))
        # Higher in February, back in March.
        for metric in ("peak", "disk"):
            record(self.db, org, metric, 9, occurred_at=utc("2027-02-20T00:00"))
            record(self.db, org, metric, 4, occurred_at=utc("2027-03-10T00:00"))
        self.settle(org)
        # March began with nine, and nothing that was charged comes back.
        self.assertEqual((levels("peak"), levels("disk")), ([5, 9, 9, 5], [5, 9, 5, 0]))
        self.assertEqual((self.charged(org, "peak"), self.charged(org, "disk")), (2 * 28, 3 * 19))
        self.assertEqual((used(self.db, org, "peak"), used(self.db, org, "disk")), (5, 4))
        # At the same moment as the level that was carried.
        for metric in ("peak", "disk"):
            record(self.db, org, metric, 20, occurred_at=utc("2027-03-10T00:00"))
        self.settle(org)
        self.assertEqual((levels("peak"), levels("disk")), ([5, 9, 20, 20], [5, 9, 20, 0]))
        self.assertEqual((used(self.db, org, "peak"), used(self.db, org, "disk")), (20, 20))

    def test_duplicates_years_later(self):
        """An event id is taken for ever, also when the partition with the event was dropped; reports stay."""
        org = self.org(1000)
        partitions = "select distinct replace(tableoid::regclass::text, 'billing.usage_events_', '') from billing.usage_events where org_id = %s order by 1"
        self.clock("2030-11-30T00:00Z")
        record(self.db, org, "seat", 1, member_id=org)  # nothing has made the partition of its month: it stays where it is
        rows(self.db, "call billing.settle()")
        self.clock("2031-01-05T00:00Z")
        record(self.db, org, "call", 3, event_id="first")
        record(self.db, org, "call", 4, event_id="second")
        record(self.db, org, "mau", 1, event_id="third", properties={"user": "u"})
        self.assertEqual(rows(self.db, partitions, org), [("2031_01",), ("default",)])
        self.clock("2031-02-05T00:00Z")
        rows(self.db, "call billing.settle()")
        record(self.db, org, "call", 5, event_id="fourth", occurred_at=utc("2031-01-31T00:00"))
        report = rows(self.db, "select * from billing.usage_by_month where org_id = %s order by metric, month", org)
        self.assertEqual([(row.metric, row.quantity, row.credits) for row in report], [("call", 12, 7), ("mau", 1, 5), ("seat", 1, 4)])
        rows(self.db, "drop table billing.usage_events_2031_01")
        self.assertEqual(rows(self.db, partitions, org), [("2031_02",), ("default",)])
        self.assertEqual(rows(self.db, "select * from billing.usage_by_month where org_id = %s order by metric, month", org), report)
        self.clock("2041-07-01T00:00Z")
        for event in ("first", "second", "fourth"):
            self.assertFalse(record(self.db, org, "call", 100, event_id=event))
        self.assertEqual(batch(self.db, [{"org_id": str(org), "metric": "call", "event_id": e} for e in ("first", "third", "fifth")]), (1, 2))
        self.assertTrue(record(self.db, self.org(10), "call", event_id="first"), "another org's")
        rows(self.db, "call billing.settle()")
        self.assertEqual((self.charged(org, "call"), self.charged(org, "mau")), (3 + 4 + 5 + 1, 5))
        self.assertEqual(rows(self.db, "select to_char(month, 'YYYY-MM'), quantity, credits from billing.usage_by_month where org_id = %s and metric = 'call' order by 1", org),
                         [("2031-01", 12, 12), ("2041-07", 1, 1)])
        with self.assertRaises(Refused) as caught:
            rows(self.db, "delete from billing_internal.usage_event_keys where org_id = %s", org)
        self.assertEqual(code_of(caught.exception), "42501 append_only")

    def test_one_by_one_and_in_a_batch(self):
        """An event is stored alike both ways, also a large one, in a partition and without one, as a trigger of somebody else sees it."""
        wide = {"text": "".join(random.choice("äöü€abc") for _ in range(50_000)), "n": [1, None, {"deep": True}]}
        events = [{"metric": "call", "quantity": 2}, {"metric": "call", "event_id": "é", "occurred_at": "2032-01-31T23:59:59.999999+00:00"},
                  {"metric": "peak", "quantity": 0, "event_id": "x" * 255, "properties": {}}, {"metric": "disk", "quantity": 2**53 // 3, "properties": wide},
                  {"metric": "seat", "member_id": str(uuid.uuid4()), "event_id": "with all", "properties": {"a": 1}}]  # fmt: skip
        stored = """select metric, quantity, event_id, occurred_at, recorded_at, member_id, properties from billing.usage_events
                     where org_id = %s order by metric, event_id"""
        self.clock("2032-01-02T00:00Z")
        rows(self.db, "call billing.settle()")
        for partition, moment in (("2032_02", "2032-02-10T00:00Z"), ("default", "2033-05-10T00:00Z")):
            self.clock(moment)
            single, many = self.org(1000), self.org(1000)
            rows(self.db, "create table public.seen (org_id uuid)")
            rows(self.db, "create function public.see() returns trigger language plpgsql as $$ begin insert into public.seen values (new.org_id); return new; end $$")
            for turn in range(2):
                for event in events:
                    named = {name: given for name, given in event.items() if name not in ("metric", "quantity")}
                    if "properties" in named:
                        named["properties"] = psycopg2.extras.Json(named["properties"])
                    self.assertEqual(record(self.db, single, event["metric"], event.get("quantity", 1), **named), turn == 0 or "event_id" not in event)
                accepted = batch(self.db, [{"org_id": str(many), **event} for event in events])
                self.assertEqual(accepted, ((5, 0), (2, 3))[turn])
                rows(self.db, "create trigger see before insert on billing.usage_events for each row execute function public.see()" if turn == 0 else "drop trigger see on billing.usage_events")
            # What watches the statement stands at the parent alone.
            rows(self.db, "create function public.see_all() returns trigger language plpgsql as $$ begin insert into public.seen values (null); return null; end $$")
            for watch, forget in (("create trigger see after insert on billing.usage_events for each statement execute function public.see_all()", "drop trigger see on billing.usage_events; drop function public.see_all()"),
                                  ("create rule see as on insert to billing.usage_events do also insert into public.seen values (null)", "drop rule see on billing.usage_events")):  # fmt: skip
                rows(self.db, watch)
                record(self.db, self.org(10), "call")
                self.assertEqual(value(self.db, "with gone as (delete from public.seen where org_id is null returning 1) select count(*) from gone"), 1)
                rows(self.db, forget)
            found = rows(self.db, stored, single)
            self.assertEqual(found, rows(self.db, stored, many))
            self.assertEqual(len(found), 7)
            self.assertEqual(value(self.db, "select count(*) from public.seen where org_id = %s", single), 2)
            where = value(self.db, "select string_agg(distinct tableoid::regclass::text, ' ') from billing.usage_events where org_id = %s", single)
            self.assertEqual(where, f"billing.usage_events_{partition}")
            self.assertEqual([used(self.db, org, metric) for org in (single, many) for metric in ("call", "peak", "disk", "seat")],
                             [4, 0, 2**53 // 3, 1] * 2)
            rows(self.db, "drop function public.see(); drop table public.seen")

    def test_tables_that_somebody_adds_to(self):
        """What a DBA adds to the tables of recorded usage holds from the next event on, also in a session that knew them without it."""
        self.clock("2034-01-02T00:00Z")
        rows(self.db, "call billing.settle()")
        org = self.org(1000)
        at = lambda text: {"properties": psycopg2.extras.Json({"word": text})}
        record(self.db, org, "call", 1, event_id="0", **at("before"))
        by_index = "set enable_seqscan = off; select count(*) from billing.usage_events where properties ->> 'word' = 'within' and org_id = %s"
        added = [
            ("create index events_text on billing.usage_events ((properties ->> 'word'))", "drop index billing.events_text"),
            ("create index events_large on billing.usage_events (quantity) where quantity > 5", "drop index billing.events_large"),
            ("create index keys_half on billing_internal.usage_event_keys (org_id) where event_key > '80000000-0000-0000-0000-000000000000'", "drop index billing_internal.keys_half"),
            ("create index unsettled_text on billing_internal.unsettled_usage ((metric || 'x'))", "drop index billing_internal.unsettled_text"),
            ("create index unsettled_many on billing_internal.unsettled_usage (org_id) where quantity > 3", "drop index billing_internal.unsettled_many"),
            ("create index events_when on billing.usage_events using brin (recorded_at)", "drop index billing.events_when"),
            ("alter index billing_internal.usage_event_keys_pkey rename to keys", "alter index billing_internal.keys rename to usage_event_keys_pkey"),
            ("alter index billing_internal.unsettled_usage_pkey rename to slots", "alter index billing_internal.slots rename to unsettled_usage_pkey"),
            ("alter table billing_internal.unsettled_usage add constraint few check (quantity < 1000)", "alter table billing_internal.unsettled_usage drop constraint few"),
        ]  # fmt: skip
        for n, (add, drop) in enumerate(added, 1):
            rows(self.db, add)
            for i in range(3):
                self.assertTrue(record(self.db, org, "call", n, event_id=f"{n} {i}", **at("within")))
                self.assertFalse(record(self.db, org, "call", n, event_id=f"{n} {i}", **at("again")))
            self.assertEqual(value(self.db, by_index, org), 3 * n)
            self.assertEqual(used(self.db, org, "call"), 1 + sum(3 * m for m in range(1, n + 1)))
            rows(self.db, "reset enable_seqscan")
            rows(self.db, drop) if n < len(added) else None
        with self.assertRaises(Refused) as caught:
            record(self.db, org, "call", 1000, event_id="too many")
        self.assertEqual(caught.exception.pgcode, "23514")
        rows(self.db, added[-1][1])
        self.assertTrue(record(self.db, org, "call", 1000, event_id="too many"))
        self.assertEqual(used(self.db, org, "call"), 1 + 3 * sum(range(1, len(added) + 1)) + 1000)

    def test_reports(self):
        """usage_by_day and usage_by_month are the same before and after settlement, and what the events say."""
        org = self.org(100_000)
        rng, _ = seeded()
        events = []
        for n in range(120):
            metric = rng.choice(["call", "api", "mau"])
            when = utc("2027-01-28T00:00") + datetime.timedelta(minutes=rng.randrange(41 * 1440))
            events.append((metric, when, 1 if metric == "mau" else rng.randint(1, 9), f"{when:%Y-%m}/{n % 60}"))
        # After the first settlement: a level that was carried once is not taken back.
        levels = [(metric, utc(f"2027-02-{day}T{hour:02}:00"), level, "") for metric in ("peak", "disk")
                  for day, hour, level in ((20, 12, 7), (20, 8, 30), (20, 18, 5), (22, 1, 6), (22, 0, 40))]
        rng.shuffle(levels)
        events[70:70] = levels

        def expected(length):
            answer, seen = {}, set()
            for metric, when, quantity, user in events:
                place = (metric, f"{when:%Y-%m-%d}"[:length])
                if metric == "peak":
                    answer[place] = max(answer.get(place, 0), quantity)
                elif metric == "disk":
                    answer[place] = max(answer.get(place, (when, quantity)), (when, quantity))
                elif metric == "mau":
                    answer[place] = answer.get(place, 0) + (user not in seen)
                    seen.add(user)
                else:
                    answer[place] = answer.get(place, 0) + quantity
            return {place: q[1] if isinstance(q, tuple) else q for place, q in answer.items()}

        def report(view, column, length):
            return {(row.metric, str(row.day)[:length]): row.quantity
                    for row in rows(self.db, f"select metric, {column} as day, quantity from billing.{view} where org_id = %s", org)}

        for n, (metric, when, quantity, user) in enumerate(events):
            record(self.db, org, metric, quantity, occurred_at=when, event_id=f"{n}", properties={"user": user})
            if n == 60:
                self.settle(org)
        consumed = call(self.db, "consume_credits", org, "call", 11)
        events.append(("call", utc("2027-03-10T12:00"), 11, ""))
        both = report("usage_by_day", "day", 10), report("usage_by_month", "month", 7)
        # As of settlement, levels have gone on into March: the first day of it has one then.
        carried = {("peak", "2027-03-01"): 6}
        days, months = expected(10), expected(7)
        self.assertEqual({k: v for k, v in both[0].items() if k not in carried and k != ("disk", "2027-02-28")}, days)
        self.assertEqual({k: v for k, v in both[1].items() if k != ("peak", "2027-03")}, months)
        self.assertEqual(value(self.db, "select sum(credits)::bigint from billing.usage_by_day where org_id = %s", org), self.charged(org))
        self.settle(org)
        self.assertEqual(self.charged(org), consumed.credits + sum(price(q) if m == "api" else q * {"call": 1, "mau": 5, "peak": 2, "disk": 3}[m]
                                                                   for (m, _), q in months.items()) - 11 + 2 * 6)
        self.assertEqual(report("usage_by_day", "day", 10), {**days, **carried, ("disk", "2027-02-28"): 6})
        self.assertEqual(report("usage_by_month", "month", 7), {**months, ("peak", "2027-03"): 6})
        for view in ("usage_by_day", "usage_by_month"):
            self.assertEqual(value(self.db, f"select sum(credits)::bigint from billing.{view} where org_id = %s", org), self.charged(org))
        self.assertEqual(self.count("billing_internal.unsettled_usage", org), 0)


class Year(Usage):
    """A year of one customer, 31 October 2027 to 2028, with a leap day, month ends and months that settlement missed."""

    BOUNDARIES = ["2027-10-31", "2027-11-30", "2027-12-31", "2028-01-31", "2028-02-29", "2028-03-31", "2028-04-30",
                  "2028-05-31", "2028-06-30", "2028-07-31", "2028-08-31", "2028-09-30", "2028-10-31"]

    def test_a_year(self):
        """What is granted, included, charged, carried on and expires, month by month."""
        org = uuid.uuid4()
        starts = [utc(f"{day}T09:00") for day in self.BOUNDARIES]

        def go(moment, balance=None):
            self.clock(moment)
            if balance is not None:
                receipt = self.settle(org)
                self.assertEqual((total(self.db, org), receipt.unpaid), (balance, 0), moment)
                return receipt
            return None

        def counter(period, metric):
            found = rows(self.db, "select quantity, overage, credits from billing_internal.period_usage where org_id = %s and metric = %s and period_start = %s", org, metric, starts[period])
            return tuple(found[0]) if found else None

        # 1: a hundred calls and a hundred credits per period; a thousand credits bought that last for a year.
        go("2027-10-31T09:00Z")
        call(self.db, "grant_credits", org, 1000, "purchase", expires_at=starts[12])
        subscription = call(self.db, "subscribe", org, "solo")
        self.assertEqual((subscription.period_start, subscription.period_end), (starts[0], starts[1]))
        self.assertEqual(total(self.db, org), 1100)
        go("2027-11-05T00:00Z")
        record(self.db, org, "call", 150)
        self.assertEqual(go("2027-11-05T00:00Z", 1050).charged, 50)
        self.assertEqual(counter(0, "call"), (150, 50, 50))
        # 2: fifty of the plan's credits are gone, a hundred new ones are there. Thirty are consumed beyond the allowance; of 120
        # recorded, all overage, the plan pays 70 and what was bought 50, in the last moment of the period.
        self.assertEqual(go("2027-11-30T09:00Z", 1100).renewed, 1)
        self.assertEqual(call(self.db, "consume_credits", org, "call", 130).included, 100)
        go("2027-12-20T00:00Z")
        record(self.db, org, "call", 120)
        self.assertEqual(call(self.db, "check_limit", org, "call").resets_at, starts[2])
        # 3: levels. Peak 14 is 4 beyond ten, disk 8 is 3 beyond five; disk is charged when the period ends.
        self.assertEqual(go("2027-12-31T09:00Z", 950 + 100).charged, 120)
        self.assertEqual(counter(1, "call"), (250, 150, 150))
        go("2028-01-15T00:00Z")
        record(self.db, org, "disk", 8, occurred_at=utc("2028-01-10T00:00"))
        record(self.db, org, "peak", 14)
        self.assertEqual(go("2028-01-16T00:00Z", 1050 - 8).charged, 8)
        # 4: the period ends on the leap day. Levels go on without events; four users, two beyond, the last of them in the last second.
        self.assertEqual(go("2028-01-31T09:00Z", 950 + 100 - 8).charged, 9 + 8)
        self.assertEqual((counter(2, "disk"), counter(3, "peak")), ((8, 3, 9), (14, 4, 8)))
        go("2028-02-29T09:00Z")
        for user, when in (("a", "2028-02-28T00:00"), ("b", "2028-02-28T01:00"), ("c", "2028-02-29T00:00"), ("d", "2028-02-29T08:59:59"), ("e", "2028-02-29T09:00")):
            record(self.db, org, "mau", occurred_at=utc(when), properties={"user": user})
        self.assertEqual(used(self.db, org, "mau"), 1)
        # 5: what was left of the plan's credits of the leap month expired. Peak goes on: 8.
        self.assertEqual(go("2028-02-29T09:00Z", 950 + 100 - 8).charged, 10 + 9 + 8)
        self.assertEqual((counter(3, "mau"), counter(3, "disk"), counter(4, "peak")), ((4, 2, 10), (8, 3, 9), (14, 4, 8)))
        self.assertEqual(call(self.db, "check_limit", org, "call").resets_at, starts[5])
        # 5, 6, 7: nobody settles. The levels come down in March and April.
        go("2028-03-10T00:00Z")
        record(self.db, org, "peak", 2)
        record(self.db, org, "mau", properties={"user": "a"})
        go("2028-04-01T00:00Z")
        record(self.db, org, "disk", 5)
        go("2028-05-20T00:00Z")
        record(self.db, org, "call", 77)
        receipt = go("2028-06-01T00:00Z", 950 + 100)
        self.assertEqual((receipt.renewed, receipt.charged), (3, 9))
        self.assertEqual([counter(p, "peak") for p in (4, 5, 6)], [(14, 4, 8), (2, 0, 0), (2, 0, 0)])
        self.assertEqual([counter(p, "disk") for p in (4, 5, 6)], [(8, 3, 9), (5, 0, 0), (5, 0, 0)])
        self.assertEqual((counter(4, "mau"), counter(6, "call")), ((2, 0, 0), (77, 0, 0)))
        # 8: late events. Those of February find an allowance that nobody used, those of November none: 160, of which 100 by the plan.
        go("2028-06-10T00:00Z")
        record(self.db, org, "call", 40, occurred_at=utc("2028-02-01T00:00"))
        record(self.db, org, "call", 160, occurred_at=utc("2027-11-15T00:00"))
        self.assertEqual(go("2028-06-10T00:00Z", 890).charged, 160)
        self.assertEqual((counter(3, "call"), counter(0, "call")), ((40, 0, 0), (310, 210, 210)))
        # 9: 400 consumed, 300 beyond: the plan's hundred, and 200 that were bought. The consumption itself begins the period.
        go("2028-07-10T00:00Z")
        used_up = call(self.db, "consume_credits", org, "call", 400)
        self.assertEqual((used_up.included, used_up.credits, used_up.balance_after), (100, 300, 690))
        # 10: nothing. 11: 400 recorded, and settled only by the renewal of 12.
        go("2028-09-01T00:00Z", 790)
        record(self.db, org, "call", 400)
        limit = call(self.db, "check_limit", org, "call", 1)
        self.assertEqual((limit.used, limit.remaining, limit.credits_required, limit.credits_available), (400, 0, 1, 490))
        # 12: the last one. Levels go to nothing; 50 beyond in the last second are paid by the plan.
        self.assertEqual(go("2028-10-01T00:00Z", 490 + 100).charged, 300)
        self.assertEqual(call(self.db, "cancel_subscription", org).cancel_at_period_end, True)
        go("2028-10-20T00:00Z")
        for metric in ("peak", "disk"):
            record(self.db, org, metric, 0)
        go("2028-10-31T08:59:59Z")
        record(self.db, org, "call", 150)
        receipt = go("2028-11-02T00:00Z", 0)
        self.assertEqual((receipt.charged, receipt.renewed), (50, 0))
        self.assertEqual(rows(self.db, "select starts_at, ends_at, next_period_at from billing.subscriptions where org_id = %s", org), [(starts[0], starts[12], None)])
        self.assertFalse(call(self.db, "check_limit", org, "call").allowed)

        # All of it: twelve grants of the plan, what was used, and what expired of each.
        self.assertEqual(rows(self.db, "select effective_at, expires_at, amount from billing.grants where org_id = %s and source = 'plan' order by 1", org),
                         [(starts[n], starts[n + 1], 100) for n in range(12)])
        used_by_period = [50, 150, 17, 27, 17, 0, 0, 160, 300, 0, 300, 50]
        self.assertEqual(self.charged(org), sum(used_by_period))
        self.assertEqual(rows(self.db, "select (-amount)::int from billing.entries where org_id = %s and kind = 'expiry' order by entry_id", org),
                         [(n,) for n in (50, 83, 73, 83, 100, 100, 100)] + [(50,), (490,)])
        history = rows(self.db, "select * from billing.credit_history(%s, 24)", org)
        self.assertEqual((sum(h.came_in for h in history), sum(h.used for h in history), sum(h.expired for h in history)), (2200, 1071, 1129))
        self.assertEqual({f"{h.month:%Y-%m}": h.closing_balance for h in history if h.came_in or h.used or h.expired}["2028-02"], 1042)
        self.assertEqual(sum(row.credits for row in rows(self.db, "select * from billing.usage_by_month where org_id = %s", org)), 1071)
        # Nothing is left to do.
        self.assertEqual(self.settle(org)[1:], (0, 0, 0, 0))


if __name__ == "__main__":
    unittest.main()

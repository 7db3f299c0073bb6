"""Settlement: every org charged exactly once, whoever runs it, however often, at the same time as whom, and wherever it is stopped.

The servers that are killed are clusters of their own; the settlements that must be seen at work are held up by a lock on one org.
"""

import datetime
import fractions
import math
import random
import threading
import time
import unittest
import uuid

import psycopg2
import psycopg2.extras

from support import Cluster, LiveTestCase, Refused, apply_catalog, await_condition, call, code_of, connect, install_extension, rows, seeded, together, total, value, violations

STEPS = [{"up_to": 50, "credits": 5, "per": 3}, {"credits": 1, "per": 7}]
CATALOG = {
    "metrics": {"call": {"price": 1}, "api": {"price": {"steps": STEPS}}, "big": {"price": 10}, "peak": {"aggregation": "max", "price": 2}},
    "plans": {"hundred": {"allowances": {"api": 100, "call": 100}}, "paid": {"credits": {"amount": 100, "rollover": "none"}, "allowances": {"call": 10}},
              "saver": {"credits": {"amount": 100, "rollover": "all"}}},
}
NOON = "2027-03-10T12:00Z"
SETTLE = "call billing.settle()"
CHARGED = """select (coalesce((select -sum(amount) from billing.entries where org_id = %s and kind = 'usage'), 0)
                     + coalesce((select sum(credits) from billing.unpaid_overage where org_id = %s), 0))::bigint"""


def price(quantity):
    """What so much api costs: the exact sum of the steps, rounded up once."""
    first = min(quantity, 50)
    return math.ceil(fractions.Fraction(5 * first, 3) + fractions.Fraction(quantity - first, 7))


def utc(text):
    """A moment."""
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)


def record(connection, org, metric, quantity=1, **named):
    """record_usage: whether it was new."""
    return call(connection, "record_usage", org, metric, quantity, **named)[0]


def many(connection, count, credit=100, quantity=10):
    """As many new orgs, in order, each with credit and recorded usage of call."""
    orgs = sorted(uuid.uuid4() for _ in range(count))
    if credit:
        rows(connection, "select count(*) from unnest(%s) o, billing.grant_credits(o, %s)", orgs, credit)
    events = [{"org_id": str(org), "metric": "call", "quantity": quantity, "event_id": "e"} for org in orgs]
    rows(connection, "select billing.record_usage_batch(%s)", psycopg2.extras.Json(events))
    return orgs


def charges(connection, orgs):
    """How many of the orgs were charged how often, and what."""
    return rows(connection, """select entries, credits, count(*)::int as orgs from (
                                   select count(e.amount)::int as entries, coalesce(-sum(e.amount), 0)::int as credits
                                     from unnest(%s) o left join billing.entries e on e.org_id = o and e.kind = 'usage' group by o) c
                               group by 1, 2 order by 1, 2""", orgs)


class Running(threading.Thread):
    """A statement that runs on a connection meanwhile."""

    def __init__(self, connection, statement=SETTLE):
        super().__init__(daemon=True)
        self.connection, self.statement, self.error = connection, statement, None
        self.start()

    def run(self):
        try:
            rows(self.connection, self.statement)
        except psycopg2.Error as error:
            self.error = error

    def await_lock(self, watcher):
        """Waits until the statement waits for a lock."""
        pid = self.connection.info.backend_pid
        waits = "select exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')"
        await_condition(lambda: not self.is_alive() or value(watcher, waits, pid), 30, "the lock")
        if not self.is_alive():
            raise AssertionError(f"it ended: {self.error}")

    def finish(self):
        """Waits for its end, and gives its error."""
        self.join(60)
        if self.is_alive():
            raise AssertionError("it hangs")
        return self.error


class Settlement(LiveTestCase):
    """What these tests share."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        apply_catalog(cls.db, CATALOG)

    def setUp(self):
        self.clock(NOON)

    def tearDown(self):
        self.assert_sound()

    def clock(self, moment, connection=None):
        """Sets billing time."""
        rows(connection or self.db, "set billing.test_clock = %s", moment)

    def at(self, moment, count, **options):
        """Connections that live at this moment; what hangs fails."""
        return self.connections(count, options=f"-c billing.test_clock={moment} -c statement_timeout=60s", **options)

    def settle(self, org, as_of=None, connection=None):
        """settle_org."""
        return call(connection or self.db, "settle_org", org, as_of)

    def charged(self, org):
        """What was burned for usage, and what of it is still unpaid."""
        return value(self.db, CHARGED, org, org)

    def hold_up(self, org):
        """A connection whose transaction keeps a settlement from an org."""
        blocker = self.connect(autocommit=False)
        rows(blocker, "select from billing_internal.lanes where org_id = %s for update", org)
        return blocker

    def runs(self, after=0):
        """The runs after this one."""
        return rows(self.db, "select * from billing.settlement_runs where run_id > %s order by run_id", after)

    def last_run(self):
        """The number of the last run."""
        return value(self.db, "select coalesce(max(run_id), 0) from billing.settlement_runs")

    def assert_settles(self, connection=None):
        """A settlement of everything is not held up, and leaves nothing."""
        connection, before = connection or self.at(NOON, 1)[0], self.last_run()
        rows(connection, SETTLE)
        self.assertEqual([(run.status, run.phase, run.orgs_failed) for run in self.runs(before)], [("done", "done", 0)], connection.notices)
        self.assertEqual(value(self.db, "select count(*) from billing_internal.unsettled_usage"), 0)


class Runs(Settlement):
    """settle() as a whole."""

    def test_two_at_once(self):
        """The second does nothing and says so; the first is seen at work from elsewhere, and charges everybody once."""
        orgs, before = many(self.db, 120), self.last_run()
        first, second = self.at(NOON, 2)
        rows(second, "set lock_timeout = '2s'")
        auditor = self.new_role(self.db, "auditor")
        watcher = self.connect()
        rows(watcher, f"set role {auditor}")
        blocker = self.hold_up(orgs[110])
        running = Running(first)
        running.await_lock(self.db)
        rows(second, SETTLE)
        self.assertEqual(len(second.notices), 1)
        self.assertIn("another settlement of this share of the orgs is running; nothing done", second.notices[0])
        self.assertEqual([run.pid for run in self.runs(before)], [first.info.backend_pid])
        # Two batches are done.
        progress, = rows(watcher, "select * from billing.settlement_progress")
        self.assertEqual((progress.run_id, progress.pid, progress.phase, progress.orgs_done, progress.orgs_failed, progress.orgs_total, progress.charged),
                         (before + 1, first.info.backend_pid, "settling", 100, 0, 120, 1000))
        self.assertLess(progress.running_for, datetime.timedelta(seconds=60))
        self.assertEqual(charges(self.db, orgs), [(0, 0, 20), (1, 10, 100)])
        blocker.rollback()
        self.assertIsNone(running.finish())
        self.assertEqual(rows(watcher, "select * from billing.settlement_progress"), [])
        self.assertEqual(charges(self.db, orgs), [(1, 10, 120)])
        run, = self.runs(before)
        self.assertEqual((run.status, run.phase, run.orgs_done, run.orgs_total, run.charged, run.unpaid), ("done", "done", 120, 120, 1200, 0))
        rows(second, SETTLE)
        self.assertEqual([run.charged for run in self.runs(before)], [1200, 0])
        self.assertEqual(charges(self.db, orgs), [(1, 10, 120)])

    def test_shares(self):
        """Shares have each org once, run at the same time, and together are the whole; counted from nought or from one."""
        for shards, first in ((4, 0), (3, 1)):
            orgs, before = many(self.db, 130), self.last_run()
            connections = self.at(NOON, shards)
            shares = [value(self.db, "select billing_internal.settlement_due(%s, %s, %s)", utc("2027-03-10T12:00"), first + i, shards) for i in range(shards)]
            everybody = value(self.db, "select billing_internal.settlement_due(%s, 0, 1)", utc("2027-03-10T12:00"))
            self.assertEqual(sorted(org for share in shares for org in share), everybody)
            self.assertEqual(set(orgs) - set(everybody), set())
            self.assertGreater(min(len(share) for share in shares), 10)
            blocker = self.hold_up(orgs[-1])

            def settle(i, barrier, connections=connections, shards=shards, first=first, blocker=blocker):
                barrier.wait()
                if i < shards:
                    rows(connections[i], f"call billing.settle(shard => {first + i}, of => {shards})")
                    return connections[i].notices
                # All of them at work: none of them shuts out another.
                await_condition(lambda: len(self.runs(before)) == shards, 30, "all shares")
                return blocker.rollback()

            self.assertEqual([notices for notices in together(shards + 1, settle) if notices], [])
            self.assertEqual(charges(self.db, orgs), [(1, 10, 130)])
            self.assertEqual([(run.shards, run.status) for run in self.runs(before)], [(shards, "done")] * shards)
            self.assertEqual(sum(run.orgs_done for run in self.runs(before)), len(everybody))
            self.assertEqual(sum(run.charged for run in self.runs(before)), 1300)

    def test_killed_backend(self):
        """Terminated or cancelled in the middle: what was committed stays, the rest is left, and another session goes on at once."""
        for function, pgcode in (("pg_terminate_backend", "57P01"), ("pg_cancel_backend", "57014")):
            with self.subTest(function):
                orgs, before = many(self.db, 120), self.last_run()
                victim, = self.at(NOON, 1)
                blocker = self.hold_up(orgs[70])
                running = Running(victim)
                running.await_lock(self.db)
                self.assertTrue(value(self.db, f"select {function}(%s)", victim.info.backend_pid))
                error = running.finish()
                self.assertIsNotNone(error)
                self.assertIn(error.pgcode, (pgcode, None))
                blocker.rollback()
                await_condition(lambda: rows(self.db, "select * from billing.settlement_progress") == [], 5, "the end of its progress")
                # A batch is fifty orgs.
                self.assertEqual(charges(self.db, orgs), [(0, 0, 70), (1, 10, 50)])
                self.assert_settles()
                self.assertEqual(charges(self.db, orgs), [(1, 10, 120)])
                first, second = self.runs(before)
                self.assertEqual((first.status, first.orgs_done, second.orgs_done), ("interrupted", 50, 70))
                self.assertIsNotNone(first.finished_at)

    def test_refused(self):
        """What cannot be settled is refused, changes nothing, and keeps no other session from settling."""
        orgs = many(self.db, 3)
        caller, = self.at(NOON, 1)
        other, = self.at(NOON, 1)
        for statement, expected in (("call billing.settle('2027-03-10 12:00:00.000001+00')", "22023 invalid_argument"),
                                    ("call billing.settle('infinity')", "22023 invalid_argument"),
                                    ("call billing.settle(shard => -1)", "22023 invalid_argument"),
                                    ("call billing.settle(shard => 5, of => 4)", "22023 invalid_argument"),
                                    ("call billing.settle(of => 0)", "22023 invalid_argument"),
                                    ("call billing.settle(shard => null)", "22023 invalid_argument"),
                                    ("call billing.settle(of => null)", "22023 invalid_argument"),
                                    ("begin; call billing.settle(); commit", "2D000"),
                                    ("do $$ begin begin call billing.settle(); exception when division_by_zero then null; end; end $$", "2D000")):
            with self.subTest(statement):
                before = self.last_run()
                with self.assertRaises(Refused) as caught:
                    rows(caller, statement)
                self.assertEqual(code_of(caught.exception), expected)
                rows(caller, "rollback")
                self.assertEqual(self.runs(before), [])
                self.assertEqual(charges(self.db, orgs), [(0, 0, 3)])
                self.assertEqual(value(self.db, "select count(*) from pg_locks where locktype = 'advisory' and pid = %s", caller.info.backend_pid), 0)
        for moment in ("2027-03-10 12:00:00.000001+00", "infinity", "-infinity"):
            self.assert_refused("22023 invalid_argument", "settle_org", orgs[0], moment)
        self.assert_settles(other)
        self.assertEqual(charges(self.db, orgs), [(1, 10, 3)])

    def test_as_of_the_past(self):
        """Settled as of earlier: what is recorded is charged, what begins later is not begun."""
        org = self.org()
        self.clock("2027-01-15T00:00Z")
        call(self.db, "subscribe", org, "saver")
        record(self.db, org, "call", 30)
        self.clock("2027-03-20T00:00Z")
        rows(self.db, "call billing.settle('2027-02-20T00:00Z')")
        self.assertEqual((total(self.db, org), self.charged(org)), (170, 30))
        rows(self.db, "call billing.settle('2027-01-20T00:00Z')")
        self.assertEqual((total(self.db, org), self.charged(org)), (170, 30))
        rows(self.db, SETTLE)
        self.assertEqual((total(self.db, org), self.charged(org)), (270, 30))

    def test_a_faulty_org(self):
        """An org whose usage cannot be priced is noted, changes nothing and stops nobody; every run tries again, until it is mended."""
        orgs = many(self.db, 60)
        bad = orgs[30]
        # More than could be recorded in a lifetime: as somebody's hand left it.
        record(self.db, bad, "big", 1)
        rows(self.db, "update billing_internal.unsettled_usage set quantity = %s where org_id = %s and metric = 'big'", 2**62 - 5, bad)
        first = self.last_run()
        faults = "select run_id, sqlstate, message, detail from billing.settlement_faults where org_id = %s order by run_id"
        for n in (1, 2):
            rows(self.db, SETTLE)
            run = self.runs(first)[-1]
            self.assertEqual((run.status, run.orgs_failed, run.orgs_done), ("done", 1, 59 if n == 1 else 0))
            self.assertEqual([(f.run_id, f.sqlstate) for f in rows(self.db, faults, bad)], [(first + k, "22023") for k in range(1, n + 1)])
            self.assertEqual(charges(self.db, orgs), [(0, 0, 1), (1, 10, 59)])
            self.assertEqual(value(self.db, "select sum(quantity) from billing_internal.unsettled_usage where org_id = %s", bad), 2**62 - 5 + 10)
            self.assertEqual(total(self.db, bad), 100)
        self.assertEqual(value(self.db, "select count(*) from billing.settlement_faults"), 2)
        with self.assertRaises(Refused):
            self.settle(bad)
        rows(self.db, """select billing.set_org_price(%s, 'big', '{"steps": [{"credits": 1, "per": 1000000000000000000}]}', '-infinity')""", bad)
        rows(self.db, SETTLE)
        self.assertEqual(self.runs(first)[-1].orgs_failed, 0)
        self.assertEqual(self.charged(bad), 10 + 5)  # 4.6 × 10¹⁸, rounded up
        self.assertEqual(total(self.db, bad), 85)
        self.assertEqual(value(self.db, "select count(*) from billing.settlement_faults"), 2)

    def test_rights(self):
        """A service settles; a member and an auditor do not."""
        orgs = many(self.db, 3)
        for level in ("member", "auditor", "service"):
            role = self.new_role(self.db, level)
            session, = self.at(NOON, 1)
            rows(session, f"set role {role}")
            before = self.last_run()
            if level == "service":
                rows(session, SETTLE)
                self.assertEqual([run.status for run in self.runs(before)], ["done"])
                self.assertEqual(rows(session, "select count(*)::int from billing.settlement_runs where run_id > %s", before), [(1,)])
                self.settle(orgs[0], connection=session)
                continue
            for statement in (SETTLE, f"select billing.settle_org('{orgs[0]}')", f"select billing_internal.settle_orgs(1, '{{{orgs[0]}}}', now())", "select billing_internal.begin_settlement(now(), 0, 1)",
                              "select billing_internal.settlement_phase(1, 'done', 1)", "select billing_internal.make_partitions(now())", "select billing_internal.settlement_due(now(), 0, 1)"):
                with self.subTest(level, statement=statement), self.assertRaises(Refused) as caught:
                    rows(session, statement)
                self.assertEqual(caught.exception.pgcode, "42501")
            self.assertEqual((self.runs(before), charges(self.db, orgs)), ([], [(0, 0, 3)]))
            self.assertEqual(value(self.db, "select count(*) from pg_locks where locktype = 'advisory' and pid = %s", session.info.backend_pid), 0)
        self.assertEqual(charges(self.db, orgs), [(1, 10, 3)])


class Once(Settlement):
    """Charges, renewals and alerts happen once, also when several settle at the same time."""

    def test_many_settle_one_org(self):
        """Eight at once: one of them charges."""
        connections = self.at(NOON, 8)
        for _ in range(10):
            org = self.org(1000)
            record(self.db, org, "api", 30)
            record(self.db, org, "peak", 4)

            def settle(i, barrier, org=org):
                barrier.wait()
                return self.settle(org, connection=connections[i]).charged

            self.assertEqual(sorted(together(8, settle)), [0] * 7 + [price(30) + 8])
            self.assertEqual(total(self.db, org), 1000 - price(30) - 8)

    def test_unpaid(self):
        """What the wallet cannot pay is owed, and burned by the next credit or the next settlement, in parts, exactly once."""
        org = self.org(10)
        record(self.db, org, "call", 25)
        receipt = self.settle(org)
        self.assertEqual((receipt.charged, receipt.unpaid, total(self.db, org)), (10, 15, 0))
        self.assertEqual(call(self.db, "grant_credits", org, 8).balance_after, 0)
        receipt = self.settle(org)
        self.assertEqual((receipt.charged, receipt.unpaid), (0, 7))
        record(self.db, org, "call", 3)
        self.assertEqual(self.settle(org).unpaid, 10)
        # Credit for something else pays nothing of it.
        call(self.db, "grant_credits", org, 50, metrics=["api"])
        self.assertEqual((self.settle(org).unpaid, total(self.db, org, metric="api")), (10, 50))
        # What is given back to the wallet is found by the settlement.
        other = self.org(6)
        call(self.db, "transfer_credits", other, org, 4)
        rows(self.db, SETTLE)
        self.assertEqual(value(self.db, "select sum(credits) from billing.unpaid_overage where org_id = %s", org), 6)
        self.assertEqual(call(self.db, "grant_credits", org, 100).balance_after, 94)
        rows(self.db, SETTLE)
        self.assertEqual((self.settle(org).charged, total(self.db, org), self.charged(org)), (0, 94, 28))
        self.assertEqual(rows(self.db, "select quantity, credits from billing_internal.period_usage where org_id = %s", org), [(28, 28)])
        self.assertEqual(rows(self.db, "select * from billing.unpaid_overage where org_id = %s", org), [])
        self.assertEqual(value(self.db, "select sum(-amount) from billing.entries where org_id = %s and source = 'settlement'", org), 28)

    def test_unpaid_by_many(self):
        """Grants and settlements at the same time pay what is owed to the last credit and no further."""
        connections = self.at(NOON, 10)
        for _ in range(5):
            org = self.org(1)
            record(self.db, org, "call", 40)
            record(self.db, org, "api", 30)
            debt = 40 + price(30)

            def pay(i, barrier, org=org):
                barrier.wait()
                for n in range(6):
                    if i % 2:
                        self.settle(org, connection=connections[i])
                    else:
                        call(connections[i], "grant_credits", org, 5, idempotency_key=f"{i}/{n}")

            together(10, pay)
            self.assertGreater(1 + 5 * 6 * 5, debt)
            self.assertEqual((total(self.db, org), self.charged(org)), (1 + 5 * 6 * 5 - debt, debt))
            self.assertEqual(self.settle(org)[1:], (0, 0, 0, 0))

    def test_missed_months(self):
        """Three months that nobody began are begun once, by whoever comes first; each after the usage of the one before."""
        connections = self.at("2027-06-20T00:00Z", 8)
        for settles in (lambda c, org: self.settle(org, connection=c).renewed, lambda c, org: rows(c, SETTLE) and 0,
                        lambda c, org: call(c, "change_plan", org, "saver", True) and 0, lambda c, org: call(c, "consume_credits", org, "call", 1) and 0):
            org = uuid.uuid4()
            self.clock("2027-03-15T00:00Z")
            call(self.db, "subscribe", org, "paid")
            record(self.db, org, "call", 10 + 30)
            self.clock("2027-04-20T00:00Z")
            record(self.db, org, "call", 10 + 110)
            self.clock("2027-06-20T00:00Z")

            def settle(i, barrier, org=org, settles=settles):
                barrier.wait()
                return (settles if i % 2 else lambda c, org: self.settle(org, connection=c).renewed)(connections[i], org)

            renewed = sum(r or 0 for r in together(8, settle))
            self.assertLessEqual(renewed, 3)
            # 30 of the first hundred; of 110 in April, ten are owed, and May's credits pay them.
            grants = rows(self.db, "select effective_at, amount, remaining from billing.grants where org_id = %s order by 1", org)
            self.assertEqual([g.effective_at for g in grants], [utc(f"2027-0{m}-15T00:00") for m in (3, 4, 5, 6)])
            self.assertEqual(rows(self.db, "select kind, amount, created_at from billing.entries where org_id = %s and (kind = 'expiry' or source = 'settlement') order by created_at", org),
                             [("usage", -30, utc("2027-04-14T23:59:59.999999")), ("expiry", -70, utc("2027-04-15T00:00")),
                              ("usage", -100, utc("2027-05-14T23:59:59.999999")), ("usage", -10, utc("2027-05-15T00:00")), ("expiry", -90, utc("2027-06-15T00:00"))])
            self.assertEqual(total(self.db, org), 100)
            self.assertEqual(self.settle(org)[1:], (0, 0, 0, 0))

    def test_the_clock_goes_back(self):
        """Billing time before what was settled: nothing breaks, nothing is granted or charged again, and it goes on where it was."""
        org = uuid.uuid4()
        self.clock("2027-01-10T00:00Z")
        call(self.db, "subscribe", org, "saver")
        record(self.db, org, "call", 20, event_id="a")
        record(self.db, org, "peak", 5)
        self.clock("2027-06-15T00:00Z")
        rows(self.db, SETTLE)
        # Six grants; twenty calls, and a peak of five in each of six periods.
        self.assertEqual((total(self.db, org), self.charged(org)), (600 - 20 - 60, 80))
        for moment in ("2027-03-01T00:00Z", "2027-01-10T00:00Z", "2026-12-01T00:00Z", "2027-05-10T00:00Z"):
            self.clock(moment)
            before = self.last_run()
            rows(self.db, SETTLE)
            self.assertEqual([(run.status, run.orgs_failed, run.charged, run.renewed) for run in self.runs(before)], [("done", 0, 0, 0)])
            self.assertEqual(self.settle(org)[1:], (0, 0, 0, 0))
            self.assertFalse(record(self.db, org, "call", 20, event_id="a"))
            call(self.db, "check_limit", org, "call")
            call(self.db, "check_limit", org, "peak")
            self.assertEqual(self.charged(org), 80)
        # In March, seven are recorded and one is consumed; the later grants are there, but hold from April, May and June on.
        self.clock("2027-03-20T00:00Z")
        record(self.db, org, "call", 7)
        call(self.db, "consume_credits", org, "call", 1)
        rows(self.db, SETTLE)
        self.assertEqual(rows(self.db, "select quantity, credits from billing_internal.period_usage where org_id = %s and metric = 'call' and period_start = '2027-03-10'", org), [(8, 8)])
        self.assertEqual((total(self.db, org), self.charged(org)), (300 - 88, 88))
        self.clock("2027-06-16T00:00Z")
        rows(self.db, SETTLE)
        self.assertEqual((total(self.db, org), self.charged(org)), (512, 88))
        self.clock("2027-07-10T00:00Z")
        rows(self.db, SETTLE)
        self.assertEqual((total(self.db, org), self.charged(org)), (512 + 100 - 10, 98))

    def test_alerts(self):
        """One row per crossing, resolved when the next period begins, raised again by the next crossing."""
        org = self.org(1000)
        self.clock("2027-03-01T00:00Z")
        call(self.db, "subscribe", org, "hundred")
        alerts = "select share, number, value, threshold, resolved_at is null as open from billing.alerts where org_id = %s and kind = 'allowance' and subject = 'call' order by number, share"

        def go(moment, quantity, *expected):
            self.clock(moment)
            if quantity:
                record(self.db, org, "call", quantity)
            connections = self.at(moment, 3)
            together(3, lambda i, barrier: [barrier.wait(), self.settle(org, connection=connections[i])])
            rows(self.db, SETTLE)
            self.assertEqual([tuple(row) for row in rows(self.db, alerts, org)], list(expected))

        go("2027-03-02T00:00Z", 49)
        go("2027-03-03T00:00Z", 1, (50, 1, 50, 50, True))
        go("2027-03-04T00:00Z", 20, (50, 1, 50, 50, True))
        first = [(50, 1, 50, 50), (75, 1, 102, 75), (90, 1, 102, 90), (100, 1, 102, 100)]
        go("2027-03-05T00:00Z", 32, *[(*row, True) for row in first])
        go("2027-03-06T00:00Z", 500, *[(*row, True) for row in first])
        closed = [(*row, False) for row in first]
        go("2027-04-01T00:00Z", 0, *closed)
        go("2027-04-02T00:00Z", 80, *closed, (50, 2, 80, 50, True), (75, 2, 80, 75, True))
        go("2027-05-02T00:00Z", 0, *closed, (50, 2, 80, 50, False), (75, 2, 80, 75, False))
        go("2027-05-03T00:00Z", 55, *closed, (50, 2, 80, 50, False), (75, 2, 80, 75, False), (50, 3, 55, 50, True))

    def test_alerts_of_the_balance(self):
        """Of twenty that consume at once, one crosses each threshold; the next grant ends what it ends, and they can cross again."""
        org = uuid.uuid4()
        call(self.db, "create_wallet", org, low_balance_threshold=20)
        connections = self.at(NOON, 20)
        alerts = "select kind, share, number, resolved_at is null as open from billing.alerts where org_id = %s order by number, kind, share"
        expected = []
        for number in (1, 2):
            call(self.db, "grant_credits", org, 100)
            self.settle(org)

            def consume(i, barrier):
                barrier.wait()
                call(connections[i], "consume_credits", org, "call", 5)

            self.assertEqual([tuple(row) for row in rows(self.db, alerts, org)], expected)
            together(20, consume)
            self.assertEqual(total(self.db, org), 0)
            names = [("balance", 50), ("balance", 75), ("balance", 90), ("balance", 100), ("low_balance", 0)]
            self.assertEqual([tuple(row) for row in rows(self.db, alerts, org)], expected + [(*name, number, True) for name in names])
            expected += [(*name, number, False) for name in names]

    def test_under_load(self):
        """Runs, shares and settle_org, while others consume, record, batch and grant for the same orgs: no deadlock, nothing lost, nothing twice."""
        orgs = [self.org(1_000_000) for _ in range(6)]
        for org in orgs[:4]:
            call(self.db, "subscribe", org, "hundred")
        rng, _ = seeded()
        connections = self.at(NOON, 16)
        seeds = [rng.random() for _ in connections]
        until = time.monotonic() + 4
        statements = [SETTLE, "call billing.settle(shard => 0, of => 2)", "call billing.settle(shard => 1, of => 2)"]

        def work(i, barrier):
            mine, connection, done = random.Random(seeds[i]), connections[i], []
            barrier.wait()
            for n in range(1_000_000):
                if time.monotonic() > until:
                    return done
                org, metric, quantity = mine.choice(orgs), mine.choice(["call", "api"]), mine.randint(1, 9)
                if i < 3:
                    rows(connection, statements[i])
                elif i < 5:
                    self.settle(org, connection=connection)
                elif i < 8:
                    call(connection, "consume_credits", org, metric, quantity, f"{i}/{n}")
                    done.append((org, metric, quantity))
                elif i < 10:
                    items = [(mine.choice(orgs), mine.choice(["call", "api"]), mine.randint(1, 9)) for _ in range(8)]
                    answers = rows(connection, "select status from billing.consume_credits_batch(%s)",
                                   psycopg2.extras.Json([{"org_id": str(o), "metric": m, "quantity": q} for o, m, q in items]))
                    self.assertEqual({a.status for a in answers}, {"ok"})
                    done += items
                elif i < 13:
                    self.assertTrue(record(connection, org, metric, quantity, event_id=f"{i}/{n}"))
                    done.append((org, metric, quantity))
                elif i < 15:
                    items = [(mine.choice(orgs), mine.choice(["call", "api"]), mine.randint(1, 9)) for _ in range(8)]
                    rows(connection, "select billing.record_usage_batch(%s)",
                         psycopg2.extras.Json([{"org_id": str(o), "metric": m, "quantity": q, "event_id": f"{i}/{n}/{k}"} for k, (o, m, q) in enumerate(items)]))
                    done += items
                else:
                    call(connection, "grant_credits", org, 3, idempotency_key=f"{i}/{n}")
                    call(connection, "check_limit", org, metric)
                    done.append((org, None, 3))
            return done

        done = [item for part in together(16, work) for item in part]
        self.assertGreater(len(done), 1000)
        self.assert_settles(self.db)
        for org in orgs:
            used = {metric: sum(q for o, m, q in done if o == org and m == metric) for metric in ("call", "api", None)}
            allowance = 100 if org in orgs[:4] else 0
            expected = used["call"] - allowance + price(used["api"] - allowance)
            self.assertEqual(self.charged(org), expected)
            self.assertEqual(total(self.db, org), 1_000_000 + used[None] - expected)
            self.assertEqual([call(self.db, "check_limit", org, m).used for m in ("call", "api")], [used["call"], used["api"]])
            self.assertEqual(self.settle(org)[1:], (0, 0, 0, 0))
        self.assertEqual(rows(self.db, "select * from billing.settlement_faults"), [])
        self.assertEqual({run.status for run in self.runs()}, {"done"})


class Crash(unittest.TestCase):
    """kill -9 of the server under a settlement."""

    ORGS = 800

    def setUp(self):
        with connect() as main:
            settings = {name: setting for name in ("dynamic_library_path", "extension_control_path") if (setting := value(main, "select current_setting(%s, true)", name))}
        main.close()
        self.cluster = Cluster({"max_connections": "30", **settings})
        self.addCleanup(self.cluster.remove)
        self.cluster.start()
        admin = self.cluster.connect()
        rows(admin, "create database ledger")
        admin.close()
        self.db = self.cluster.connect("ledger")
        install_extension(self.db)
        apply_catalog(self.db, CATALOG)

    def test_kill_nine(self):
        """Held up in the middle of a batch, then anywhere: each run that was killed is marked, and at the end everybody was charged once."""
        rng, _ = seeded()
        orgs = many(self.db, self.ORGS)
        for org in orgs[:5]:
            call(self.db, "grant_credits", org, 100, unit="EUR")
        blocker = self.cluster.connect("ledger", autocommit=False)
        rows(blocker, "select from billing_internal.lanes where org_id = %s for update", orgs[170])
        running = Running(self.cluster.connect("ledger"))
        running.await_lock(self.db)
        self.kill(running)
        self.assertEqual(charges(self.db, orgs), [(0, 0, self.ORGS - 150), (1, 10, 150)])
        self.assertEqual(self.statuses(), [("running", 150)])
        enough = rng.randint(200, 500)
        running = Running(self.cluster.connect("ledger"))
        done = "select orgs_done from billing.settlement_runs order by run_id desc limit 1"
        await_condition(lambda: value(self.db, done) >= enough - 150 and len(self.statuses()) == 2, 60, "some batches")
        self.kill(running)
        (none, some) = charges(self.db, orgs)
        self.assertEqual((none[:2], some[:2]), ((0, 0), (1, 10)))
        self.assertEqual([status for status, _ in self.statuses()], ["interrupted", "running"])
        self.assertEqual(sum(orgs_done for _, orgs_done in self.statuses()), some.orgs, "a batch and its progress are one transaction")
        rows(self.db, SETTLE)
        self.assertEqual(charges(self.db, orgs), [(1, 10, self.ORGS)])
        self.assertEqual([status for status, _ in self.statuses()], ["interrupted", "interrupted", "done"])
        self.assertEqual(sum(orgs_done for _, orgs_done in self.statuses()), self.ORGS)
        self.assertEqual(rows(self.db, "select * from billing.settlement_progress"), [])
        self.assertEqual(violations(self.db), [])
        rows(self.db, SETTLE)
        self.assertEqual(charges(self.db, orgs), [(1, 10, self.ORGS)])
        self.db.close()

    def statuses(self):
        """Of all runs."""
        return [tuple(row) for row in rows(self.db, "select status, orgs_done::int from billing.settlement_runs order by run_id")]

    def kill(self, running):
        """Kills and starts the server."""
        self.cluster.kill()
        self.assertIsInstance(running.finish(), (psycopg2.OperationalError, psycopg2.InterfaceError))
        self.db.close()
        self.cluster.start()
        self.db = self.cluster.connect("ledger")
        self.assertEqual(violations(self.db), [])
        self.assertEqual(rows(self.db, "select * from billing.settlement_progress"), [])


if __name__ == "__main__":
    unittest.main()

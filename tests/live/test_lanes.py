"""Wallets that are split into lanes: everything that holds of one balance holds of many, and consumers do not wait for each other.

The tests of test_concurrency.py are run again on wallets with lanes; those below are of lanes alone.
"""

import threading
import unittest
import uuid

import psycopg2.errors

import test_concurrency
from support import LiveTestCase, apply_catalog, await_condition, call, rows, seeded, together, total, value
from test_concurrency import answer

LANES = """select lane, balance, last_entry_id & 1099511627775 as entries from billing_internal.lanes
            where org_id = %s and lane > 0
              and lane <= (select lanes from billing_internal.lanes where org_id = %s and lane = 0 and lanes > 1)"""
CATALOG = {"metrics": {**test_concurrency.CATALOG["metrics"], "scan": {"price": 1}, "capped": {"price": 1}},
           "caps": [{"metric": "capped", "per": "day", "limit": 60}]}


class SplitConcurrency(test_concurrency.Concurrency):
    """Wallets with five lanes, where one had one balance."""

    def org(self, *amounts):
        org = super().org(*amounts)
        if amounts:
            call(self.db, "set_wallet_lanes", org, 5)
        return org

    def test_no_overspend(self):
        """The balances that calls see are the wallet's, but not a sequence: they pass each other. All else is as with one."""
        org = self.org(*[97] * 10)
        connections = self.connections(16)

        def hammer(i, barrier):
            barrier.wait()
            results = []
            while not isinstance(result := answer(connections[i], "consume_credits", org, "page"), str):
                results.append(result)
            self.assertEqual(result, "PT402 insufficient_credits")
            return results

        results = [r for part in together(16, hammer) for r in part]
        self.assertEqual(len(results), 970 // 7)
        self.assertEqual(total(self.db, org), 970 % 7)
        self.assertEqual(self.burned(org), 970 // 7 * 7)
        self.assertTrue(all(r.balance_before - r.balance_after == 7 and 0 <= r.balance_after < 970 for r in results))
        self.assertEqual(len({r.operation_id for r in results}), len(results))


class Lanes(LiveTestCase):
    """One wallet, many lanes."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        apply_catalog(cls.db, CATALOG)

    def tearDown(self):
        rows(self.db, "reset billing.test_clock")
        self.assert_sound()

    def split(self, amount, lanes, **named):
        """An org with so much credit in so many lanes."""
        org = uuid.uuid4()
        call(self.db, "grant_credits", org, amount, **named)
        call(self.db, "set_wallet_lanes", org, lanes)
        return org

    def lanes(self, org):
        """The lanes in use besides lane 0."""
        return rows(self.db, LANES, org, org)

    def set_clock(self, moment, connection=None):
        """The test clock of a connection: an SQL expression."""
        rows(connection or self.db, f"select set_config('billing.test_clock', ({moment})::text, false)")

    def test_to_the_last_credit(self):
        """24 connections, 16 lanes, calls of one credit: exactly as many succeed as there are credits, and nobody is refused before."""
        org = self.split(3000, 16)
        connections = self.connections(24)

        def hammer(i, barrier):
            barrier.wait()
            done = 0
            while not isinstance(result := answer(connections[i], "consume_credits", org, "call"), str):
                done += 1
            self.assertEqual(result, "PT402 insufficient_credits")
            return done

        self.assertEqual(sum(together(24, hammer)), 3000)
        self.assertEqual(total(self.db, org), 0)
        used = [lane for lane in self.lanes(org) if lane.entries]
        self.assertGreater(len(used), 4, "consumers spread over lanes")
        self.assertEqual(value(self.db, "select sum(amount) from billing.entries where org_id = %s and kind = 'lane'", org), 0)

    def test_holders_of_lanes_do_not_wait_for_each_other(self):
        """As many open transactions as lanes, each of which has spent; one more waits for one of them, and for no more."""
        org = self.split(10_000, 3)
        for connection in self.connections(9):
            call(connection, "consume_credits", org, "page")
        holders = self.connections(3, autocommit=False)
        for holder in holders:
            rows(holder, "set local lock_timeout = '5s'")
            call(holder, "consume_credits", org, "page")
        waiter = self.connect()
        pid = value(waiter, "select pg_backend_pid()")
        thread = threading.Thread(target=call, args=(waiter, "consume_credits", org, "page"))
        thread.start()
        await_condition(lambda: value(self.db, "select cardinality(pg_blocking_pids(%s)) > 0", pid), 30, "the fourth to wait")
        holders[1].rollback()
        for holder in (holders[0], holders[2]):
            if not thread.is_alive():
                break
            holder.commit()
        thread.join(30)
        self.assertFalse(thread.is_alive())
        for holder in holders:
            holder.commit()
        self.assertEqual(total(self.db, org), 10_000 - 12 * 7)

    def test_credit_that_somebody_may_give_back_is_waited_for(self):
        """The last credits are in the hands of an open transaction: who needs them waits for its end, whatever that is."""
        for end, expected in (("rollback", 0), ("commit", "PT402 insufficient_credits")):
            org = self.split(20, 2)
            holder = self.connect(autocommit=False)
            call(holder, "consume_credits", org, "call", 3)
            waiter = self.connect()
            pid = value(waiter, "select pg_backend_pid()")
            results = []
            thread = threading.Thread(target=lambda: results.append(answer(waiter, "consume_credits", org, "call", 20)))  # pylint: disable=cell-var-from-loop
            thread.start()
            await_condition(lambda: value(self.db, "select cardinality(pg_blocking_pids(%s)) > 0", pid), 30, "the second to wait")  # pylint: disable=cell-var-from-loop
            getattr(holder, end)()
            thread.join(30)
            self.assertFalse(thread.is_alive())
            self.assertEqual(getattr(results[0], "balance_after", results[0]), expected)

    def test_what_cannot_suffice_is_refused_at_once(self):
        """More than there is even if all open transactions were rolled back: nobody is waited for."""
        org = self.split(1000, 4)
        for connection in self.connections(8):
            call(connection, "consume_credits", org, "call")
        holder = self.connect(autocommit=False)
        call(holder, "consume_credits", org, "call")
        if self.lanes(org)[0]:
            rows(self.db, "set lock_timeout = '3s'")
            self.addCleanup(rows, self.db, "reset lock_timeout")
            held = value(self.db, "select count(*) from pg_locks where locktype = 'transactionid' and not granted")
            self.assertEqual(held, 0)
            if value(self.db, "select exists (select from billing_internal.lanes where org_id = %s and lane = 0 for update skip locked)", org):
                self.assert_refused("PT402 insufficient_credits", "consume_credits", org, "call", 5000)
        holder.rollback()

    def test_more_lanes_and_fewer_under_load(self):
        """Lanes come and go while everything else happens; every credit is accounted for."""
        rng, _ = seeded()
        org = self.split(200_000, 2)
        connections = self.connections(12)
        stop = threading.Event()
        choices = [rng.random() for _ in range(12)]

        def spend(i, barrier):
            barrier.wait()
            spent = came = 0
            connection, n = connections[i], 0
            while not stop.is_set():
                n += 1
                kind = int(choices[i] * 100 + n * 7) % 20
                if kind == 0:
                    call(connection, "grant_credits", org, 50, "bonus", priority=10 + n % 90)
                    came += 50
                elif kind == 1:
                    hold = call(connection, "reserve_credits", org, "page", 3)
                    spent += call(connection, "capture_credits", org, hold.hold_id, 1 + n % 5).credits
                elif kind == 2:
                    hold = call(connection, "reserve_credits", org, "page", 2)
                    call(connection, "release_credits", org, hold.hold_id)
                elif kind == 3:
                    used = call(connection, "consume_credits", org, "page", 2)
                    call(connection, "refund_credits", org, used.operation_id, 5)
                    spent += used.credits - 5
                elif kind == 4:
                    granted = call(connection, "grant_credits", org, 30, "bonus", priority=1)
                    void = call(connection, "void_grant", org, granted.grant_id, "mistake")
                    self.assertEqual(void.voided + void.already_spent, 30)
                    came += 30
                elif kind == 5:
                    spent += sum(r.credits for r in rows(connection, "select * from billing.consume_credits_batch(%s)",
                                                         f'[{{"org_id": "{org}", "metric": "call", "quantity": 3}}, {{"org_id": "{org}", "metric": "third"}}]'))
                else:
                    spent += call(connection, "consume_credits", org, "call", 1 + n % 3).credits
            return came - spent

        def lanes(_, barrier):
            barrier.wait()
            connection = self.connect()
            for count in (16, 1, 7, 3, 64, 2, 1, 5, 12, 0, 4, 1, 16):
                call(connection, "set_wallet_lanes", org, count)
                before = value(self.db, "select count(*) from billing.entries where org_id = %s", org)
                await_condition(lambda: value(self.db, "select count(*) from billing.entries where org_id = %s", org) > before + 150, 60, "load")  # pylint: disable=cell-var-from-loop
            stop.set()
            return 0

        try:
            moved = sum(together(13, lambda i, barrier: lanes(i, barrier) if i == 12 else spend(i, barrier)))
        finally:
            stop.set()
        # What was voided includes what came back of voided grants later.
        moved += value(self.db, "select sum(amount)::bigint from billing.entries where org_id = %s and kind = 'void'", org)
        self.assertEqual(total(self.db, org), 200_000 + moved)
        call(self.db, "set_wallet_lanes", org, 1)
        self.assertEqual(total(self.db, org), 200_000 + moved)
        self.assertEqual(value(self.db, "select sum(balance) from billing_internal.lanes where org_id = %s and lane > 0", org), 0)

    def test_expiry_holds_for_what_lanes_hold(self):
        """A grant whose slices lie in lanes expires at its moment, for totals and for consumption, and is booked whole."""
        org = self.split(1000, 4, expires_at="2030-01-01")
        call(self.db, "grant_credits", org, 40, "purchase")
        for connection in self.connections(6):
            call(connection, "consume_credits", org, "call")
        self.assertGreater(sum(lane.balance for lane in self.lanes(org)), 0)
        self.set_clock("timestamptz '2030-01-01' - interval '1 microsecond'")
        self.assertEqual(total(self.db, org), 1034)
        self.set_clock("timestamptz '2030-01-01'")
        self.assertEqual(total(self.db, org), 40)
        self.assertEqual(call(self.db, "get_wallet", org).available, 40)
        self.assert_refused("PT402 insufficient_credits", "consume_credits", org, "call", 41)
        self.assertEqual(call(self.db, "consume_credits", org, "call", 2).balance_after, 38)
        value(self.db, "select billing.book_expiries()")
        expired = value(self.db, "select -sum(amount) from billing.entries where org_id = %s and kind = 'expiry'", org)
        self.assertEqual(expired, 994)
        self.assertEqual(value(self.db, "select count(*) from billing_internal.lanes where org_id = %s and fresh_until < 'infinity'", org), 0)

    def test_burn_order(self):
        """A grant that goes first goes first from the next call on, also where lanes hold others; scoped credit before all."""
        org = self.split(5000, 4)
        workers = self.connections(8)
        for worker in workers:
            call(worker, "consume_credits", org, "call", 2)
        urgent = call(self.db, "grant_credits", org, 100, "bonus", priority=1)
        for worker in workers:
            call(worker, "consume_credits", org, "call", 10)
        left = dict(rows(self.db, "select grant_id, remaining from billing.grants where org_id = %s", org))
        self.assertEqual(left, {1: 5000 - 16, urgent.grant_id: 20})
        scoped = call(self.db, "grant_credits", org, 30, "bonus", metrics=["scan"])
        for worker in workers:
            call(worker, "consume_credits", org, "scan", 4)
        left = dict(rows(self.db, "select grant_id, remaining from billing.grants where org_id = %s", org))
        self.assertEqual(left, {1: 5000 - 16, urgent.grant_id: 18, scoped.grant_id: 0})

    def test_void_reaches_into_lanes(self):
        """A clawback takes what lanes hold, and waits for who is spending from one."""
        org = self.split(1000, 3)
        for connection in self.connections(4):
            call(connection, "consume_credits", org, "call")
        holder = self.connect(autocommit=False)
        call(holder, "consume_credits", org, "call", 6)
        results = []
        thread = threading.Thread(target=lambda: results.append(call(self.db, "void_grant", org, 1, "chargeback")))
        thread.start()
        watcher = self.connect()
        await_condition(lambda: value(watcher, "select count(*) > 0 from pg_locks where not granted"), 30, "the clawback to wait")
        holder.commit()
        thread.join(30)
        self.assertEqual((results[0].voided, results[0].already_spent, results[0].balance_after), (990, 10, 0))
        self.assertEqual(total(self.db, org), 0)

    def test_alerts_and_reports_see_the_whole_wallet(self):
        """A threshold is crossed by the sum of the lanes; reports count what every lane burned."""
        org = self.split(1000, 4)
        call(self.db, "create_wallet", org, low_balance_threshold=400)
        workers = self.connections(4)
        for n in range(200):
            call(workers[n % 4], "consume_credits", org, "call", 3)
        raised = {(a.kind, a.share) for a in rows(self.db, "select kind, share from billing.alerts where org_id = %s and resolved_at is null", org)}
        self.assertEqual(raised, {("balance", 50)})
        call(workers[0], "consume_credits", org, "call", 1)
        raised = {(a.kind, a.share) for a in rows(self.db, "select kind, share from billing.alerts where org_id = %s and resolved_at is null", org)}
        self.assertEqual(raised, {("balance", 50), ("low_balance", 0)})
        used = rows(self.db, "select quantity, credits from billing.usage_by_day where org_id = %s and metric = 'call'", org)
        self.assertEqual([tuple(row) for row in used], [(601, 601)])
        self.assertEqual(call(self.db, "get_wallet", org).lifetime_consumed, 601)
        call(self.db, "settle_org", org)
        self.assertEqual(value(self.db, "select credits from billing_internal.usage_days where org_id = %s", org), 601)
        months = rows(self.db, "select * from billing.credit_history(%s, 1)", org)
        self.assertEqual((months[0].used, months[0].closing_balance), (601, 399))

    def test_budgets_and_caps(self):
        """What members and orgs may use is the same, however many lanes spend it at once."""
        org, member = self.split(100_000, 8), uuid.uuid4()
        rows(self.db, "select billing.set_member_budget(%s, %s, 100)", org, member)
        connections = self.connections(12)

        def spend(i, barrier):
            barrier.wait()
            got = {"budget": 0, "cap": 0}
            for n in range(40):
                metric, named = ("call", {"member_id": member}) if n % 2 else ("capped", {})
                result = answer(connections[i], "consume_credits", org, metric, **named)
                if isinstance(result, str):
                    self.assertEqual(result, "PT429 cap_exceeded")
                else:
                    got["budget" if n % 2 else "cap"] += 1
            return got

        results = together(12, spend)
        self.assertEqual((sum(r["budget"] for r in results), sum(r["cap"] for r in results)), (100, 60))

    def test_automatic(self):
        """Consumers that wait for each other get lanes, and those are joined when nobody has waited for a while."""
        org = self.split(1_000_000, 0)
        self.assertEqual(self.lanes(org), [])
        connections = self.connections(16)
        done = threading.Event()

        def spend(i, barrier):
            barrier.wait()
            spent = 0
            while not done.is_set():
                # Each holds what it burned from for a moment, as an application's transaction does.
                with connections[i].cursor() as cursor:
                    cursor.execute("begin; select billing.consume_credits(%s, 'call'); select pg_sleep(0.002); commit", (org,))
                spent += 1
            return spent

        def watch(_, barrier):
            barrier.wait()
            try:
                await_condition(lambda: len(self.lanes(org)) >= 8, 60, "lanes")
            finally:
                done.set()
            return 0

        spent = sum(together(17, lambda i, barrier: watch(i, barrier) if i == 16 else spend(i, barrier)))
        self.assertEqual(total(self.db, org), 1_000_000 - spent)
        self.assertGreaterEqual(len([lane for lane in self.lanes(org) if lane.entries]), 4)
        # Not while somebody has waited lately; nor where lanes were asked for.
        fixed = self.split(1000, 4)
        value(self.db, "select billing.book_expiries()")
        self.assertGreaterEqual(len(self.lanes(org)), 8)
        self.set_clock("clock_timestamp() + interval '20 minutes'")
        value(self.db, "select billing.book_expiries()")
        self.assertEqual((self.lanes(org), len(self.lanes(fixed))), ([], 4))
        self.assertEqual(total(self.db, org), 1_000_000 - spent)

    def test_bad_input(self):
        """What is refused, and changes nothing."""
        org = self.split(10, 3)
        for lanes in (-1, 65, None, 2**31 - 1):
            self.assert_refused("22023 invalid_argument", "set_wallet_lanes", org, lanes)
        self.assert_refused("22023 invalid_argument", "set_wallet_lanes", None, 2)
        self.assert_refused("22023 invalid_argument", "set_wallet_lanes", org, 2, "bad unit")
        self.assert_refused("PT404 unknown_org", "set_wallet_lanes", uuid.uuid4(), 2)
        self.assert_refused("PT404 unknown_org", "set_wallet_lanes", org, 2, "EUR")
        self.assertEqual(len(self.lanes(org)), 3)
        member = self.new_role(self.db, "member")
        connection = self.connect()
        rows(connection, f"set role {member}")
        with self.assertRaises(psycopg2.errors.InsufficientPrivilege):
            call(connection, "set_wallet_lanes", org, 2)

    def test_settings_that_somebody_read_with_statements(self):
        """Where rows cannot be written without statements, a split wallet is charged all the same."""
        org = self.split(1000, 4)
        rows(self.db, "create function nothing() returns trigger language plpgsql as 'begin return new; end'")
        rows(self.db, "create trigger watch before update on billing_internal.lanes for each row execute function nothing()")
        try:
            for connection in self.connections(4):
                self.assertEqual(call(connection, "consume_credits", org, "call", 1, str(uuid.uuid4())).credits, 1)
        finally:
            rows(self.db, "drop trigger watch on billing_internal.lanes")
        careful = self.connect(autocommit=False)
        rows(careful, "set transaction isolation level serializable")
        self.assertEqual(call(careful, "consume_credits", org, "call").credits, 1)
        careful.commit()
        self.assertEqual(total(self.db, org), 995)


# Else they would be run once more.
del test_concurrency.Concurrency

if __name__ == "__main__":
    unittest.main()

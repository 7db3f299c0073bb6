"""Real connections at the same time: no overspend, no double charge, no lost credit, whatever the isolation level.

Every test ends with a sound ledger whose totals are exactly those of the calls that were answered.
"""

import threading
import unittest
import uuid

import psycopg2.extensions
import psycopg2.extras

import support
from support import CATALOG, LiveTestCase, Refused, apply_catalog, await_condition, call, code_of, retrying, rows, together, total, value

LEVELS = {
    "read committed": psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED,
    "repeatable read": psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ,
    "serializable": psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE,
}


def answer(connection, function, *arguments, **named):
    """The row that a call returned, or the code of its refusal."""
    try:
        return call(connection, function, *arguments, **named)
    except Refused as error:
        return code_of(error)


class Concurrency(LiveTestCase):
    """One wallet, many callers."""

    def tearDown(self):
        self.assert_sound()

    def burned(self, org):
        """What the ledger says was burned for usage, less what was refunded."""
        return value(self.db, "select coalesce(-sum(amount), 0)::bigint from billing.entries where org_id = %s and kind in ('usage', 'refund')", org)

    def test_no_overspend(self):
        """Sixteen connections until the wallet refuses: exactly floor(balance / cost) calls succeed."""
        org = self.org(*[97] * 10)
        connections = self.connections(16)

        def hammer(i, barrier):
            barrier.wait()
            results = []
            while True:
                result = answer(connections[i], "consume_credits", org, "page")
                if isinstance(result, str):
                    self.assertEqual(result, "PT402 insufficient_credits")
                    return results
                results.append(result)

        results = [r for part in together(16, hammer) for r in part]
        self.assertEqual(len(results), 970 // 7)
        self.assertEqual(total(self.db, org), 970 % 7)
        self.assertEqual(self.burned(org), 970 // 7 * 7)
        # Each call saw the balance that the one before left: no two of them the same.
        self.assertEqual(sorted(r.balance_after for r in results), list(range(970 % 7, 970, 7)))
        self.assertTrue(all(r.balance_before - r.balance_after == 7 for r in results))
        self.assertEqual(len({r.operation_id for r in results}), len(results))

    def test_last_credit_is_spent_once(self):
        """Twenty callers, credit for one: again and again exactly one gets it."""
        connections = self.connections(20)
        for _ in range(10):
            org = self.org(7)

            def grab(i, barrier, org=org):
                barrier.wait()
                return answer(connections[i], "consume_credits", org, "page")

            results = together(20, grab)
            self.assertEqual(sum(not isinstance(r, str) for r in results), 1)
            self.assertEqual(total(self.db, org), 0)

    def test_same_key_at_the_same_instant(self):
        """Twenty connections with one key and one request: one charge, nineteen replays with its answer."""
        connections = self.connections(20)
        org = self.org(1000)
        for attempt in range(10):
            def charge(i, barrier, key=f"request {attempt}"):
                barrier.wait()
                return call(connections[i], "consume_credits", org, "page", 2, key, metadata={"n": 1})

            results = together(20, charge)
            self.assertEqual(sum(not r.replayed for r in results), 1)
            self.assertEqual(len({r._replace(replayed=None) for r in results}), 1)
        self.assertEqual(total(self.db, org), 1000 - 10 * 14)

    def test_same_key_for_every_kind_of_call(self):
        """The same for the other mutating calls, the first of which even makes the wallet."""
        connections = self.connections(8)
        org, other = uuid.uuid4(), self.org(1)

        def at_once(function, *arguments, **named):
            def body(i, barrier):
                barrier.wait()
                return call(connections[i], function, *arguments, **named)

            results = together(8, body)
            self.assertEqual(sum(not r.replayed for r in results), 1, function)
            self.assertEqual(len({r._replace(replayed=None) for r in results}), 1, function)
            return results[0]

        grant = at_once("grant_credits", org, 100, idempotency_key="grant")
        hold = at_once("reserve_credits", org, "call", 10, idempotency_key="reserve")
        captured = at_once("capture_credits", org, hold.hold_id, 8, idempotency_key="capture")
        at_once("refund_credits", org, captured.operation_id, 3, idempotency_key="refund")
        payout = at_once("lock_credits", org, 5, "payout", idempotency_key="lock")
        at_once("pay_out", org, payout.hold_id, idempotency_key="pay")
        at_once("adjust_credits", org, -2, "correction", idempotency_key="adjust")
        at_once("transfer_credits", org, other, 4, idempotency_key="transfer")
        self.assertEqual(total(self.db, org), 100 - 8 + 3 - 5 - 2 - 4)
        at_once("void_grant", org, grant.grant_id, "chargeback", idempotency_key="void")
        self.assertEqual((total(self.db, org), total(self.db, other)), (0, 5))

    def test_same_key_for_different_requests(self):
        """One of them is charged, the others are conflicts."""
        connections = self.connections(10)
        org = self.org(1000)

        def charge(i, barrier):
            barrier.wait()
            return answer(connections[i], "consume_credits", org, "call", i + 1, "the key")

        results = together(10, charge)
        charged = [r for r in results if not isinstance(r, str)]
        self.assertEqual(len(charged), 1)
        self.assertEqual({r for r in results if isinstance(r, str)}, {"PT409 idempotency_conflict"})
        self.assertEqual(total(self.db, org), 1000 - charged[0].credits)

    def test_opposite_transfers(self):
        """Two wallets, transfers both ways: no deadlock, and the sum stays."""
        orgs = (self.org(500), self.org(500))
        connections = self.connections(8)

        def transfer(i, barrier):
            barrier.wait()
            there, back = orgs if i % 2 else orgs[::-1]
            moved = 0
            for n in range(50):
                result = answer(connections[i], "transfer_credits", there, back, 1 + (n * 7 + i) % 40)
                if isinstance(result, str):
                    self.assertEqual(result, "PT402 insufficient_credits")
                else:
                    moved += result.amount
            return moved

        moved = together(8, transfer)
        net = sum(moved[1::2]) - sum(moved[0::2])
        self.assertEqual([total(self.db, org) for org in orgs], [500 - net, 500 + net])

    def test_opposite_transfers_on_stale_snapshots(self):
        """The same in transactions that had looked at the wallets before, at each level: 40001 at most, and never a deadlock."""
        for name in [*LEVELS, "mixed"]:
            with self.subTest(name):
                orgs = (self.org(500), self.org(500))
                connections = self.connections(6, autocommit=False)
                for i, connection in enumerate(connections):
                    connection.set_session(isolation_level=LEVELS.get(name) or list(LEVELS.values())[i % 3])

                def transfer(i, barrier, orgs=orgs, connections=connections):
                    barrier.wait()
                    there, back = orgs if i % 2 else orgs[::-1]
                    for n in range(15):
                        def transaction(n=n):
                            seen = total(connections[i], there) + total(connections[i], back)
                            call(connections[i], "transfer_credits", there, back, 1 + (n + i) % 3)
                            return seen
                        retrying(connections[i], transaction)
                    return sum(1 + (n + i) % 3 for n in range(15))

                moved = together(6, transfer)
                net = sum(moved[1::2]) - sum(moved[0::2])
                self.assertEqual([total(self.db, org) for org in orgs], [500 - net, 500 + net])
                for connection in connections:
                    connection.close()

    def while_waiting(self, blocker, function, *arguments, **named):
        """The answer of a call that waits for the blocker's transaction, which commits when it does."""
        waiting = self.connect()
        process = waiting.info.backend_pid

        def body(i, barrier):
            barrier.wait()
            if i:
                return answer(waiting, function, *arguments, **named)
            await_condition(lambda: value(self.db, "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", process), 30, "the call to wait")
            return blocker.commit()

        return together(2, body)[1]

    def test_wallet_made_while_the_call_waits(self):
        """An org's first wallet, in this unit or another, is committed while a call waits for it: the call goes on with it."""
        for unit, expected in (("credit", 5 + 3), ("EUR", 3)):
            with self.subTest(unit):
                giver, receiver, blocker = self.org(10), uuid.uuid4(), self.connect(autocommit=False)
                call(blocker, "grant_credits", receiver, 5, unit=unit)
                moved = self.while_waiting(blocker, "transfer_credits", giver, receiver, 3)
                self.assertEqual(getattr(moved, "amount", moved), 3)
                self.assertEqual((total(self.db, giver), total(self.db, receiver)), (7, expected))
        with self.subTest("a grant"):
            org, blocker = uuid.uuid4(), self.connect(autocommit=False)
            call(blocker, "grant_credits", org, 5, unit="EUR")
            granted = self.while_waiting(blocker, "grant_credits", org, 3)
            self.assertEqual(getattr(granted, "balance_after", granted), 3)
            self.assertEqual((total(self.db, org), total(self.db, org, "EUR")), (3, 5))

    def test_free_usage_while_another_wallet_is_made(self):
        """What costs nothing needs the credit wallet, which is made although another unit's comes first."""
        apply_catalog(self.db, {"metrics": {**CATALOG["metrics"], "free": {}}})
        self.addCleanup(apply_catalog, self.db, CATALOG)
        org, blocker = uuid.uuid4(), self.connect(autocommit=False)
        call(self.db, "grant_credits", org, 5, unit="EUR")
        call(blocker, "grant_credits", org, 5, unit="USD")
        used = self.while_waiting(blocker, "consume_credits", org, "free", 2)
        self.assertEqual(getattr(used, "credits", used), 0)

    def test_batches_in_opposite_order(self):
        """Batches over the same wallets in different orders: no deadlock, every item charged once."""
        orgs = [self.org(10_000) for _ in range(5)]
        connections = self.connections(6)

        def batch(i, barrier):
            barrier.wait()
            order = orgs if i % 2 else orgs[::-1]
            items = [{"org_id": str(org), "metric": "page", "member_id": str(orgs[0])} for org in order]
            for _ in range(20):
                answers = rows(connections[i], "select * from billing.consume_credits_batch(%s)", psycopg2.extras.Json(items))
                self.assertEqual([a.status for a in answers], ["ok"] * 5)

        together(6, batch)
        self.assertEqual({total(self.db, org) for org in orgs}, {10_000 - 6 * 20 * 7})

    def test_holds_against_consumption(self):
        """Reservations, captures, releases and consumptions of one wallet: what is left is exactly what was not taken."""
        org = self.org(300, 300, 400)
        connections = self.connections(12)

        def consume(i, barrier):
            barrier.wait()
            taken = 0
            for n in range(40):
                result = answer(connections[i], "consume_credits", org, "call", 1 + n % 5)
                taken += 0 if isinstance(result, str) else result.credits
            return taken

        def hold(i, barrier):
            barrier.wait()
            taken = 0
            for n in range(25):
                reserved = answer(connections[i], "reserve_credits", org, "call", 20)
                if isinstance(reserved, str):
                    self.assertEqual(reserved, "PT402 insufficient_credits")
                elif n % 3:
                    captured = answer(connections[i], "capture_credits", org, reserved.hold_id, 1 + n)
                    if isinstance(captured, str):  # beyond what was reserved, and no credit for it
                        self.assertEqual(captured, "PT402 insufficient_credits")
                        call(connections[i], "release_credits", org, reserved.hold_id)
                    else:
                        taken += captured.credits
                else:
                    call(connections[i], "release_credits", org, reserved.hold_id)
            return taken

        taken = sum(together(12, lambda i, barrier: (consume if i % 2 else hold)(i, barrier)))
        wallet = call(self.db, "get_wallet", org)
        self.assertEqual((wallet.available, wallet.reserved, wallet.lifetime_consumed), (1000 - taken, 0, taken))
        self.assertGreater(taken, 500)

    def test_capture_against_release(self):
        """One hold, captured and released by many at once: one of them has it, and the credits go one way only."""
        connections = self.connections(10)
        outcomes = set()
        for attempt in range(15):
            org = self.org(100)
            hold = call(self.db, "reserve_credits", org, "call", 30)

            def close(i, barrier, org=org, hold=hold, attempt=attempt):
                barrier.wait()
                if (i + attempt) % 2:
                    return answer(connections[i], "capture_credits", org, hold.hold_id)
                return answer(connections[i], "release_credits", org, hold.hold_id)

            results = together(10, close)
            captured = [r for r in results if not isinstance(r, str) and hasattr(r, "operation_id")]
            released = [r for r in results if not isinstance(r, str) and hasattr(r, "hold_id")]
            self.assertLessEqual(len(captured), 1)
            self.assertTrue(bool(captured) != bool(released))
            self.assertLessEqual({r for r in results if isinstance(r, str)}, {"PT409 hold_closed"})
            status = value(self.db, "select status from billing.holds where org_id = %s", org)
            self.assertEqual(status, "captured" if captured else "released")
            self.assertEqual(total(self.db, org), 70 if captured else 100)
            outcomes.add(status)
        self.assertLessEqual(outcomes, {"captured", "released"})

    def test_capture_of_a_hold_that_is_released_meanwhile(self):
        """Who captures has seen the hold open and waits for the wallet; then it is closed, wherever its credit came from."""
        for metrics in (None, ["page"]):
            org = self.org(100)
            call(self.db, "grant_credits", org, 50, metrics=metrics)
            hold = call(self.db, "reserve_credits", org, "page", 7)
            first = self.connect(autocommit=False)
            call(first, "release_credits", org, hold.hold_id)
            self.assertEqual(self.while_waiting(first, "capture_credits", org, hold.hold_id, 1), "PT409 hold_closed")
            self.assertEqual(total(self.db, org, metric="page"), 150)

    def test_repeated_reservations_and_captures(self):
        """The entry that takes the key finds out that it is taken: also when the hold is closed, or credit is gone, since."""
        org = self.org(20)
        hold = call(self.db, "reserve_credits", org, "page", 2, idempotency_key="r")
        taken = call(self.db, "capture_credits", org, hold.hold_id, 2, idempotency_key="c")
        entries = value(self.db, "select count(*) from billing.entries where org_id = %s", org)
        for _ in range(2):
            again = call(self.db, "reserve_credits", org, "page", 2, idempotency_key="r")
            self.assertEqual((again.replayed, again.hold_id, again.balance_after), (True, hold.hold_id, hold.balance_after))
            again = call(self.db, "capture_credits", org, hold.hold_id, 2, idempotency_key="c")
            self.assertEqual((again.replayed, again.operation_id, again.balance_after), (True, taken.operation_id, taken.balance_after))
            self.assertEqual(answer(self.db, "reserve_credits", org, "call", 2, idempotency_key="r"), "PT409 idempotency_conflict")
            self.assertEqual(answer(self.db, "reserve_credits", org, "call", 2, idempotency_key="c"), "PT409 idempotency_conflict")
            self.assertEqual(answer(self.db, "capture_credits", org, hold.hold_id, 1, idempotency_key="c"), "PT409 idempotency_conflict")
            if total(self.db, org) > 0:
                call(self.db, "consume_credits", org, "call", total(self.db, org))
        self.assertEqual(value(self.db, "select count(*) from billing.entries where org_id = %s", org), entries + 1)
        self.assertEqual(rows(self.db, "select status from billing.holds where org_id = %s", org), [("captured",)])

    def test_wallets_of_an_org_in_several_units(self):
        """The first grants of an org in four units, by many at once: four wallets, nothing lost."""
        units = ["credit", "EUR", "USD", "INR"]
        connections = self.connections(16)
        for _ in range(5):
            org = uuid.uuid4()

            def grant(i, barrier, org=org):
                barrier.wait()
                return call(connections[i], "grant_credits", org, 100 + i, unit=units[i % 4])

            results = together(16, grant)
            self.assertEqual(len({r.grant_id for r in results}), 16)
            for n, unit in enumerate(units):
                self.assertEqual(total(self.db, org, unit), sum(100 + i for i in range(n, 16, 4)))

    def test_isolation_levels(self):
        """Transactions of several calls at each level and mixed; 40001 may happen and is retried, the balance is exact."""
        for name in [*LEVELS, "mixed"]:
            with self.subTest(name):
                org = self.org(150, 100_000)
                connections = self.connections(6, autocommit=False)
                for i, connection in enumerate(connections):
                    connection.set_session(isolation_level=LEVELS.get(name) or list(LEVELS.values())[i % 3])

                def spend(i, barrier, org=org, connections=connections):
                    barrier.wait()
                    attempts = 0
                    for n in range(20):
                        def transaction(i=i, n=n):
                            before = total(connections[i], org)
                            charged = call(connections[i], "consume_credits", org, "page", 1, f"{i}/{n}", metadata={"i": i})
                            if connections[i].isolation_level != LEVELS["read committed"]:
                                self.assertEqual(charged.balance_before, before)
                            hold = call(connections[i], "reserve_credits", org, "call", 3)
                            call(connections[i], "capture_credits", org, hold.hold_id, 2)
                            call(connections[i], "grant_credits", org, 1)
                        attempts += retrying(connections[i], transaction)[1]
                    return attempts

                attempts = sum(together(6, spend))
                self.assertGreaterEqual(attempts, 120)
                self.assertEqual(total(self.db, org), 100_150 - 120 * (7 + 2 - 1))
                self.assert_sound()
                for connection in connections:
                    connection.close()

    def test_isolation_levels_with_the_last_credits(self):
        """A snapshot taken before others spent does not bring the credit back."""
        for name in ("repeatable read", "serializable"):
            with self.subTest(name):
                org = self.org(10)
                late = self.connect(autocommit=False)
                late.set_session(isolation_level=LEVELS[name])
                self.assertEqual(total(late, org), 10)
                call(self.db, "consume_credits", org, "call", 10)
                with self.assertRaises(Refused) as caught:
                    call(late, "consume_credits", org, "call", 10)
                self.assertIn(caught.exception.pgcode, ("40001", "PT402"))
                late.rollback()
                self.assertEqual(total(late, org), 0)
                late.rollback()

    def test_key_used_after_the_snapshot(self):
        """A snapshot from before a key was used does not charge it again."""
        for name in ("repeatable read", "serializable"):
            with self.subTest(name):
                org = self.org(100)
                late = self.connect(autocommit=False)
                late.set_session(isolation_level=LEVELS[name])
                self.assertEqual(total(late, org), 100)
                call(self.db, "consume_credits", org, "call", 10, "k")
                result = None
                try:
                    result = call(late, "consume_credits", org, "call", 10, "k")
                    late.commit()
                except Refused as error:
                    self.assertEqual(error.pgcode, "40001")
                    late.rollback()
                self.assertTrue(result is None or result.replayed)
                self.assertEqual(total(self.db, org), 90)

    def test_refunds_of_one_operation(self):
        """Ten refunds of 30 for an operation of 100: three succeed, and a refund of all takes what is left, once."""
        org = self.org(60, 60)
        operation = call(self.db, "consume_credits", org, "call", 100).operation_id
        connections = self.connections(10)

        def refund(i, barrier):
            barrier.wait()
            return answer(connections[i], "refund_credits", org, operation, 30)

        results = together(10, refund)
        self.assertEqual(sum(not isinstance(r, str) for r in results), 3)
        self.assertEqual({r for r in results if isinstance(r, str)}, {"PT409 refund_exceeds"})
        self.assertEqual(total(self.db, org), 20 + 90)

        def refund_all(i, barrier):
            barrier.wait()
            return answer(connections[i], "refund_credits", org, operation)

        results = together(10, refund_all)
        self.assertEqual([r.credits for r in results if not isinstance(r, str)], [10])
        self.assertEqual(total(self.db, org), 120)

    def test_void_against_consumption(self):
        """A grant voided while it is being spent: what was spent and what was voided is the grant, no more."""
        for _ in range(5):
            org = uuid.uuid4()
            grant = call(self.db, "grant_credits", org, 1_000_000).grant_id
            connections = self.connections(6)
            spent = []

            def spend_or_void(i, barrier, org=org, grant=grant, connections=connections, spent=spent):
                barrier.wait()
                if i == 0:
                    await_condition(lambda: len(spent) > 20, 60, "consumption")
                    return call(connections[0], "void_grant", org, grant, "chargeback").voided
                while not isinstance(result := answer(connections[i], "consume_credits", org, "call", 1 + i), str):
                    spent.append(result.credits)
                self.assertEqual(result, "PT402 insufficient_credits")
                return None

            voided = together(6, spend_or_void)[0]
            self.assertEqual(sum(spent) + voided, 1_000_000)
            self.assertGreater(voided, 0)
            self.assertEqual(total(self.db, org), 0)

    def test_budget_of_a_member(self):
        """A member's budget holds against many connections, too."""
        org, member = self.org(10_000), uuid.uuid4()
        rows(self.db, "select billing.set_member_budget(%s, %s, 50, 'total')", org, member)
        connections = self.connections(10)

        def spend(i, barrier):
            barrier.wait()
            return [answer(connections[i], "consume_credits", org, "page", member_id=member) for _ in range(3)]

        results = [r for part in together(10, spend) for r in part]
        self.assertEqual(sum(not isinstance(r, str) for r in results), 7)
        self.assertEqual({r for r in results if isinstance(r, str)}, {"PT429 cap_exceeded"})
        self.assertEqual(value(self.db, "select consumed from billing.member_usage where org_id = %s", org), 49)

    def test_price_that_depends_on_the_month(self):
        """Thirds of a credit, by many at once: the sum is the price of the sum, to the credit."""
        org = self.org(100_000)
        clock = "2036-03-15 12:00+00"
        connections = self.connections(8)
        for connection in connections:
            rows(connection, "select set_config('billing.test_clock', %s, false)", clock)

        def spend(i, barrier):
            barrier.wait()
            return [(n, call(connections[i], "consume_credits", org, "third", n).credits) for n in [1 + (i * 5 + k) % 7 for k in range(30)]]

        parts = [part for thread in together(8, spend) for part in thread]
        quantity = sum(n for n, _ in parts)
        self.assertEqual(sum(credits for _, credits in parts), -(-quantity // 3))
        self.assertEqual(value(self.db, "select quantity from billing_internal.period_usage where org_id = %s", org), quantity)

    def test_grants_while_spending(self):
        """Grants arrive while others spend: everything that came in was spent or is there."""
        org = self.org(1)
        connections = self.connections(8)
        done = threading.Event()

        def work(i, barrier):
            barrier.wait()
            if i < 3:
                for n in range(60):
                    call(connections[i], "grant_credits", org, 5, priority=n % 7)
                done.set()
                return 300
            spent = 0
            while True:
                ending = done.is_set()
                result = answer(connections[i], "consume_credits", org, "call", 2)
                if not isinstance(result, str):
                    spent += 2
                elif ending:
                    return -spent

        self.assertEqual(1 + sum(together(8, work)), total(self.db, org))

    def test_catalog_applied_by_many(self):
        """The same new catalog from eight connections: one creates, nobody fails."""
        connections = self.connections(8)
        catalog = {"metrics": {**CATALOG["metrics"], "new": {"price": 3}, "other": {"price": {"steps": [{"credits": 1, "per": 9}]}}}}

        def apply(i, barrier):
            barrier.wait()
            return [(change.action, change.name) for change in apply_catalog(connections[i], catalog)]

        changes = [change for part in together(8, apply) for change in part]
        self.assertEqual(sorted(changes), [("create", "new"), ("create", "other")])
        self.assertEqual(apply_catalog(self.db, catalog), [])
        apply_catalog(self.db, CATALOG)

    def test_installed_by_many(self):
        """install() from several connections of a database at once: the tables are there once, and it works."""
        database = self.new_database()
        connections = [support.connect(database) for _ in range(4)]
        for connection in connections:
            self.addCleanup(connection.close)
        rows(connections[0], "create extension pg_billing")

        def install(i, barrier):
            barrier.wait()
            return value(connections[i], "select billing.install()")

        self.assertEqual(len(set(together(4, install))), 2)
        apply_catalog(connections[0], CATALOG)
        org = uuid.uuid4()
        call(connections[1], "grant_credits", org, 10)
        self.assertEqual(call(connections[2], "consume_credits", org, "page").balance_after, 3)
        self.assert_sound(connections[3])

    def test_expired_holds_free_themselves(self):
        """A hold with a short time limit, by the wall clock and without any job: its credits come back."""
        org = self.org(10)
        call(self.db, "reserve_credits", org, "call", 10, "1 second")
        self.assertEqual(total(self.db, org), 0)
        await_condition(lambda: total(self.db, org) == 10, 10, "the end of the hold")
        connections = self.connections(8)

        def spend(i, barrier):
            barrier.wait()
            return answer(connections[i], "consume_credits", org, "call", 4)

        self.assertEqual(sum(not isinstance(r, str) for r in together(8, spend)), 2)
        self.assertEqual(total(self.db, org), 2)


if __name__ == "__main__":
    unittest.main()

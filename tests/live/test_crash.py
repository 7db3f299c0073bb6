"""kill -9 of the whole server in the middle of concurrent load, several times over.

After each recovery: what was acknowledged is in the ledger once and with the amounts that were answered, what was refused is
not, what was in flight is there at most once and can be repeated with its key; verify_ledger() is sound and work goes on.
The server is a cluster of its own, so that no other test notices.
"""

import random
import threading
import unittest
import uuid

import psycopg2

from support import CATALOG, Cluster, Refused, apply_catalog, await_condition, call, connect, install_extension, rows, seeded, total, value, violations

ROUNDS, WORKERS, ORGS = 4, 8, 6


class Load(threading.Thread):
    """One client that calls with keys until the server is gone, and remembers what it was told."""

    def __init__(self, name, cluster, orgs, rng):
        super().__init__(daemon=True)
        self.prefix, self.cluster, self.orgs, self.rng = name, cluster, orgs, rng
        self.acknowledged = {}  # key: (org, operation or hold id, credits that left the wallet)
        self.refused = set()    # keys
        self.in_flight = None   # the call whose answer never came
        self.failure = None

    def run(self):
        try:
            connection = self.cluster.connect("ledger")
            for n in range(1_000_000):
                self.one_call(connection, f"{self.prefix}/{n}")
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            pass  # killed
        except BaseException as error:  # pylint: disable=broad-except
            self.failure = error

    def one_call(self, connection, key):
        """Some call with this key."""
        org = self.rng.choice(self.orgs)
        function, arguments = self.rng.choices(
            [("consume_credits", (org, "page", self.rng.randint(1, 3))),
             ("consume_credits", (org, "third", self.rng.randint(1, 9))),
             ("consume_credits", (org, "page", 10**12)),
             ("reserve_credits", (org, "call", self.rng.randint(1, 20), "1 hour")),
             ("adjust_credits", (org, -self.rng.randint(1, 5), "correction")),
             ("grant_credits", (org, self.rng.randint(1, 9)))],
            weights=[10, 5, 4, 3, 1, 2])[0]
        self.in_flight = (key, org, function, arguments)
        try:
            answer = call(connection, function, *arguments, idempotency_key=key)
        except Refused as error:
            if error.pgcode != "PT402":
                raise
            self.refused.add(key)
            self.in_flight = None
            return
        self.in_flight = None
        self.acknowledged[key] = (org, function, arguments, answer)
        if function == "reserve_credits" and self.rng.random() < 0.8:
            arguments = (org, answer.hold_id, self.rng.randint(1, 25))
            self.in_flight = (key + "/capture", org, "capture_credits", arguments)
            captured = call(connection, "capture_credits", *arguments, idempotency_key=key + "/capture")
            self.in_flight = None
            self.acknowledged[key + "/capture"] = (org, "capture_credits", arguments, captured)


class Crash(unittest.TestCase):
    """Kill, recover, compare; again."""

    def setUp(self):
        with connect() as main:
            # What the installed library needs to be found, where that is not the default.
            settings = {name: setting for name in ("dynamic_library_path", "extension_control_path")
                        if (setting := value(main, "select current_setting(%s, true)", name))}
        main.close()
        self.cluster = Cluster({"max_connections": "50", "checkpoint_timeout": "30s", "max_wal_size": "64MB", **settings})
        self.addCleanup(self.cluster.remove)
        self.cluster.start()
        with_admin = self.cluster.connect()
        rows(with_admin, "create database ledger")
        with_admin.close()
        self.db = self.cluster.connect("ledger")
        install_extension(self.db)
        apply_catalog(self.db, CATALOG)
        self.orgs = [uuid.uuid4() for _ in range(ORGS)]
        for org in self.orgs:
            for _ in range(3):
                call(self.db, "grant_credits", org, 1_000_000)
        for org in self.orgs[::2]:
            call(self.db, "set_wallet_lanes", org, 4)
        self.assertEqual(value(self.db, "select current_setting('fsync') || current_setting('synchronous_commit')"), "onon")

    def test_kill_nine(self):
        """The rounds; what earlier rounds acknowledged must survive the later ones, too."""
        rng, _ = seeded()
        acknowledged, refused = {}, set()
        for turn in range(ROUNDS):
            workers = [Load(f"{turn}/{i}", self.cluster, self.orgs, random.Random(rng.random())) for i in range(WORKERS)]
            for worker in workers:
                worker.start()
            enough = rng.randint(300, 1500)
            await_condition(lambda workers=workers, enough=enough: sum(len(w.acknowledged) for w in workers) >= enough
                            or any(w.failure for w in workers), 120, "load")
            self.assertEqual([w.failure for w in workers if w.failure], [])
            self.assertTrue(all(w.is_alive() for w in workers))
            self.assertGreater(self.cluster.kill(), WORKERS, "backends were killed with the postmaster")
            for worker in workers:
                worker.join(60)
                self.assertFalse(worker.is_alive())
                self.assertIsNone(worker.failure)
                acknowledged.update(worker.acknowledged)
                refused |= worker.refused
            in_flight = [worker.in_flight for worker in workers if worker.in_flight]
            self.assertTrue(in_flight, "the kill came in the middle of calls")
            self.db.close()

            self.cluster.start()
            self.assertIn("automatic recovery in progress", self.cluster.log())
            self.db = self.cluster.connect("ledger")
            self.assertEqual(violations(self.db), [])
            self.compare(acknowledged, refused)
            for key, org, function, arguments in in_flight:
                there = self.entries_with(key)
                self.assertLessEqual(there, 1)
                try:
                    answer = call(self.db, function, *arguments, idempotency_key=key)
                except Refused as error:
                    self.assertEqual((error.pgcode, there), ("PT402", 0))
                    refused.add(key)
                    continue
                self.assertEqual(answer.replayed, there == 1, "repeated with its key, it is charged if it was not, and only then")
                self.assertEqual(self.entries_with(key), 1)
                acknowledged[key] = (org, function, arguments, answer._replace(replayed=False))
            self.compare(acknowledged, refused)
            self.assertEqual(violations(self.db), [])
        self.assertGreater(len(acknowledged), ROUNDS * 300)
        self.assertGreater(len(refused), ROUNDS)
        self.db.close()

    def entries_with(self, key):
        """How many entries carry the key."""
        return value(self.db, "select count(*) from billing.entries where idempotency_key = %s", key)

    def compare(self, acknowledged, refused):
        """The ledger has exactly what was answered."""
        ledger = {}
        for row in rows(self.db, """
                select k.idempotency_key as key, k.org_id, k.operation_id, count(*) over (partition by k.idempotency_key) as times,
                       (select sum(e.amount) from billing.entries e where e.org_id = k.org_id and e.operation_id = k.operation_id) as amount
                from billing.entries k where k.idempotency_key is not null"""):
            self.assertEqual(row.times, 1, row.key)
            ledger[row.key] = row
        self.assertEqual(set(acknowledged) - set(ledger), set(), "acknowledged, but not in the ledger")
        self.assertEqual(refused & set(ledger), set(), "refused, but in the ledger")
        held = {}
        for key, (org, function, _, answer) in acknowledged.items():
            row = ledger[key]
            self.assertEqual(row.org_id, org)
            if function == "reserve_credits":
                held[org, answer.hold_id] = answer.credits
                self.assertEqual((row.operation_id, row.amount), (answer.hold_id, -answer.credits))
            elif function == "consume_credits":
                self.assertEqual((row.operation_id, row.amount), (answer.operation_id, -answer.credits))
            elif function in ("grant_credits", "adjust_credits"):
                self.assertEqual(row.amount, answer.amount)
        for key, (org, function, arguments, answer) in acknowledged.items():
            if function == "capture_credits":
                # The hold went back, the usage was burned.
                self.assertEqual((ledger[key].operation_id, ledger[key].amount), (answer.operation_id, held.pop((org, arguments[1])) - answer.credits))
        # The totals are what the ledger says, and the open holds what was reserved and not captured. Captures that were
        # in flight are known only once they have been repeated.
        for org in self.orgs:
            self.assertEqual(total(self.db, org), value(self.db, "select sum(amount) from billing.entries where org_id = %s", org))
        still_open = {(h.org_id, h.hold_id): h.credits for h in rows(self.db, "select org_id, hold_id, credits from billing.holds where status = 'open'")}
        unknown = {row.operation_id for row in ledger.values() if row.key not in acknowledged}
        for hold, credits in held.items():
            if hold in still_open:
                self.assertEqual(still_open[hold], credits)
            else:
                self.assertTrue(unknown, "a hold was closed by nobody")


if __name__ == "__main__":
    unittest.main()

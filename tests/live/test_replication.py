"""What logical decoding passes on: each row of the ledger once, and nothing of calls that were repeated.

The server is a cluster of its own, because wal_level cannot be changed while a server runs.
"""

import unittest
import uuid

from support import CATALOG, Cluster, apply_catalog, call, install_extension, rows, value


class Replication(unittest.TestCase):
    """A publication of billing.ledger."""

    def test_repeated_calls_publish_nothing(self):
        """An attempt to use a key again is no row that comes and goes: whoever counts inserts counts charges."""
        cluster = Cluster({"wal_level": "logical", "fsync": "off"})
        self.addCleanup(cluster.remove)
        cluster.start()
        db = cluster.connect()
        self.addCleanup(db.close)
        install_extension(db)
        apply_catalog(db, CATALOG)
        org = uuid.uuid4()
        call(db, "grant_credits", org, 100)
        rows(db, "select pg_create_logical_replication_slot('charges', 'test_decoding')")
        before = value(db, "select count(*) from billing.ledger")
        hold = call(db, "reserve_credits", org, "page", 2, idempotency_key="reserved")
        for replayed in (False, True, True):
            self.assertEqual(call(db, "consume_credits", org, "call", 1, "consumed").replayed, replayed)
            self.assertEqual(call(db, "capture_credits", org, hold.hold_id, 1, idempotency_key="captured").replayed, replayed)
            self.assertTrue(call(db, "reserve_credits", org, "page", 2, idempotency_key="reserved").replayed)
        decoded = [data for (data,) in rows(db, "select data from pg_logical_slot_get_changes('charges', null, null)") if "billing.ledger" in data]
        self.assertEqual(len(decoded), value(db, "select count(*) from billing.ledger") - before)
        self.assertEqual([data for data in decoded if not data.startswith("table billing.ledger: INSERT:")], [])


if __name__ == "__main__":
    unittest.main()

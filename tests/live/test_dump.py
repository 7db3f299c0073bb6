"""Install twice, dump and restore, drop the extension and create it again: the ledger is the same and goes on."""

import pathlib
import tempfile
import unittest
import uuid

from support import CATALOG, LiveTestCase, Refused, apply_catalog, call, code_of, connect, program, rows, run, total, value

TABLES = """select c.oid::regclass::text from pg_class c
            where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind in ('r', 'p') order by 1"""


def contents(connection):
    """Every row of every table, as text."""
    return {table: sorted(row[0] for row in rows(connection, f"select t::text from {table} t"))
            for (table,) in rows(connection, TABLES)}


class Dump(LiveTestCase):
    """A used database."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.service = cls.new_role(cls.db, "service")
        cls.member = cls.new_role(cls.db, "member")

    def use(self, connection, org=None):
        """Some of everything; gives the org."""
        org, other = org or uuid.uuid4(), uuid.uuid4()
        call(connection, "grant_credits", org, 100, "purchase", cost_minor=500, currency="USD", idempotency_key=f"grant {uuid.uuid4()}")
        call(connection, "grant_credits", org, 50, "plan", metrics=["call"], expires_at="2099-01-01")
        used = call(connection, "consume_credits", org, "page", 3, f"use {uuid.uuid4()}", member_id=uuid.uuid4(), metadata={"ü": "ß'\"\\"})
        call(connection, "consume_credits", org, "third", 4)
        call(connection, "refund_credits", org, used.operation_id, 2, "slow")
        hold = call(connection, "reserve_credits", org, "call", 10, "1 day")
        call(connection, "capture_credits", org, hold.hold_id, 5)
        call(connection, "reserve_credits", org, "call", 7, "1 day")
        call(connection, "lock_credits", org, 5, "payout")
        call(connection, "grant_credits", other, 5, unit="EUR")
        call(connection, "create_wallet", other, "credit")
        call(connection, "transfer_credits", org, other, 9)
        call(connection, "set_wallet_lanes", other, 2)
        for _ in range(3):
            call(connection, "consume_credits", other, "call")
        rows(connection, "select billing.set_org_price(%s, 'page', '6')", org)
        rows(connection, "select billing.set_member_budget(%s, %s, 77)", org, uuid.uuid4())
        return org

    def schema(self):
        """The dumped schema of the database, without the random token of newer pg_dump."""
        text = run(program("pg_dump"), "--schema-only", "-d", self.database)
        return [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]

    def balances(self, connection):
        """All wallets, as seen by applications."""
        return rows(connection, "select * from billing.wallets order by org_id, unit")

    def test_install_again_changes_nothing(self):
        """install() on an installed database: same schema, same rows, and it says so."""
        self.use(self.db)
        schema, before = self.schema(), contents(self.db)
        said = value(self.db, "select billing.install()")
        self.assertIn("nothing changed", said)
        self.assertEqual(self.schema(), schema)
        self.assertEqual(contents(self.db), before)
        self.assertEqual(value(self.db, "select billing.install()"), said)
        self.assert_sound()

    def test_restore_in_another_database(self):
        """pg_dump | pg_restore: sound, the same rows and totals, guards and policies there; ids and replays go on."""
        org = self.use(self.db)
        rows(self.db, "create schema app; create table app.membership (team uuid, person uuid)")
        rows(self.db, "select billing.configure_membership('app.membership', 'team', 'person')")
        # What the owner adds to our tables travels as well.
        rows(self.db, "create policy support_desk on billing.holds for select to pg_read_all_data using (true)")
        rows(self.db, "create index app_entries_by_metric on billing.ledger (org_id, metric)")
        call(self.db, "consume_credits", org, "call", 1, "before the dump")
        before, policies = contents(self.db), self.policies(self.db)
        newest = value(self.db, "select max(entry_id) from billing.entries where org_id = %s", org)
        restored_name = self.new_database()
        with tempfile.TemporaryDirectory() as folder:
            dump = str(pathlib.Path(folder) / "dump")
            run(program("pg_dump"), "-Fc", "-f", dump, "-d", self.database)
            run(program("pg_restore"), "--exit-on-error", "-d", restored_name, dump)
        restored = connect(restored_name)
        self.addCleanup(restored.close)
        self.assertEqual(contents(restored), before)
        self.assertEqual(self.policies(restored), policies)
        self.assertEqual(self.balances(restored), self.balances(self.db))
        self.assert_sound(restored)
        # Both schemas were in the dump, for both hold tables: neither is the extension's to drop.
        self.assertEqual(rows(restored, "select nspname from pg_namespace where nspname like 'billing%' and oid in (select objid from pg_depend where deptype = 'e')"), [])
        self.assertIn("nothing changed", value(restored, "select billing.install()"))

        # It goes on where it was: replays, ids, roles, guards.
        self.assertTrue(call(restored, "consume_credits", org, "call", 1, "before the dump").replayed)
        self.assertEqual(call(restored, "consume_credits", org, "call", 1).operation_id, newest + 1)
        self.use(restored, org)
        rows(restored, f"set role {self.service}")
        self.assertEqual(call(restored, "consume_credits", org, "call", 1).credits, 1)
        rows(restored, "reset role")
        self.assert_guarded(restored)
        self.assert_sound(restored)
        self.assertNotEqual(contents(restored), before)
        self.assertEqual(contents(self.db), before, "the original is untouched")
        rows(self.db, "drop policy support_desk on billing.holds; drop index billing.app_entries_by_metric; drop table app.membership; drop schema app")

    def test_extension_dropped_and_created_again(self):
        """DROP EXTENSION … CASCADE leaves the ledger, closed and guarded; create and install() bring everything back."""
        org = self.use(self.db)
        call(self.db, "consume_credits", org, "call", 1, "before the drop")
        schema, before, wallets, policies = self.schema(), contents(self.db), self.balances(self.db), self.policies(self.db)
        rows(self.db, "drop extension pg_billing cascade")
        self.assertEqual(contents(self.db), before)
        self.assert_guarded(self.db)
        self.assertEqual(rows(self.db, """select relname from pg_class where relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace)
                                          and relkind in ('r', 'p') and not relrowsecurity"""), [])
        tenants = [name for (name,) in rows(self.db, "select attrelid::regclass::text from pg_attribute join pg_class c on c.oid = attrelid "
                                                     "where relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and relkind in ('r', 'p') and attname = 'org_id'")]
        self.assertGreater(len(tenants), 6)
        for role in (self.service, self.member):
            for table in [*tenants, "billing_internal.settings", "billing.access"]:
                self.assertEqual(self.rows_seen(role, org, table), 0, f"{role} reads {table} of a dropped extension")

        rows(self.db, "create extension pg_billing")
        rows(self.db, "select billing.install()")
        self.assertEqual(contents(self.db), before)
        self.assertEqual(self.policies(self.db), policies)
        self.assertEqual(sorted(self.schema()), sorted(schema))
        self.assertEqual(self.balances(self.db), wallets)
        self.assert_sound()
        self.assertTrue(call(self.db, "consume_credits", org, "call", 1, "before the drop").replayed)
        # The rights are back, too, for a session that was there before and for a new one.
        for connection in (self.db, self.connect()):
            rows(connection, f"set role {self.service}")
            self.assertEqual(call(connection, "consume_credits", org, "call", 1).credits, 1)
            rows(connection, "reset role")
        self.assertGreater(self.rows_seen(self.member, org, "billing.entries"), 0)
        self.assert_guarded(self.db)
        self.assert_sound()

    def test_without_tables(self):
        """Before install(), calls fail with one clear error and its hint."""
        bare = connect(self.new_database())
        self.addCleanup(bare.close)
        rows(bare, "create extension pg_billing")
        for function, arguments in (("consume_credits", (uuid.uuid4(), "call")), ("grant_credits", (uuid.uuid4(), 1)),
                                    ("get_total_credits", (uuid.uuid4(),)), ("verify_ledger", ()), ("export_catalog", ()), ("book_expiries", ())):
            with self.subTest(function), self.assertRaises(Refused) as caught:
                call(bare, function, *arguments)
            self.assertEqual(code_of(caught.exception), "55000 not_installed")
            self.assertIn("billing.install()", caught.exception.diag.message_hint)
        # In the same session, it works after install().
        rows(bare, "select billing.install()")
        apply_catalog(bare, CATALOG)
        org = uuid.uuid4()
        call(bare, "grant_credits", org, 5)
        self.assertEqual(total(bare, org), 5)

    def policies(self, connection):
        """All policies of the schema."""
        return rows(connection, "select schemaname, tablename, policyname, roles::text, cmd, qual from pg_policies where schemaname like 'billing%' order by 1, 2, 3")

    def rows_seen(self, role, org, table):
        """How many rows of a table the role sees, with a claim on the org; 0 when it may not look."""
        rows(self.db, f"begin; set local role {role}")
        try:
            rows(self.db, "select set_config('request.jwt.claims', %s, true)", f'{{"org_id": "{org}"}}')
            return value(self.db, f"select count(*) from {table}")
        except Refused as error:
            self.assertEqual(error.pgcode, "42501")
            return 0
        finally:
            rows(self.db, "rollback")

    def assert_guarded(self, connection):
        """Nobody changes the ledger, a superuser included."""
        for statement in ("update billing.entries set amount = 0", "delete from billing.entries", "truncate billing.entries cascade"):
            with self.assertRaises(Refused, msg=statement):
                rows(connection, statement)


if __name__ == "__main__":
    unittest.main()

"""Creating the extension and its tables where others may create things, too, and where it cannot work."""

import unittest
import uuid

from support import CATALOG, LiveTestCase, Refused, apply_catalog, call, code_of, connect, rows, total, value, violations


class Install(LiveTestCase):
    """Databases with something in them already."""

    def database_of_others(self, options=""):
        """An empty database in which a role without rights may create things; gives the owner's connection and the role's."""
        name = self.new_database(options=options)
        role = f"billing_other_{uuid.uuid4().hex[:8]}"
        rows(self.admin, f"create role {role}")
        self.roles.append(role)
        owner, other = connect(name), connect(name)
        for connection in (owner, other):
            self.addCleanup(connection.close)
        rows(owner, f'grant create on schema public to {role}; grant create on database "{name}" to {role}')
        rows(other, f"set role {role}")
        return owner, other

    def test_functions_of_others(self):
        """Functions in public that fit our calls better than those of pg_catalog do not run with the owner's rights."""
        owner, other = self.database_of_others()
        rows(other, "create table public.sprung (who name, what text); grant all on public.sprung to public")
        for name, arguments, result, body in (
                ("format", "text, text", "text", "pg_catalog.format($1, variadic array[$2])"),
                ("format", "text, name", "text", "pg_catalog.format($1, variadic array[$2::text])"),
                ("format", "text, regclass", "text", "pg_catalog.format($1, variadic array[$2::text])"),
                ("format", "text, regprocedure, name", "text", "pg_catalog.format($1, variadic array[$2::text, $3::text])"),
                ("format", "text, name, name", "text", "pg_catalog.format($1, variadic array[$2::text, $3::text])"),
                ("to_regclass", "text", "regclass", "pg_catalog.to_regclass($1)"), ("to_regprocedure", "text", "regprocedure", "pg_catalog.to_regprocedure($1)"),
                ("hashtextextended", "text, bigint", "bigint", "0"), ("clock_timestamp", "", "timestamptz", "pg_catalog.clock_timestamp()"),
                ("has_function_privilege", "text, text", "boolean", "true"), ("jsonb_build_object", "text, text", "jsonb", "null::jsonb")):
            rows(other, f"""create function public.{name}({arguments}) returns {result} language plpgsql as $$ begin
                insert into public.sprung values (current_user, '{name}({arguments})');
                return {body}; end $$""")
        # The trap is set: the owner's own statements spring it.
        value(owner, "select format('%s'::text, 'x'::name)")
        self.assertEqual(value(owner, "select count(*) from public.sprung"), 1)
        rows(owner, "delete from public.sprung")
        rows(owner, "set search_path = public, pg_catalog")
        rows(owner, "create extension pg_billing")
        rows(owner, "select billing.install()")
        rows(owner, "select billing.install()")
        role = self.new_role(owner, "service")
        rows(owner, "select billing.revoke_access(%s)", role)
        apply_catalog(owner, CATALOG)
        org = uuid.uuid4()
        call(owner, "grant_credits", org, 10)
        call(owner, "consume_credits", org, "page")
        rows(owner, "drop extension pg_billing cascade")
        rows(owner, "create extension pg_billing")
        rows(owner, "select billing.install()")
        self.assertEqual(total(owner, org), 3)
        self.assertEqual(violations(owner), [])
        self.assertEqual(rows(owner, "select what from public.sprung"), [])

    def test_schema_of_others(self):
        """A schema billing that somebody else made could hold such traps as well: it is refused until it is gone."""
        owner, other = self.database_of_others()
        rows(other, "create schema billing")
        with self.assertRaises(Refused) as caught:
            rows(owner, "create extension pg_billing")
        self.assertEqual(caught.exception.pgcode, "42501")
        self.assertIn("drop schema billing", caught.exception.diag.message_hint)
        self.assertNotIn("alter schema", caught.exception.diag.message_hint)
        rows(other, "drop schema billing")
        rows(owner, "create schema billing")
        rows(owner, "create extension pg_billing")
        rows(owner, "select billing.install()")

    def test_encodings(self):
        """Texts are hashed and kept as UTF-8: other databases are refused, with all that was begun."""
        for options in ("encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'", "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"):
            with self.subTest(options):
                owner, _ = self.database_of_others(options)
                rows(owner, "create extension pg_billing")
                with self.assertRaises(Refused) as caught:
                    rows(owner, "select billing.install()")
                self.assertEqual(code_of(caught.exception), "0A000 unsupported_encoding")
                self.assertIsNone(value(owner, "select to_regclass('billing.migrations')"))
                with self.assertRaises(Refused) as caught:
                    call(owner, "grant_credits", uuid.uuid4(), 1)
                self.assertEqual(code_of(caught.exception), "55000 not_installed")

    def test_versions_of_the_tables(self):
        """install() makes the tables of one version and notes it; it touches neither what is there already nor what is newer than the library."""
        owner, _ = self.database_of_others()
        rows(owner, "create extension pg_billing")
        self.assertEqual(value(owner, "select billing.install()"), "installed the tables of version 1")
        self.assertEqual(rows(owner, "select version, name from billing.migrations"), [(1, "tables")])
        self.assertEqual(value(owner, "select billing.install()"), "up to date: tables of version 1, nothing changed")
        rows(owner, "insert into billing.migrations (version, name) values (2, 'of a newer library')")
        for statement in ("select billing.install()", "select billing.export_catalog()"):
            with self.assertRaises(Refused) as caught:
                rows(owner, statement)
            self.assertEqual(code_of(caught.exception), "55000 not_installed")
        rows(owner, "delete from billing.migrations where version = 2")
        self.assertEqual(value(owner, "select billing.install()"), "up to date: tables of version 1, nothing changed")

    def test_a_schema_that_is_gone(self):
        """With one of the two schemas gone, install() says which tables are missing, and does nothing."""
        name = self.new_database()
        owner = connect(name)
        self.addCleanup(owner.close)
        rows(owner, "create extension pg_billing")
        rows(owner, "select billing.install()")
        rows(owner, "drop extension pg_billing cascade")
        rows(owner, "drop schema billing_internal cascade")
        rows(owner, "create extension pg_billing")
        with self.assertRaises(Refused) as refused:
            value(owner, "select billing.install()")
        self.assertEqual(code_of(refused.exception), "55000 tables_missing")
        self.assertIn("billing_internal.lanes", str(refused.exception))
        self.assertEqual(value(owner, "select count(*) from pg_class where relnamespace = 'billing_internal'::regnamespace"), 0)
        # As its hint says.
        rows(owner, "drop extension pg_billing cascade; drop schema billing, billing_internal cascade; create extension pg_billing")
        self.assertIn("installed the tables", value(owner, "select billing.install()"))

    def test_session_of_a_service_outlives_the_extension(self):
        """DROP EXTENSION … CASCADE, create, install(): a session that was open all the time goes on, and so do its rights."""
        owner, _ = self.database_of_others()
        rows(owner, "create extension pg_billing")
        rows(owner, "select billing.install()")
        apply_catalog(owner, CATALOG)
        org = uuid.uuid4()
        call(owner, "grant_credits", org, 1000)
        service, member = self.new_role(owner, "service"), self.new_role(owner, "member")
        sessions = []
        for role in (service, member):
            session = connect(owner.info.dbname)
            self.addCleanup(session.close)
            rows(session, f"set role {role}")
            rows(session, "select set_config('request.jwt.claims', %s, false)", f'{{"org_id": "{org}"}}')
            self.assertEqual(total(session, org), 1000)
            sessions.append(session)
        service_session, member_session = sessions

        def use():
            """Each kind of call that a service makes; what it leaves is what it found."""
            hold = call(service_session, "reserve_credits", org, "third", 6)
            used = call(service_session, "capture_credits", org, hold.hold_id)
            call(service_session, "refund_credits", org, used.operation_id)
            used = call(service_session, "consume_credits", org, "page", 1, str(uuid.uuid4()))
            call(service_session, "refund_credits", org, used.operation_id)
            call(service_session, "get_wallet", org)
            self.assertEqual(violations(service_session), [])
            self.assertEqual(len(rows(service_session, "select * from billing.wallets")), 1)

        use()
        for _ in range(2):
            rows(owner, "drop extension pg_billing cascade")
            with self.assertRaises(Refused):
                total(service_session, org)
            rows(owner, "create extension pg_billing")
            rows(owner, "select billing.install()")
            self.assertEqual(total(service_session, org), 1000)
            self.assertEqual(total(member_session, org), 1000)
            with self.assertRaises(Refused) as caught:
                total(member_session, uuid.uuid4())
            self.assertEqual(code_of(caught.exception), "42501 not_authorized")
            use()


if __name__ == "__main__":
    unittest.main()

"""security 5: CREATE EXTENSION where somebody has prepared the schemas."""

import unittest
import uuid

import psycopg2

import attack
from support import LiveTestCase, apply_catalog, call, code_of, connect, rows, total, value

CATALOG = attack.CATALOG


class Prepared(LiveTestCase):
    """Databases in which a role has made what the extension would find."""

    @classmethod
    def setUpClass(cls):
        cls.roles = []
        cls.admin = connect()
        cls.addClassCleanup(cls.admin.close)
        cls.addClassCleanup(lambda: [rows(cls.admin, f"drop role if exists {role}") for role in cls.roles])
        cls.role = f"billing_prepares_{uuid.uuid4().hex[:8]}"
        rows(cls.admin, f"create role {cls.role}")
        cls.roles.append(cls.role)

    def prepared(self, statements, *more):
        """A database in which the role has run the statements, and then a superuser those that follow."""
        name = self.new_database()
        rows(self.admin, f'grant create on database "{name}" to {self.role}')
        db = connect(name)
        self.addCleanup(db.close)
        rows(db, f"grant create on schema public to {self.role}; set role {self.role}")
        rows(db, "set client_min_messages = error; " + attack.NOTE.format(schema="public", role=self.role))
        rows(db, statements)
        rows(db, "reset role; reset client_min_messages")
        for statement in more:
            rows(db, statement.format(role=self.role))
        return db

    def assert_refused_or_harmless(self, db):
        """Either the extension is not created, or nothing of the role's runs with more than its rights."""
        del db.notices[:]
        try:
            rows(db, "create extension pg_billing")
            rows(db, "select billing.install()")
            apply_catalog(db, CATALOG)
            org = str(uuid.uuid4())
            call(db, "grant_credits", org, 10)
            call(db, "consume_credits", org, "page")
            rows(db, "call billing.settle()")
            rows(db, "select * from billing.status(), billing.verify_ledger()")
        except psycopg2.Error as error:
            self.assertIn(error.pgcode, ("42501", "42P06", "42P07", "55000", "42710", "42723"), error)
        is_super = value(db, "select rolsuper from pg_roles where rolname = %s", self.role)
        rows(self.admin, f"alter role {self.role} nosuperuser")
        self.assertEqual([notice for notice in db.notices if "RAN " in notice and f" as {self.role} " not in notice], [])
        self.assertFalse(is_super)

    def test_schema_of_another(self):
        """security 5: a schema of somebody else is refused, and the hint is no trap: it says drop."""
        db = self.prepared("create schema billing; create function billing.clock() returns timestamptz language plpgsql as $$ begin perform public.note('clock'); return now(); end $$")
        with self.assertRaises(psycopg2.Error) as caught:
            rows(db, "create extension pg_billing")
        self.assertEqual(code_of(caught.exception), "42501 schema_open")
        self.assertIn("drop schema billing", caught.exception.diag.message_hint)
        self.assertNotIn("owner to", caught.exception.diag.message_hint)

    def test_given_to_a_superuser(self):
        """security 5: after ALTER SCHEMA … OWNER, what a schema of ours holds is refused: each kind of thing, in either schema."""
        things = ("create function billing.x() returns int language sql as 'select 1'", "create type billing.x as (a int)", "create domain billing.x as int",
                      "create table billing_internal.lanes (a int)", "create sequence billing.x", "create view billing.wallets as select public.note('a view')",
                      "create function billing.f(uuid, uuid) returns boolean language sql as 'select true'; create operator billing.= (leftarg = uuid, rightarg = uuid, function = billing.f)",
                      "create collation billing.x from \"C\"", "create text search dictionary billing.x (template = pg_catalog.simple)", "create aggregate billing.x(int) (sfunc = int4pl, stype = int)",
                      "create conversion billing.x for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8", "create materialized view billing.x as select 1 as a")
        for schema in ("billing", "billing_internal"):
            db = self.prepared("select")
            for thing in things:
                thing = thing.replace("billing_internal.", "billing.").replace("billing.", f"{schema}.")
                with self.subTest(thing):
                    rows(db, f"set role {self.role}; create schema {schema}; {thing}; reset role; alter schema {schema} owner to postgres")
                    with self.assertRaises(psycopg2.Error) as caught:
                        rows(db, "create extension pg_billing")
                    self.assertEqual(code_of(caught.exception), "42501 schema_not_empty")
                    rows(db, f"drop schema {schema} cascade")
            db.close()

    def test_open_to_others(self):
        """security 5: a superuser's schema in which others may create."""
        db = self.prepared("select", "create schema billing; grant create on schema billing to {role}")
        self.assert_refused(db)
        db = self.prepared("select", "create schema billing; grant create on schema billing to public")
        self.assert_refused(db)

    def assert_refused(self, db, state="42501"):
        with self.assertRaises(psycopg2.Error) as caught:
            rows(db, "create extension pg_billing")
        self.assertEqual(caught.exception.pgcode, state)

    def test_reassigned(self):
        """security 5: after REASSIGN OWNED everything in it is a superuser's, tables of our names with defaults, checks, rules, triggers and indexes of another's functions among it."""
        for column, more in (("version bigint default 1", "create rule r as on insert to billing.migrations do also select public.note('a rule')"),
                             ("version bigint check (public.note('a check'))", "select"),
                             ("version bigint, x boolean default public.note('a default')", "select"),
                             ("version bigint, x boolean generated always as (public.pure(1)) stored", "select"),
                             ("version bigint", "create index on billing.migrations (public.pure(version::int))")):
            with self.subTest(column, more=more):
                db = self.prepared(f"""create function public.pure(int) returns boolean language plpgsql immutable as $$ begin return public.note('an expression'); end $$;
                    create schema billing; create schema billing_internal; create table billing.migrations ({column}, name text, applied_at timestamptz); {more};
                    create table billing_internal.settings (name text primary key, value jsonb, y boolean default public.note('a default'));
                    create table billing.access (role_name text, level text, role_oid oid, cluster text, z boolean check (public.note('a check')));
                    create view billing.wallets as select public.note('a view')""", "reassign owned by {role} to postgres")
                self.assert_refused_or_harmless(db)
                db.close()

    def test_insides_made_before(self):
        """security 5: billing_internal made by another is refused, its functions are not taken for ours, nor is a list of tables that allows anything."""
        db = self.prepared("""create schema billing_internal; create function billing_internal.rights() returns int language plpgsql as $$ begin perform public.note('insides'); return 1; end $$;
                              create function billing_internal.freeze_org(uuid, text) returns void language plpgsql as $$ begin perform public.note('insides'); end $$""")
        with self.assertRaises(psycopg2.Error) as caught:
            rows(db, "create extension pg_billing")
        self.assertEqual(code_of(caught.exception), "42501 schema_open")
        self.assertIn("drop schema billing, billing_internal", caught.exception.diag.message_hint)
        self.assert_refused_or_harmless(db)
        db = self.prepared("""create schema billing_internal; create function billing_internal.relations() returns table (schema name, name name, readers text, rows text) language sql as
                              $$ select 'billing_internal'::name, 'evil'::name, 'members', null from public.note('the list') $$""", "alter schema billing_internal owner to postgres")
        self.assert_refused(db, "42723")
        # Tables of our names are no better before there is anything of ours.
        db = self.prepared("""create schema billing_internal; create table billing_internal.settings (name text primary key, value jsonb)""", "reassign owned by {role} to postgres")
        self.assert_refused(db)

    def test_open_insides(self):
        """security 5: a superuser's schema billing_internal in which others may create."""
        for whom in ("{role}", "public"):
            self.assert_refused(self.prepared("select", "create schema billing_internal; grant create on schema billing_internal to " + whom))

    def test_added_to_the_insides_of_a_dropped_extension(self):
        """security 5: what was put beside our tables in billing_internal while the extension was gone is found when it is created again."""
        db = self.prepared("select")
        rows(db, "create extension pg_billing; select billing.install(); drop extension pg_billing cascade")
        for thing, gone in (("create function billing_internal.foreign_things(x int default 1) returns int language plpgsql as $$ begin perform public.note('beside'); return 1; end $$",
                             "drop function billing_internal.foreign_things(int)"),
                            ("create table billing_internal.metered (a int)", "drop table billing_internal.metered"),
                            ("create function public.pure(text) returns boolean language plpgsql immutable as $$ begin return public.note('a check'); end $$; "
                             "alter table billing_internal.settings add constraint pure check (public.pure(name))", "alter table billing_internal.settings drop constraint pure")):
            with self.subTest(thing):
                rows(db, thing)
                self.assert_refused(db)
                rows(db, gone)
        rows(db, "create extension pg_billing; select billing.install()")

    def test_in_the_path_of_the_script(self):
        """security 5: the script is run by a superuser whose database has a path of another's, with functions and types of the names of the server's own."""
        db = self.prepared("""create schema early; create domain early.uuid as pg_catalog.uuid check (public.note('a domain')); create domain early.text as pg_catalog.text check (public.note('a domain'));
                              create domain early.timestamptz as pg_catalog.timestamptz check (public.note('a domain')); create domain early.int8 as pg_catalog.int8 check (public.note('a domain'));
                              create function early.format(pg_catalog.text, variadic pg_catalog.text[]) returns pg_catalog.text language plpgsql as $$ begin perform public.note('format'); return ''; end $$;
                              grant usage on schema early to public""", "set search_path = early, pg_catalog, public")
        self.assert_refused_or_harmless(db)
        self.assertEqual(rows(db, "select * from billing.verify_ledger()"), [])

    def test_created_again_over_its_ledger(self):
        """security 5: DROP EXTENSION CASCADE, CREATE EXTENSION and install() find what they left; but not what somebody hung on it meanwhile."""
        db = self.prepared("select")
        rows(db, "create extension pg_billing")
        rows(db, "select billing.install()")
        apply_catalog(db, CATALOG)
        org = str(uuid.uuid4())
        call(db, "grant_credits", org, 100)
        for _ in range(2):
            rows(db, "drop extension pg_billing cascade")
            rows(db, "create extension pg_billing")
            rows(db, "select billing.install()")
            self.assertEqual(total(db, org), 100)
        rows(db, "drop extension pg_billing cascade")
        rows(db, f"""grant usage on schema billing, billing_internal to {self.role}; grant all on all tables in schema billing, billing_internal to {self.role}; set role {self.role};
                     create function public.hang() returns trigger language plpgsql as $$ begin perform public.note('a trigger'); return new; end $$;
                     create trigger hang before insert on billing_internal.settings for each row execute function public.hang(); reset role""")
        self.assert_refused(db)


if __name__ == "__main__":
    unittest.main()

"""security 2: names, paths and text of others. Whatever a session has put before the server's own, our calls do not take it."""

import json
import unittest

import psycopg2

import attack
from attack import OTHER, OWN, ROUTINES
from support import Refused, call, rows, value

# Everything raises: a call that takes one of these in place of the server's own ends with EVIL0.
SHADOWS = """
create schema evil;
create function evil.sprung(what pg_catalog.text) returns boolean language plpgsql as $$ begin raise exception 'sprung: %', what using errcode = 'EVIL0'; end $$;
do $do$
declare
    f record;
    arguments text;
begin
    for f in select p.oid, p.proname, p.prorettype, p.proargtypes from pg_proc p join pg_type r on r.oid = p.prorettype
              where p.pronamespace in ('pg_catalog'::regnamespace, 'billing'::regnamespace) and r.typtype <> 'p'
                and not exists (select from unnest(p.proargtypes) a (t) join pg_type y on y.oid = a.t where y.typtype = 'p') loop
        select coalesce(string_agg(format_type(t, null), ', ' order by n), '') into arguments from unnest(f.proargtypes) with ordinality a (t, n);
        begin
            execute format('create function evil.%I(%s) returns %s language plpgsql as %L', f.proname, arguments, format_type(f.prorettype, null),
                           format('begin raise exception %L using errcode = %L; end', 'sprung: ' || f.oid::regprocedure, 'EVIL0'));
        exception when duplicate_function then null;
        end;
    end loop;
    for f in select o.oprname, o.oprleft, o.oprright, o.oprresult, row_number() over () as n from pg_operator o
              where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprresult <> 0
                and not exists (select from pg_type y where y.oid in (o.oprleft, o.oprright, o.oprresult) and y.typtype = 'p') loop
        arguments := concat_ws(', ', case when f.oprleft <> 0 then format_type(f.oprleft, null) end, format_type(f.oprright, null));
        execute format('create function evil.operator_%s(%s) returns %s language plpgsql as %L', f.n, arguments, format_type(f.oprresult, null),
                       format('begin raise exception %L using errcode = %L; end', 'sprung: operator ' || replace(f.oprname, '%', '%%') || ' on ' || arguments, 'EVIL0'));
        execute format('create operator evil.%s (%s rightarg = %s, function = evil.operator_%s)', f.oprname,
                       case when f.oprleft <> 0 then format('leftarg = %s,', format_type(f.oprleft, null)) else '' end, format_type(f.oprright, null), f.n);
    end loop;
    for f in select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r') and typelem = 0 and typname not like '\\_%' loop
        begin
            execute format('create domain evil.%I as pg_catalog.%1$I check (evil.sprung(%L))', f.typname, 'domain ' || f.typname);
        exception when others then null;
        end;
    end loop;
    for f in select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where n.nspname in ('billing', 'billing_internal', 'pg_catalog') and c.relkind in ('r', 'p', 'v') loop
        begin
            execute format('create table evil.%I (like %I.%1$I)', f.relname, f.nspname);
        exception when others then null;
        end;
    end loop;
end $do$;
grant usage on schema evil to public;
grant all on all tables in schema evil to public"""

# What a client of a pool may leave behind for the next.
TEMPORARY = """
do $do$
declare
    f record;
begin
    for f in select n.nspname, c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where n.nspname in ('billing', 'billing_internal', 'pg_catalog') and c.relkind in ('r', 'p', 'v') loop
        begin
            execute pg_catalog.format('create temp table %I (like %I.%1$I); grant all on pg_temp.%1$I to public', f.relname, f.nspname);
        exception when others then null;
        end;
    end loop;
    for f in select typname from pg_catalog.pg_type where typnamespace = 'pg_catalog'::pg_catalog.regnamespace and typname in
             ('uuid', 'int4', 'int8', 'text', 'timestamptz', 'name', 'jsonb', 'interval', 'bool', 'date', 'numeric', 'regclass', 'oid') loop
        execute pg_catalog.format('create domain pg_temp.%I as pg_catalog.%1$I check (evil.sprung(%L))', f.typname, 'temporary domain ' || f.typname);
    end loop;
end $do$"""

PATH = "evil, pg_temp, pg_catalog, billing, public"


class Paths(attack.AttackCase):
    """A session in which every name of the server's own, and of ours, leads elsewhere."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rows(cls.db, SHADOWS)

    def trapped(self, role=None, **options):
        """A session with all of it."""
        session = self.connect(**options)
        rows(session, "set search_path = pg_catalog, public, pg_temp")
        rows(session, TEMPORARY)
        if role:
            rows(session, f"set role {role}")
        rows(session, f"set search_path = {PATH}")
        return session

    def test_the_trap_is_set(self):
        """With this path, plain SQL springs it: by a function, an operator, a type and a table."""
        for role in (None, self.service):
            session = self.trapped(role)
            for statement in ("select now()", "select 1::pg_catalog.int8 = 1::pg_catalog.int8", "select 'x'::text", "select pg_catalog.now()::timestamptz"):
                self.assert_code("EVIL0", session, statement)
            self.assertEqual(rows(session, "select from lanes, pg_class limit 1"), [])

    def test_every_function(self):
        """security 2: each function ends in this session as in any other, for a service, a member and a superuser."""
        for role, claims in ((self.service, ""), (self.member, f'{{"org_id": "{OTHER}"}}'), ("postgres", "")):
            clean = self.connect(autocommit=False)
            expected = {routine.oid: (state, changed) for routine, state, _, changed in self.outcomes(clean, role, claims)}
            clean.close()
            session = self.connect(autocommit=False)
            rows(session, TEMPORARY)
            found = {}
            for routine, state, _, changed in self.outcomes(session, role, claims, before=f"set local search_path = {PATH}"):
                found[routine.oid] = (state, changed)
                with self.subTest(routine.signature, role=role):
                    self.assertNotIn("EVIL0", state)
                    self.assertEqual((state, changed), expected[routine.oid])
            session.close()
            self.assertGreater(len(found), 120)

    def test_settle(self):
        """security 2: the procedure, whose declarations and first statements have the path of its caller, in a session and in a database so set."""
        before = value(self.db, "select count(*) from billing.settlement_runs")
        for role in (None, self.service):
            session = self.trapped(role)
            rows(session, "call billing.settle()")
            rows(session, "call billing.settle(null, 1, 2)")
        rows(self.db, f'alter database "{self.database}" set search_path = {PATH}')
        self.addCleanup(rows, self.db, f'alter database "{self.database}" reset search_path')
        for role in (None, self.service):
            session = self.session(role)
            self.assertEqual(value(session, "show search_path"), PATH)
            rows(session, "call billing.settle()")
        runs = rows(self.db, "select status, orgs_failed from billing.settlement_runs order by run_id offset %s", before)
        self.assertEqual([tuple(run) for run in runs], [("done", 0)] * 6)

    def test_a_service_at_work(self):
        """security 2: calls after one another, so that each finds what the one before it left; nothing lands in the tables of others."""
        rows(self.db, f'alter database "{self.database}" set search_path = {PATH}')
        self.addCleanup(rows, self.db, f'alter database "{self.database}" reset search_path')
        session = self.trapped(self.service)
        before = value(self.db, "select count(*) from billing.ledger")
        self.service_at_work(session)
        self.assertGreater(value(self.db, "select count(*) from billing.ledger"), before + 5)
        for relation in rows(self.db, "select c.relname from pg_class c where c.relnamespace = 'evil'::regnamespace and c.relkind = 'r'"):
            self.assertEqual(rows(self.db, f'select from evil."{relation.relname}"'), [])
            self.assertEqual(rows(session, f'select from pg_temp."{relation.relname}"'), [])

    def test_install(self):
        """security 2: install(), grant_access() and revoke_access() by a superuser with this path."""
        role = self.bare_role("levelled")
        session = self.trapped()
        for statement in ("select billing.install()", f"select billing.grant_access('{role}', 'member')", f"select billing.revoke_access('{role}')", "select billing.install()"):
            rows(session, statement)

    def test_settings_of_the_caller(self):
        """What a client may set for itself changes no result: formats of dates and texts, quoting, isolation, row security, planner."""
        settings = ("DateStyle = 'SQL, DMY'", "DateStyle = 'German'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Pacific/Kiritimati'", "bytea_output = 'escape'",
                    "standard_conforming_strings = off", "quote_all_identifiers = on", "array_nulls = off", "extra_float_digits = -15", "row_security = off",
                    "transform_null_equals = on", "check_function_bodies = off", "constraint_exclusion = on", "xmloption = document", "plan_cache_mode = force_generic_plan",
                    "enable_indexscan = off; set enable_bitmapscan = off", "enable_seqscan = off",
                    "backslash_quote = off", "escape_string_warning = off", "default_text_search_config = 'simple'", "lc_monetary = 'C'", "work_mem = '64kB'", "jit_above_cost = 0")
        for setting in settings:
            with self.subTest(setting):
                session = self.connect(autocommit=False)
                # Times as the texts that the server sends.
                psycopg2.extensions.register_type(psycopg2.extensions.new_type((1082, 1184), "AS_SENT", lambda text, _: text), session)
                try:
                    rows(session, f"set role {self.service}; set {setting}")
                    self.service_at_work(session)
                    rows(session, "reset role; select billing_internal.make_partitions(pg_catalog.now() + '1 year')")
                    self.assertEqual(rows(session, "select * from billing.verify_ledger()"), [])
                finally:
                    session.rollback()
                    session.close()


HOSTILE = ("'", "''", "\"", ";", "'); drop table billing.ledger cascade; --", "%I %L %s %%", "%1$I%2$L", "$$", "$_$", "\\", "\\'; select 1 --", "\u0001", "\ufeff", "\u202e", "𝒳" * 20,
           "x" * 63, "x" * 64, "ä" * 63, "y" * 300, "z" * 100_000, "{}", "{\"a\": \"\\u0000\"}", "null", "NULL", "-- x\n", "/*", "billing.ledger", "", " ", "\t\n",
           "pg_catalog.pg_class", "(select 1)", "' || pg_sleep(9) || '")


class Texts(attack.AttackCase):
    """SQL, formats and oddities in each argument that takes text."""

    # Refusals that say what is wrong; anything else is a statement that came to be another, or a fault that nobody foresaw.
    FORESEEN = {"00000", "22023", "42501", "42704", "55000", "0A000", "22021", "22P02", "22P05", "54000", "22001", "22007", "22008"}

    def test_every_text(self):
        """security, SQL in every text argument: refused or kept, never run; no table is lost, and the ledger is sound."""
        session = self.connect(autocommit=False)
        tables = {relation.name for relation in rows(self.db, attack.RELATIONS)}
        kinds = ("text", "name", "jsonb", "text[]", "json")
        faults, tried = {}, 0
        for routine in rows(self.db, ROUTINES):
            if routine.schema != "billing" or routine.kind == "p" or routine.name in ("install",):
                continue
            for name, kind in zip(routine.names, routine.types):
                if kind not in kinds:
                    continue
                for text in HOSTILE:
                    given = text if kind in ("text", "name") else json.dumps(
                        {"a": text, text: 1, "org_id": text, "metric": text, "metrics": {text: {"price": text}}}) if kind in ("jsonb", "json") else \
                        "{\"" + text.replace("\\", "\\\\").replace('"', '\\"') + "\"}"
                    tried += 1
                    role = self.service if routine.name not in ("grant_access", "revoke_access", "configure_membership") else "postgres"
                    rows(session, f"savepoint before; set local role {role}; set local statement_timeout = '5s'")
                    try:
                        rows(session, self.statement(routine, OWN, {name: given}))
                        state = "00000"
                    except Refused as error:
                        state = error.pgcode or "?"
                    rows(session, "rollback to before; release before")
                    if state not in self.FORESEEN and not state.startswith("PT"):
                        faults.setdefault(f"{routine.signature} {name}: {state}", text[:40])
        session.rollback()
        self.assertGreater(tried, 1500)
        self.assertEqual({relation.name for relation in rows(self.db, attack.RELATIONS)}, tables)
        self.assertEqual(faults, {})

    def test_texts_that_stay(self):
        """What is kept comes back as it was, and the ledger is sound."""
        session = self.session(self.service)
        for n, text in enumerate(HOSTILE):
            if not text.strip() or len(text) > 255:
                continue
            kept = {"a": text} if "\u0000" not in text and "\\u0000" not in text else {"a": "x"}
            used = call(session, "consume_credits", OWN, "call", 1, f"{n} {text}", metadata=kept)
            self.assertTrue(call(session, "consume_credits", OWN, "call", 1, f"{n} {text}", metadata=kept).replayed)
            (entry,) = rows(session, "select idempotency_key, metadata from billing.entries where org_id = %s and entry_id = %s", OWN, used.operation_id)
            self.assertEqual((entry.idempotency_key, entry.metadata), (f"{n} {text}", kept))
            call(session, "adjust_credits", OWN, 1, text)
            call(session, "settle_org", OWN)
        self.assert_sound()


if __name__ == "__main__":
    unittest.main()

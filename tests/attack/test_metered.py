"""security 1 and 11: tables with a metric on their inserts belong to somebody who does with them what he likes."""

import unittest
import uuid

import psycopg2

import attack
from attack import OTHER, OWN
from support import code_of, rows, total, value


class Metered(attack.AttackCase):
    """The trigger of a metered table runs as a definer function: its rows, columns and other triggers are the owner's."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.owner = cls.bare_role("owner")
        rows(cls.db, attack.NOTE.format(schema="app", role=cls.owner) + f"""; grant usage, create on schema app to {cls.owner}; grant usage on schema app to public;
            create function app.pure(anyelement) returns boolean language plpgsql immutable as $$ begin return app.note('a function'); end $$""")

    def table(self, definition="org_id uuid, n int, member uuid, key text", *columns, metric="call", mode="charge"):
        """A metered table of the owner."""
        name = f"app.t_{uuid.uuid4().hex[:8]}"
        owner = self.session(self.owner)
        rows(owner, f"create table {name} ({definition}); grant insert on {name} to public")
        arguments = ", ".join(f"'{column}'" for column in columns or ("org_id",))
        rows(self.db, f"select billing.meter_table('{name}', '{metric}', {arguments}, mode => '{mode}')")
        return name, owner

    def assert_bound(self, session):
        """Nothing ran with more rights than those of who inserted, or owns the table."""
        is_super = value(self.db, "select rolsuper from pg_roles where rolname = %s", self.owner)
        rows(self.db, f"alter role {self.owner} nosuperuser")
        self.assertEqual(self.ran(session, self.owner, self.stranger), [])
        self.assertFalse(is_super)

    def test_attached_by_hand(self):
        """security 4: whoever may execute the trigger's function charges nobody by a table that is not metered."""
        rows(self.db, f"grant usage on schema billing, billing_internal to {self.stranger}, {self.owner}; grant execute on all functions in schema billing, billing_internal to {self.stranger}, {self.owner}")
        owner = self.session(self.owner)
        before = total(self.db, OTHER)
        for arguments in ("'call', 'charge', 'org_id', '', '', ''", "'call', 'record', 'org_id', '', '', ''", "'call', 'grant', 'org_id', '', '', ''", "", "'call'",
                          "'call', 'charge', 'org_id; drop table x', '', '', ''", "'nothing', 'charge', 'org_id', 'n', 'n', 'n'"):
            for event in ("after insert on {} referencing new table as inserted for each statement", "before insert on {} for each row", "after delete on {} for each row",
                          "after insert on {} for each row"):
                name = f"app.t_{uuid.uuid4().hex[:8]}"
                rows(owner, f"create table {name} (org_id uuid, n int); create trigger t {event.format(name)} execute function billing_internal.metered_insert({arguments})")
                with self.assertRaises(psycopg2.Error):
                    rows(owner, f"insert into {name} values ('{OTHER}', 1); delete from {name}")
        self.assertEqual(total(self.db, OTHER), before)

    def test_another_trigger_on_a_metered_table(self):
        """rule 10: the owner hangs the function on its metered table by hand, so that its rows are not the transition table but a view of his."""
        rows(self.db, f"grant usage on schema billing, billing_internal to {self.owner}; grant execute on all functions in schema billing, billing_internal to {self.owner}")
        for event in ("after insert on {} for each row", "after insert on {} referencing new table as other for each statement", "before insert on {} for each statement",
                      "after delete on {} referencing old table as inserted for each statement"):
            with self.subTest(event):
                name, owner = self.table()
                rows(owner, f"""drop trigger pg_billing_call on {name}; create trigger by_hand {event.format(name)} execute function billing_internal.metered_insert('call', 'charge', 'org_id', '', '', '');
                                create temp view inserted as select '{OTHER}'::uuid as org_id, 1 as n where app.note('a view')""")
                owner.notices.clear()
                before = total(self.db, OTHER)
                try:
                    rows(owner, f"insert into {name} (org_id) values ('{OWN}'); delete from {name}")
                except psycopg2.Error:
                    pass
                self.assert_bound(owner)
                self.assertIn(total(self.db, OTHER), (before, before - 1))

    def test_what_the_owner_adds(self):
        """rule 10: domains, checks, defaults, generated columns and triggers of the owner run as who inserts, not as the trigger's function."""
        for definition, columns in (("org_id uuid, n int check (app.pure(n))", ("org_id", "n")), ("org_id uuid, n int default app.note('a default')::int", ("org_id", "n")),
                                    ("org_id uuid, n int, g boolean generated always as (app.pure(n)) stored", ("org_id", "n"))):
            name, owner = self.table(definition, *columns)
            session = self.session(self.stranger)
            rows(session, f"insert into {name} (org_id, n) values ('{OWN}', 1), ('{OWN}', 2)")
            self.assert_bound(session)
        rows(self.session(self.owner), """create domain app.who as uuid; create domain app.many as int""")
        name, owner = self.table("org_id app.who, n app.many", "org_id", "n")
        rows(owner, "alter domain app.who add check (app.pure(value)); alter domain app.many add check (app.pure(value))")
        session = self.session(self.stranger)
        rows(session, f"insert into {name} values ('{OWN}', 1), ('{OWN}', 2)")
        self.assert_bound(session)

    def test_columns_change_between_inserts(self):
        """security 1: a column of another type, with a cast that is a function, is refused at the next insert, also in a session that has inserted."""
        for change in ("alter column org_id type app.odd using null", "alter column n type app.odd using null", "alter column key type app.odd using null",
                       "alter column member type app.odd using null"):
            with self.subTest(change):
                name, owner = self.table("org_id uuid, n int, member uuid, key text", "org_id", "n", "member", "key")
                session = self.session(self.stranger)
                rows(session, f"insert into {name} values ('{OWN}', 1, null, 'a{uuid.uuid4()}')")
                rows(owner, f"""drop type if exists app.odd cascade; create type app.odd as enum ('a');
                    create function app.to_uuid(app.odd) returns uuid language plpgsql as $$ begin perform app.note('a cast'); return '{OTHER}'; end $$;
                    create function app.to_numeric(app.odd) returns numeric language plpgsql as $$ begin perform app.note('a cast'); return 1; end $$;
                    create function app.to_text(app.odd) returns text language plpgsql as $$ begin perform app.note('a cast'); return 'x'; end $$;
                    create cast (app.odd as uuid) with function app.to_uuid(app.odd) as implicit; create cast (app.odd as numeric) with function app.to_numeric(app.odd) as implicit;
                    create cast (app.odd as text) with function app.to_text(app.odd) as implicit;
                    alter table {name} {change}""")
                before = total(self.db, OTHER)
                with self.assertRaises(psycopg2.Error) as caught:
                    rows(session, f"insert into {name} ({change.split()[2]}) values ('a')")
                self.assertEqual(code_of(caught.exception), "55000 meter_outdated")
                self.assert_bound(session)
                self.assertEqual(total(self.db, OTHER), before)

    def test_made_again_by_another(self):
        """security 1: a table that is dropped and made again by another role is not metered, also after install()."""
        name, owner = self.table()
        rows(owner, f"drop table {name}")
        rows(self.db, f"grant create on schema app to {self.stranger}")
        session = self.session(self.stranger)
        rows(session, f"create table {name} (org_id uuid, n int)")
        rows(self.db, "select billing.install()")
        before = total(self.db, OTHER)
        rows(session, f"insert into {name} values ('{OTHER}', 1)")
        self.assertEqual(total(self.db, OTHER), before)
        self.assertEqual(rows(self.db, f"select from pg_trigger where tgrelid = '{name}'::regclass"), [])

    def test_another_trigger_of_that_name(self):
        """security 1: a trigger of the owner with the name of ours, and one that fires for replicas only, are none of ours: status() says so."""
        rows(self.db, "create function app.nothing() returns trigger language plpgsql as 'begin return null; end'; grant execute on function app.nothing() to public")
        for what in ("drop trigger pg_billing_call on {0}; create trigger pg_billing_call after insert on {0} execute function app.nothing()",
                     "alter table {0} enable replica trigger pg_billing_call", "alter table {0} disable trigger pg_billing_call", "drop trigger pg_billing_call on {0}"):
            with self.subTest(what):
                name, owner = self.table()
                self.addCleanup(rows, self.db, f"drop table if exists {name}")
                rows(owner, what.format(name))
                self.assertEqual(value(self.db, "select level from billing.status() where check_name = 'metered tables'"), "bad")
                rows(self.db, f"select billing.unmeter_table('{name}', 'call')")

    def test_metrics_and_keys(self):
        """security 11: the keys of metrics whose names read as another's with another key do not collide."""
        metrics = ("ai", "ai:image", 'ai":"image', "AI", "ai%image", "Ai:")
        attack.apply_catalog(self.db, {"metrics": {metric: {"price": 1} for metric in metrics}})
        self.addCleanup(attack.apply_catalog, self.db, attack.CATALOG)
        for mode in ("record", "charge"):
            owner = self.session(self.owner)
            rows(owner, f"create table app.keys_{mode} (org_id uuid, key text)")
            for metric in metrics:
                rows(self.db, "select billing.meter_table(%s::regclass, %s, 'org_id', key_column => 'key', mode => %s)", f"app.keys_{mode}", metric, mode)
            org = self.org(1000)
            keys = ("image:1", "1", ":1", ":", "", 'image":1', "image%1", "x" * 300, "x" * 301)
            for key in keys:
                rows(owner, f"insert into app.keys_{mode} values (%s, %s)", org, key)
            counted = value(self.db, "select sum(quantity) from billing.usage_by_day where org_id = %s", org)
            self.assertEqual(counted, len(metrics) * len(keys), mode)

    def test_hostile_names(self):
        """rule 10: names of columns, tables and schemas are quoted wherever they stand."""
        names = ('a"b', "a'b", "a;drop table x", "%I", "%1$L", "$$", "org id", "ORG", "select", "ä" * 31, "\\", "inserted", "g", "r", "i", "item")
        for n, column in enumerate(names):
            quoted = '"' + column.replace('"', '""') + '"'
            owner = self.session(self.owner)
            table = f'app."t {n} {column[:20]}"' if '"' not in column else f'app."t {n} x""y"'
            rows(owner, f"create table {table} ({quoted} uuid, {quoted[:-1]}2\" int, {quoted[:-1]}3\" text)" if len(column.encode()) < 62 else f"create table {table} ({quoted} uuid, n2 int, n3 text)")
            second, third = (column + "2", column + "3") if len(column.encode()) < 62 else ("n2", "n3")
            rows(self.db, "select billing.meter_table(%s::regclass, 'call', %s, %s, null, %s)", table, column, second, third)
            before = total(self.db, OWN)
            rows(owner, f"insert into {table} values ('{OWN}', 2, 'k{n}'), ('{OWN}', 1, 'l{n}')")
            rows(owner, f"insert into {table} values ('{OWN}', 3, 'm{n}')")
            self.assertEqual(total(self.db, OWN), before - 6, column)

    def test_who_may_meter(self):
        """A role meters tables of roles that it is a member of, not those of whoever runs the session."""
        rows(self.db, f"create table app.treasure (org_id uuid); grant create on schema app to {self.service}")
        service = self.session(self.service)
        self.assert_code("42501 not_owner", service, "select billing.meter_table('app.treasure', 'call', 'org_id')")
        rows(service, """create function app.meter() returns void language sql security definer as $$ select billing.meter_table('app.treasure', 'call', 'org_id') $$""")
        self.assert_code("42501 not_owner", self.db, "select app.meter()")

    def test_virtual_columns(self):
        """security 1: PostgreSQL 18 has columns that stand in no transition table."""
        if self.db.server_version < 180000:
            self.skipTest("before PostgreSQL 18 there are no virtual columns")
        owner = self.session(self.owner)
        rows(owner, "create table app.virtual (org_id uuid, n int, v int generated always as (n + 1) virtual)")
        self.assert_code("22023 invalid_argument", self.db, "select billing.meter_table('app.virtual', 'call', 'org_id', 'v')")


if __name__ == "__main__":
    unittest.main()

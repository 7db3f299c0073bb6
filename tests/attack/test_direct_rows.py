"""Rows that are read and written without statements, while the owner of the tables changes them.

Whatever he does between two calls: the right rows are read and written, or a call is refused with an error that says why; no other org
is charged, nothing is lost, and no server stops. A message of level debug1 says which table takes statements, and why.
"""

import pathlib
import re
import tempfile
import unittest
import uuid

from support import (LiveTestCase, Refused, await_condition, call, code_of, damage, installed_database, program, rows, run, statements_of,
                     together, total, value)

# Tables that stand in billing_internal.
INSIDE = {"lanes", "unsettled_usage", "usage_event_keys", "period_usage", "fold_positions"}
PARTITION = "(select 'billing.usage_events_' || to_char(now() at time zone 'UTC', 'YYYY_MM'))"


def place(table):
    """A table with its schema."""
    return f"billing_internal.{table}" if table in INSIDE else f"billing.{table}"


class DirectRows(LiveTestCase):
    """Each test has a database of its own, whose tables it changes."""

    def setUp(self):
        self.database = self.new_database(installed_database(self.admin))
        self.db = self.connect()
        self.install(self.db)
        self.a, self.b = self.org(1000), self.org(1000)

    def tearDown(self):
        self.assert_whole()

    def assert_whole(self, connection=None):
        """The books are right, and tables and indexes fit each other."""
        self.assertEqual(damage(connection or self.db), [])

    def doubts(self, step, connection=None):
        """What a step gives, and which tables it finds changed, and what is changed of them."""
        connection = connection or self.db
        rows(connection, "set client_min_messages = debug1")
        del connection.notices[:]
        try:
            result = step()
        finally:
            rows(connection, "reset client_min_messages")
        marked = [re.sub(r"^.*?billing(_internal)?\.", "", notice).strip() for notice in connection.notices if "by statements" in notice]
        return result, sorted(set(marked))

    def charge(self, connection=None, org=None, key=True):
        """Charges 1; gives what is left."""
        key = str(uuid.uuid4()) if key else None
        return call(connection or self.db, "consume_credits", org or self.a, "call", 1, key).balance_after

    def everything(self, connection=None, only=None):
        """Each kind of call, with what became of it: None, or a code."""
        connection = connection or self.db
        held = []
        steps = {
            "charge": lambda: self.charge(connection),
            "charge without a key": lambda: self.charge(connection, key=False),
            "reserve": lambda: held.append(call(connection, "reserve_credits", self.a, "call", 2).hold_id),
            "capture": lambda: [call(connection, "capture_credits", self.a, hold, 1) for hold in held],
            "record": lambda: call(connection, "record_usage", self.a, "call", 3, event_id=str(uuid.uuid4())),
            "check": lambda: call(connection, "check_limit", self.a, "call"),
            "total": lambda: total(connection, self.a),
            "settle": lambda: value(connection, "select count(*) from billing.settle_org(%s)", self.a),
        }
        outcome = {}
        for name, step in steps.items():
            if only and name != only:
                continue
            try:
                step()
                outcome[name] = None
            except Refused as error:
                self.assertIsNotNone(error.pgcode, f"{name}: {error}")
                outcome[name] = code_of(error)
        return outcome

    def assert_all_is_well(self, connection=None):
        """Each kind of call does what it should."""
        outcome = self.everything(connection)
        self.assertEqual({name: code for name, code in outcome.items() if code}, {})
        return outcome

    # ------------------------------------------------------------ nothing is changed

    def test_no_table_is_doubted(self):
        """As install() makes them, all tables are as the library knows them."""
        _, doubts = self.doubts(lambda: [self.assert_all_is_well() for _ in range(3)])
        self.assertEqual(doubts, [])

    def test_switched_off(self):
        """A superuser may have all of it done by statements, which comes to the same."""
        for _ in range(3):
            self.charge()
        self.assertEqual(len(statements_of(self.db, self.charge)), 1)
        rows(self.db, "set billing.direct_rows = off")
        left = total(self.db, self.a)
        self.assertGreater(len(statements_of(self.db, self.charge)), 2)
        self.assertEqual(total(self.db, self.a), left - 1)
        self.assert_all_is_well()
        rows(self.db, "reset billing.direct_rows")
        role = self.new_role(self.db, "service")
        rows(self.db, f"set role {role}")
        with self.assertRaises(Refused) as caught:
            rows(self.db, "set billing.direct_rows = off")
        self.assertEqual(caught.exception.pgcode, "42501")
        rows(self.db, "reset role")

    def test_only_what_is_wanted_is_read(self):
        """Statements, too, read the entries of one lane, and not those of all lanes that come after it."""
        call(self.db, "grant_credits", self.a, 5000, unit="USD")
        rows(self.db, "select billing.adjust_credits(%s, -1, 'one of many', 'USD') from generate_series(1, 2000)", self.a)
        for _ in range(3):
            self.charge()
        # A lane that does not know the sums of its entries has them read.
        rows(self.db, "update billing_internal.lanes set recent = null where org_id = %s and unit = 'credit'", self.a)
        fetched = """select coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) from pg_stat_xact_user_tables where relid = 'billing.ledger'::regclass"""
        for way in ("on", "off"):
            with self.subTest(direct_rows=way):
                rows(self.db, f"set billing.direct_rows = {way}; begin")
                before = value(self.db, fetched)
                self.assertEqual(value(self.db, "select sum(quantity) from billing_internal.unfolded_usage(%s) where metric = 'call'", self.a), 3)
                self.assertLess(value(self.db, fetched) - before, 500)
                rows(self.db, "rollback")
        rows(self.db, "reset billing.direct_rows; select billing.settle_org(%s)", self.a)

    # ------------------------------------------------------------ other tables by the same name

    def test_a_copy_takes_the_name_of_a_table(self):
        """A table that is renamed, and a copy in its place with its rows in another order: A is charged, and B is not."""
        other = self.connect()
        for connection in (self.db, other):
            self.charge(connection), self.charge(connection, self.b)
        rows(self.db, """begin; alter table billing_internal.lanes rename to lanes_old; create table billing_internal.lanes (like billing_internal.lanes_old including all);
                         insert into billing_internal.lanes select * from billing_internal.lanes_old order by ctid desc; commit""")
        for connection in (self.db, other):
            before = (total(connection, self.a), total(connection, self.b))
            _, doubts = self.doubts(lambda connection=connection: self.charge(connection), connection)
            self.assertEqual((total(connection, self.a), total(connection, self.b)), (before[0] - 1, before[1]))
            self.assertEqual(doubts, [], "a copy of everything is as good")
            self.assert_all_is_well(connection)
        self.assertEqual(value(self.db, "select sum(balance) from billing_internal.lanes_old"), 1996, "nobody writes into the old one")
        self.drop_old()

    def drop_old(self):
        """Drops the table that was renamed, of which the views still are."""
        rows(self.db, "set client_min_messages = error; drop table billing_internal.lanes_old cascade; select billing.install(); reset client_min_messages")

    def test_renamed_meanwhile(self):
        """Calls that wait for whoever renames a table go on with the one that has the name then."""
        sessions = self.connections(4)
        for session in sessions:
            self.charge(session)
        owner = self.connect(autocommit=False)
        for _ in range(3):
            rows(owner, """alter table billing_internal.lanes rename to lanes_old; create table billing_internal.lanes (like billing_internal.lanes_old including all);
                           insert into billing_internal.lanes select * from billing_internal.lanes_old order by ctid desc""")
            before = value(owner, "select balance from billing_internal.lanes where org_id = %s", self.a)

            def body(i, barrier):
                barrier.wait()
                if i < 4:
                    return self.charge(sessions[i])
                await_condition(lambda: value(self.db, "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()") == 4,
                                30, "four that wait")
                return owner.commit()

            self.assertEqual(sorted(together(5, body)[:4]), [before - 4, before - 3, before - 2, before - 1])
            self.drop_old()
        self.assertEqual(total(self.db, self.b), 1000)

    def test_schema_renamed(self):
        """Under other names, calls are refused, also where copies of the tables stand under the old ones; and back again."""
        other = self.connect()
        rows(self.db, """create schema copied; create schema copied_internal;
            do $$ declare t record; begin
              for t in select relname as name, relnamespace::regnamespace::text as schema from pg_class
                        where relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and relkind in ('r', 'p') and not relispartition loop
                execute format('create table %s.%I (like %s.%2$I including all)', replace(t.schema, 'billing', 'copied'), t.name, t.schema);
                execute format('insert into %s.%I overriding system value select * from %s.%2$I', replace(t.schema, 'billing', 'copied'), t.name, t.schema);
              end loop; end $$""")

        def rename(before, after):
            rows(self.db, f"begin; alter schema {before} rename to {after}; alter schema {before}_internal rename to {after}_internal; commit")

        def refuse(*codes):
            for connection in (self.db, other):
                with self.assertRaises(Refused) as caught:
                    rows(connection, "select * from elsewhere.consume_credits(%s, 'call')", self.a)
                self.assertIn(caught.exception.pgcode, codes)

        balance = lambda schema: value(self.db, f"select balance from {schema}_internal.lanes where org_id = %s", self.a)
        self.charge(), self.charge(other)
        # Nothing else tells that the tables are others.
        rename("billing", "elsewhere")
        rename("copied", "billing")
        refuse("42883", "55000")
        self.assertEqual((balance("billing"), balance("elsewhere")), (1000, 998))
        rename("billing", "copied")
        refuse("3F000", "55000")
        rename("elsewhere", "billing")
        # What people use alone.
        rows(self.db, "alter schema billing rename to elsewhere")
        refuse("55000")
        rows(self.db, "alter schema elsewhere rename to billing")
        for left, connection in ((997, self.db), (996, other)):
            self.assertEqual(self.charge(connection), left)
            self.assertEqual((balance("billing"), balance("copied")), (left, 1000))
        for connection in (self.db, other):
            self.assert_all_is_well(connection)

    # ------------------------------------------------------------ columns

    def test_types_altered(self):
        """A column of another type: a right result, or an error that names it; all is well once it is put back."""
        other = self.connect()
        self.assert_all_is_well(other)
        for table, column, new, old in (("holds", "credits", "numeric", "bigint"), ("ledger", "amount", "numeric", "bigint"),
                                        ("lanes", "balance", "numeric", "bigint"), ("lanes", "unit", 'varchar collate "C"', 'text collate "C"'),
                                        ("unsettled_usage", "quantity", "numeric", "bigint"), ("unsettled_usage", "metric", "text", 'text collate "C"'),
                                        ("usage_events", "quantity", "numeric", "bigint"), ("usage_event_keys", "event_key", "text", "uuid"),
                                        ("period_usage", "credits", "integer", "bigint"), ("fold_positions", "entry_id", "numeric", "bigint"),
                                        ("lanes", "fast_until", "timestamptz(0)", "timestamptz"), ("ledger", "created_at", "timestamp", "timestamptz")):
            with self.subTest(f"{table}.{column}: {new}"):
                self.alter(table, column, new)
                for connection in (self.db, other):
                    outcome = self.everything(connection)
                    strange = {n: c for n, c in outcome.items() if c and c not in ("55000 table_changed", "42804", "42883", "42725", "PT404 unknown_hold")}
                    self.assertEqual(strange, {})
                self.alter(table, column, old)
                for connection in (self.db, other):
                    self.assert_all_is_well(connection)
                self.assert_whole()
        rows(self.db, "create domain public.amount as bigint check (value >= 0)")
        self.alter("holds", "credits", "public.amount")
        self.assertEqual(self.everything()["capture"], "55000 table_changed")
        self.alter("holds", "credits", "bigint")
        self.assert_all_is_well()

    def alter(self, table, column, new):
        """Gives a column another type."""
        self.change(f"alter table {place(table)} alter column {column} type {new} using {column}::{new.split(' ')[0]}")

    def change(self, step):
        """Does something that views are in the way of, and makes these anew."""
        views = rows(self.db, """select c.oid::regclass::text, pg_get_viewdef(c.oid), array_to_string(reloptions, ', ') from pg_class c
                                  where relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and relkind = 'v'""")
        rows(self.db, "set client_min_messages = error; begin")
        for view, _, _ in views:
            rows(self.db, f"drop view if exists {view} cascade")
        rows(self.db, f"{step}; commit")
        for _ in views:
            for view, definition, options in views:
                if value(self.db, "select to_regclass(%s) is null", view):
                    try:
                        rows(self.db, f"create view {view} with ({options}) as {definition}" if options else f"create view {view} as {definition}")
                    except Refused:
                        pass
        rows(self.db, "reset client_min_messages")
        self.assertEqual([view for view, _, _ in views if value(self.db, "select to_regclass(%s) is null", view)], [])

    def test_not_null(self):
        """A column that must not be null any more is not: the call is refused, as by any statement. The dump restores."""
        for table, column, step, first in (
                ("unsettled_usage", "level", "record", ""), ("holds", "reason", "reserve", ""),
                ("ledger", "metadata", "charge", """alter table billing.ledger disable trigger all; update billing.ledger set metadata = '{}' where metadata is null;
                                                    alter table billing.ledger enable trigger all;""")):
            with self.subTest(f"{table}.{column}"):
                self.everything(only="charge")
                rows(self.db, f"{first} alter table {place(table)} alter column {column} set not null")
                self.assertEqual(self.everything(only=step)[step], "23502")
                self.assertEqual(value(self.db, f"select count(*) filter (where ({table}).{column} is null) from {place(table)}"), 0)
                with tempfile.TemporaryDirectory() as folder:
                    dump, restored = str(pathlib.Path(folder) / "dump"), self.new_database()
                    run(program("pg_dump"), "-Fc", "-f", dump, "-d", self.database)
                    run(program("pg_restore"), "--exit-on-error", "-d", restored, dump)
                rows(self.db, f"alter table {place(table)} alter column {column} drop not null")
        self.assert_all_is_well()

    def test_columns_swapped(self):
        """Two columns of a type that change places: they are told by name."""
        org = self.org(100, 500)
        self.charge(org=org)
        rows(self.db, """begin; alter table billing_internal.lanes rename balance to x; alter table billing_internal.lanes rename slice_credits to balance;
                         alter table billing_internal.lanes rename x to slice_credits;
                         update billing_internal.lanes set balance = slice_credits, slice_credits = balance; commit""")
        for left in range(598, 490, -12):
            self.assertEqual(self.charge(org=org), left)
            call(self.db, "consume_credits", org, "call", 11)
        self.assert_all_is_well()
        left = total(self.db, org)
        self.change("""alter table billing_internal.lanes add column again bigint not null default 0; update billing_internal.lanes set again = balance;
                       alter table billing_internal.lanes drop column balance; alter table billing_internal.lanes rename again to balance""")
        _, doubts = self.doubts(lambda: self.assertEqual(self.charge(org=org), left - 1))
        self.assertIn("lanes is written by statements: its number of columns", doubts)
        self.assert_all_is_well()

    # ------------------------------------------------------------ indexes

    def test_indexes(self):
        """An index is told by what it is of. Without it, statements do what they can."""
        others = {
            "renamed": "alter index billing_internal.lanes_pkey rename to by_wallet",
            "dropped": "alter table billing_internal.lanes drop constraint lanes_pkey",
            "on another table": """alter table billing_internal.lanes drop constraint lanes_pkey; create table billing_internal.others (like billing_internal.lanes);
                                   insert into billing_internal.others select * from billing_internal.lanes order by ctid desc;
                                   alter table billing_internal.others add constraint lanes_pkey primary key (org_id, unit, lane)""",
            "partial": "alter table billing_internal.lanes drop constraint lanes_pkey; create unique index lanes_pkey on billing_internal.lanes (org_id, unit, lane) where lane = 1",
            "of other columns": "alter table billing_internal.lanes drop constraint lanes_pkey; create unique index lanes_pkey on billing_internal.lanes (org_id, lane, unit)",
            "not unique": "alter table billing_internal.lanes drop constraint lanes_pkey; create index lanes_pkey on billing_internal.lanes (org_id, unit, lane)",
            "descending": "alter table billing_internal.lanes drop constraint lanes_pkey; create unique index lanes_pkey on billing_internal.lanes (org_id, unit desc, lane)",
            "of another collation": """alter table billing_internal.lanes drop constraint lanes_pkey;
                                       create unique index lanes_pkey on billing_internal.lanes (org_id, unit collate "default", lane)""",
            "of other operators": "alter table billing_internal.lanes drop constraint lanes_pkey; create unique index lanes_pkey on billing_internal.lanes (org_id, unit text_pattern_ops, lane)",
            "with more": "alter table billing_internal.lanes drop constraint lanes_pkey; create unique index lanes_pkey on billing_internal.lanes (org_id, unit, lane) include (balance)",
            "of an expression": "alter table billing_internal.lanes drop constraint lanes_pkey; create unique index lanes_pkey on billing_internal.lanes (org_id, unit, (lane + 0))",
            "hash": "alter table billing_internal.lanes drop constraint lanes_pkey; create index lanes_pkey on billing_internal.lanes using hash (org_id)",
        }
        other = self.connect()
        self.assert_all_is_well(), self.assert_all_is_well(other)
        for name, change in others.items():
            with self.subTest(name):
                rows(self.db, change)
                for connection in (self.db, other):
                    before = (total(connection, self.a), total(connection, self.b))
                    _, doubts = self.doubts(lambda connection=connection: self.charge(connection), connection)
                    self.assertEqual((total(connection, self.a), total(connection, self.b)), (before[0] - 1, before[1]))
                    self.assertEqual(any(doubt.startswith("lanes is written by statements") for doubt in doubts), name != "renamed", doubts)
                    self.assert_all_is_well(connection)
                self.assert_whole()
                rows(self.db, """drop table if exists billing_internal.others; alter table billing_internal.lanes drop constraint if exists by_wallet;
                                 drop index if exists billing_internal.lanes_pkey; alter table billing_internal.lanes add primary key (org_id, unit, lane)""")
                self.assert_all_is_well()

    def test_the_index_of_keys(self):
        """Without the index that tells keys, nothing is charged twice."""
        call(self.db, "consume_credits", self.a, "call", 1, "a key")
        for change in ("create unique index ledger_request on billing.ledger (org_id, request_id) where request_id is not null and amount < 0",
                       "create index ledger_request on billing.ledger (org_id, request_id) where request_id is not null", ""):
            rows(self.db, f"drop index billing.ledger_request; {change}")
            before = total(self.db, self.a)
            for _ in range(2):
                try:
                    self.assertTrue(call(self.db, "consume_credits", self.a, "call", 1, "a key").replayed)
                except Refused as error:
                    self.assertEqual(error.pgcode, "42P10")
            self.assertEqual(total(self.db, self.a), before)
            rows(self.db, """drop index if exists billing.ledger_request;
                             create unique index ledger_request on billing.ledger (org_id, request_id) where request_id is not null""")
            self.assertTrue(call(self.db, "consume_credits", self.a, "call", 1, "a key").replayed)
            self.assert_all_is_well()

    def test_an_index_that_leads_elsewhere(self):
        """An index is not believed: what is found has the keys that were asked for, or an error says that it does not."""
        swapped = """update pg_class c set relfilenode = (select relfilenode from pg_class o where o.relname in ('lanes_pkey', 'others_pkey') and o.oid <> c.oid)
                      where relname in ('lanes_pkey', 'others_pkey')"""
        rows(self.db, "vacuum full billing_internal.lanes")
        rows(self.db, """create table billing_internal.others (like billing_internal.lanes); insert into billing_internal.others select * from billing_internal.lanes order by ctid desc;
                         alter table billing_internal.others add primary key (org_id, unit, lane);
                         set allow_system_table_mods = on""")
        before = (total(self.db, self.a), total(self.db, self.b))
        rows(self.db, swapped)
        session = self.connect()
        for step in (lambda: self.charge(session), lambda: total(session, self.a)):
            with self.assertRaises(Refused) as caught:
                step()
            self.assertEqual(code_of(caught.exception), "XX001 corrupt_index")
            self.assertIn("reindex", caught.exception.diag.message_hint)
        rows(self.db, swapped)
        rows(self.db, "drop table billing_internal.others")
        self.assertEqual((total(self.db, self.a), total(self.db, self.b)), before)
        self.assert_all_is_well(session)

    def test_indexes_of_the_owner(self):
        """They lead to what is there, whatever they are of."""
        for name, definition, question, is_known in (
                ("brin", "on billing_internal.lanes using brin (balance)", "select count(*) from billing_internal.lanes where balance = %s", False),
                ("hash", "on billing_internal.lanes using hash (balance)", "select count(*) from billing_internal.lanes where balance = %s", False),
                ("expression", "on billing_internal.lanes ((balance + 1))", "select count(*) from billing_internal.lanes where balance + 1 = %s + 1", False),
                ("partial", "on billing_internal.lanes (balance) where lane = 0", "select count(*) from billing_internal.lanes where balance = %s and lane = 0", False),
                ("plain", "on billing_internal.lanes (balance) include (consumed)", "select count(*) from billing_internal.lanes where balance = %s", True)):
            with self.subTest(name):
                rows(self.db, f"create index of_the_owner {definition}")
                org, doubts = self.doubts(lambda: self.org(100))
                self.charge(org=org)
                self.assertEqual("lanes is written by statements: an index" in doubts, not is_known, doubts)
                for left in range(98, 90, -1):
                    self.assertEqual(self.charge(org=org), left)
                self.assertEqual(total(self.db, org), left)
                rows(self.db, "set enable_seqscan = off; set enable_indexonlyscan = off")
                self.assertEqual(value(self.db, f"{question} and org_id = %s", left, org), 1)
                rows(self.db, "reset enable_seqscan; reset enable_indexonlyscan")
                self.assert_whole()
                rows(self.db, "drop index billing_internal.of_the_owner")
        # Many rows, so that the ranges of an index of ranges are several.
        rows(self.db, "create index of_the_owner on billing.ledger using brin (entry_id) with (pages_per_range = 1)")
        self.assert_all_is_well()

    # ------------------------------------------------------------ partitions

    def recorded(self, connection, org):
        """Records an event; gives how many events of the org are found as of today."""
        call(connection, "record_usage", org, "call", 1, event_id=str(uuid.uuid4()))
        return value(connection, "select count(*) from billing.usage_events where org_id = %s and recorded_at > now() - interval '1 day'", org)

    def test_partitions(self):
        """An event lands where it is found, whatever became of the partition of its month."""
        name = value(self.db, f"select {PARTITION}")
        (bounds,) = rows(self.db, "select pg_get_expr(relpartbound, oid) from pg_class where oid = %s::regclass", name)[0]
        put_back = f"alter table billing.usage_events attach partition {name} {bounds}"
        other = self.connect()
        cases = {
            "detached": "",
            "of a foreign parent": f"""create table billing.foreign_events (like billing.usage_events) partition by range (recorded_at);
                                       alter table billing.foreign_events attach partition {name} {bounds}""",
            "of other bounds": f"alter table billing.usage_events attach partition {name} for values from ('2000-01-01') to ('2000-02-01')",
            "of no lower bound": f"alter table billing.usage_events attach partition {name} for values from (minvalue) to ('2000-02-01')",
        }
        for case, change in cases.items():
            with self.subTest(case):
                org = self.org(100)
                self.assertEqual(self.recorded(self.db, org), 1)
                self.assertEqual(self.recorded(other, org), 2)
                rows(self.db, f"begin; alter table billing.usage_events_default disable trigger all; alter table {name} disable trigger all")
                rows(self.db, f"delete from {name}; alter table {name} enable trigger all; alter table billing.usage_events_default enable trigger all")
                rows(self.db, f"alter table billing.usage_events detach partition {name}; {change}; commit")
                for found, connection in enumerate((self.db, other, self.db), 1):
                    self.assertEqual(self.recorded(connection, org), found)
                self.assertEqual(value(self.db, f"select count(*) from {name}"), 0)
                self.assertEqual(value(self.db, "select count(*) from billing.usage_events_default where org_id = %s", org), 3)
                rows(self.db, "drop table if exists billing.foreign_events" if case != "of a foreign parent" else
                     f"alter table billing.foreign_events detach partition {name}; drop table billing.foreign_events")
                if "bound" in case:
                    rows(self.db, f"alter table billing.usage_events detach partition {name}")
                rows(self.db, "alter table billing.usage_events_default disable trigger all; delete from billing.usage_events_default; "
                              "alter table billing.usage_events_default enable trigger all")
                rows(self.db, put_back)
                found, doubts = self.doubts(lambda org=org: self.recorded(self.db, org))
                self.assertEqual((found, doubts), (1, []))
        # Its own month, but told by something else besides.
        rows(self.db, f"alter table {name} add constraint few check (quantity < 5)")
        with self.assertRaises(Refused) as caught:
            call(self.db, "record_usage", self.a, "call", 5)
        self.assertEqual(caught.exception.pgcode, "23514")
        rows(self.db, f"alter table {name} drop constraint few")
        rows(self.db, "create function public.note() returns trigger language plpgsql as $$ begin raise exception 'watched'; end $$")
        for table in (name, "billing.usage_events"):
            rows(self.db, f"create trigger note before insert on {table} for each statement execute function public.note()")
            if table != name:
                with self.assertRaisesRegex(Refused, "watched"):
                    call(other, "record_usage", self.a, "call", 1)
            rows(self.db, f"drop trigger note on {table}")
            statements = statements_of(other, lambda: call(other, "record_usage", self.a, "call", 1))
            self.assertEqual([statement for statement in statements if statement.startswith("insert into billing.usage_events ")], [])
        self.assertEqual(self.recorded(other, self.a), 3)

    # ------------------------------------------------------------ who watches, who publishes

    def test_watched(self):
        """Triggers, rules, row security and those who distribute tables get the statements that they are for."""
        rows(self.db, """create table public.seen (what text, number bigint);
                         create function public.see() returns trigger language plpgsql as
                         $$ begin insert into public.seen values (tg_table_name, 1); return new; end $$""")
        cases = {
            "a trigger": ("create trigger see after insert on billing.ledger for each row execute function public.see()",
                          "drop trigger see on billing.ledger", "ledger is written by statements: a trigger", "ledger"),
            "a rule": ("create rule see as on insert to billing.holds do also insert into public.seen values ('holds', new.hold_id)",
                       "drop rule see on billing.holds", "holds is written by statements: a rule", "holds"),
            "row security": ("alter table billing_internal.lanes force row level security", "alter table billing_internal.lanes no force row level security",
                             "lanes is written by statements: row security is forced", None),
            "a distributed table": ("create trigger see after truncate on billing_internal.lanes execute function billing_internal.refuse_change()",
                                    "drop trigger see on billing_internal.lanes", "lanes is read by statements: a trigger after truncate", None),
            "an heir": ("create table billing.heirs () inherits (billing_internal.fold_positions)", "drop table billing.heirs",
                        "fold_positions is read by statements: tables inherit from it", None),
            "a check": ("alter table billing.holds add constraint few check (credits < 1000)", "alter table billing.holds drop constraint few",
                        "holds is written by statements: a check", None),
            "a default that is computed": ("alter table billing.holds add column double bigint generated always as (credits * 2) stored",
                                           None, "holds is written by statements: its number of columns", None),
        }
        other = self.connect()
        self.assert_all_is_well(), self.assert_all_is_well(other)
        for name, (begin, end, doubt, seen) in cases.items():
            with self.subTest(name):
                rows(self.db, begin)
                for connection in (self.db, other):
                    rows(self.db, "delete from public.seen")
                    entries = value(self.db, "select count(*) from billing.ledger")
                    _, doubts = self.doubts(lambda connection=connection: self.assert_all_is_well(connection), connection)
                    self.assertIn(doubt, doubts)
                    if seen:
                        made = value(self.db, "select count(*) from billing.ledger") - entries if seen == "ledger" else 1
                        self.assertEqual(value(self.db, "select count(*) from public.seen"), made)
                if end:
                    rows(self.db, end)
                    _, doubts = self.doubts(self.assert_all_is_well)
                    self.assertNotIn(doubt, doubts)

    def test_published(self):
        """What a subscriber could not follow is refused by the server's own error, and nothing is lost."""
        other = self.connect()
        self.assert_all_is_well(), self.assert_all_is_well(other)
        before = total(self.db, self.a)
        for publication in ("for all tables", "for table billing_internal.lanes", "for tables in schema billing, billing_internal"):
            rows(self.db, "set client_min_messages = error")
            rows(self.db, f"create publication everything {publication}")
            rows(self.db, "reset client_min_messages")
            self.assert_all_is_well(other)
            for identity, back in (("nothing", "default"), ("using index lanes_org_id_slot_key", "default")):
                rows(self.db, f"alter table billing_internal.lanes replica identity {identity}")
                before = total(self.db, self.a)
                for connection in (self.db, other):
                    if identity == "nothing":
                        with self.assertRaises(Refused) as caught:
                            self.charge(connection)
                        self.assertEqual(caught.exception.pgcode, "55000")
                        self.assertIn("replica identity", caught.exception.diag.message_primary)
                    else:
                        before -= 1
                        self.assertEqual(self.charge(connection), before)
                self.assertEqual(total(self.db, self.a), before)
                rows(self.db, f"alter table billing_internal.lanes replica identity {back}")
            # What a filter speaks of must be known of the old row.
            rows(self.db, "drop publication everything")
            self.assert_all_is_well(other)
        rows(self.db, "set client_min_messages = error; create publication everything for table billing_internal.lanes where (balance > 5)")
        with self.assertRaises(Refused) as caught:
            self.charge(other)
        self.assertEqual(caught.exception.pgcode, "42P10")
        rows(self.db, "drop publication everything; reset client_min_messages")
        self.assert_all_is_well(other)


if __name__ == "__main__":
    unittest.main()

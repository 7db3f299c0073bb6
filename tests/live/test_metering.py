"""Charging without code: tables of an app whose inserts are charged or recorded, written to by a role that knows nothing of
billing.
"""

import io
import json
import pathlib
import tempfile
import unittest
import uuid

from support import CATALOG, LiveTestCase, Refused, apply_catalog, call, code_of, connect, program, rows, run, together, total, value

COLUMNS = """id bigint generated always as identity primary key, org_id uuid, amount bigint, share numeric, member uuid, key text,
             number integer, token uuid, flag boolean, body text"""
LONG = "m" * 63


class Metering(LiveTestCase):
    """An app with tables of its own; its role may insert into them and has no right on billing."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.catalog = {"metrics": {**CATALOG["metrics"], LONG: {"price": 2}, "disk": {"aggregation": "max", "price": 0}}}
        apply_catalog(cls.db, cls.catalog)
        cls.writer = cls.plain_role()
        rows(cls.db, f"create schema app; grant usage on schema app to {cls.writer}")

    @classmethod
    def plain_role(cls):
        """A role without any right; dropped at the end."""
        name = f"billing_app_{uuid.uuid4().hex[:8]}"
        rows(cls.admin, f"create role {name}")
        cls.roles.append(name)
        return name

    def setUp(self):
        self.app = self.connect()
        rows(self.app, f"set role {self.writer}")

    def tearDown(self):
        self.assert_sound()

    def table(self, columns=COLUMNS, more=""):
        """A new table of the app; gives its name."""
        name = f"app.t_{uuid.uuid4().hex[:8]}"
        rows(self.db, f"create table {name} ({columns}) {more}")
        rows(self.db, f"grant select, insert, delete on {name} to {self.writer}")
        self.addCleanup(rows, self.db, f"drop table if exists {name} cascade")
        return name

    def metered(self, metric="call", *, columns=COLUMNS, **named):
        """A new table with the metric on it."""
        name = self.table(columns)
        self.meter(name, metric, **named)
        return name

    def meter(self, table, metric="call", org_column="org_id", **named):
        """meter_table(), as the owner of the database."""
        call(self.db, "meter_table", table, metric, org_column, **named)

    def insert(self, table, *orgs, connection=None, **columns):
        """The writer inserts a row for each org in one statement."""
        names = ["org_id", *columns]
        one = f"({', '.join(['%s'] * len(names))})"
        values = [given for org in orgs for given in (org, *columns.values())]
        rows(connection or self.app, f"insert into {table} ({', '.join(names)}) values {', '.join([one] * len(orgs))}", *values)

    def assert_insert_refused(self, expected, table, *orgs, **columns):
        """The insert is refused with this SQLSTATE and code, and leaves no row; gives the detail."""
        before = self.count(table)
        with self.assertRaises(Refused) as caught:
            self.insert(table, *orgs, **columns)
        self.assertEqual(code_of(caught.exception), expected)
        self.assertEqual(self.count(table), before)
        return json.loads(caught.exception.diag.message_detail)

    def count(self, table):
        """Rows in a table."""
        return value(self.db, f"select count(*) from {table}")

    def usage(self, org):
        """Quantities, amounts and members of an org's consumptions, in order."""
        return [tuple(row) for row in rows(self.db, """select metric, quantity, amount, member_id from billing.entries
                                                       where org_id = %s and kind = 'usage' order by entry_id""", org)]

    def used(self, org, metric="call"):
        """What check_limit() says was used."""
        return value(self.db, "select used from billing.check_limit(%s, %s)", org, metric)

    def triggers(self, table):
        """Our triggers on a table."""
        return [name for (name,) in rows(self.db, "select tgname from pg_trigger where tgrelid = %s::regclass and not tgisinternal order by 1", table)]

    # ---------------------------------------------------------------- charging

    def test_a_row_is_a_unit(self):
        """Who may only insert is charged for each row, in its own transaction."""
        table, org = self.metered("page"), self.org(20)
        self.insert(table, org)
        self.assertEqual(total(self.db, org), 13)
        self.assertEqual(self.usage(org), [("page", 1, -7, None)])
        with self.assertRaises(Refused) as caught:
            call(self.app, "consume_credits", org, "page")
        self.assertEqual(caught.exception.pgcode, "42501", "the role itself has no right")

    def test_no_rows_no_charge(self):
        """A statement that inserts nothing charges nothing."""
        table, org = self.metered(), self.org(5)
        rows(self.app, f"insert into {table} (org_id) select %s where false", org)
        self.assertEqual(self.usage(org), [])

    def test_bulk(self):
        """1,000 rows over several orgs: one consumption per org, to the credit."""
        table, orgs = self.metered("third"), [self.org(1000) for _ in range(7)]
        rows(self.app, f"insert into {table} (org_id) select (%s::uuid[])[1 + n %% 7] from generate_series(0, 999) n", orgs)
        counts = [143] * 6 + [142]
        self.assertEqual([self.usage(org) for org in orgs], [[("third", n, -((n + 2) // 3), None)] for n in counts])
        self.assertEqual([total(self.db, org) for org in orgs], [1000 - (n + 2) // 3 for n in counts])

    def test_more_than_a_batch(self):
        """More orgs, and more keys, than one batch takes; a refusal at the very end takes everything back."""
        table = self.metered("view", key_column="number", quantity_column="amount")
        org, poor = self.org(1), self.org(3)
        rows(self.app, f"insert into {table} (org_id, number, amount) select %s, n, 1 from generate_series(1, 20001) n", org)
        self.assertEqual(value(self.db, "select count(*) from billing.entries where org_id = %s and kind = 'usage'", org), 20001)
        self.meter(table, "call", key_column="number", quantity_column="amount")
        with self.assertRaises(Refused) as caught:
            rows(self.app, f"insert into {table} (org_id, number, amount) select %s, n, (n > 20000)::int * 4 from generate_series(1, 20001) n", poor)
        self.assertEqual(code_of(caught.exception), "PT402 insufficient_credits")
        self.assertEqual((self.count(table), total(self.db, poor), self.usage(poor)), (20001, 3, []))

    def test_more_orgs_than_a_batch(self):
        """Each of 10,050 orgs is charged once."""
        table = self.metered("call")
        orgs = rows(self.db, "select o, billing.grant_credits(o, 2) from (select gen_random_uuid() from generate_series(1, 10050)) g (o)")
        rows(self.app, f"insert into {table} (org_id) select unnest(%s::uuid[])", [org for org, _ in orgs])
        self.assertEqual(rows(self.db, f"select distinct billing.get_total_credits(org_id) from {table}"), [(1,)])

    def test_no_credit_no_row(self):
        """The refusal says what consume_credits would say, and whose; nothing of the statement stays."""
        table, rich, poor = self.metered("page"), self.org(100), self.org(13)
        detail = self.assert_insert_refused("PT402 insufficient_credits", table, rich, poor, poor)
        self.assertEqual(detail, {"code": "insufficient_credits", "org_id": str(poor), "metric": "page", "required": 14, "available": 13})
        self.assertEqual((total(self.db, rich), total(self.db, poor)), (100, 13))
        self.insert(table, rich, poor)
        self.assertEqual((total(self.db, rich), total(self.db, poor)), (93, 6))

    def test_other_refusals(self):
        """A member's budget, an org without a wallet, a metric that the catalog dropped."""
        table, org, member = self.metered("page", member_column="member"), self.org(100), uuid.uuid4()
        rows(self.db, "select billing.set_member_budget(%s, %s, 10)", org, member)
        self.insert(table, org, member=member)
        self.assertEqual(self.assert_insert_refused("PT429 cap_exceeded", table, org, member=member)["member_id"], str(member))
        self.assertEqual(self.assert_insert_refused("PT429 cap_exceeded", table, org, org, member=member)["org_id"], str(org))
        self.insert(table, org, member=uuid.uuid4())
        nobody = uuid.uuid4()
        self.assert_insert_refused("PT404 unknown_org", table, nobody)
        detail = self.assert_insert_refused("PT404 unknown_org", table, org, nobody)
        self.assertEqual((detail["org_id"], detail["metric"]), (str(nobody), "page"))
        self.addCleanup(apply_catalog, self.db, self.catalog)
        apply_catalog(self.db, {"metrics": {"call": {"price": 1}}})
        self.assert_insert_refused("PT404 unknown_metric", table, org)
        self.assert_insert_refused("PT404 unknown_metric", table, org, org)

    def test_rolled_back(self):
        """What the app takes back is not spent; the same goes for savepoints and caught errors."""
        table, org = self.metered(), self.org(10)
        app = self.connect(autocommit=False)
        rows(app, f"set role {self.writer}")
        app.commit()
        self.insert(table, org, org, connection=app)
        self.assertEqual(total(self.db, org), 10, "nobody else sees it before the commit")
        app.rollback()
        self.assertEqual((total(self.db, org), self.usage(org)), (10, []))
        self.insert(table, org, connection=app)
        rows(app, "savepoint a")
        self.insert(table, org, org, connection=app)
        rows(app, "rollback to a")
        app.commit()
        self.assertEqual((self.count(table), total(self.db, org)), (1, 9))
        rows(self.app, f"""do $$ begin
            insert into {table} (org_id) select '{org}' from generate_series(1, 8);
            begin
                insert into {table} (org_id) values ('{org}'), ('{org}');
            exception when sqlstate 'PT402' then
                insert into {table} (org_id) values ('{org}');
            end;
        end $$""")
        self.assertEqual((self.count(table), total(self.db, org)), (10, 0))

    def test_together(self):
        """Sessions that insert at once spend what there is, and no more."""
        table, org = self.metered(), self.org(30)

        def worker(_, barrier):
            session = connect(self.database)
            try:
                rows(session, f"set role {self.writer}")
                barrier.wait()
                done = 0
                for _ in range(10):
                    try:
                        self.insert(table, org, connection=session)
                        done += 1
                    except Refused as error:
                        self.assertEqual(code_of(error), "PT402 insufficient_credits")
                return done
            finally:
                session.close()

        self.assertEqual(sum(together(4, worker)), 30)
        self.assertEqual((self.count(table), total(self.db, org)), (30, 0))

    # ---------------------------------------------------------------- columns

    def test_quantity(self):
        """A column says how much; zero is not charged; integers of any size, and numerics that are whole."""
        for kind in ("smallint", "integer", "bigint", "numeric", "numeric(10, 2)"):
            with self.subTest(kind):
                table, org = self.metered(quantity_column="used", columns=f"org_id uuid, used {kind}"), self.org(20)
                rows(self.app, f"insert into {table} values (%s, 5), (%s, 0), (%s, 7)", org, org, org)
                self.insert(table, org, used=0)
                self.assertEqual(self.usage(org), [("call", 12, -12, None)])
        self.assertEqual(self.count(table), 4)
        self.insert(table, uuid.uuid4(), used=0)

    def test_bad_rows(self):
        """Nobody to charge, or a quantity that is none: the whole statement is refused, whatever the other rows add up to."""
        org = self.org(20)
        table = self.metered(quantity_column="share")
        for share in (None, -1, "0.5", "NaN", "Infinity", "-Infinity", 2**63):
            for key_column in (None, "number"):
                with self.subTest(share, key_column=key_column), self.assertRaises(Refused) as caught:
                    self.meter(table, quantity_column="share", key_column=key_column)
                    rows(self.app, f"insert into {table} (org_id, share, number) values (%s, 2, 1), (%s, %s, 2), (%s, 2, 3)", org, org, share, org)
                self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
                self.assertEqual(json.loads(caught.exception.diag.message_detail),
                                 {"code": "invalid_argument", "argument": "quantity_column", "column": "share", "fault": "must be whole numbers from 0 on",
                                  "table": table, "metric": "call"})
        self.meter(table)
        detail = self.assert_insert_refused("22023 invalid_argument", table, org, None)
        self.assertEqual((detail["argument"], detail["column"], detail["fault"]), ("org_column", "org_id", "must not be null"))
        table = self.metered(quantity_column="amount")
        with self.assertRaises(Refused) as caught:
            rows(self.app, f"insert into {table} (org_id, amount) values (%s, {2**62}), (%s, {2**62})", org, org)
        self.assertEqual(code_of(caught.exception), "22023 invalid_argument", "a sum beyond bigint")
        self.assertEqual((self.count(table), self.usage(org)), (0, []))

    def test_members(self):
        """Rows are summed per org and member; without a member, per org."""
        table, orgs, ann, bob = self.metered(member_column="member", quantity_column="amount"), [self.org(100), self.org(100)], uuid.uuid4(), uuid.uuid4()
        given = [(orgs[0], ann, 1), (orgs[1], ann, 2), (orgs[0], bob, 4), (orgs[0], None, 8), (orgs[0], ann, 16), (orgs[0], None, 32)]
        rows(self.app, f"insert into {table} (org_id, member, amount) values {', '.join(['(%s, %s, %s)'] * len(given))}", *[part for row in given for part in row])
        self.assertEqual(sorted(self.usage(orgs[0]), key=str), sorted([("call", 17, -17, ann), ("call", 4, -4, bob), ("call", 40, -40, None)], key=str))
        self.assertEqual(self.usage(orgs[1]), [("call", 2, -2, ann)])

    def test_names_and_domains(self):
        """Names that need quotes, and domains over the types."""
        name, org = '"App\'s"."Jobs ""$1"" x"', self.org(20)
        rows(self.db, """create schema "App's"; create domain "App's".tenant as uuid not null; create domain "App's".tenant_too as "App's".tenant;
                         create domain "App's".amount as bigint check (value < 100)""")
        rows(self.db, f"""create table {name} ("Org\\ID" "App's".tenant_too, "how much?" "App's".amount, "key'" varchar(10))""")
        self.addCleanup(rows, self.db, """drop schema "App's" cascade""")
        rows(self.db, f"""grant usage on schema "App's" to {self.writer}; grant insert on all tables in schema "App's" to {self.writer}""")
        self.meter(name, "call", "Org\\ID", quantity_column="how much?", key_column="key'")
        for _ in range(2):
            rows(self.app, f"insert into {name} values (%s, 3, 'a'), (%s, 4, 'b')", org, org)
        self.assertEqual(total(self.db, org), 13)
        self.assertEqual(rows(self.db, "select table_schema, table_name, org_column from billing.metered_tables where table_schema = %s", "App's"),
                         [("App's", 'Jobs "$1" x', "Org\\ID")])
        self.assertTrue(value(self.db, "select billing.unmeter_table(%s, 'call')", name))

    # ---------------------------------------------------------------- keys

    def test_key(self):
        """A value of the key column is charged once per org, however often its row comes; another quantity is a conflict."""
        for column, one, two in (("key", "a", "ü" * 200), ("number", 1, 2), ("token", uuid.uuid4(), uuid.uuid4())):
            with self.subTest(column):
                table, org, other = self.metered(key_column=column, quantity_column="amount"), self.org(100), self.org(100)
                app = self.connect(autocommit=False)
                rows(app, f"set role {self.writer}")
                app.commit()
                self.insert(table, org, connection=app, amount=5, **{column: one})
                app.rollback()
                self.insert(table, org, amount=5, **{column: one})
                rows(self.app, f"delete from {table}")
                self.insert(table, org, amount=5, **{column: one})
                self.assertEqual(total(self.db, org), 95)
                rows(self.app, f"insert into {table} (org_id, amount, {column}) values (%s, 5, %s), (%s, 6, %s), (%s, 6, %s), (%s, 6, %s)",
                     org, one, org, two, org, two, other, two)
                self.assertEqual((total(self.db, org), total(self.db, other)), (89, 94))
                self.assert_insert_refused("PT409 idempotency_conflict", table, org, amount=6, **{column: one})
                self.assert_insert_refused("PT409 idempotency_conflict", table, other, org, amount=6, **{column: one})
                detail = self.assert_insert_refused("22023 invalid_argument", table, org, amount=6)
                self.assertEqual((detail["argument"], detail["column"], detail["fault"]), ("key_column", column, "must not be null"))
                keys = [key for (key,) in rows(self.db, "select idempotency_key from billing.entries where org_id = %s and kind = 'usage' order by entry_id", org)]
                self.assertEqual(keys[0], f"meter:{table}:call:{one}")
                self.assertTrue(all(len(key.encode()) <= 255 for key in keys))

    def test_keys_of_tables_and_metrics_differ(self):
        """The same value in another table or for another metric is another consumption."""
        org, one, two = self.org(100), self.metered(key_column="key"), self.metered(key_column="key")
        self.meter(one, "page", key_column="key")
        for table in (one, two, one, two):
            self.insert(table, org, key="same")
        self.assertEqual(total(self.db, org), 100 - 1 - 7 - 1)

    def test_key_of_a_refused_row(self):
        """A refused row has not used up its key."""
        table, org = self.metered("page", key_column="key"), self.org(5)
        self.assert_insert_refused("PT402 insufficient_credits", table, org, key="a")
        call(self.db, "grant_credits", org, 5)
        self.insert(table, org, key="a")
        self.assertEqual(total(self.db, org), 3)

    # ---------------------------------------------------------------- recording

    def test_record(self):
        """Recorded rows move no credit and are refused for none; check_limit() counts them at once."""
        table, org = self.metered(mode="record", quantity_column="amount", member_column="member"), self.org(10)
        rows(self.app, f"insert into {table} (org_id, amount) select %s, n from generate_series(0, 10) n", org)
        self.insert(table, org, org, amount=3, member=uuid.uuid4())
        self.insert(table, org, amount=0)
        self.assertEqual(self.used(org), 61)
        self.assertEqual((total(self.db, org), self.usage(org)), (10, []))
        app = self.connect(autocommit=False)
        rows(app, f"set role {self.writer}")
        self.insert(table, org, connection=app, amount=100)
        app.rollback()
        self.assertEqual(self.used(org), 61, "what was rolled back was not used")
        self.assert_insert_refused("22023 invalid_argument", table, org, amount=-1)
        self.assert_insert_refused("22023 invalid_argument", table, None, amount=1)

    def test_record_once(self):
        """With a key, a row that comes again counts once."""
        table, org = self.metered(mode="record", key_column="key"), self.org(10)
        rows(self.app, f"insert into {table} (org_id, key) select %s, 'k' || n %% 7 from generate_series(1, 20) n", org)
        self.insert(table, org, key="k1")
        self.insert(table, org, key="x" * 500)
        self.insert(table, org, key="x" * 500)
        self.assertEqual(self.used(org), 8)

    def test_record_many(self):
        """More events than one batch takes."""
        table, org = self.metered(mode="record", key_column="number"), self.org(10)
        rows(self.app, f"insert into {table} (org_id, number) select %s, n from generate_series(1, 10001) n", org)
        self.assertEqual(self.used(org), 10001)

    def test_record_levels(self):
        """Rows of a gauge are levels: they do not add up, and zero is one."""
        table, org = self.metered("disk", mode="record", quantity_column="amount"), self.org(10)
        rows(self.app, f"insert into {table} (org_id, amount) values (%s, 3), (%s, 5), (%s, 0), (%s, 4)", org, org, org, org)
        self.assertEqual(self.used(org, "disk"), 5)
        self.insert(table, org, amount=0)
        self.assertEqual(self.used(org, "disk"), 5)

    # ---------------------------------------------------------------- what else inserts

    def test_other_ways_in(self):
        """INSERT … SELECT, COPY, ON CONFLICT, MERGE, RETURNING and data-modifying CTEs: what is really inserted is charged."""
        table, org = self.metered(columns="id bigint unique, org_id uuid"), self.org(1000)

        def charged(statement):
            before = total(self.db, org)
            found = rows(self.app, statement.format(table=table, org=org))
            return before - total(self.db, org), found

        rows(self.db, f"grant update on {table} to {self.writer}")
        self.assertEqual(charged("insert into {table} select n, '{org}' from generate_series(1, 10) n"), (10, []))
        self.assertEqual(charged("insert into {table} select n, '{org}' from generate_series(8, 12) n on conflict do nothing"), (2, []))
        self.assertEqual(charged("insert into {table} select n, '{org}' from generate_series(1, 12) n on conflict do nothing"), (0, []))
        self.assertEqual(charged("insert into {table} select n, '{org}' from generate_series(11, 15) n on conflict (id) do update set org_id = excluded.org_id"), (3, []))
        self.assertEqual(charged("""merge into {table} t using (select n from generate_series(14, 17) n) s on t.id = s.n
                                    when matched then update set org_id = '{org}' when not matched then insert values (s.n, '{org}')"""), (2, []))
        self.assertEqual(charged("insert into {table} values (18, '{org}') returning id"), (1, [(18,)]))
        self.assertEqual(charged("""with one as (insert into {table} values (19, '{org}') returning id), two as (insert into {table} values (20, '{org}'), (21, '{org}') returning id)
                                    select count(*) from (table one union all table two) u"""), (3, [(3,)]))
        before = total(self.db, org)
        with self.app.cursor() as cursor:
            cursor.copy_expert(f"copy {table} from stdin", io.StringIO("".join(f"{n}\t{org}\n" for n in range(22, 122))))
        self.assertEqual(before - total(self.db, org), 100)
        self.assertEqual(charged("update {table} set org_id = org_id"), (0, []))
        self.assertEqual(charged("delete from {table}"), (0, []))

    def test_copy_refused(self):
        """COPY of more than the credit pays for leaves nothing."""
        table, org = self.metered(columns="id bigint, org_id uuid"), self.org(99)
        with self.assertRaises(Refused) as caught, self.app.cursor() as cursor:
            cursor.copy_expert(f"copy {table} from stdin", io.StringIO("".join(f"{n}\t{org}\n" for n in range(100))))
        self.assertEqual(code_of(caught.exception), "PT402 insufficient_credits")
        self.assertEqual((self.count(table), total(self.db, org)), (0, 99))

    def test_partitioned(self):
        """Through a partitioned table every row counts once, also where a partition is metered itself; that counts what goes straight into it."""
        table, org = self.table("org_id uuid, part int, amount bigint", "partition by list (part)"), self.org(100)
        rows(self.db, f"""create table {table}_0 partition of {table} for values in (0);
                          create table {table}_1 (amount bigint, gone text, part int, org_id uuid); alter table {table}_1 drop column gone""")
        self.meter(table, quantity_column="amount")
        self.meter(f"{table}_1", quantity_column="amount")
        rows(self.db, f"alter table {table} attach partition {table}_1 for values in (1); grant insert on {table}_1 to {self.writer}")
        rows(self.app, f"insert into {table} values (%s, 0, 1), (%s, 1, 2), (%s, 1, 4)", org, org, org)
        self.assertEqual(self.usage(org), [("call", 7, -7, None)])
        self.insert(table, org, part=1, amount=8)
        self.insert(f"{table}_1", org, part=1, amount=16)
        self.assertEqual(total(self.db, org), 100 - 7 - 8 - 16)
        self.assertTrue(value(self.db, "select billing.unmeter_table(%s, 'call')", f"{table}_1"))
        self.insert(table, org, part=1, amount=32)
        self.assertEqual(total(self.db, org), 100 - 7 - 8 - 16 - 32)

    def test_several_metrics(self):
        """Each metric of a table counts for itself, and all of them or none."""
        table, org = self.metered("call", quantity_column="amount"), self.org(100)
        self.meter(table, "page")
        self.meter(table, LONG)
        self.assertEqual(len(self.triggers(table)), 3)
        self.insert(table, org, org, amount=3)
        self.assertEqual(sorted(self.usage(org)), [("call", 6, -6, None), (LONG, 2, -4, None), ("page", 2, -14, None)])
        self.assert_insert_refused("PT402 insufficient_credits", table, org, amount=70)
        self.assertEqual(total(self.db, org), 76)

    def test_metrics_with_long_names(self):
        """Names that agree in all that fits into a trigger's name have triggers of their own."""
        metrics = [LONG[:-1] + "a", LONG[:-1] + "b", "é" * 31, "m" * 52, "m" * 53]
        self.addCleanup(apply_catalog, self.db, self.catalog)
        apply_catalog(self.db, {"metrics": {**self.catalog["metrics"], **{metric: {"price": 1} for metric in metrics}}})
        table, org = self.table(), self.org(100)
        for metric in metrics:
            self.meter(table, metric)
        self.assertEqual(len(self.triggers(table)), len(metrics))
        self.insert(table, org)
        self.assertEqual(total(self.db, org), 100 - len(metrics))
        for metric in metrics:
            self.assertTrue(value(self.db, "select billing.unmeter_table(%s, %s)", table, metric))
        self.assertEqual(self.triggers(table), [])

    # ---------------------------------------------------------------- settings

    def test_unmeter(self):
        """Taken off, inserts are free again; a second time, there is nothing to take off."""
        table, org = self.metered(), self.org(10)
        self.meter(table, "page")
        self.assertTrue(value(self.db, "select billing.unmeter_table(%s, 'page')", table))
        self.insert(table, org)
        self.assertEqual(total(self.db, org), 9)
        self.assertFalse(value(self.db, "select billing.unmeter_table(%s, 'page')", table))
        self.assertTrue(value(self.db, "select billing.unmeter_table(%s, 'call')", table))
        self.insert(table, org)
        self.assertEqual((total(self.db, org), self.triggers(table)), (9, []))
        self.assertFalse(value(self.db, "select billing.unmeter_table(%s, 'never heard of')", table))
        self.assertEqual(rows(self.db, "select * from billing.metered_tables where table_schema || '.' || table_name = %s", table), [])

    def test_replaced(self):
        """Calling it again replaces columns and mode."""
        table, org = self.metered(), self.org(100)
        self.meter(table, quantity_column="amount")
        self.insert(table, org, amount=10)
        self.assertEqual(total(self.db, org), 90)
        self.meter(table, quantity_column="number", key_column="key", member_column="member")
        self.insert(table, org, amount=10, number=5, key="a")
        self.insert(table, org, amount=10, number=5, key="a")
        self.assertEqual(total(self.db, org), 85)
        self.meter(table, mode="record")
        self.insert(table, org, amount=10)
        self.assertEqual((total(self.db, org), len(self.triggers(table))), (85, 1))
        self.assertEqual(rows(self.db, """select metric, org_column, quantity_column, member_column, key_column, mode from billing.metered_tables
                                          where table_schema || '.' || table_name = %s""", table), [("call", "org_id", None, None, None, "record")])

    def test_table_changes(self):
        """Columns that are renamed, dropped or of another type refuse inserts until the table is metered anew; a renamed table stays metered."""
        table, org = self.metered(quantity_column="amount"), self.org(100)
        rows(self.db, f"alter table {table} rename amount to amounts")
        detail = self.assert_insert_refused("55000 meter_outdated", table, org)
        self.assertEqual((detail["argument"], detail["column"], detail["metric"], detail["table"]), ("quantity_column", "amount", "call", table))
        self.meter(table, quantity_column="amounts")
        self.insert(table, org, amounts=5)
        rows(self.db, f"alter table {table} alter amounts type text")
        self.assert_insert_refused("55000 meter_outdated", table, org)
        rows(self.db, f"alter table {table} drop amounts")
        self.assert_insert_refused("55000 meter_outdated", table, org)
        self.meter(table)
        rows(self.db, f"alter table {table} rename to renamed")
        self.addCleanup(rows, self.db, "drop table app.renamed")
        self.insert("app.renamed", org)
        self.assertEqual(total(self.db, org), 94)
        self.assertTrue(value(self.db, "select billing.unmeter_table('app.renamed', 'call')"))

    def test_types_of_others(self):
        """A type whose casts would run with the rights of the trigger's function is not cast."""
        owner = self.plain_role()
        rows(self.db, f"create schema trap authorization {owner}; grant usage on schema trap to {self.writer}")
        other = self.connect()
        rows(other, f"set role {owner}")
        rows(other, """create table trap.sprung (who name); grant insert on trap.sprung to public;
                       create type trap.org as enum ('a');
                       create function trap.org(trap.org) returns uuid language plpgsql as $$ begin
                           insert into trap.sprung values (current_user); return gen_random_uuid(); end $$;
                       create cast (trap.org as uuid) with function trap.org(trap.org);
                       create table trap.t (org_id uuid)""")
        self.addCleanup(rows, self.db, "drop schema trap cascade")
        self.meter("trap.t")
        rows(other, f"alter table trap.t alter org_id type trap.org using 'a'; grant insert, select on trap.t to {self.writer}")
        self.assert_insert_refused("55000 meter_outdated", "trap.t", "a")
        with self.assertRaises(Refused) as caught:
            self.meter("trap.t")
        self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
        self.assertEqual(self.count("trap.sprung"), 0)
        # The trap is set.
        self.assertIsNotNone(value(self.db, "select 'a'::trap.org::uuid"))
        self.assertEqual(self.count("trap.sprung"), 1)

    def test_temporary_table_of_that_name(self):
        """The writer's own objects do not stand in for what the trigger uses."""
        table, org = self.metered(), self.org(10)
        rows(self.app, "create temp table inserted (org_id uuid); create temp table metrics (metric text, aggregation text)")
        rows(self.app, "set search_path = pg_temp, app, billing")
        self.insert(table, org)
        self.assertEqual(total(self.db, org), 9)

    # ---------------------------------------------------------------- who, and what with

    def test_bad_input(self):
        """Every argument that cannot be, with its SQLSTATE, and what names it."""
        table = self.table()
        rows(self.db, f"create view {table}_view as select * from {table}; create temp table scratch (org_id uuid)")
        self.addCleanup(rows, self.db, "drop table scratch")
        invalid = "22023 invalid_argument"
        for expected, argument, arguments, named in (
                (invalid, "relation", (None, "call", "org_id"), {}),
                (invalid, "metric", (table, None, "org_id"), {}),
                (invalid, "org_column", (table, "call", None), {}),
                (invalid, "mode", (table, "call", "org_id"), {"mode": None}),
                (invalid, "mode", (table, "call", "org_id"), {"mode": "both"}),
                (invalid, "mode", (table, "call", "org_id"), {"mode": ""}),
                (invalid, "relation", (f"{table}_view", "call", "org_id"), {}),
                (invalid, "relation", ("scratch", "call", "org_id"), {}),
                (invalid, "relation", ("billing.entries", "call", "org_id"), {}),
                (invalid, "relation", ("pg_catalog.pg_class", "call", "relname"), {}),
                (invalid, "relation", ("0", "call", "org_id"), {}),
                (invalid, "org_column", (table, "call", "nothing"), {}),
                (invalid, "org_column", (table, "call", ""), {}),
                (invalid, "org_column", (table, "call", "ctid"), {}),
                (invalid, "org_column", (table, "call", "body"), {}),
                (invalid, "quantity_column", (table, "call", "org_id"), {"quantity_column": "nothing"}),
                (invalid, "quantity_column", (table, "call", "org_id"), {"quantity_column": "body"}),
                (invalid, "quantity_column", (table, "call", "org_id"), {"quantity_column": ""}),
                (invalid, "member_column", (table, "call", "org_id"), {"member_column": "nothing"}),
                (invalid, "member_column", (table, "call", "org_id"), {"member_column": "key"}),
                (invalid, "key_column", (table, "call", "org_id"), {"key_column": "nothing"}),
                (invalid, "key_column", (table, "call", "org_id"), {"key_column": "flag"}),
                (invalid, "key_column", (table, "call", "org_id"), {"key_column": "share"}),
                ("PT404 unknown_metric", None, (table, "teleport", "org_id"), {}),
                ("PT404 unknown_metric", None, (table, "x" * 1000, "org_id"), {})):
            with self.subTest(arguments=arguments, named=named):
                with self.assertRaises(Refused) as caught:
                    call(self.db, "meter_table", *arguments, **named)
                self.assertEqual(code_of(caught.exception), expected)
                detail = json.loads(caught.exception.diag.message_detail)
                self.assertEqual(detail.get("argument"), argument)
                self.assertEqual("fault" in detail, argument is not None)
        self.assertEqual(self.triggers(table), [])
        self.assert_refused(invalid, "unmeter_table", None, "call")
        self.assert_refused(invalid, "unmeter_table", table, None)
        self.addCleanup(apply_catalog, self.db, self.catalog)
        apply_catalog(self.db, {"metrics": {"call": {"price": 1}}})
        self.assert_refused("PT404 unknown_metric", "meter_table", table, "page", "org_id")

    def test_owners_only(self):
        """A service meters its own tables and those of roles that it is a member of; nobody those of others."""
        service, team = self.new_role(self.db, "service"), self.plain_role()
        member, auditor = self.new_role(self.db, "member"), self.new_role(self.db, "auditor")
        table, org = self.table(), self.org(10)
        session = self.connect()
        rows(self.db, f"grant usage on schema app to {service}, {member}, {auditor}")
        rows(session, f"set role {service}")
        self.assert_refused("42501 not_owner", "meter_table", table, "call", "org_id", connection=session)
        self.assertEqual(self.triggers(table), [])
        self.meter(table)
        self.assert_refused("42501 not_owner", "unmeter_table", table, "call", connection=session)
        self.insert(table, org)
        self.assertEqual(total(self.db, org), 9)
        rows(self.db, f"alter table {table} owner to {team}")
        self.assert_refused("42501 not_owner", "meter_table", table, "page", "org_id", connection=session)
        rows(self.db, f"grant {team} to {service}")
        call(session, "meter_table", table, "page", "org_id")
        self.insert(table, org)
        self.assertEqual(total(self.db, org), 1)
        self.assertTrue(value(session, "select billing.unmeter_table(%s, 'page')", table))
        for role in (member, auditor, self.writer):
            rows(session, f"reset role; set role {role}")
            for statement in (f"select billing.meter_table('{table}', 'call', 'org_id')", f"select billing.unmeter_table('{table}', 'call')"):
                with self.subTest(role, statement=statement), self.assertRaises(Refused) as caught:
                    rows(session, statement)
                self.assertEqual(caught.exception.pgcode, "42501")
        # The trigger's function is not for triggers that others make.
        rows(session, f"reset role; set role {service}")
        rows(self.db, f"grant all on schema app to {service}")
        with self.assertRaises(Refused) as caught:
            rows(session, """create table app.own (org_id uuid);
                             create trigger own after insert on app.own referencing new table as inserted for each statement
                                 execute function billing_internal.metered_insert('call', 'charge', 'org_id', '', '', '')""")
        self.assertEqual(caught.exception.pgcode, "42501")

    def test_policy_of_the_app(self):
        """allows() in a row policy: members insert for their own org while its credit lasts, without a charge by the policy itself."""
        member, org, other = self.new_role(self.db, "member"), self.org(15), self.org(15)
        table = self.table()
        rows(self.db, f"""alter table {table} enable row level security; grant usage on schema app to {member}; grant insert on {table} to {member};
                          create policy paid on {table} for insert to {member}
                              with check (org_id = any (billing.my_orgs()) and billing.allows(org_id, 'page', 1))""")
        session = self.connect()
        rows(session, f"set role {member}")
        rows(session, "select set_config('request.jwt.claims', %s, false)", f'{{"org_id": "{org}"}}')
        self.insert(table, org, connection=session)
        self.assertEqual(total(self.db, org), 15)
        self.meter(table, "page")
        for left in (8, 1):
            self.insert(table, org, connection=session)
            self.assertEqual(total(self.db, org), left)
        for target in (org, other):
            with self.assertRaises(Refused) as caught:
                self.insert(table, target, connection=session)
            self.assertEqual(caught.exception.pgcode, "42501")
        self.assertEqual((self.count(table), total(self.db, org), total(self.db, other)), (3, 1, 15))
        # The policy looks at each row, the charge at all of them.
        call(self.db, "grant_credits", org, 6)
        with self.assertRaises(Refused) as caught:
            self.insert(table, org, org, connection=session)
        self.assertEqual(code_of(caught.exception), "PT402 insufficient_credits")


class Reinstalled(LiveTestCase):
    """The extension is dropped and made again."""

    def test_triggers_come_back(self):
        """DROP EXTENSION … CASCADE takes the triggers; install() puts them back, as they were, and changes nothing where they are."""
        rows(self.db, """create schema app; create table app.plain (org_id uuid, amount int, token uuid); create table app.parts (org_id uuid) partition by hash (org_id);
                         create table app.part partition of app.parts for values with (modulus 1, remainder 0); create table app.gone (org_id uuid);
                         create table app.other (org_id uuid); create table app.free (org_id uuid)""")
        call(self.db, "meter_table", "app.plain", "call", "org_id", quantity_column="amount", key_column="token")
        call(self.db, "meter_table", "app.plain", "page", "org_id", mode="record")
        for table in ("parts", "gone", "other", "free"):
            call(self.db, "meter_table", f"app.{table}", "page", "org_id")
        call(self.db, "unmeter_table", "app.free", "page")
        rows(self.db, "drop table app.gone; drop table app.other; create table app.other (something int)")
        triggers = "select tgrelid, pg_get_triggerdef(oid), tgenabled from pg_trigger where tgrelid::regclass::text ~ '^app[.]' order by 1, 2"
        before = rows(self.db, triggers)
        self.assertEqual(len(before), 3)
        rows(self.db, "alter table app.plain disable trigger pg_billing_page")
        oids = rows(self.db, "select oid, tgenabled from pg_trigger where tgname like 'pg\\_billing\\_%%' order by 1")
        rows(self.db, "select billing.install()")
        self.assertEqual(rows(self.db, "select oid, tgenabled from pg_trigger where tgname like 'pg\\_billing\\_%%' order by 1"), oids, "what is there stays as it is")
        org, token = self.org(100), uuid.uuid4()
        rows(self.db, "insert into app.plain values (%s, 5, %s)", org, token)
        rows(self.db, "drop extension pg_billing cascade")
        self.assertEqual(rows(self.db, triggers), [])
        rows(self.db, "create extension pg_billing")
        rows(self.db, "select billing.install()")
        self.assertEqual(rows(self.db, triggers), before)
        rows(self.db, "insert into app.plain values (%s, 5, %s), (%s, 6, %s)", org, token, org, uuid.uuid4())
        rows(self.db, "insert into app.parts values (%s)", org)
        rows(self.db, "insert into app.free values (%s)", org)
        rows(self.db, "insert into app.other values (1)")
        self.assertEqual(total(self.db, org), 100 - 5 - 6 - 7)
        self.assert_sound()

    def test_dumped_and_restored(self):
        """A restore charges nothing for the rows that it brings, and goes on with the next."""
        rows(self.db, "create schema dumped; create table dumped.t (org_id uuid, key text)")
        call(self.db, "meter_table", "dumped.t", "call", "org_id", key_column="key")
        org = self.org(100)
        rows(self.db, "insert into dumped.t select %s, n from generate_series(1, 10) n", org)
        restored_name = self.new_database()
        with tempfile.TemporaryDirectory() as folder:
            dump = str(pathlib.Path(folder) / "dump")
            run(program("pg_dump"), "-Fc", "-f", dump, "-d", self.database)
            run(program("pg_restore"), "--exit-on-error", "-d", restored_name, dump)
        restored = connect(restored_name)
        self.addCleanup(restored.close)
        rows(restored, "select billing.install()")
        self.assertEqual(total(restored, org), 90)
        rows(restored, "insert into dumped.t values (%s, '10'), (%s, '11')", org, org)
        self.assertEqual(total(restored, org), 89)
        self.assert_sound(restored)


if __name__ == "__main__":
    unittest.main()

"""Charging from an application: in its own transaction, as a service role, from triggers, over poolers, and with what other
sessions changed meanwhile.
"""

import unittest
import uuid

import psycopg2

from support import CATALOG, LiveTestCase, Refused, apply_catalog, call, code_of, connect, rows, statements_of, total, value


class App(LiveTestCase):
    """An application with a table of its own."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.service = cls.new_role(cls.db, "service")
        cls.stranger = cls.new_role(cls.db, "member")
        rows(cls.db, "select billing.revoke_access(%s)", cls.stranger)
        rows(cls.db, f"""create schema app; grant usage on schema app to {cls.service}, {cls.stranger};
                         create table app.summary (id bigint generated always as identity primary key, org_id uuid not null, body text);
                         grant select, insert on app.summary to {cls.service}, {cls.stranger}""")

    def tearDown(self):
        self.assert_sound()

    def as_service(self, **options):
        """A connection of the app's service role."""
        connection = self.connect(**options)
        rows(connection, f"set role {self.service}")
        if not connection.autocommit:
            connection.commit()
        return connection

    def work_of(self, org):
        """How many rows the app has for the org."""
        return value(self.db, "select count(*) from app.summary where org_id = %s", org)

    def test_own_transaction(self):
        """The app's row and the charge come and go together."""
        org = self.org(20)
        app = self.as_service(autocommit=False)

        def summarize(key):
            rows(app, "insert into app.summary (org_id, body) values (%s, 'text')", org)
            return call(app, "consume_credits", org, "page", 1, key)

        summarize("one")
        self.assertEqual(total(self.db, org), 20, "nobody else sees it before the commit")
        app.commit()
        self.assertEqual((self.work_of(org), total(self.db, org)), (1, 13))
        self.assertFalse(summarize("two").replayed)
        app.rollback()
        self.assertEqual((self.work_of(org), total(self.db, org)), (1, 13))
        self.assertFalse(summarize("two").replayed, "what was rolled back did not use up its key")
        app.commit()
        self.assertEqual((self.work_of(org), total(self.db, org)), (2, 6))
        with self.assertRaises(Refused) as caught:
            summarize("three")
        self.assertEqual(code_of(caught.exception), "PT402 insufficient_credits")
        app.rollback()
        self.assertEqual((self.work_of(org), total(self.db, org)), (2, 6), "no credit, no row")

    def test_savepoints(self):
        """A charge that is rolled back to a savepoint did not happen; the session is in order afterwards."""
        org = self.org(100)
        app = self.as_service(autocommit=False)
        call(app, "consume_credits", org, "call", 10)
        rows(app, "savepoint a")
        call(app, "consume_credits", org, "call", 20)
        hold = call(app, "reserve_credits", org, "call", 30)
        rows(app, "rollback to a")
        with self.assertRaises(Refused) as caught:
            call(app, "capture_credits", org, hold.hold_id)
        self.assertEqual(code_of(caught.exception), "PT404 unknown_hold")
        rows(app, "rollback to a")
        self.assertEqual(call(app, "consume_credits", org, "call", 1).balance_before, 90)
        rows(app, "release a")
        app.commit()
        self.assertEqual(total(self.db, org), 89)

    def test_exception_block(self):
        """plpgsql that catches the refusal goes on with the rest of the transaction."""
        org = self.org(5)
        app = self.as_service()
        rows(app, f"""do $$ begin
            perform billing.consume_credits('{org}', 'call', 2);
            begin
                perform billing.consume_credits('{org}', 'page', 1);
            exception when sqlstate 'PT402' then
                perform billing.consume_credits('{org}', 'call', 3);
            end;
        end $$""")
        self.assertEqual(total(self.db, org), 0)

    def test_trigger_in_a_definer_function(self):
        """Roles without any right on billing charge through the app's own SECURITY DEFINER trigger, and only there."""
        rows(self.db, """create function app.charge() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
            begin
                perform billing.consume_credits(new.org_id, 'page', 1, 'summary ' || new.id);
                return new;
            end $$;
            create trigger charge after insert on app.summary for each row execute function app.charge()""")
        self.addCleanup(rows, self.db, "drop trigger charge on app.summary; drop function app.charge()")
        org = self.org(21)
        app = self.connect()
        rows(app, f"set role {self.stranger}")
        with self.assertRaises(Refused) as caught:
            call(app, "consume_credits", org, "page")
        self.assertEqual(caught.exception.pgcode, "42501")
        rows(app, "insert into app.summary (org_id) values (%s), (%s)", org, org)
        self.assertEqual((self.work_of(org), total(self.db, org)), (2, 7))
        with self.assertRaises(Refused) as caught:
            rows(app, "insert into app.summary (org_id) values (%s), (%s)", org, org)
        self.assertEqual(code_of(caught.exception), "PT402 insufficient_credits")
        self.assertEqual((self.work_of(org), total(self.db, org)), (2, 7), "all or nothing")

    def test_prepared_statements(self):
        """Prepared statements, past the point where the server would choose a generic plan."""
        org = self.org(1000)
        app = self.as_service()
        rows(app, "prepare charge (uuid, text, bigint, text) as select * from billing.consume_credits($1, $2, $3, $4)")
        rows(app, "prepare balance (uuid) as select billing.get_total_credits($1)")
        for n in range(20):
            (charged,) = rows(app, f"execute charge ('{org}', 'call', {n + 1}, 'k{n}')")
            self.assertEqual((charged.credits, charged.replayed), (n + 1, False))
            self.assertEqual(value(app, f"execute balance ('{org}')"), charged.balance_after)
        (again,) = rows(app, f"execute charge ('{org}', 'call', 1, 'k0')")
        self.assertTrue(again.replayed)
        self.assertEqual(total(self.db, org), 1000 - 210)

    def test_pooled_sessions(self):
        """Few server sessions, many clients with DISCARD ALL between their transactions, roles changing hands."""
        orgs = [self.org(1000) for _ in range(4)]
        pool = self.connections(3)
        for n in range(120):
            session, org = pool[n % 3], orgs[n % 4]
            rows(session, "discard all")
            rows(session, f"set role {self.service}" if n % 5 else "reset role")
            call(session, "consume_credits", org, "page" if n % 2 else "third", 3, f"request {n}")
            if n % 7 == 0:
                rows(session, "discard plans")
                call(session, "get_wallet", org)
            rows(session, "discard all")
            rows(session, f"set role {self.stranger}")
            with self.assertRaises(Refused) as caught:
                call(session, "consume_credits", org, "page")
            self.assertEqual(caught.exception.pgcode, "42501", "nothing of an earlier client's rights stays")
            rows(session, "discard all")
        self.assertEqual(sum(total(self.db, org) for org in orgs), 4000 - 60 * 21 - 60)

    def test_claims_do_not_stick(self):
        """A member's claims are those of the transaction, whatever the session answered before."""
        orgs = [self.org(10), self.org(20)]
        member = self.new_role(self.db, "member")
        session = self.connect(autocommit=False)
        for n in range(12):
            mine, other = orgs[n % 2], orgs[1 - n % 2]
            rows(session, f"set local role {member}")
            value(session, "select set_config('request.jwt.claims', %s, true)", f'{{"app_metadata": {{"org_ids": ["{mine}"]}}}}')
            self.assertEqual(value(session, "select billing.my_orgs()"), [mine])
            self.assertEqual(total(session, mine), 10 + 10 * (n % 2))
            self.assertEqual(rows(session, "select org_id from billing.wallets"), [(mine,)])
            self.assertEqual({row[0] for row in rows(session, "select org_id from billing.entries")}, {mine})
            with self.assertRaises(Refused) as caught:
                total(session, other)
            self.assertEqual(code_of(caught.exception), "42501 not_authorized")
            session.rollback()

    def test_claims_that_cannot_be_read(self):
        """Whatever stands in the claims: who names no org in them has none, and no call fails over it in another way."""
        org, member = self.org(10), self.new_role(self.db, "member")
        session = self.connect(autocommit=False)
        for claims in ("", " ", "no json", "{", "null", "7", "[]", '"text"', '{"org_id": null}', '{"org_id": 7}', '{"org_id": "no uuid"}', f'{{"org_id": " {org}"}}',
                       f'{{"org_id": ["{org}"]}}', f'{{"app_metadata": ["{org}"]}}', f'{{"app_metadata": {{"org_ids": "{org}"}}}}', f'["{org}"]',
                       '{"app_metadata": {"org_ids": [null, 7, {}, "x"]}}', '{"a": "\\u0000"}', '{"a": "\\ud800"}', f'{{"org_id": "{org}"', '{"a": 1e999999}'):
            with self.subTest(claims):
                rows(session, f"set local role {member}")
                rows(session, "select set_config('request.jwt.claims', %s, true)", claims)
                self.assertEqual(value(session, "select billing.my_orgs()"), [])
                self.assertEqual(rows(session, "select * from billing.entries"), [])
                with self.assertRaises(Refused) as caught:
                    total(session, org)
                self.assertEqual(code_of(caught.exception), "42501 not_authorized")
                session.rollback()
                # For those who need no claims, the call works and is signed by the role.
                rows(session, "select set_config('request.jwt.claims', %s, true)", claims)
                call(session, "adjust_credits", org, 1, "gift")
                self.assertEqual(value(session, "select actor from billing.entries where org_id = %s order by entry_id desc limit 1", org), "postgres")
                session.rollback()

    def test_catalog_changed_elsewhere(self):
        """A price that another session changed holds from the next call on; one that was rolled back never."""
        org = self.org(10_000)
        app, admin = self.as_service(), self.connect(autocommit=False)
        self.addCleanup(apply_catalog, self.db, CATALOG)
        price = {"metrics": {**CATALOG["metrics"], "page": {"price": 11}}}
        self.assertEqual(call(app, "consume_credits", org, "page").credits, 7)
        apply_catalog(admin, price)
        self.assertEqual(call(admin, "consume_credits", self.org(50), "page").credits, 11, "the session itself sees it at once")
        self.assertEqual(call(app, "consume_credits", org, "page").credits, 7, "not before the commit")
        admin.rollback()
        self.assertEqual(call(admin, "consume_credits", self.org(50), "page").credits, 7, "it forgot what it rolled back")
        self.assertEqual(call(app, "consume_credits", org, "page").credits, 7)
        rows(admin, "savepoint a")
        apply_catalog(admin, price)
        rows(admin, "rollback to a")
        self.assertEqual(call(admin, "consume_credits", self.org(50), "page").credits, 7, "nor what went with a savepoint")
        admin.commit()
        apply_catalog(admin, price)
        admin.commit()
        self.assertEqual(call(app, "consume_credits", org, "page").credits, 11)
        rows(admin, "select billing.set_org_price(%s, 'page', '2')", org)
        admin.commit()
        self.assertEqual(call(app, "consume_credits", org, "page").credits, 2)
        self.assertEqual(call(app, "consume_credits", self.org(50), "page").credits, 11)
        rows(admin, "select billing.set_org_price(%s, 'page', null)", org)
        admin.commit()
        self.assertEqual(call(app, "consume_credits", org, "page").credits, 11)
        retired = {"metrics": {name: spec for name, spec in CATALOG["metrics"].items() if name != "page"}}
        apply_catalog(admin, retired)
        admin.commit()
        with self.assertRaises(Refused) as caught:
            call(app, "consume_credits", org, "page")
        self.assertEqual(code_of(caught.exception), "PT404 unknown_metric")

    def test_credit_granted_elsewhere(self):
        """Wallets are never cached: a grant, a void and an expiry by others count at once."""
        org = self.org(1)
        app = self.as_service()
        self.assertEqual(call(app, "consume_credits", org, "call").balance_after, 0)
        grant = call(self.db, "grant_credits", org, 10).grant_id
        self.assertEqual(call(app, "consume_credits", org, "call").balance_after, 9)
        call(self.db, "void_grant", org, grant, "withdrawn")
        with self.assertRaises(Refused):
            call(app, "consume_credits", org, "call")

    def test_access_granted_and_taken(self):
        """Rights given or taken by another session count at the next statement."""
        org = self.org(10)
        role = self.new_role(self.db, "service")
        app = self.connect()
        rows(app, f"set role {role}")
        call(app, "consume_credits", org, "call")
        rows(self.db, "select billing.revoke_access(%s)", role)
        with self.assertRaises(Refused) as caught:
            call(app, "consume_credits", org, "call")
        self.assertEqual(caught.exception.pgcode, "42501")
        rows(self.db, "select billing.grant_access(%s, 'service')", role)
        call(app, "consume_credits", org, "call")
        self.assertEqual(total(self.db, org), 8)

    def test_read_only_transactions(self):
        """What reads works in a read-only transaction, and under every isolation level; what writes is refused by the server."""
        org = self.org(10)
        for level in ("read committed", "repeatable read", "serializable"):
            session = self.connect(autocommit=False)
            rows(session, f"set transaction isolation level {level} read only")
            self.assertEqual(total(session, org), 10)
            self.assertEqual(call(session, "get_wallet", org).available, 10)
            self.assertEqual([part.credits for part in rows(session, "select * from billing.explain_consumption(%s, 'page')", org)], [7])
            self.assertEqual(value(session, "select billing.calculate_cost('page', 2, %s)", org), 14)
            self.assertEqual(rows(session, "select * from billing.verify_ledger()"), [])
            self.assertIsNotNone(value(session, "select billing.export_catalog()"))
            session.rollback()
            for function, arguments in (("consume_credits", (org, "call")), ("consume_credits", (org, "call", 1, "key")),
                                        ("record_usage", (org, "call")), ("record_usage", (org, "call", 1, "event"))):  # fmt: skip
                rows(session, f"set transaction isolation level {level} read only")
                with self.subTest(level=level, function=function), self.assertRaises(psycopg2.errors.ReadOnlySqlTransaction):
                    call(session, function, *arguments)
                session.rollback()
        self.assertEqual(value(self.db, "select count(*) from billing.entries where org_id = %s and kind = 'usage'", org), 0)
        self.assertEqual(call(self.db, "check_limit", org, "call").used, 0)

    def test_tables_that_somebody_adds_to(self):
        """What a DBA adds to the tables of the ledger holds from the next consumption on, also in a session that knew them without it."""
        org, cost = self.org(1000), value(self.db, "select billing.calculate_cost('call', 1)")
        rows(self.db, """create table app.seen (entry_id bigint);
                         create function app.see() returns trigger language plpgsql as $$ begin insert into app.seen values (new.entry_id); return null; end $$""")
        self.addCleanup(rows, self.db, "drop table app.seen; drop function app.see()")
        added = [
            ("create index ledger_model on billing.ledger ((metadata ->> 'model'))", "drop index billing.ledger_model"),
            ("create index ledger_usage on billing.ledger (metric) where kind is null", "drop index billing.ledger_usage"),
            ("create index lanes_low on billing_internal.lanes (org_id) where balance < 990", "drop index billing_internal.lanes_low"),
            ("create trigger see after insert on billing.ledger for each row execute function app.see()", "drop trigger see on billing.ledger"),
            ("alter index billing.ledger_request rename to keys", "alter index billing.keys rename to ledger_request"),
            ("alter table billing.ledger add column mine int default 7", "alter table billing.ledger drop column mine"),
        ]  # fmt: skip
        consumed = 0
        for n, (add, drop) in enumerate([("select 1", "select 2"), *added]):
            rows(self.db, add)
            for i in range(3):
                first = call(self.db, "consume_credits", org, "call", 1, f"{n} {i}", metadata={"model": "m"})
                again = call(self.db, "consume_credits", org, "call", 1, f"{n} {i}", metadata={"model": "m"})
                self.assertEqual((first.replayed, again.replayed, again.operation_id), (False, True, first.operation_id))
                call(self.db, "consume_credits", org, "call")
            consumed += 6
            self.assertEqual(total(self.db, org), 1000 - consumed * cost)
            for statement, found in (("select count(*) from billing.entries where org_id = %s and metadata ->> 'model' = 'm'", consumed // 2),
                                     ("select count(*) from billing.entries where org_id = %s and metric = 'call' and kind = 'usage'", consumed),
                                     ("select count(*) from billing_internal.lanes where org_id = %s and balance < 990", int(1000 - consumed * cost < 990))):  # fmt: skip
                self.assertEqual(value(self.db, "set enable_seqscan = off; " + statement, org), found)
            rows(self.db, "reset enable_seqscan")
            rows(self.db, drop)
        self.assertEqual(value(self.db, "select count(*) from app.seen"), 6)

    def test_common_calls_run_no_statement(self):
        """Charges, holds and totals do without; nothing that would keep them from it, as a condition on an index, slips in."""
        org, split = self.org(1_000_000), self.org(1_000_000)
        rows(self.db, "select billing.set_wallet_lanes(%s, 2)", split)
        session = self.connect()
        rows(session, "set billing.direct_rows = on")

        def work():
            for number in range(2):
                key = str(uuid.uuid4()) if number else f"key {uuid.uuid4()}"
                yield "consume", lambda key=key: call(session, "consume_credits", org, "call", 1, key)
            yield "consume without a key", lambda: call(session, "consume_credits", org, "call")
            yield "consume from a lane", lambda: call(session, "consume_credits", split, "call", 1, str(uuid.uuid4()))
            yield "reserve", lambda: held.append(call(session, "reserve_credits", org, "call", 2, idempotency_key=str(uuid.uuid4())).hold_id)
            yield "capture", lambda: call(session, "capture_credits", org, held.pop(), idempotency_key=str(uuid.uuid4()))
            yield "total", lambda: total(session, org)
            yield "total of lanes", lambda: total(session, split)
            yield "check", lambda: call(session, "check_limit", org, "call")
            yield "allows", lambda: value(session, "select billing.allows(%s, 'call')", org)

        held = []
        # What a session learns, and the first rows of reports, take statements.
        for _ in range(100):
            for _, step in work():
                step()
        for _ in range(3):
            for name, step in work():
                with self.subTest(name):
                    statements = statements_of(session, step)
                    self.assertEqual(len(statements), 1, statements)

    def test_rows_that_move(self):
        """A session that knows where the rows of wallets and holds were finds them when they are elsewhere, and others in their place."""
        orgs, cost = [self.org(1000) for _ in range(20)], value(self.db, "select billing.calculate_cost('call', 1)")
        session = self.as_service(autocommit=False)
        held = {}
        moves = [
            "select 1",
            "vacuum full billing_internal.lanes; vacuum full billing.holds",
            "cluster billing_internal.lanes using lanes_pkey; cluster billing.holds using holds_pkey",
            # In another order than before.
            "cluster billing_internal.lanes using lanes_org_id_slot_key; cluster billing.holds using holds_expires",
            # To another place of the same table, and then into what that left.
            "update billing_internal.lanes set holds_due = least(holds_due, '2100-01-01'), fast_until = least(fast_until, '2100-01-01')",
            "vacuum billing_internal.lanes; update billing_internal.lanes set holds_due = least(holds_due, '2099-01-01'), fast_until = least(fast_until, '2099-01-01')",
        ]
        for n, move in enumerate(moves):
            for statement in move.split("; "):
                rows(self.db, statement)
            for org in orgs:
                # What was rolled back left its rows, and their places, behind.
                call(session, "consume_credits", org, "call", 1, f"{n}")
                lost = call(session, "reserve_credits", org, "call", 1).hold_id
                session.rollback()
                with self.assertRaises(Refused) as caught:
                    call(session, "capture_credits", org, lost)
                self.assertEqual(code_of(caught.exception), "PT404 unknown_hold")
                session.rollback()
                rows(session, "savepoint here")
                call(session, "consume_credits", org, "call")
                rows(session, "rollback to here")
                call(session, "consume_credits", org, "call", 1, f"{n}")
                if n:
                    self.assertEqual(call(session, "capture_credits", org, held[org]).credits, cost)
                held[org] = call(session, "reserve_credits", org, "call", 1).hold_id
                session.commit()
            for org in orgs:
                self.assertEqual(total(session, org), 1000 - (2 * n + 2) * cost)
            session.commit()

    def test_changed_by_the_same_statement(self):
        """The tables' owner changes a wallet's row in the statement that also charges: that ends, and what is charged is in the books."""
        org = self.org(10)
        session = connect(self.database)
        self.addCleanup(session.close)
        call(session, "consume_credits", org, "call")
        rows(session, "set statement_timeout = '20s'")
        changed = "with changed as materialized (update billing_internal.lanes set reserved = reserved where org_id = %s returning 1)"
        ((charged,),) = rows(session, f"{changed} select (billing.consume_credits(%s, 'call')).balance_after from changed", org, org)
        self.assertEqual(charged, 8)
        self.assertEqual(total(session, org), 8)
        ((reserved,),) = rows(session, f"{changed} select (billing.reserve_credits(%s, 'call', 1)).balance_after from changed", org, org)
        self.assertEqual(reserved, 7)

    def test_serializable_looks_are_noted(self):
        """Who froze the org because of what was written, and who wrote because it was not frozen: one of them has to try again."""
        org = self.org(10)
        rows(self.db, "create table app.written (n int)")
        self.addCleanup(rows, self.db, "drop table app.written")
        self.assertEqual(value(self.db, "select pg_relation_size('billing.freezes')"), 0)
        one, other = self.connect(autocommit=False), self.connect(autocommit=False)
        for session in (one, other):
            rows(session, "set transaction isolation level serializable")
        self.assertTrue(value(one, "select billing.allows(%s, 'call')", org))
        self.assertEqual(value(other, "select count(*) from app.written"), 0)
        rows(one, "insert into app.written values (1)")
        with self.assertRaises(psycopg2.errors.SerializationFailure):
            call(other, "freeze_org", org, "too little written")
            one.commit()
            other.commit()

    def test_older_snapshots(self):
        """A cursor reads what there was when it was opened, however often the session and others have charged since."""
        for lanes in (1, 4):
            with self.subTest(lanes):
                org, left = self.org(1000), 1000
                rows(self.db, "select billing.set_wallet_lanes(%s, %s)", org, lanes)
                session = self.as_service(autocommit=False)
                for charges in (1, 3, 40):
                    rows(session, "declare earlier no scroll cursor for select billing.get_total_credits(%s) from generate_series(1, 2)", org)
                    call(session, "consume_credits", org, "call")
                    self.assertEqual(value(session, "fetch 1 from earlier"), left)
                    for _ in range(charges - 1):
                        call(session, "consume_credits", org, "call")
                    self.assertEqual(total(session, org), left - charges)
                    self.assertEqual(value(session, "fetch 1 from earlier"), left)
                    session.commit()
                    call(self.db, "consume_credits", org, "call")
                    left -= charges + 1

    def test_parallel_plans(self):
        """What reads works where the planner goes parallel, in a session that has done nothing before."""
        org = self.org(10, 20)
        rows(self.db, "create table app.many as select n, %s::uuid as org_id from generate_series(1, 20000) n; analyze app.many", org)
        self.addCleanup(rows, self.db, "drop table app.many")
        rows(self.db, f"grant select on app.many to {self.service}")
        forced = "debug_parallel_query" if self.db.server_version >= 160000 else "force_parallel_mode"
        statements = {
            "select billing.get_total_credits(%(org)s)": 30,
            "select (billing.get_wallet(%(org)s)).available": 30,
            "select sum(credits)::int from billing.explain_consumption(%(org)s, 'page', 2)": 14,
            "select billing.calculate_cost('page', 2, %(org)s)": 14,
            "select billing.calculate_cost('{\"page\": 2}'::jsonb, %(org)s)": 14,
            "select available from billing.wallets where org_id = %(org)s": 30,
            "select sum(remaining)::int from billing.grants where org_id = %(org)s": 30,
            "select count(*) from billing.operations where org_id = %(org)s": 2,
            "select count(*) from billing.verify_ledger(%(org)s)": 0,
            "select (billing.version()).tables_installed - (billing.version()).tables_needed": 0,
            "select cardinality(billing.my_orgs())": 0,
            "select count(*) from jsonb_object_keys(billing.export_catalog() -> 'metrics')": len(CATALOG["metrics"]),
            "select max(billing.get_total_credits(org_id)) from app.many where n %% 5000 = 0": 30,
            "select max((billing.get_wallet(org_id)).available) from app.many where n %% 5000 = 0": 30,
            "select count(*) from app.many m join billing.wallets w using (org_id) where n %% 5000 = 0": 4,
        }
        for statement, expected in statements.items():
            for role in (None, self.service):
                with self.subTest(statement, role=role):
                    session = connect(self.database)
                    try:
                        rows(session, f"set {forced} = on; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0")
                        if role:
                            rows(session, f"set role {role}")
                        with session.cursor() as cursor:
                            cursor.execute(statement, {"org": org})
                            self.assertEqual(cursor.fetchone()[0], expected)
                    finally:
                        session.close()

    def test_many_calls_in_one_statement(self):
        """Set-based use: one statement charges many rows, in its order, seeing its own effects."""
        org = self.org(6, 6, 6)
        charged = rows(self.db, """select n, c.credits, c.balance_after
            from generate_series(1, 5) n, lateral billing.consume_credits(%s, 'call', n, 'n' || n) c order by n""", org)
        self.assertEqual([tuple(row) for row in charged], [(1, 1, 17), (2, 2, 15), (3, 3, 12), (4, 4, 8), (5, 5, 3)])

    def test_a_long_session(self):
        """Thousands of calls in one session and one transaction: the server process stays small."""
        org = self.org(1_000_000)
        session = self.as_service(autocommit=False)
        used = "select sum(total_bytes)::bigint from pg_backend_memory_contexts"
        admin_used = lambda: (rows(session, "reset role"), value(session, used), rows(session, f"set role {self.service}"))[1]  # noqa: E731
        loop = f"""do $$ begin for n in 1..3000 loop
            perform billing.consume_credits('{org}', 'page', 1, md5(clock_timestamp()::text || n)); perform billing.get_total_credits('{org}');
            end loop; end $$"""
        rows(session, loop)
        before = admin_used()
        rows(session, loop)
        self.assertLess(admin_used() - before, 4_000_000)
        session.rollback()
        self.assertEqual(total(self.db, org), 1_000_000)

    def test_connection_lost(self):
        """A client that disappears in the middle of its transaction has spent nothing."""
        org = self.org(10)
        session = connect(self.database, autocommit=False)
        call(session, "consume_credits", org, "call", 10, "lost")
        session.close()
        self.assertEqual(call(self.db, "consume_credits", org, "call", 10, "lost").replayed, False)

    def test_new_org_per_call(self):
        """Orgs without number: each works on its own."""
        for _ in range(50):
            org = uuid.uuid4()
            call(self.db, "grant_credits", org, 8)
            self.assertEqual(call(self.db, "consume_credits", org, "page").balance_after, 1)


if __name__ == "__main__":
    unittest.main()

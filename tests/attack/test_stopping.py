"""security 9: nobody but a service stops the settlement of all, and nobody's lock that of the others."""

import time
import unittest
import uuid

import attack
from support import await_condition, call, connect, rows, together, total, value

PATIENCE = 5.0


class Stopping(attack.AttackCase):
    """Settlements while others hold what they can."""

    @classmethod
    def fill(cls):
        super().fill()
        rows(cls.db, "call billing.settle()")

    def recorded(self):
        """An org with something to settle."""
        org = self.org(100)
        rows(self.db, "select billing.record_usage(%s, 'page', 1)", org)
        return org

    def settle(self):
        """Settles, and gives the faults of the run."""
        rows(self.db, "call billing.settle()")
        return rows(self.db, """select f.org_id, f.sqlstate, nullif(f.detail, '')::jsonb ->> 'code' as code from billing.settlement_faults f
                                 where run_id = (select max(run_id) from billing.settlement_runs)""")

    def held(self, org, function, *arguments):
        """A member in an open transaction."""
        session = self.session(self.member, f'{{"org_id": "{org}"}}', autocommit=False)
        call(session, function, org, *arguments)
        return session

    def test_held_wallets(self):
        """security 9: an org that a member holds by an open purchase is a fault of the run; the others are settled, and it by the next."""
        orgs = [self.recorded() for _ in range(6)]
        session = self.held(orgs[2], "start_purchase", "small", "USD")
        began = time.monotonic()
        self.assertEqual([tuple(fault) for fault in self.settle()], [(orgs[2], "55P03", "org_locked")])
        self.assertLess(time.monotonic() - began, PATIENCE + 5)
        self.assertEqual([total(self.db, org) for org in orgs], [93, 93, 100, 93, 93, 93])
        session.rollback()
        self.assertEqual(self.settle(), [])
        self.assertEqual([total(self.db, org) for org in orgs], [93] * 6)

    def test_every_way_to_hold_a_wallet(self):
        """security 9: whatever a member, or a service, does in an open transaction: no other org waits for it."""
        code = value(self.db, "select code from billing.create_gift_cards('ways', 5, max_redemptions => 9) code")
        for function, arguments in (("redeem_gift_card", (code,)), ("configure_auto_recharge", (5, "small", "USD", 1000)), ("start_purchase", ("small", "USD"))):
            with self.subTest(function):
                orgs = [self.recorded() for _ in range(3)]
                session = self.held(orgs[0], function, *arguments)
                run = value(self.db, "select billing_internal.begin_settlement(billing.clock(), 0, 1)")
                busy = value(self.db, "select billing_internal.settle_orgs(%s, %s, billing.clock(), '200 milliseconds')", run, orgs)
                rows(self.db, "select billing_internal.settlement_phase(%s, 'done', 3)", run)
                session.rollback()
                self.assertEqual(busy, [])
                faults = rows(self.db, "select org_id, sqlstate from billing.settlement_faults where run_id = %s", run)
                self.assertIn([tuple(fault) for fault in faults], ([], [(orgs[0], "55P03")]))
                self.assertEqual([total(self.db, org) for org in orgs[1:]], [93, 93])
                rows(self.db, "select billing.settle_org(%s)", orgs[0])

    def test_advisory_locks(self):
        """security 9: any role may take any advisory lock; none of ours is one, neither for settle() nor for any other call."""
        org = self.recorded()
        session = self.session(self.stranger, autocommit=False)
        for one in (1886217071, 0, 1):
            rows(session, "select pg_advisory_lock(%s, n) from generate_series(900, 1100) n", one)
        rows(session, "select pg_advisory_lock(n) from generate_series(0, 1000) n")
        rows(self.db, "set lock_timeout = '3s'")
        self.addCleanup(rows, self.db, "reset lock_timeout")
        self.assertEqual(self.settle(), [])
        self.assertEqual(total(self.db, org), 93)
        rows(self.db, "select billing.install()")
        self.service_at_work(self.session(self.service))
        taken = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        work = self.session(self.service, autocommit=False)
        self.service_at_work(work)
        self.assertEqual(value(work, taken), 0)
        work.rollback()
        session.rollback()

    def test_locks_of_members(self):
        """security 9: a member who has read every table, and locked what it may, and stays in its transaction."""
        org = self.recorded()
        session = self.session(self.member, f'{{"org_id": "{org}"}}', autocommit=False)
        for relation in rows(self.db, attack.RELATIONS):
            rows(session, "savepoint s")
            try:
                rows(session, f"lock table {relation.name} in access share mode; select * from {relation.name} limit 1")
            except attack.psycopg2.Error:
                rows(session, "rollback to s")
        rows(self.db, "set lock_timeout = '3s'")
        self.addCleanup(rows, self.db, "reset lock_timeout")
        self.assertEqual(self.settle(), [])
        self.assertEqual(total(self.db, org), 93)
        session.rollback()

    def test_two_at_once(self):
        """security 9: while one settlement is at it, another says so and does nothing; when both begin at once, each org is charged once."""
        orgs = [self.recorded() for _ in range(30)]
        runs = "select count(*) from billing.settlement_runs"

        def hold(number, barrier):
            session = self.connect()
            if number == 0:
                rows(session, "do $$ begin perform billing_internal.begin_settlement(billing.clock(), 0, 1); commit; perform pg_sleep(1); end $$")
                return None
            await_condition(lambda: value(session, "select count(*) from billing.settlement_runs where status = 'running'"), 10, "the first to begin")
            before = value(session, runs)
            rows(session, "call billing.settle()")
            return value(session, runs) - before, any("another settlement" in notice for notice in session.notices)

        def settle(_, barrier):
            session = self.connect()
            barrier.wait()
            rows(session, "call billing.settle()")

        self.assertEqual(together(3, hold)[1:], [(0, True)] * 2)
        self.assertEqual([total(self.db, org) for org in orgs], [100] * len(orgs))
        together(4, settle)
        self.assertEqual([total(self.db, org) for org in orgs], [93] * len(orgs))

    def test_a_run_that_is_taken_for_running(self):
        """security 9: a row of a run whose process is gone, or another's by now, stops no settlement."""
        org = self.recorded()
        rows(self.db, "insert into billing.settlement_runs (run_id, started_at, as_of, pid, shard, shards, phase) values ((select coalesce(max(run_id), 0) + 1 from billing.settlement_runs), clock_timestamp(), now(), 1, 0, 1, 'settling')")
        self.assertEqual(self.settle(), [])
        self.assertEqual(total(self.db, org), 93)

    def test_faults_of_an_org(self):
        """One org that cannot be settled stands in the faults, and the others are settled."""
        orgs = [self.recorded() for _ in range(3)]
        rows(self.db, f"""create function app.refuse() returns trigger language plpgsql as $$ begin
                if new.org_id = '{orgs[1]}' then raise exception 'no'; end if; return new; end $$;
            create trigger refuse before insert or update on billing.ledger for each row execute function app.refuse()""")
        self.addCleanup(rows, self.db, "drop function app.refuse cascade")
        self.assertEqual([fault.org_id for fault in self.settle()], [orgs[1]])
        self.assertEqual([total(self.db, org) for org in orgs], [93, 100, 93])
        rows(self.db, "drop trigger refuse on billing.ledger")
        self.assertEqual(self.settle(), [])


class Bounds(attack.AttackCase):
    """security 8 and 11: what a member may have of its own org is bounded."""

    def as_member(self, org):
        """A session of a member of the org."""
        return self.session(self.member, f'{{"org_id": "{org}"}}')

    def test_metadata(self):
        """security 11: metadata over 64 kB are refused, from whatever function takes them."""
        org = self.org(10)
        session, service = self.as_member(org), self.session(self.service)
        large = {"a": "x" * 65536}
        self.assert_refused("22023 invalid_argument", "start_purchase", org, "small", "USD", metadata=large, connection=session)
        self.assert_refused("22023 invalid_argument", "redeem_gift_card", org, self.code, metadata=large, connection=session)
        taking = rows(self.db, attack.ROUTINES)
        tried = 0
        for routine in taking:
            if routine.schema != "billing" or "metadata" not in routine.names:
                continue
            tried += 1
            with self.subTest(routine.signature):
                self.assert_code("22023", service, self.statement(routine, attack.OWN, {"metadata": '{"a": "' + "x" * 65536 + '"}'}))
        self.assertGreater(tried, 8)
        call(session, "start_purchase", org, "small", "USD", metadata={"a": "x" * 60000})

    def test_purchases(self):
        """security 11: the 31st purchase within an hour is refused with PT429; a service may go on."""
        org = self.org(10)
        session = self.as_member(org)
        for _ in range(30):
            call(session, "start_purchase", org, "small", "USD")
        self.assert_refused("PT429 too_many_purchases", "start_purchase", org, "small", "USD", connection=session)
        call(self.session(self.service), "start_purchase", org, "small", "USD")
        self.assert_refused("PT429 too_many_purchases", "start_purchase", org, "small", "USD", connection=session)

    def test_auto_recharge(self):
        """security 8: without a ceiling, or with a threshold beyond ten packs, a member is refused."""
        org = self.org(10)
        session = self.as_member(org)
        self.assert_refused("22023 invalid_argument", "configure_auto_recharge", org, 9223372036854775807, "small", "USD", monthly_ceiling=100_000, connection=session)
        self.assert_refused("22023 invalid_argument", "configure_auto_recharge", org, 101, "small", "USD", monthly_ceiling=100_000, connection=session)
        self.assert_refused("22023 invalid_argument", "configure_auto_recharge", org, 5, "small", "USD", connection=session)
        self.assert_refused("22023 invalid_argument", "configure_auto_recharge", org, 5, "small", "USD", monthly_ceiling=100_000, customer="cus_of_others", connection=session)
        call(session, "configure_auto_recharge", org, 5, "small", "USD", monthly_ceiling=100_000)

    def test_recharges_of_an_hour(self):
        """security 8: at most three payments are asked for within an hour, whatever threshold a service set."""
        org = self.org(10)
        call(self.db, "configure_auto_recharge", org, 9223372036854775807, "small", "USD", customer=f"cus_{org}")
        for _ in range(10):
            call(self.db, "consume_credits", org, "call")
            call(self.db, "settle_org", org)
            for payment in rows(self.db, "select payment_id from billing.payments where org_id = %s and status = 'processing'", org):
                rows(self.db, "select billing.set_payment_status(%s, %s, 'succeeded')", org, payment.payment_id)
        self.assertEqual(value(self.db, "select count(*) from billing.payments where org_id = %s", org), 3)


class Places(attack.AttackCase):
    """security 10 and 11: where things go, and how their rows are told, is not the caller's to say."""

    @classmethod
    def setUpClass(cls):
        cls.space = f"billing_space_{uuid.uuid4().hex[:8]}"
        admin = connect()
        # Cleanups run in reverse order: the tablespace goes when the database is gone.
        cls.addClassCleanup(admin.close)
        cls.addClassCleanup(rows, admin, f"drop tablespace {cls.space}")
        rows(admin, "set allow_in_place_tablespaces = on")
        rows(admin, f"create tablespace {cls.space} location ''")
        super().setUpClass()

    def test_partitions(self):
        """security 11: default_tablespace and default_table_access_method of a service do not decide where partitions go."""
        rows(self.db, "create access method other type table handler heap_tableam_handler")
        rows(self.db, f"grant create on tablespace {self.space} to public")
        session = self.session(self.service)
        rows(session, f"set default_tablespace = {self.space}; set default_table_access_method = 'other'; set temp_tablespaces = {self.space}")
        rows(self.db, "set billing.test_clock = '2031-05-05'")
        self.addCleanup(rows, self.db, "reset billing.test_clock")
        rows(session, "call billing.settle()")
        rows(self.db, f"set default_tablespace = {self.space}; set default_table_access_method = 'other'; select billing_internal.make_partitions('2031-01-01'); reset default_tablespace; reset default_table_access_method")
        self.assertEqual(rows(self.db, """select c.relname from pg_class c join pg_am a on a.oid = c.relam
                                           where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and (c.reltablespace <> 0 or a.amname not in ('heap', 'btree', 'gin', 'brin', 'hash'))"""), [])
        self.assertGreater(value(self.db, "select count(*) from pg_class where relname like 'usage\\_events\\_2031%%'"), 0)

    def test_publications(self):
        """security 10: with a publication for all tables every call works that works without: set_webhook_secret twice, and each function."""
        clean = self.connect(autocommit=False)
        expected = {routine.oid: state for routine, state, _, _ in self.outcomes(clean, self.service)}
        clean.close()
        rows(self.db, "create publication everything for all tables")
        self.addCleanup(rows, self.db, "drop publication everything")
        for _ in range(2):
            rows(self.db, "select billing.set_webhook_secret('stripe', 'whsec_of_the_test')")
        session = self.connect(autocommit=False)
        self.assertEqual({routine.oid: state for routine, state, _, _ in self.outcomes(session, self.service)}, expected)
        session.close()
        self.assertEqual(rows(self.db, """select c.oid::regclass from pg_class c where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind = 'r' and c.relreplident = 'd' and c.relname !~ '^usage_events' -- which only grow
                                             and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)"""), [])


if __name__ == "__main__":
    unittest.main()

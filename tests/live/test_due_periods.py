"""Periods that are due begin in the call that spends; what fails there for one org is settlement's to report."""

import unittest
import uuid

import psycopg2

from support import LiveTestCase, apply_catalog, call, rows, total, value

CATALOG = {"metrics": {"call": {"price": 1}}, "plans": {"solo": {"credits": {"amount": 10}}}}


class DuePeriods(LiveTestCase):
    """Two orgs with a period to begin, of which a trigger of a superuser's lets one fail."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        apply_catalog(cls.db, CATALOG)
        rows(cls.db, """create table public.failing (org_id uuid, state text, seconds float8);
                        create function public.fail() returns trigger language plpgsql as $$
                        declare
                            how public.failing;
                        begin
                            select f.* into how from public.failing f where f.org_id = new.org_id;
                            if found then
                                perform pg_sleep(how.seconds);
                                raise exception 'made to fail' using errcode = how.state;
                            end if;
                            return new;
                        end $$;
                        create trigger fail before update on billing.subscriptions for each row execute function public.fail()""")

    def setUp(self):
        self.failing, self.sound = self.due(), self.due()

    def tearDown(self):
        rows(self.db, "rollback; reset statement_timeout; reset search_path; delete from public.failing")
        self.assert_sound()

    def due(self):
        """An org with 60 credits, which will be 70 once its period has begun."""
        org = uuid.uuid4()
        call(self.db, "grant_credits", org, 50)
        call(self.db, "subscribe", org, "solo")
        rows(self.db, "update billing.subscriptions set next_period_at = now() - interval '1 hour' where org_id = %s", org)
        return org

    def fail(self, state, seconds=0):
        rows(self.db, "insert into public.failing values (%s, %s, %s)", self.failing, state, seconds)

    def test_a_fault_is_left_to_settlement(self):
        """The call goes on, for the org itself and for others; settlement says what is wrong."""
        self.fail("P0001")
        rows(self.db, "set search_path = public; begin")
        for _ in range(3):
            hold = call(self.db, "reserve_credits", self.failing, "call", 1, "1 hour")
            call(self.db, "release_credits", self.failing, hold.hold_id)
        call(self.db, "transfer_credits", self.failing, self.sound, 5)
        batch = '[{"org_id": "%s", "metric": "call"}, {"org_id": "%s", "metric": "call"}]' % (self.failing, self.sound)
        self.assertEqual([row.status for row in rows(self.db, "select status from billing.consume_credits_batch(%s)", batch)], ["ok", "ok"])
        self.assertEqual(rows(self.db, "select current_user, current_setting('search_path') as path, current_setting('enable_seqscan') as scans"),
                         [("postgres", "public", "on")])
        rows(self.db, "commit")
        self.assertEqual((total(self.db, self.failing), total(self.db, self.sound)), (54, 74))
        self.assertEqual(value(self.db, "select count(*) from billing.subscriptions where org_id = %s and next_period_at < now()", self.failing), 1)
        rows(self.db, "call billing.settle()")
        self.assertEqual(rows(self.db, "select distinct sqlstate, message from billing.settlement_faults where org_id = %s", self.failing),
                         [("P0001", "made to fail")])

    def test_a_fault_of_the_transaction_goes_on(self):
        """What concerns the whole transaction fails the call, and nothing of it is left."""
        for state in ("40001", "40P01", "57014"):
            with self.subTest(state):
                rows(self.db, "delete from public.failing")
                self.fail(state)
                with self.assertRaises(psycopg2.Error) as caught:
                    call(self.db, "reserve_credits", self.failing, "call", 1, "1 hour")
                self.assertEqual(caught.exception.pgcode, state)
                self.assertEqual(total(self.db, self.failing), 60)

    def test_cancelled(self):
        """A call that is cancelled while the period begins ends, and the session goes on in its own transaction."""
        self.fail("P0001", seconds=60)
        rows(self.db, "begin; savepoint before; set local statement_timeout = '300ms'")
        with self.assertRaises(psycopg2.errors.QueryCanceled):
            call(self.db, "reserve_credits", self.failing, "call", 1, "1 hour")
        rows(self.db, "rollback to before; delete from public.failing")
        call(self.db, "reserve_credits", self.failing, "call", 1, "1 hour")
        rows(self.db, "commit")
        self.assertEqual(total(self.db, self.failing), 69)

    def test_many_faults_in_one_transaction(self):
        """A thousand faults leave nothing behind in the memory of the transaction."""
        self.fail("P0001")
        rows(self.db, "begin")

        def used():
            rows(self.db, """do $$ begin for i in 1..500 loop
                                 perform billing.release_credits(h.org_id, h.hold_id)
                                    from (select org_id, (billing.reserve_credits(org_id, 'call', 1)).hold_id from public.failing) h;
                             end loop; end $$""")
            return value(self.db, "select sum(used_bytes)::bigint from pg_backend_memory_contexts")

        used()
        before = used()
        self.assertLess(used() - before, 200_000)
        rows(self.db, "rollback")


if __name__ == "__main__":
    unittest.main()

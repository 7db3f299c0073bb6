"""Settlement by pg_cron: scheduled with one call, run by a real pg_cron, and refused with advice where there is none."""

import json
import os
import unittest
import uuid

from support import LiveTestCase, Refused, await_condition, call, code_of, connect, rows, value

NAME = "pg_billing settlement"
JOBS = "select jobid, schedule, command, database, username, active from cron.job where jobname = %s"


class Without(LiveTestCase):
    """A database that pg_cron does not look after."""

    def assert_missing(self, function, *arguments, connection=None):
        """Refused because there is no pg_cron; gives the hint."""
        with self.assertRaises(Refused) as caught:
            call(connection or self.db, function, *arguments)
        self.assertEqual(code_of(caught.exception), "0A000 pg_cron_missing")
        self.assertEqual(caught.exception.diag.message_primary, "pg_cron is not installed in this database")
        self.assertEqual(json.loads(caught.exception.diag.message_detail)["database"], self.database)
        return caught.exception.diag.message_hint

    def test_missing(self):
        """The error says how to get pg_cron, and how another database can do it."""
        hint = self.assert_missing("schedule_settlement", "*/30 * * * *")
        for part in ("shared_preload_libraries = 'pg_cron'", f"cron.database_name = '{self.database}'", "create extension pg_cron",
                     f"cron.schedule_in_database('{NAME}', '*/30 * * * *', 'call billing.settle()', '{self.database}')"):
            self.assertIn(part, hint)
        self.assertIn("'0 */6 * * *'", self.assert_missing("schedule_settlement"))
        self.assertIn(f"cron.unschedule('{NAME}')", self.assert_missing("unschedule_settlement"))
        self.assert_refused("22023 invalid_argument", "schedule_settlement", None)

    def test_somebody_elses_cron(self):
        """A schema of that name is not pg_cron: nothing of it runs with our rights."""
        role, service = f"billing_cron_{uuid.uuid4().hex[:8]}", self.new_role(self.db, "service")
        rows(self.admin, f"create role {role}")
        self.roles.append(role)
        rows(self.db, f"create schema cron authorization {role}")
        self.addCleanup(rows, self.db, "drop schema cron cascade")
        other = self.connect()
        rows(other, f"set role {role}")
        rows(other, """create table cron.job (jobid bigint, jobname text, username name);
                       create function cron.schedule(text, text, text) returns bigint language plpgsql as $$ begin raise 'sprung by %', current_user; end $$;
                       create function cron.unschedule(bigint) returns boolean language plpgsql as $$ begin raise 'sprung by %', current_user; end $$""")
        session = self.connect()
        rows(session, f"set role {service}")
        self.assert_missing("schedule_settlement", connection=session)
        self.assert_missing("unschedule_settlement", connection=session)


class Scheduled(unittest.TestCase):
    """The database that pg_cron looks after (cron.database_name), which is PGDATABASE."""

    def setUp(self):
        self.db = connect()
        self.addCleanup(self.db.close)
        self.database = os.environ.get("PGDATABASE", "postgres")
        self.assertEqual(value(self.db, "select current_setting('cron.database_name', true)"), self.database, "pg_cron must be preloaded and look after PGDATABASE")
        rows(self.db, "set client_min_messages = warning")
        rows(self.db, "create extension if not exists pg_cron")
        rows(self.db, "create extension if not exists pg_billing")
        rows(self.db, "select billing.install()")
        self.addCleanup(self.clean_up)
        self.clean_up()

    def clean_up(self):
        """No job of ours."""
        for (job,) in rows(self.db, "select jobid from cron.job where jobname = %s", NAME):
            rows(self.db, "select cron.unschedule(%s)", job)
            rows(self.db, "delete from cron.job_run_details where jobid = %s", job)

    def schedule(self, *arguments, connection=None):
        """schedule_settlement(): the job."""
        return value(connection or self.db, f"select billing.schedule_settlement({', '.join(['%s'] * len(arguments))})", *arguments)

    def unschedule(self, connection=None):
        """unschedule_settlement(): whether there was a job."""
        return value(connection or self.db, "select billing.unschedule_settlement()")

    def jobs(self):
        """Jobs of that name."""
        return [tuple(job) for job in rows(self.db, JOBS, NAME)]

    def test_schedule_and_unschedule(self):
        """Four times a day by default; another schedule takes the place of the first; gone when it is taken off."""
        self.assertFalse(self.unschedule())
        user = value(self.db, "select current_user")
        job = self.schedule()
        self.assertEqual(self.jobs(), [(job, "0 */6 * * *", "call billing.settle()", self.database, user, True)])
        self.assertEqual(self.schedule("30 3 * * *"), job)
        self.assertEqual(self.jobs(), [(job, "30 3 * * *", "call billing.settle()", self.database, user, True)])
        rows(self.db, "begin")
        self.assertTrue(self.unschedule())
        rows(self.db, "rollback")
        self.assertEqual(len(self.jobs()), 1)
        self.assertTrue(self.unschedule())
        self.assertEqual(self.jobs(), [])
        self.assertFalse(self.unschedule())

    def test_jobs_of_others(self):
        """What else is scheduled stays."""
        name = f"billing test {uuid.uuid4()}"
        other = value(self.db, "select cron.schedule(%s, '0 0 1 1 *', 'select 1')", name)
        self.addCleanup(rows, self.db, "select cron.unschedule(%s::bigint)", other)
        self.schedule()
        self.unschedule()
        self.assertEqual(rows(self.db, "select jobid from cron.job where jobname = %s", name), [(other,)])

    def test_bad_schedules(self):
        """What pg_cron does not understand is an invalid argument, in its own words; the job stays as it was."""
        self.schedule("15 4 * * *")
        for schedule in ("", "whenever", "61 * * * *", "* * * *"):
            with self.subTest(schedule), self.assertRaises(Refused) as caught:
                self.schedule(schedule)
            self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
            detail = json.loads(caught.exception.diag.message_detail)
            self.assertEqual(detail["argument"], "schedule")
            self.assertIn("invalid schedule", detail["fault"])
        with self.assertRaises(Refused) as caught:
            self.schedule(None)
        self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
        self.assertEqual([job[1] for job in self.jobs()], ["15 4 * * *"])

    def test_who(self):
        """A service schedules, as the owner of the extension and without a right on pg_cron; a member does not."""
        for level, may in (("service", True), ("member", False), ("auditor", False)):
            with self.subTest(level):
                role = f"billing_{level}_{uuid.uuid4().hex[:8]}"
                rows(self.db, f"create role {role}")
                self.addCleanup(rows, self.db, f"select billing.revoke_access('{role}'); drop role {role}")
                rows(self.db, "select billing.grant_access(%s, %s)", role, level)
                session = connect()
                self.addCleanup(session.close)
                rows(session, f"set role {role}")
                if may:
                    self.schedule(connection=session)
                    self.assertEqual([job[4] for job in self.jobs()], [value(self.db, "select session_user")])
                    self.assertTrue(self.unschedule(connection=session))
                    continue
                for function in (self.schedule, self.unschedule):
                    with self.assertRaises(Refused) as caught:
                        function(connection=session)
                    self.assertEqual(caught.exception.pgcode, "42501")

    def test_it_settles(self):
        """Scheduled for every minute, a run of the settlement appears by itself and is done."""
        runs = "select count(*) from billing.settlement_runs where status = 'done' and finished_at is not null"
        before = value(self.db, runs)
        job = self.schedule("* * * * *")
        await_condition(lambda: value(self.db, runs) > before, 90, "a run of the settlement")
        details = "select status from cron.job_run_details where jobid = %s and status in ('succeeded', 'failed')"
        await_condition(lambda: rows(self.db, details, job), 30, "the record of the run")
        self.assertEqual(rows(self.db, details, job)[0], ("succeeded",))


if __name__ == "__main__":
    unittest.main()

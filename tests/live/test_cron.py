"""A real pg_cron runs a job of the extension: the rest of an expired grant is booked without anybody calling."""

import os
import unittest
import uuid


from support import Refused, await_condition, call, connect, rows, total, value, violations


class Cron(unittest.TestCase):
    """In the database that pg_cron looks after (cron.database_name), which is PGDATABASE."""

    def setUp(self):
        self.db = connect()
        self.addCleanup(self.db.close)
        database = value(self.db, "select current_setting('cron.database_name', true)")
        self.assertEqual(database, os.environ.get("PGDATABASE", "postgres"), "pg_cron must be preloaded and look after PGDATABASE")
        rows(self.db, "set client_min_messages = warning")
        rows(self.db, "create extension if not exists pg_cron")
        rows(self.db, "create extension if not exists pg_billing")
        rows(self.db, "select billing.install()")

    def schedule(self, name, command):
        """Every second where pg_cron can (from 1.5), else every minute; unscheduled at the end. Gives the longest wait."""
        for schedule, wait in (("1 seconds", 30), ("* * * * *", 150)):
            try:
                rows(self.db, "select cron.schedule(%s, %s, %s)", name, schedule, command)
            except Refused as error:
                self.assertIn("invalid schedule", str(error))
                continue
            self.addCleanup(rows, self.db, "select cron.unschedule(%s)", name)
            self.addCleanup(rows, self.db, "delete from cron.job_run_details where jobid in (select jobid from cron.job where jobname = %s)", name)
            return wait
        raise AssertionError("pg_cron takes no schedule")

    def test_expiries_are_booked(self):
        """The expiry entry appears by itself, once, at the moment or after it, and the job succeeded."""
        org, name = uuid.uuid4(), f"billing test {uuid.uuid4()}"
        call(self.db, "grant_credits", org, 40)
        expires = value(self.db, "select clock_timestamp() + interval '1 second'")
        grant = call(self.db, "grant_credits", org, 60, "plan", expires_at=expires).grant_id
        wait = self.schedule(name, "select billing.book_expiries()")
        booked = "select amount, grant_id, created_at, balance_after from billing.entries where org_id = %s and kind = 'expiry'"
        await_condition(lambda: rows(self.db, booked, org), wait, "the expiry entry")
        ((amount, grant_id, created_at, balance_after),) = rows(self.db, booked, org)
        self.assertEqual((amount, grant_id, balance_after), (-60, grant, 40))
        self.assertGreaterEqual(created_at, expires)
        self.assertEqual(total(self.db, org), 40)
        self.assertEqual([v for v in violations(self.db) if v.org_id == org], [])
        runs = "select status from cron.job_run_details r join cron.job j using (jobid) where j.jobname = %s and status <> 'running'"
        await_condition(lambda: ("succeeded",) in rows(self.db, runs, name), wait, "the record of the run")


if __name__ == "__main__":
    unittest.main()

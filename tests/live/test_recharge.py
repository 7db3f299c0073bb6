"""Auto-recharge: a pack is bought when a wallet runs low."""

import json
import unittest
import uuid

from payments_support import Payments, refused
from support import call, rows, value


class Recharge(Payments):
    """A pack is bought when the wallet runs low."""

    def setUp(self):
        super().setUp()
        self.db = self.connect()
        self.at("2027-03-01 12:00Z")

    def at(self, moment):
        rows(self.db, "select set_config('billing.test_clock', %s, false)", moment)

    def configure(self, threshold=500, pack="small", currency="USD", **more):
        return call(self.db, "configure_auto_recharge", self.org, threshold, pack, currency, customer="cus_1", **more)

    def payments(self, status=None):
        return rows(self.db, "select * from billing.payments where org_id = %s and source = 'auto_recharge'"
                             " and (%s is null or status = %s) order by created_at, payment_id", self.org, status, status)

    def settle(self, payment, status):
        call(self.db, "set_payment_status", self.org, payment.payment_id, status)

    def test_the_consumption_that_crosses_the_threshold(self):
        call(self.db, "grant_credits", self.org, 1000)
        self.configure()
        self.assertEqual(self.payments(), [])
        call(self.db, "consume_credits", self.org, "call", 500)
        self.assertEqual(self.payments(), [])
        call(self.db, "consume_credits", self.org, "call", 1)
        (payment,) = self.payments("processing")
        (event_row,) = rows(self.db, "select topic, payload from billing.outbox where org_id = %s", self.org)
        self.assertEqual(event_row.topic, "payment.requested")
        self.assertEqual((event_row.payload["payment_id"], event_row.payload["amount_minor"], event_row.payload["customer"]),
                         (str(payment.payment_id), 500, "cus_1"))
        # One at a time.
        call(self.db, "consume_credits", self.org, "call", 100)
        call(self.db, "settle_org", self.org)
        self.assertEqual(len(self.payments()), 1)
        self.settle(payment, "succeeded")
        self.assertEqual(self.credit(), 399 + 1100)
        call(self.db, "consume_credits", self.org, "call", 1100)
        self.assertEqual(len(self.payments()), 2)

    def test_many_at_once(self):
        """Consumptions that cross it together ask for one payment."""
        call(self.db, "grant_credits", self.org, 510)
        self.configure()
        self.parallel(16, lambda db, _: call(db, "consume_credits", self.org, "call", 10))
        self.assertEqual(len(self.payments()), 1)

    def test_crossed_already(self):
        self.configure()
        self.assertEqual(len(self.payments("processing")), 1)

    def test_settlement_looks_too(self):
        call(self.db, "grant_credits", self.org, 1000, expires_at="2027-03-02 00:00Z")
        self.configure()
        self.at("2027-03-02 06:00Z")
        call(self.db, "settle_org", self.org)
        self.assertEqual(len(self.payments()), 1)

    def test_pending_credit_counts(self):
        pending = self.buy()
        self.settle(pending, "pending")
        self.configure()
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.payments(), [])
        self.settle(pending, "failed")
        call(self.db, "settle_org", self.org)
        self.assertEqual(len(self.payments()), 1)

    def test_ceiling(self):
        call(self.db, "grant_credits", self.org, 1000)
        self.configure(threshold=5000, monthly_ceiling=1200)
        for _ in range(3):
            for payment in self.payments("processing"):
                self.settle(payment, "succeeded")
            call(self.db, "settle_org", self.org)
        self.assertEqual(len(self.payments()), 2)
        alerts = [r.kind for r in rows(self.db, "select kind from billing.alerts where org_id = %s and resolved_at is null", self.org)]
        self.assertIn("recharge_ceiling", alerts)
        self.at("2027-04-01 00:00Z")
        call(self.db, "settle_org", self.org)
        self.assertEqual(len(self.payments()), 3)
        refused(self.db, "select billing.configure_auto_recharge(%s, 5, 'small', 'USD', 499)", self.org, sqlstate="22023")

    def test_failures(self):
        """Later and later, and at last not at all; until somebody sets it again."""
        self.configure()
        for hours in (1, 4, 16):
            (payment,) = self.payments("processing")
            self.settle(payment, "failed")
            now = value(self.db, "select billing.clock()")
            self.at(str(value(self.db, "select %s + make_interval(hours => %s, secs => -1)", now, hours)))
            call(self.db, "settle_org", self.org)
            self.assertEqual(self.payments("processing"), [])
            self.at(str(value(self.db, "select %s + make_interval(hours => %s)", now, hours)))
            call(self.db, "settle_org", self.org)
        (payment,) = self.payments("processing")
        self.settle(payment, "failed")
        self.assertIsNotNone(value(self.db, "select stopped_at from billing.auto_recharges where org_id = %s", self.org))
        topics = [r.topic for r in rows(self.db, "select topic from billing.outbox where org_id = %s order by event_id", self.org)]
        self.assertEqual(topics, ["payment.requested"] * 4 + ["recharge.stopped"])
        self.assertEqual(value(self.db, "select count(*) from billing.alerts where org_id = %s and kind = 'recharge_stopped'"
                                        " and resolved_at is null", self.org), 1)
        self.at("2027-05-01 00:00Z")
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.payments("processing"), [])
        self.configure()
        (payment,) = self.payments("processing")
        self.settle(payment, "succeeded")
        self.assertEqual(self.credit(), 1100)

    def test_until_it_is_enough(self):
        """One pack brings less than the threshold: the next is asked for as soon as it is paid."""
        self.configure(threshold=3000)
        for number in range(1, 4):
            self.assertEqual(len(self.payments()), number)
            self.settle(self.payments("processing")[0], "succeeded")
        self.assertEqual((len(self.payments()), self.credit()), (3, 3300))

    def test_stopped_and_paid_late(self):
        self.configure()
        for hours in (1, 4, 16, 0):
            self.settle(self.payments("processing")[0], "failed")
            self.at(str(value(self.db, "select billing.clock() + make_interval(hours => %s)", hours)))
            call(self.db, "settle_org", self.org)
        self.assertIsNotNone(value(self.db, "select stopped_at from billing.auto_recharges where org_id = %s", self.org))
        self.settle(self.payments("failed")[-1], "succeeded")
        self.assertIsNone(value(self.db, "select stopped_at from billing.auto_recharges where org_id = %s", self.org))
        call(self.db, "consume_credits", self.org, "call", 1000)
        self.assertEqual(len(self.payments("processing")), 1)

    def test_nobody_charges_anothers_card(self):
        other = uuid.uuid4()
        value(self.db, "select billing.link_customer(%s, 'stripe', %s)", other, f"cus_{other.hex}")
        for function, arguments in (("start_purchase", "%s, 'small', 'USD'"), ("configure_auto_recharge", "%s, 10, 'small', 'USD'")):
            statement = f"select billing.{function}({arguments}, customer => %s)"
            refused(self.db, statement, self.org, f"cus_{other.hex}", sqlstate="22023")
            db = self.connect(autocommit=False)
            rows(db, f"set local role {self.new_role(self.db, 'member')}")
            rows(db, "select set_config('request.jwt.claims', %s, true)", json.dumps({"sub": "u", "org_id": str(self.org)}))
            for customer in (f"cus_{other.hex}", "cus_nobody_knows"):
                rows(db, "savepoint s")
                refused(db, statement, self.org, customer, sqlstate="22023")
                rows(db, "rollback to s")
            db.rollback()
            db.close()

    def test_switched_off(self):
        self.configure(enabled=False)
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.payments(), [])

    def test_members_for_themselves(self):
        db = self.connect(autocommit=False)
        rows(db, f"set local role {self.new_role(self.db, 'member')}")
        rows(db, "select set_config('request.jwt.claims', %s, true)", json.dumps({"sub": "u", "org_id": str(self.org)}))
        call(db, "configure_auto_recharge", self.org, 10, "small", "USD", 100_000)
        call(db, "start_purchase", self.org, "small", "USD")
        call(db, "quote_pack", "small", "USD", self.org)
        for statement in ("select billing.start_purchase(%s, 'small', 'USD')", "select billing.configure_auto_recharge(%s, 1, 'small', 'USD')",
                          "select billing.quote_pack('small', 'USD', %s)"):
            rows(db, "savepoint s")
            refused(db, statement, uuid.uuid4(), sqlstate="42501")
            rows(db, "rollback to s")
        for statement in ("select billing.claim_events()", "select billing.set_webhook_secret('stripe', 'whsec_mine')",
                          "select billing.freeze_org(%s, 'x')", "select * from billing.outbox", "select * from billing.flags",
                          "update billing.payments set status = 'succeeded'", "select billing.handle_webhook('stripe', '', '')"):
            rows(db, "savepoint s")
            refused(db, statement, *([self.org] if "%s" in statement else []), sqlstate="42501")
            rows(db, "rollback to s")
        self.assertEqual(value(db, "select count(distinct org_id) from billing.payments"), 1)
        db.rollback()


if __name__ == "__main__":
    unittest.main()

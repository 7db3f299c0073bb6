"""Who may report payments: signatures, secrets, and the webhook as PostgREST calls it."""

import json
import time
import unittest

from fixtures import stripe_event
from payments_support import Payments, intent, refused, sign
from support import call, connect, rows, value


class Signatures(Payments):
    def test_only_what_is_signed(self):
        payment = self.buy()
        payload = stripe_event("payment_intent.succeeded", intent(payment))
        now = int(time.time())
        for header, fault in [("", "missing_signature"), (None, "missing_signature"), ("nonsense", "malformed_signature"),
                              (sign(payload, "whsec_another_one"), "wrong_signature"),
                              (sign(payload + " "), "wrong_signature"),
                              (sign(payload, at=now - 301), "stale_signature"), (sign(payload, at=now + 330), "future_signature")]:
            error = refused(self.db, "select billing.handle_webhook('stripe', %s, %s)", payload, header, sqlstate="PT401")
            self.assertEqual((error["code"], error["fault"]), ("invalid_signature", fault), header)
        self.assertEqual((self.status(payment), self.credit()), ("idle", 0))
        self.assertEqual(value(self.db, "select count(*) from billing.webhook_events where payload = %s", payload), 0)
        # Several signatures, of which one is right: Stripe signs with both secrets while they change.
        wrong = sign(payload, "whsec_another_one", now).split("v1=")[1]
        receipt = call(self.db, "handle_webhook", "stripe", payload, f"t={now},v1={wrong},{sign(payload, at=now).split(',')[1]}")
        self.assertEqual((receipt.status, self.credit()), ("processed", 1100))

    def test_secrets_change_over(self):
        db = connect(self.new_database())
        self.addCleanup(db.close)
        self.install(db)
        payload = stripe_event("ping.pong", {})
        refused(db, "select billing.handle_webhook('stripe', %s, %s)", payload, sign(payload), sqlstate="PT401")
        deliver = lambda secret: call(db, "handle_webhook", "stripe", payload, sign(payload, secret)).status
        value(db, "select billing.set_webhook_secret('stripe', 'whsec_old_old_old')")
        self.assertEqual(deliver("whsec_old_old_old"), "ignored")
        value(db, "select billing.set_webhook_secret('stripe', 'whsec_new_new_new')")
        self.assertEqual({deliver("whsec_old_old_old"), deliver("whsec_new_new_new")}, {"duplicate"})
        value(db, "select billing.set_webhook_secret('stripe', 'whsec_last_last', keep_old => '0')")
        self.assertEqual(deliver("whsec_last_last"), "duplicate")
        for gone in ("whsec_old_old_old", "whsec_new_new_new"):
            refused(db, "select billing.handle_webhook('stripe', %s, %s)", payload, sign(payload, gone), sqlstate="PT401")

    def test_nobody_reads_a_secret(self):
        for level in ("member", "service", "auditor", "webhook"):
            db = self.connect()
            rows(db, f"set role {self.new_role(self.db, level)}")
            for table in ("webhook_secrets", "secrets"):
                refused(db, f"select * from billing_internal.{table}", sqlstate="42501")

    def test_unreadable_payloads_are_kept(self):
        for payload in ["{", "[]", "\"text\"", "{}", json.dumps({"id": "evt_x"}), "{\"id\": 5}", "nul\x01",
                        '{"id":"evt_1e9","type":"charge.refunded","created":1e400}', "[" * 5000]:
            receipt = call(self.db, "handle_webhook", "stripe", payload, sign(payload))
            self.assertEqual(receipt.status, "review", payload)
            self.assertTrue(receipt.reason)
            self.assertEqual(value(self.db, "select payload from billing.webhook_events where event_id = %s", receipt.event_id),
                             payload)
        huge = json.dumps({"id": "evt_huge", "type": "x" * (1 << 20)})
        refused(self.db, "select billing.handle_webhook('stripe', %s, %s)", huge, sign(huge), sqlstate="22023")
        refused(self.db, "select billing.handle_webhook('paypal', '{}', 'x')", sqlstate="22023")

    def test_postgrest(self):
        """One unnamed json argument: the body as it came, verified byte for byte."""
        payment = self.buy()
        payload = stripe_event("payment_intent.succeeded", intent(payment)).replace('", "', '",   "')
        db = self.connect(autocommit=False)
        rows(db, f"set local role {self.new_role(self.db, 'webhook')}")
        rows(db, "select set_config('request.headers', %s, true)", json.dumps({"stripe-signature": sign(payload)}))
        self.assertEqual(value(db, "select billing.stripe_webhook(%s::json)", payload)["status"], "processed")
        for statement in ("select billing.handle_webhook('stripe', '{}', '')", "select * from billing.payments",
                          "select billing.get_total_credits(%s)"):
            rows(db, "savepoint s")
            refused(db, statement, *([self.org] if "%s" in statement else []), sqlstate="42501")
            rows(db, "rollback to s")
        db.commit()
        self.assertEqual(self.credit(), 1100)


if __name__ == "__main__":
    unittest.main()

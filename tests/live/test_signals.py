"""Signals of abuse, and orgs that are frozen."""

import unittest
import uuid

from payments_support import Payments, intent, refused
from support import call, rows, value


class Signals(Payments):
    def flags(self, org=None):
        return {f.kind: f for f in rows(self.db, "select * from billing.flags where org_id = %s and resolved_at is null", org or self.org)}

    def test_velocity(self):
        for _ in range(10):
            self.buy()
        self.assertEqual(self.flags(), {})
        self.buy()
        self.assertEqual(self.flags()["payment_velocity"].detail, {"payments": 11})

    def test_failures(self):
        for _ in range(5):
            payment = self.buy()
            call(self.db, "set_payment_status", self.org, payment.payment_id, "failed")
        self.assertIn("payment_failures", self.flags())

    def test_one_card_for_many(self):
        card, orgs = uuid.uuid4().hex, [uuid.uuid4() for _ in range(4)]
        for org in orgs:
            payment = self.buy(org=org)
            data = intent(payment, "requires_payment_method", last_payment_error={
                "code": "card_declined", "payment_method": {"id": "pm_1", "card": {"fingerprint": card}}})
            self.deliver("payment_intent.payment_failed", data)
        self.assertEqual([set(self.flags(org)) for org in orgs], [set(), set(), set(), {"shared_card"}])

    def test_frozen(self):
        call(self.db, "grant_credits", self.org, 100)
        value(self.db, "select billing.freeze_org(%s, 'looked wrong')", self.org)
        limit = call(self.db, "check_limit", self.org, "call")
        self.assertEqual((limit.allowed, limit.reason, limit.credits_available), (False, "frozen", 100))
        self.assertFalse(value(self.db, "select billing.allows(%s, 'call')", self.org))
        self.assertTrue(value(self.db, "select billing.unfreeze_org(%s)", self.org))
        self.assertEqual(call(self.db, "check_limit", self.org, "call").reason, "credits")
        self.assertFalse(value(self.db, "select billing.unfreeze_org(%s)", self.org))

    def test_a_score_that_freezes(self):
        value(self.db, "select billing.configure_signals(freeze_at => 60)")
        self.addCleanup(value, self.db, "select billing.configure_signals()")
        value(self.db, "select billing.note_signal(%s, 'a', 30, 'one')", self.org)
        value(self.db, "select billing.note_signal(%s, 'a', 30, 'one again')", self.org)
        self.assertEqual(call(self.db, "check_limit", self.org, "call").reason, "insufficient_credits")
        self.assertEqual(self.flags()["a"].times, 2)
        value(self.db, "select billing.note_signal(%s, 'b', 30, 'two')", self.org)
        self.assertEqual(call(self.db, "check_limit", self.org, "call").reason, "frozen")
        value(self.db, "select billing.unfreeze_org(%s)", self.org)
        self.assertEqual(self.flags(), {})
        refused(self.db, "select billing.note_signal(%s, 'a', 0, 'x')", self.org, sqlstate="22023")


if __name__ == "__main__":
    unittest.main()

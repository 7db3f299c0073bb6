"""Payments, refunds and disputes as Razorpay reports them."""

import unittest
import uuid

from fixtures import fixture, razorpay_event, razorpay_signature
from payments_support import SECRET, Payments
from support import call


class Razorpay(Payments):
    def deliver(self, kind, entities, event_id=None):
        body = razorpay_event(kind, entities)
        return call(self.db, "handle_webhook", "razorpay", body, razorpay_signature(body, SECRET), event_id or f"event_{uuid.uuid4().hex}")

    def entity(self, payment, **changes):
        """Razorpay's payment for a payment of ours."""
        return fixture("razorpay/payment", **{
            "id": f"pay_{payment.payment_id.hex[:14]}", "amount": payment.total, "order_id": f"order_{payment.payment_id.hex[:14]}",
            "notes": {"payment_id": str(payment.payment_id), "org_id": str(payment.org_id)}, **changes})

    def test_paid_and_refunded(self):
        payment = self.buy(currency="INR", provider="razorpay")
        receipt = self.deliver("payment.captured", {"payment": self.entity(payment)}, "event_one")
        self.assertEqual((receipt.status, receipt.event_id, self.credit()), ("processed", "event_one", 1100))
        self.assertEqual(self.deliver("payment.captured", {"payment": self.entity(payment)}, "event_one").status, "duplicate")
        # Signed, but under another id: nothing twice.
        self.deliver("payment.captured", {"payment": self.entity(payment)})
        self.assertEqual(self.credit(), 1100)
        refund = fixture("razorpay/refund", amount=payment.total, payment_id=self.entity(payment)["id"])
        self.deliver("refund.processed", {"refund": refund, "payment": self.entity(payment, amount_refunded=payment.total)})
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))

    def test_failed(self):
        payment = self.buy(currency="INR", provider="razorpay")
        self.deliver("payment.failed", {"payment": self.entity(payment, status="failed", captured=False,
                                                               error_description="declined")})
        self.assertEqual((self.status(payment), self.credit()), ("failed", 0))

    def test_dispute(self):
        payment = self.buy(currency="INR", provider="razorpay")
        self.deliver("payment.captured", {"payment": self.entity(payment)})
        lost = fixture("razorpay/dispute", amount=payment.total, payment_id=self.entity(payment)["id"])
        self.deliver("payment.dispute.lost", {"dispute": lost, "payment": self.entity(payment)})
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))

    def test_an_invoice_of_theirs_for_a_purchase_of_ours(self):
        payment = self.buy(currency="INR", provider="razorpay")
        self.deliver("payment.captured", {"payment": self.entity(payment, invoice_id="inv_1")})
        self.assertEqual(self.credit(), 1100)

    def test_another_providers_payment(self):
        payment = self.buy(currency="INR", provider="stripe")
        self.assertEqual(self.deliver("payment.captured", {"payment": self.entity(payment)}).status, "review")
        self.assertEqual(self.credit(), 0)


if __name__ == "__main__":
    unittest.main()

"""What the tests of payments share: a catalog with things to buy, reports of Stripe about a payment, and a class of tests with an org each."""

import json
import uuid

from fixtures import fixture, stripe_event, stripe_signature
from support import LiveTestCase, Refused, apply_catalog, call, rows, together, value

SECRET = "whsec_test_0123456789"
CATALOG = {
    "metrics": {"call": {"price": 1}, "page": {"price": 7}},
    "packs": {
        "small": {"credits": 1000, "bonus": 100, "price": {"USD": 500, "INR": 50000}, "validity": "1 year"},
        "top": {"credits": 100, "price": {"INR": 1000}, "minimum": {"INR": 15000}},
        "pages": {"credits": 70, "price": {"USD": 100}, "metrics": ["page"]},
        "monthly": {"credits": 300, "price": {"USD": 900}, "recurring": "month", "provider_ids": {"stripe": ["price_monthly"]}},
    },
    "surcharges": {"INR": {"tax": {"basis_points": 1800}, "fee": {"basis_points": 240}}},
    "plans": {
        "pro": {"credits": {"amount": 5000, "rollover": "none"}, "price": {"USD": 2900}, "provider_ids": {"stripe": ["price_pro"]}},
        "team": {"credits": {"amount": 9000, "rollover": "none"}, "price": {"USD": 4900}, "provider_ids": {"stripe": ["price_team"]}},
    },
}


def sign(payload, secret=SECRET, at=None):
    """A header Stripe-Signature."""
    return stripe_signature(payload, secret, at)


def names(payment):
    """How Stripe knows which of our payments it is."""
    return {"payment_id": str(payment.payment_id), "org_id": str(payment.org_id)}


def intent(payment, status="succeeded", **changes):
    """The payment intent of a payment of ours."""
    return fixture("stripe/payment_intent", **{
        "id": f"pi_{payment.payment_id.hex}", "status": status, "amount": payment.total,
        "amount_received": payment.total if status == "succeeded" else 0, "currency": payment.currency.lower(),
        "latest_charge": f"ch_{payment.payment_id.hex}", "metadata": names(payment), **changes})


def charge(payment, refunded, **changes):
    """Its charge, of which something was refunded."""
    return fixture("stripe/charge", **{
        "id": f"ch_{payment.payment_id.hex}", "amount": payment.total, "amount_captured": payment.total, "amount_refunded": refunded,
        "refunded": refunded == payment.total, "currency": payment.currency.lower(), "payment_intent": f"pi_{payment.payment_id.hex}",
        "metadata": names(payment), **changes})


def dispute(payment, status, amount=None):
    """A dispute about it."""
    return fixture("stripe/dispute", id=f"dp_{payment.payment_id.hex}", amount=payment.total if amount is None else amount,
                   currency=payment.currency.lower(), charge=f"ch_{payment.payment_id.hex}",
                   payment_intent=f"pi_{payment.payment_id.hex}", status=status)


def checkout_session(payment, status, **changes):
    """The checkout session in which it is paid."""
    return fixture("stripe/checkout_session", **{
        "payment_status": status, "amount_total": payment.total, "currency": payment.currency.lower(),
        "client_reference_id": str(payment.payment_id), **changes})


def refused(db, statement, *values, sqlstate):
    """The statement is refused with this SQLSTATE; gives the detail."""
    try:
        rows(db, statement, *values)
    except Refused as error:
        assert error.pgcode == sqlstate, f"{error.pgcode} {error}"
        detail = error.diag.message_detail or ""
        return json.loads(detail) if detail.startswith("{") else {}
    raise AssertionError(f"not refused: {statement}")


class Payments(LiveTestCase):
    """Each test has an org of its own in the database of its class."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        apply_catalog(cls.db, CATALOG)
        value(cls.db, "select billing.set_webhook_secret('stripe', %s)", SECRET)
        value(cls.db, "select billing.set_webhook_secret('razorpay', %s)", SECRET)

    def setUp(self):
        self.org = uuid.uuid4()

    def tearDown(self):
        self.assert_sound()

    def parallel(self, count, work):
        """work(connection, i), all at once."""
        connections = self.connections(count)

        def body(i, barrier):
            barrier.wait()
            return work(connections[i], i)

        return together(count, body)

    def buy(self, pack="small", currency="USD", org=None, **more):
        return call(self.db, "start_purchase", org or self.org, pack, currency, **more)

    def deliver(self, kind, data, db=None, **more):
        payload = stripe_event(kind, data, **more)
        return call(db or self.db, "handle_webhook", "stripe", payload, sign(payload))

    def status(self, payment):
        return value(self.db, "select status from billing.payments where payment_id = %s", payment.payment_id)

    def credit(self, org=None):
        return value(self.db, "select billing.get_total_credits(%s)", org or self.org)

"""Plans that a provider collects for: a period begins when its invoice is paid."""

import unittest
import uuid

import psycopg2

from fixtures import fixture, stripe_event
from payments_support import Payments, intent, refused, sign
from support import call, rows, value


class Subscriptions(Payments):
    """Periods begin when the provider says that they are paid."""

    DAY = 86_400

    def setUp(self):
        super().setUp()
        self.db = self.connect()
        self.customer, self.sub = f"cus_{self.org.hex}", f"sub_{self.org.hex}"
        self.start = 1_800_000_000
        self.at(self.start + 60)

    def at(self, seconds):
        """Billing time."""
        self.now = seconds
        rows(self.db, "select set_config('billing.test_clock', to_timestamp(%s)::text, false)", seconds)

    def deliver(self, kind, data, created=None, **more):
        payload = stripe_event(kind, data, created=created or self.now, **more)
        return call(self.db, "handle_webhook", "stripe", payload, sign(payload, at=self.now))

    def month(self, number):
        """Start of a month of the subscription, in seconds."""
        return int(value(self.db, "select extract(epoch from to_timestamp(%s) at time zone 'UTC' + make_interval(months => %s))",
                         self.start, number))

    def line(self, amount, period, price="price_pro", proration=False, **changes):
        """A line of an invoice."""
        start, end = period
        return fixture("stripe/invoice_line", **{
            "amount": amount, "period": {"start": start, "end": end}, "pricing__price_details__price": price,
            "parent__subscription_item_details": {"subscription": self.sub, "proration": proration}, **changes})

    def invoice(self, number, price="price_pro", amount=2900, kind="invoice.paid", **changes):
        """Stripe reports the invoice for a month of the subscription."""
        return self.deliver(kind, fixture("stripe/invoice", **{
            "id": f"in_{self.org.hex}_{number}_{price}", "customer": self.customer,
            "amount_paid": amount, "amount_due": amount, "total": amount, "status": "paid" if kind == "invoice.paid" else "open",
            "billing_reason": "subscription_cycle" if number else "subscription_create",
            "parent__subscription_details": {"subscription": self.sub, "metadata": {"org_id": str(self.org)}},
            "lines__data": [self.line(amount, (self.month(number), self.month(number + 1)), price)], **changes}))

    def subscription(self, status="active", price="price_pro", kind="customer.subscription.updated", ends=False, **more):
        """Stripe reports the subscription."""
        return self.deliver(kind, fixture(
            "stripe/subscription", id=self.sub, customer=self.customer, status=status, cancel_at_period_end=ends,
            metadata={"org_id": str(self.org)}, items__data__0__price__id=price, items__data__0__current_period_start=self.start,
            items__data__0__current_period_end=self.month(1)), **more)

    def refund_charge(self, **changes):
        """Stripe reports that a whole charge of 29 dollars went back, without a word about whose it was."""
        return self.deliver("charge.refunded", fixture("stripe/charge", **{
            "id": f"ch_{self.org.hex}", "amount": 2900, "amount_captured": 2900, "amount_refunded": 2900, "refunded": True, **changes}))

    def plan(self):
        found = rows(self.db, "select plan from billing.subscriptions where org_id = %s and (ends_at is null or ends_at > billing.clock())"
                              " and starts_at <= billing.clock() and ends_at is distinct from starts_at", self.org)
        return found[-1].plan if found else None

    def test_the_invoice_first_or_the_subscription_first(self):
        for first in ("invoice", "subscription"):
            self.org = uuid.uuid4()
            self.customer, self.sub = f"cus_{self.org.hex}", f"sub_{self.org.hex}"
            if first == "subscription":
                self.assertEqual(self.subscription("incomplete", kind="customer.subscription.created").status, "processed")
                self.assertEqual((self.plan(), self.credit()), (None, 0))
            self.assertEqual(self.invoice(0).status, "processed")
            self.subscription("active", kind="customer.subscription.created")
            self.subscription("active")
            self.assertEqual((self.plan(), self.credit()), ("pro", 5000), first)
            self.assertEqual(value(self.db, "select state from billing.provider_subscriptions where org_id = %s", self.org), "active")

    def test_an_active_subscription_without_money(self):
        """Nothing begins before something is paid."""
        self.subscription("active", kind="customer.subscription.created")
        self.assertEqual((self.plan(), self.credit()), (None, 0))

    def test_renewal_waits_for_the_money(self):
        self.invoice(0)
        call(self.db, "consume_credits", self.org, "call", 1000)
        self.at(self.month(1) + 1800)
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.credit(), 0)
        self.assertEqual(call(self.db, "check_limit", self.org, "call").credits_available, 0)
        self.at(self.month(1) + 3600)
        self.invoice(1)
        self.assertEqual(self.credit(), 5000)
        # The same invoice under another event.
        self.invoice(1)
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.credit(), 5000)
        self.assertEqual(value(self.db, "select count(*) from billing.payments where org_id = %s and source = 'subscription'", self.org), 2)

    def test_half_a_day_of_grace(self):
        """To the microsecond, whether rows say so or, in a transaction with one snapshot, a statement."""
        self.invoice(0)
        self.at(self.month(1) + 60)
        begins_at = value(self.db, "select next_period_at from billing.subscriptions where org_id = %s", self.org)
        for level in ("read committed", "repeatable read"):
            for paid, credit in ((None, None), ("12 hours", None), ("12 hours 1 microsecond", 4999)):
                with self.subTest(level=level, paid=paid):
                    rows(self.db, f"begin isolation level {level}")
                    rows(self.db, "update billing.provider_subscriptions set paid_until = %s + %s::interval where org_id = %s", begins_at, paid, self.org)
                    try:
                        left = call(self.db, "consume_credits", self.org, "call", 1).balance_after
                    except psycopg2.Error as refusal:
                        self.assertEqual(refusal.pgcode, "PT402")
                        left = None
                    rows(self.db, "rollback")
                    self.assertEqual(left, credit)

    def test_paid_early(self):
        """The invoice of the next period comes before its start: the credit comes with the period."""
        self.invoice(0)
        self.at(self.month(1) - 3600)
        self.invoice(1)
        self.assertEqual(self.credit(), 5000)
        self.at(self.month(1) + 1)
        call(self.db, "consume_credits", self.org, "call", 1)
        self.assertEqual(self.credit(), 4999)

    def test_past_due(self):
        self.invoice(0)
        self.at(self.month(1) + 3600)
        self.invoice(1, kind="invoice.payment_failed")
        self.subscription("past_due")
        self.assertEqual(value(self.db, "select state from billing.provider_subscriptions where org_id = %s", self.org), "past_due")
        self.assertIn("subscription.past_due", [r.topic for r in rows(self.db, "select topic from billing.outbox where org_id = %s", self.org)])
        self.assertEqual(self.credit(), 0)
        self.at(self.now + 3 * self.DAY)
        self.invoice(1)
        self.subscription("active")
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))

    def test_cancelled_at_once(self):
        self.invoice(0)
        self.at(self.start + 5 * self.DAY)
        self.subscription("canceled", kind="customer.subscription.deleted")
        self.assertIsNone(self.plan())
        # What comes late changes nothing.
        self.subscription("active", created=self.start)
        self.assertIsNone(self.plan())
        self.assertEqual(self.invoice(1).status, "review")

    def test_cancelled_with_its_period(self):
        self.invoice(0)
        self.subscription("active", ends=True)
        self.assertTrue(value(self.db, "select cancel_at_period_end from billing.subscriptions where org_id = %s", self.org))
        self.at(self.now + 10)
        self.subscription("active", ends=False)
        self.assertFalse(value(self.db, "select cancel_at_period_end from billing.subscriptions where org_id = %s", self.org))
        self.at(self.now + 10)
        self.subscription("active", ends=True)
        self.at(self.month(1) + 1)
        self.subscription("canceled", kind="customer.subscription.deleted")
        call(self.db, "settle_org", self.org)
        self.assertIsNone(self.plan())

    def test_another_plan(self):
        self.invoice(0)
        self.at(self.start + 10 * self.DAY)
        self.subscription("active", price="price_team")
        # From the next period on, unless somebody pays the difference.
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))
        self.at(self.month(1) + 3600)
        self.invoice(1, price="price_team", amount=4900)
        self.assertEqual((self.plan(), self.credit()), ("team", 9000))
        # Another plan from the next period on, of which the invoice comes first.
        self.at(self.month(2) + 3600)
        self.invoice(2)
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))

    def test_an_upgrade_that_is_paid(self):
        self.invoice(0)
        self.at(self.start + 10 * self.DAY)
        self.subscription("active", price="price_team")
        line = self.line(1300, (self.now, self.month(1)), "price_team", proration=True, id="il_2")
        self.invoice(0, price="price_team", amount=1300, billing_reason="subscription_update", lines__data=[line])
        self.assertEqual(self.plan(), "team")
        between = self.credit()
        self.assertTrue(5000 < between < 9000, between)

    def test_cancelled_after_dunning(self):
        """The period that nobody paid is not begun by the end of the subscription."""
        self.invoice(0)
        call(self.db, "consume_credits", self.org, "call", 5000)
        self.at(self.month(1) + 3600)
        self.invoice(1, kind="invoice.payment_failed")
        self.at(self.month(1) + 10 * self.DAY)
        self.subscription("canceled", kind="customer.subscription.deleted")
        call(self.db, "settle_org", self.org)
        self.assertEqual((self.plan(), self.credit()), (None, 0))

    def test_the_old_subscription_does_not_end_the_new_one(self):
        self.invoice(0)
        old = self.sub
        self.at(self.start + self.DAY)
        self.sub += "b"
        self.start += self.DAY
        self.invoice(0, price="price_team", amount=4900)
        self.assertEqual(self.plan(), "team")
        new, self.sub = self.sub, old
        self.at(self.now + 60)
        self.subscription("active")
        self.assertEqual(self.plan(), "team")
        self.subscription("canceled", kind="customer.subscription.deleted")
        self.assertEqual(self.plan(), "team")
        self.sub = new
        self.subscription("canceled", kind="customer.subscription.deleted")
        self.assertIsNone(self.plan())

    def test_periods_that_nobody_paid_are_passed_by(self):
        self.invoice(0)
        self.at(self.month(3) + 3600)
        self.invoice(3)
        self.assertEqual(self.credit(), 5000)
        self.assertEqual(value(self.db, "select count(*) from billing.grants where org_id = %s", self.org), 2)

    def test_a_trial_and_then_a_month(self):
        """The first paid period does not lie as the free one did."""
        trial = self.line(0, (self.start, self.start + 14 * self.DAY))
        self.invoice(0, amount=0, lines__data=[trial])
        call(self.db, "consume_credits", self.org, "call", 5000)
        self.start += 14 * self.DAY
        self.at(self.start + 3600)
        self.invoice(0, id=f"in_{self.org.hex}_first")
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))
        self.at(self.month(1) + 3600)
        self.invoice(1)
        self.assertEqual(self.credit(), 5000)

    def test_cancelled_and_bought_again(self):
        self.invoice(0)
        call(self.db, "consume_credits", self.org, "call", 5000)
        self.at(self.start + 5 * self.DAY)
        self.subscription("canceled", kind="customer.subscription.deleted")
        self.start, self.sub = self.start + 6 * self.DAY, self.sub + "b"
        self.at(self.start + 60)
        self.invoice(0, id=f"in_{self.org.hex}_again")
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))

    def test_paid_though_it_was_to_end(self):
        self.invoice(0)
        self.subscription("active", ends=True)
        self.at(self.month(1) - 60)
        self.invoice(1)
        self.at(self.month(1) + 60)
        call(self.db, "settle_org", self.org)
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))

    def test_a_refund_before_the_period(self):
        """What was paid ahead and went back is not begun; what begun meanwhile goes back."""
        for begins in (False, True):
            self.org = uuid.uuid4()
            self.customer, self.sub = f"cus_{self.org.hex}", f"sub_{self.org.hex}"
            self.at(self.start + 60)
            self.invoice(0)
            self.at(self.month(1) - 3600)
            self.invoice(1, charge=f"ch_{self.org.hex}")
            if begins:
                self.at(self.month(1) + 60)
                call(self.db, "settle_org", self.org)
                self.assertEqual(self.credit(), 5000)
            self.refund_charge()
            self.at(self.month(1) + 120)
            call(self.db, "settle_org", self.org)
            self.assertEqual(self.credit(), 0, begins)

    def test_one_payment_told_twice(self):
        """A checkout that makes an invoice: one credit, whichever is told first."""
        for first in ("intent", "invoice"):
            self.org = uuid.uuid4()
            self.customer, self.sub = f"cus_{self.org.hex}", f"sub_{self.org.hex}"
            payment = self.buy("monthly")
            told = {"intent": lambda: self.deliver("payment_intent.succeeded", intent(payment)),
                    "invoice": lambda: self.invoice(0, price="price_monthly", amount=900, payment_intent=f"pi_{payment.payment_id.hex}")}
            told[first]()
            told["invoice" if first == "intent" else "intent"]()
            self.assertEqual(self.credit(), 300, first)

    def proration(self, amount, price="price_pro", **more):
        """What a change in the middle of the period costs for its rest."""
        line = self.line(amount, (self.now, self.month(1)), price, proration=True, id="il_2")
        return self.invoice(0, price=price, amount=amount, id=f"in_{uuid.uuid4().hex}", billing_reason="subscription_update", lines__data=[line], **more)

    def test_a_proration_is_no_period(self):
        self.invoice(0)
        self.at(self.start + 10 * self.DAY)
        for amount in (100, 0):
            self.proration(amount)
            self.assertEqual(self.credit(), 5000)

    def test_another_plan_on_another_day(self):
        """What two subscriptions paid, and no more, also when the first one's period would have begun."""
        self.invoice(0)
        old = self.sub
        self.at(self.start + self.DAY)
        self.sub, self.start = self.sub + "b", self.start + self.DAY
        self.invoice(0, price="price_team", amount=4900)
        self.assertEqual((self.plan(), self.credit()), ("team", 14000))
        new, self.sub = self.sub, old
        self.subscription("canceled", kind="customer.subscription.deleted")
        self.sub = new
        self.at(self.month(1) - self.DAY + 600)
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.credit(), 9000)
        self.at(self.month(1) + 600)
        self.invoice(1, price="price_team", amount=4900)
        self.assertEqual(self.credit(), 9000)

    def test_a_refund_of_another_payment(self):
        """Cancelled, bought anew, and the first one refunded: the second stays."""
        self.invoice(0, charge=f"ch_{self.org.hex}")
        self.at(self.start + 5 * self.DAY)
        self.subscription("canceled", kind="customer.subscription.deleted")
        self.start, self.sub = self.start + 5 * self.DAY, self.sub + "b"
        self.invoice(0, price="price_team", amount=4900)
        self.refund_charge()
        self.assertEqual((self.plan(), self.credit()), ("team", 9000))

    def test_an_end_that_is_older_than_the_last_invoice(self):
        self.invoice(0)
        self.at(self.start + 5 * self.DAY)
        self.proration(100)
        self.subscription("canceled", kind="customer.subscription.deleted", created=self.now - 2)
        self.assertIsNone(self.plan())

    def test_an_end_of_the_period_that_is_older_than_the_invoice(self):
        self.invoice(0)
        self.subscription("active", ends=True, created=self.now - 10)
        self.assertTrue(value(self.db, "select cancel_at_period_end from billing.subscriptions where org_id = %s", self.org))

    def test_past_due_that_is_older_than_the_money(self):
        self.invoice(0)
        self.subscription("past_due", created=self.now - 10)
        self.assertEqual(value(self.db, "select state from billing.provider_subscriptions where org_id = %s", self.org), "active")

    def test_twice_the_same_plan(self):
        """The second subscription brings nothing, so it waits for a person."""
        self.invoice(0)
        self.at(self.now + 3600)
        self.sub += "b"
        self.assertEqual(self.invoice(0, id=f"in_{self.org.hex}_b").reason, "nothing_to_begin")
        self.assertEqual(self.credit(), 5000)

    def test_several_of_a_pack_wait_for_a_person(self):
        self.assertEqual(self.invoice(0, price="price_monthly", amount=2700).reason, "several_items")
        lines = [self.line(1900, (self.start, self.month(1)), price, id=f"il_{price}") for price in ("price_pro", "price_monthly")]
        receipt = self.invoice(0, amount=3800, id=f"in_{self.org.hex}_two", lines__data=lines)
        self.assertEqual((receipt.reason, self.credit()), ("several_items", 0))

    def test_what_tells_the_org_and_what_needs_it_at_once(self):
        """The invoice does not say whose it is, the session does: however they meet, the plan begins."""
        for _ in range(10):
            self.org = uuid.uuid4()
            self.customer, self.sub = f"cus_{self.org.hex}", f"sub_{self.org.hex}"
            invoice = stripe_event("invoice.paid", fixture(
                "stripe/invoice", id=f"in_{self.org.hex}", customer=self.customer, lines__data=[self.line(2900, (self.start, self.month(1)))],
                parent__subscription_details__subscription=self.sub), created=self.now)
            session = stripe_event("checkout.session.completed", fixture(
                "stripe/checkout_session", id=f"cs_{self.org.hex}", mode="subscription", amount_total=2900, customer=self.customer,
                subscription=self.sub, metadata={"org_id": str(self.org)}), created=self.now)

            def work(db, number):
                rows(db, "select set_config('billing.test_clock', to_timestamp(%s)::text, false)", self.now)
                payload = (invoice, session)[number]
                return call(db, "handle_webhook", "stripe", payload, sign(payload, at=self.now)).status

            self.parallel(2, work)
            self.assertEqual((self.plan(), self.credit()), ("pro", 5000))

    def test_refunded(self):
        self.invoice(0, payment_intent=f"pi_{self.org.hex}", charge=f"ch_{self.org.hex}")
        call(self.db, "consume_credits", self.org, "call", 1000)
        self.refund_charge(payment_intent=f"pi_{self.org.hex}")
        self.assertEqual(self.credit(), 0)
        self.assertEqual(value(self.db, "select unrecovered from billing.payments where org_id = %s", self.org), 1000)

    def test_a_pack_each_month(self):
        self.invoice(0, price="price_monthly", amount=900)
        self.invoice(1, price="price_monthly", amount=900)
        self.assertEqual((self.plan(), self.credit()), (None, 600))
        self.assertEqual(self.invoice(2, price="price_monthly", amount=100).status, "review")
        self.assertEqual(self.credit(), 600)

    def test_what_is_not_known_waits(self):
        receipt = self.invoice(0, price="price_nobody_knows")
        self.assertEqual((receipt.status, receipt.reason), ("review", "unknown_price"))
        receipt = self.invoice(0, parent__subscription_details={"subscription": self.sub, "metadata": {}})
        self.assertEqual((receipt.status, receipt.reason), ("review", "unknown_org"))
        value(self.db, "select billing.link_customer(%s, 'stripe', %s)", self.org, self.customer)
        self.assertEqual(call(self.db, "replay_webhook", "stripe", receipt.event_id).status, "processed")
        self.assertEqual((self.plan(), self.credit()), ("pro", 5000))
        refused(self.db, "select billing.link_customer(%s, 'stripe', %s)", uuid.uuid4(), self.customer, sqlstate="22023")

    def test_the_free_plan_goes_on_without_a_provider(self):
        """An org that nobody collects for is renewed as before."""
        call(self.db, "subscribe", self.org, "pro")
        self.at(self.month(1) + self.DAY)
        call(self.db, "settle_org", self.org)
        self.assertEqual(self.credit(), 5000)


if __name__ == "__main__":
    unittest.main()

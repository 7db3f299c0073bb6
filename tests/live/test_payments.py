"""Buying credit: quotes, payments, webhooks, refunds, recharging, the outbox and signals, as an application would use them.

Stripe's signature is made here by the rules of its documentation; test_stripe_sdk.py has it made, and checked, by Stripe's own
libraries.
"""

import hashlib
import hmac
import json
import threading
import time
import unittest
import uuid

import psycopg2

from support import (Cluster, LiveTestCase, Refused, apply_catalog, await_condition, call, connect, rows, seeded, together, total, value,
                     violations)

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
    """The header Stripe-Signature."""
    at = int(time.time()) if at is None else at
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.{payload}'.encode(), hashlib.sha256).hexdigest()}"


def event(kind, data, created=None, event_id=None):
    """An event as Stripe writes it."""
    return json.dumps({
        "id": event_id or f"evt_{uuid.uuid4().hex}", "object": "event", "type": kind, "api_version": "2025-03-31.basil",
        "created": int(time.time()) if created is None else created, "livemode": False, "data": {"object": data},
    })


def intent(payment, status="succeeded", **more):
    """A payment intent of a payment of ours."""
    return {
        "id": f"pi_{payment.payment_id.hex}", "object": "payment_intent", "status": status, "amount": payment.total,
        "amount_received": payment.total if status == "succeeded" else 0, "currency": payment.currency.lower(),
        "customer": None, "payment_method": "pm_1", "latest_charge": f"ch_{payment.payment_id.hex}",
        "metadata": {"payment_id": str(payment.payment_id), "org_id": str(payment.org_id)}, **more,
    }


def charge(payment, refunded, **more):
    """Its charge, of which something was refunded."""
    return {
        "id": f"ch_{payment.payment_id.hex}", "object": "charge", "amount": payment.total, "amount_captured": payment.total,
        "amount_refunded": refunded, "captured": True, "paid": True, "status": "succeeded", "refunded": refunded == payment.total,
        "currency": payment.currency.lower(), "payment_intent": f"pi_{payment.payment_id.hex}",
        "metadata": {"payment_id": str(payment.payment_id), "org_id": str(payment.org_id)}, **more,
    }


def dispute(payment, status, amount=None):
    """A dispute about it."""
    return {
        "id": f"dp_{payment.payment_id.hex}", "object": "dispute", "amount": payment.total if amount is None else amount,
        "currency": payment.currency.lower(), "charge": f"ch_{payment.payment_id.hex}",
        "payment_intent": f"pi_{payment.payment_id.hex}", "status": status, "metadata": {},
    }


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
        payload = event(kind, data, **more)
        return call(db or self.db, "handle_webhook", "stripe", payload, sign(payload))

    def status(self, payment):
        return value(self.db, "select status from billing.payments where payment_id = %s", payment.payment_id)

    def credit(self, org=None):
        return value(self.db, "select billing.get_total_credits(%s)", org or self.org)


class Quotes(Payments):
    def test_rupees(self):
        """₹500: GST ₹90, platform fee ₹12."""
        quote = call(self.db, "quote_pack", "small", "INR")
        self.assertEqual((quote.price, quote.tax, quote.fee, quote.total), (50000, 9000, 1200, 60200))
        self.assertEqual((quote.credits, quote.bonus, quote.unit), (1000, 100, "credit"))
        self.assertIsNotNone(quote.valid_until)

    def test_any_amount(self):
        """₹10 are 100 credits, from ₹150 on."""
        quote = call(self.db, "quote_pack", "top", "INR", amount=15000)
        self.assertEqual((quote.credits, quote.bonus, quote.total), (1500, 0, 15000 + 2700 + 360))
        self.assertIsNone(quote.valid_until)
        error = refused(self.db, "select billing.quote_pack('top', 'INR', amount => 14999)", sqlstate="22023")
        self.assertEqual(error["minimum"], 15000)

    def test_refused(self):
        for arguments, sqlstate in [("'none', 'USD'", "PT404"), ("'small', 'EUR'", "22023"), ("null, 'USD'", "22023"),
                                    ("'small', 'USD', null, 5", "22023"), ("'top', 'INR', null, -1", "22023")]:
            refused(self.db, f"select billing.quote_pack({arguments})", sqlstate=sqlstate)

    def test_the_catalog_tells_its_faults(self):
        document = {"packs": {"p": {"credits": 0, "price": {"usd": 1}, "validity": "soon", "metrics": [], "unit": "x", "colour": 1}},
                    "surcharges": {"XXZ": {"tax": {"basis_points": -1}}}}
        error = refused(self.db, "select billing.apply_catalog(%s)", json.dumps(document), sqlstate="22023")
        paths = {fault["path"] for fault in error["faults"]}
        self.assertEqual(paths, {"packs.p.credits", "packs.p.price.usd", "packs.p.validity", "packs.p.metrics", "packs.p.unit",
                                 "packs.p.colour", "surcharges.XXZ", "surcharges.XXZ.tax.basis_points"})
        self.assertEqual(apply_catalog(self.db, value(self.db, "select billing.export_catalog()")), [])


class ByHand(Payments):
    def test_credit_comes_with_the_money(self):
        payment = self.buy()
        self.assertEqual((payment.status, self.credit()), ("idle", 0))
        call(self.db, "set_payment_status", self.org, payment.payment_id, "pending")
        self.assertEqual(call(self.db, "get_wallet", self.org).pending, 1100)
        self.assertEqual(self.credit(), 0)
        call(self.db, "set_payment_status", self.org, payment.payment_id, "succeeded")
        wallet = call(self.db, "get_wallet", self.org)
        self.assertEqual((wallet.pending, wallet.available, wallet.lifetime_purchased), (0, 1100, 1000))
        grants = rows(self.db, "select amount, source, category, cost_minor, currency, expires_at is null as forever"
                               " from billing.grants where org_id = %s order by grant_id", self.org)
        self.assertEqual([tuple(g) for g in grants], [(1000, "purchase", "paid", 500, "USD", False),
                                                      (100, "bonus", "promotional", 0, None, False)])
        # Once more changes nothing.
        call(self.db, "set_payment_status", self.org, payment.payment_id, "succeeded")
        self.assertEqual(self.credit(), 1100)

    def test_illegal_moves(self):
        ways = {"processing": ["idle"], "pending": ["idle", "processing"], "failed": ["idle", "refunded"],
                "succeeded": ["idle", "processing", "pending", "failed"],
                "refunded": ["idle", "processing", "pending", "succeeded", "failed"]}
        for there, moves in ways.items():
            payment = self.buy()
            for step in ["succeeded", "refunded"] if there == "refunded" else [there]:
                call(self.db, "set_payment_status", self.org, payment.payment_id, step)
            before = self.credit()
            for move in moves:
                error = refused(self.db, "select billing.set_payment_status(%s, %s, %s)", self.org, payment.payment_id, move,
                                sqlstate="PT409")
                self.assertEqual((error["code"], error["from"], error["to"]), ("illegal_transition", there, move))
            self.assertEqual((self.status(payment), self.credit()), (there, before))

    def test_refund_takes_what_is_left_and_flags_the_rest(self):
        payment = self.buy()
        call(self.db, "set_payment_status", self.org, payment.payment_id, "succeeded")
        call(self.db, "consume_credits", self.org, "call", 300)
        call(self.db, "set_payment_status", self.org, payment.payment_id, "refunded")
        self.assertEqual(self.credit(), 0)
        (flag,) = rows(self.db, "select kind, detail from billing.flags where org_id = %s", self.org)
        self.assertEqual((flag.kind, flag.detail["credits"]), ("refund_spent", 300))
        self.assertEqual(value(self.db, "select unrecovered from billing.payments where org_id = %s", self.org), 300)

    def test_scope(self):
        payment = call(self.db, "start_purchase", self.org, "pages")
        self.assertEqual((payment.currency, payment.total), ("USD", 100))
        call(self.db, "set_payment_status", self.org, payment.payment_id, "succeeded")
        self.assertEqual((self.credit(), total(self.db, self.org, metric="page")), (0, 70))

    def test_idempotency(self):
        """One payment for a key, also of calls at the same time; another request is a conflict."""
        results = self.parallel(
            20, lambda db, _: call(db, "start_purchase", self.org, "small", "USD", idempotency_key="k"))
        self.assertEqual(len({payment.payment_id for payment in results}), 1)
        self.assertEqual(sum(not payment.replayed for payment in results), 1)
        refused(self.db, "select billing.start_purchase(%s, 'pages', 'USD', idempotency_key => 'k')", self.org, sqlstate="PT409")

    def test_bad_input(self):
        for arguments in ["null, 'small', 'USD'", "%s, null, 'USD'", "%s, 'small', null", "%s, 'small'", "%s, 'small', 'USD', 'Str!pe'",
                          "%s, 'small', 'USD', 'stripe', -5", "%s, 'small', 'USD', customer => ''"]:
            values = [self.org] if "%s" in arguments else []
            refused(self.db, f"select billing.start_purchase({arguments})", *values, sqlstate="22023")
        refused(self.db, "select billing.set_payment_status(%s, %s, 'paid')", self.org, uuid.uuid4(), sqlstate="22023")
        refused(self.db, "select billing.set_payment_status(%s, %s, 'failed')", self.org, uuid.uuid4(), sqlstate="PT404")
        # The payment of another org is not there.
        payment = self.buy()
        refused(self.db, "select billing.set_payment_status(%s, %s, 'failed')", uuid.uuid4(), payment.payment_id, sqlstate="PT404")


class Signatures(Payments):
    def test_only_what_is_signed(self):
        payment = self.buy()
        payload = event("payment_intent.succeeded", intent(payment))
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
        payload = event("ping.pong", {})
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
        payload = event("payment_intent.succeeded", intent(payment)).replace('", "', '",   "')
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


class Stripe(Payments):
    def test_paid(self):
        payment = self.buy()
        receipt = self.deliver("payment_intent.succeeded", intent(payment, customer="cus_1"))
        self.assertEqual((receipt.status, receipt.org_id), ("processed", self.org))
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100))

    def test_once(self):
        """The same event twice, twenty times at once, and another event of the same payment: one grant."""
        payment = self.buy()
        payload = event("payment_intent.succeeded", intent(payment))
        results = self.parallel(20, lambda db, _: call(db, "handle_webhook", "stripe", payload, sign(payload)).status)
        self.assertEqual(sorted(results), ["duplicate"] * 19 + ["processed"])
        self.deliver("payment_intent.succeeded", intent(payment))
        session = {"id": "cs_1", "object": "checkout.session", "mode": "payment", "payment_status": "paid",
                   "amount_total": payment.total, "currency": "usd", "payment_intent": f"pi_{payment.payment_id.hex}",
                   "client_reference_id": str(payment.payment_id), "customer": None, "metadata": {}}
        self.deliver("checkout.session.completed", session)
        self.assertEqual((self.credit(), value(self.db, "select count(*) from billing.grants where org_id = %s", self.org)),
                         (1100, 2))

    def test_many_payments_at_once(self):
        """Different events of one org, with its consumption going on."""
        payments = [self.buy() for _ in range(12)]
        call(self.db, "grant_credits", self.org, 1000)

        def work(db, number):
            if number % 2:
                return call(db, "consume_credits", self.org, "call", 10).credits
            payload = event("payment_intent.succeeded", intent(payments[number // 2]))
            return call(db, "handle_webhook", "stripe", payload, sign(payload)).status

        self.parallel(24, work)
        self.assertEqual(self.credit(), 1000 + 12 * 1100 - 12 * 10)

    def test_checkout_that_is_paid_later(self):
        payment = self.buy()
        session = {"id": "cs_2", "object": "checkout.session", "mode": "payment", "payment_status": "unpaid",
                   "amount_total": payment.total, "currency": "usd", "payment_intent": None, "customer": None,
                   "client_reference_id": str(payment.payment_id), "metadata": {}}
        self.deliver("checkout.session.completed", session)
        self.assertEqual((self.status(payment), self.credit()), ("pending", 0))
        self.assertEqual(call(self.db, "get_wallet", self.org).pending, 1100)
        self.deliver("checkout.session.async_payment_succeeded", session | {"payment_status": "paid"})
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100))
        other = self.buy()
        session |= {"id": "cs_3", "client_reference_id": str(other.payment_id)}
        self.deliver("checkout.session.completed", session)
        self.deliver("checkout.session.async_payment_failed", session)
        self.assertEqual((self.status(other), self.credit()), ("failed", 1100))

    def test_failed_and_tried_again(self):
        payment = self.buy()
        failure = {"last_payment_error": {"code": "card_declined", "message": "Your card was declined."}}
        self.deliver("payment_intent.payment_failed", intent(payment, "requires_payment_method", **failure))
        self.assertEqual((self.status(payment), self.credit()), ("failed", 0))
        self.deliver("payment_intent.succeeded", intent(payment))
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100))
        # The report of the failure comes once more, after the money.
        self.deliver("payment_intent.payment_failed", intent(payment, "requires_payment_method", **failure))
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100))

    def test_refunds_in_parts(self):
        payment = self.buy()
        self.deliver("payment_intent.succeeded", intent(payment))
        self.deliver("charge.refunded", charge(payment, 125))
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100 - 250 - 25))
        for _ in range(2):
            self.deliver("charge.refunded", charge(payment, 125))
        self.assertEqual(self.credit(), 825)
        self.deliver("charge.refunded", charge(payment, 500))
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))
        # An older report passes it.
        self.deliver("charge.refunded", charge(payment, 125))
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))

    def test_refund_before_the_payment(self):
        payment = self.buy()
        self.deliver("charge.refunded", charge(payment, 500))
        self.deliver("payment_intent.succeeded", intent(payment))
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))

    def test_refund_by_reference_before_the_payment(self):
        """What names only an id that nobody knows yet waits, and is taken with the report that tells it."""
        payment = self.buy()
        bare = charge(payment, 500) | {"metadata": {}}
        self.assertEqual(self.deliver("charge.refunded", bare).status, "review")
        self.deliver("payment_intent.succeeded", intent(payment))
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))
        self.assertEqual(value(self.db, "select count(*) from billing.webhook_events where status = 'review' and %s = any (refs)",
                               f"ch_{payment.payment_id.hex}"), 0)

    def test_credit_in_holds_goes_back_too(self):
        payment = self.buy()
        self.deliver("payment_intent.succeeded", intent(payment))
        hold = call(self.db, "reserve_credits", self.org, "call", 400)
        self.deliver("charge.refunded", charge(payment, 500))
        self.assertEqual(self.credit(), 0)
        call(self.db, "release_credits", self.org, hold.hold_id)
        self.assertEqual(self.credit(), 0)

    def test_expired_credit_was_not_spent(self):
        db = self.connect()
        payment = self.buy()
        self.deliver("payment_intent.succeeded", intent(payment))
        rows(db, "select set_config('billing.test_clock', (now() + interval '2 years')::text, false)")
        call(db, "settle_org", self.org)
        payload = event("charge.refunded", charge(payment, 500))
        at = int(value(db, "select extract(epoch from billing.clock())"))
        call(db, "handle_webhook", "stripe", payload, sign(payload, at=at))
        self.assertEqual(value(db, "select unrecovered from billing.payments where org_id = %s", self.org), 0)
        self.assertEqual(rows(db, "select * from billing.flags where org_id = %s", self.org), [])

    def test_an_error_that_is_caught_outside(self):
        """A report that fails halfway leaves the transaction as it was, and is taken the next time."""
        payment = self.buy()
        payload = event("payment_intent.succeeded", intent(payment))
        holder, db = self.connect(autocommit=False), self.connect()
        call(holder, "grant_credits", self.org, 1)
        rows(db, "set lock_timeout = '100ms'")
        quoted = [value(db, "select quote_literal(%s)", text) for text in (payload, sign(payload))]
        for _ in range(3):
            rows(db, f"do $x$ begin perform billing.handle_webhook('stripe', {quoted[0]}, {quoted[1]});"
                     " raise assert_failure; exception when lock_not_available then null; end $x$".replace("%", "%%"))
            self.assertEqual(value(db, "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"), 0)
        holder.rollback()
        self.assertEqual(call(db, "handle_webhook", "stripe", payload, sign(payload)).status, "processed")
        self.assertEqual(self.credit(), 1100)

    def test_disputes(self):
        payment = self.buy()
        self.deliver("payment_intent.succeeded", intent(payment))
        self.deliver("charge.dispute.created", dispute(payment, "needs_response"))
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100))
        self.assertEqual(value(self.db, "select kind from billing.flags where org_id = %s", self.org), "dispute")
        self.deliver("charge.dispute.closed", dispute(payment, "lost"))
        self.assertEqual((self.status(payment), self.credit()), ("refunded", 0))
        other = self.buy()
        self.deliver("payment_intent.succeeded", intent(other))
        self.deliver("charge.dispute.closed", dispute(other, "won"))
        self.deliver("charge.dispute.created", dispute(other, "needs_response"))
        self.assertEqual((self.status(other), self.credit()), ("succeeded", 1100))

    def test_amounts_that_do_not_fit_wait_for_a_person(self):
        for change in ({"amount": 499, "amount_received": 499}, {"currency": "eur"}):
            payment = self.buy()
            receipt = self.deliver("payment_intent.succeeded", intent(payment) | change)
            self.assertEqual((receipt.status, json.loads(receipt.reason)["code"]), ("review", "payment_mismatch"))
            self.assertEqual((self.status(payment), self.credit()), ("idle", 0))

    def test_what_is_not_known_waits_and_is_replayed(self):
        data = intent(self.buy()) | {"metadata": {}, "id": f"pi_{uuid.uuid4().hex}", "latest_charge": None}
        receipt = self.deliver("payment_intent.succeeded", data)
        self.assertEqual((receipt.status, receipt.reason), ("review", "unknown_payment"))
        self.assertEqual(call(self.db, "replay_webhook", "stripe", receipt.event_id).status, "review")
        payment = self.buy()
        value(self.db, "select billing.link_payment(%s, %s, %s)", self.org, payment.payment_id, data["id"])
        self.assertEqual(call(self.db, "replay_webhook", "stripe", receipt.event_id).status, "processed")
        self.assertEqual(call(self.db, "replay_webhook", "stripe", receipt.event_id).status, "duplicate")
        self.assertEqual(self.credit(), 1100)
        refused(self.db, "select billing.replay_webhook('stripe', 'evt_none')", sqlstate="PT404")
        # The payment of one org does not count for another.
        data = intent(self.buy()) | {"metadata": {"payment_id": str(self.buy().payment_id), "org_id": str(uuid.uuid4())}}
        self.assertEqual(self.deliver("payment_intent.succeeded", data).status, "review")

    def test_unknown_types_are_stored_and_ignored(self):
        receipt = self.deliver("product.created", {"id": "prod_1"})
        self.assertEqual(receipt.status, "ignored")
        self.assertEqual(value(self.db, "select type from billing.webhook_events where event_id = %s", receipt.event_id),
                         "product.created")


class Razorpay(Payments):
    def deliver(self, kind, payload, event_id=None):
        body = json.dumps({"entity": "event", "account_id": "acc_1", "event": kind, "contains": list(payload),
                           "payload": {name: {"entity": entity} for name, entity in payload.items()},
                           "created_at": int(time.time())})
        signature = hmac.new(SECRET.encode(), body.encode(), hashlib.sha256).hexdigest()
        return call(self.db, "handle_webhook", "razorpay", body, signature, event_id or f"event_{uuid.uuid4().hex}")

    def entity(self, payment, **more):
        return {"id": f"pay_{payment.payment_id.hex[:14]}", "entity": "payment", "amount": payment.total, "currency": "INR",
                "status": "captured", "order_id": f"order_{payment.payment_id.hex[:14]}", "invoice_id": None, "amount_refunded": 0, "captured": True,
                "notes": {"payment_id": str(payment.payment_id), "org_id": str(payment.org_id)}, **more}

    def test_paid_and_refunded(self):
        payment = self.buy(currency="INR", provider="razorpay")
        receipt = self.deliver("payment.captured", {"payment": self.entity(payment)}, "event_one")
        self.assertEqual((receipt.status, receipt.event_id, self.credit()), ("processed", "event_one", 1100))
        self.assertEqual(self.deliver("payment.captured", {"payment": self.entity(payment)}, "event_one").status, "duplicate")
        # Signed, but under another id: nothing twice.
        self.deliver("payment.captured", {"payment": self.entity(payment)})
        self.assertEqual(self.credit(), 1100)
        refund = {"id": "rfnd_1", "entity": "refund", "amount": payment.total, "currency": "INR",
                  "payment_id": self.entity(payment)["id"], "status": "processed", "notes": []}
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
        lost = {"id": "disp_1", "entity": "dispute", "payment_id": self.entity(payment)["id"], "amount": payment.total, "currency": "INR",
                "status": "lost"}
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
        payload = event(kind, data, created=created or self.now, **more)
        return call(self.db, "handle_webhook", "stripe", payload, sign(payload, at=self.now))

    def month(self, number):
        """Start of a month of the subscription, in seconds."""
        return int(value(self.db, "select extract(epoch from to_timestamp(%s) at time zone 'UTC' + make_interval(months => %s))",
                         self.start, number))

    def invoice(self, number, price="price_pro", amount=2900, kind="invoice.paid", **more):
        start, end = self.month(number), self.month(number + 1)
        return self.deliver(kind, {
            "id": f"in_{self.org.hex}_{number}_{price}", "object": "invoice", "customer": self.customer, "currency": "usd",
            "amount_paid": amount, "amount_due": amount, "total": amount, "status": "paid" if kind == "invoice.paid" else "open",
            "billing_reason": "subscription_cycle" if number else "subscription_create",
            "parent": {"type": "subscription_details", "subscription_details": {
                "subscription": self.sub, "metadata": {"org_id": str(self.org)}}},
            "lines": {"object": "list", "data": [{
                "id": "il_1", "object": "line_item", "amount": amount, "period": {"start": start, "end": end},
                "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription": self.sub,
                                                                                              "proration": False}},
                "pricing": {"type": "price_details", "price_details": {"price": price}}}]}} | more)

    def subscription(self, status="active", price="price_pro", kind="customer.subscription.updated", ends=False, **more):
        return self.deliver(kind, {
            "id": self.sub, "object": "subscription", "customer": self.customer, "status": status, "cancel_at_period_end": ends,
            "cancel_at": None, "metadata": {"org_id": str(self.org)},
            "items": {"object": "list", "data": [{"id": "si_1", "price": {"id": price}, "current_period_start": self.start,
                                                  "current_period_end": self.month(1)}]}}, **more)

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
        line = {"id": "il_2", "object": "line_item", "amount": 1300, "period": {"start": self.now, "end": self.month(1)},
                "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription": self.sub, "proration": True}},
                "pricing": {"type": "price_details", "price_details": {"price": "price_team"}}}
        self.invoice(0, price="price_team", amount=1300, billing_reason="subscription_update", lines={"object": "list", "data": [line]})
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
        trial = {"start": self.start, "end": self.start + 14 * self.DAY}
        line = {"id": "il_t", "object": "line_item", "amount": 0, "period": trial,
                "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription": self.sub, "proration": False}},
                "pricing": {"type": "price_details", "price_details": {"price": "price_pro"}}}
        self.invoice(0, amount=0, lines={"object": "list", "data": [line]})
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
            self.deliver("charge.refunded", {"id": f"ch_{self.org.hex}", "object": "charge", "amount": 2900, "amount_captured": 2900,
                                             "amount_refunded": 2900, "captured": True, "currency": "usd", "refunded": True,
                                             "payment_intent": None, "metadata": {}})
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
        line = {"id": "il_2", "object": "line_item", "amount": amount, "period": {"start": self.now, "end": self.month(1)},
                "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription": self.sub, "proration": True}},
                "pricing": {"type": "price_details", "price_details": {"price": price}}}
        return self.invoice(0, price=price, amount=amount, id=f"in_{uuid.uuid4().hex}", billing_reason="subscription_update",
                            lines={"object": "list", "data": [line]}, **more)

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
        self.deliver("charge.refunded", {"id": f"ch_{self.org.hex}", "object": "charge", "amount": 2900, "amount_captured": 2900,
                                         "amount_refunded": 2900, "captured": True, "currency": "usd", "refunded": True,
                                         "payment_intent": None, "metadata": {}})
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
        lines = [{"id": f"il_{price}", "object": "line_item", "amount": 1900, "period": {"start": self.start, "end": self.month(1)},
                  "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription": self.sub, "proration": False}},
                  "pricing": {"type": "price_details", "price_details": {"price": price}}} for price in ("price_pro", "price_monthly")]
        receipt = self.invoice(0, amount=3800, id=f"in_{self.org.hex}_two", lines={"object": "list", "data": lines})
        self.assertEqual((receipt.reason, self.credit()), ("several_items", 0))

    def test_what_tells_the_org_and_what_needs_it_at_once(self):
        """The invoice does not say whose it is, the session does: however they meet, the plan begins."""
        for _ in range(10):
            self.org = uuid.uuid4()
            self.customer, self.sub = f"cus_{self.org.hex}", f"sub_{self.org.hex}"
            line = {"id": "il_1", "object": "line_item", "amount": 2900, "period": {"start": self.start, "end": self.month(1)},
                    "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription": self.sub, "proration": False}},
                    "pricing": {"type": "price_details", "price_details": {"price": "price_pro"}}}
            invoice = event("invoice.paid", {
                "id": f"in_{self.org.hex}", "object": "invoice", "customer": self.customer, "currency": "usd", "amount_paid": 2900,
                "status": "paid", "billing_reason": "subscription_create", "lines": {"object": "list", "data": [line]},
                "parent": {"type": "subscription_details", "subscription_details": {"subscription": self.sub, "metadata": {}}}}, created=self.now)
            session = event("checkout.session.completed", {
                "id": f"cs_{self.org.hex}", "object": "checkout.session", "mode": "subscription", "payment_status": "paid",
                "amount_total": 2900, "currency": "usd", "payment_intent": None, "customer": self.customer, "subscription": self.sub,
                "client_reference_id": None, "metadata": {"org_id": str(self.org)}}, created=self.now)

            def work(db, number):
                rows(db, "select set_config('billing.test_clock', to_timestamp(%s)::text, false)", self.now)
                payload = (invoice, session)[number]
                return call(db, "handle_webhook", "stripe", payload, sign(payload, at=self.now)).status

            self.parallel(2, work)
            self.assertEqual((self.plan(), self.credit()), ("pro", 5000))

    def test_refunded(self):
        self.invoice(0, payment_intent=f"pi_{self.org.hex}", charge=f"ch_{self.org.hex}")
        call(self.db, "consume_credits", self.org, "call", 1000)
        self.deliver("charge.refunded", {"id": f"ch_{self.org.hex}", "object": "charge", "amount": 2900, "amount_captured": 2900,
                                         "amount_refunded": 2900, "captured": True, "currency": "usd", "refunded": True,
                                         "payment_intent": f"pi_{self.org.hex}", "metadata": {}})
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
        no_org = {"type": "subscription_details", "subscription_details": {"subscription": self.sub, "metadata": {}}}
        receipt = self.invoice(0, parent=no_org)
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


class Outbox(Payments):
    def emit(self, topic="t", **payload):
        return value(self.db, "select billing_internal.emit_event(%s, %s, %s)", self.org, topic, json.dumps(payload))

    def claim(self, topic, db=None, **more):
        return rows(db or self.db, "select * from billing.claim_events(%s, %s, %s)", [topic], more.get("limit", 10), more.get("lease", "1 minute"))

    def test_each_is_claimed_once(self):
        """Twenty workers at once: no event twice."""
        topic = uuid.uuid4().hex
        emitted = {self.emit(topic, n=n) for n in range(100)}
        claims = self.parallel(20, lambda db, _: [e.event_id for e in self.claim(topic, db, limit=7)])
        claimed = [event_id for some in claims for event_id in some]
        self.assertEqual((len(claimed), set(claimed)), (100, emitted))
        self.assertEqual(value(self.db, "select billing.ack_events(%s)", claimed), 100)
        self.assertEqual(value(self.db, "select billing.ack_events(%s)", claimed), 0)

    def test_the_lease(self):
        topic = uuid.uuid4().hex
        event_id = self.emit(topic, a=1)
        db = self.connect()
        rows(db, "select set_config('billing.test_clock', now()::text, false)")
        (first,) = self.claim(topic, db, lease="30 seconds")
        self.assertEqual((first.event_id, first.attempt, first.payload), (event_id, 1, {"a": 1, "org_id": str(self.org)}))
        self.assertEqual(self.claim(topic, db), [])
        rows(db, "select set_config('billing.test_clock', (now() + interval '31 seconds')::text, false)")
        (second,) = self.claim(topic, db)
        self.assertEqual((second.event_id, second.attempt), (event_id, 2))

    def test_failures_and_the_dead_letter(self):
        topic = uuid.uuid4().hex
        event_id = self.emit(topic)
        db = self.connect()
        pauses = []
        for attempt in range(1, 11):
            rows(db, "select set_config('billing.test_clock', available_at::text, false) from billing.outbox where event_id = %s", event_id)
            (claimed,) = self.claim(topic, db)
            self.assertEqual(claimed.attempt, attempt)
            answer = value(db, "select billing.fail_event(%s, 'no answer')", event_id)
            self.assertEqual(answer, "retry" if attempt < 10 else "dead")
            pauses.append(value(db, "select extract(epoch from available_at - billing.clock())::int from billing.outbox where event_id = %s", event_id))
        self.assertEqual(pauses[:9], [10, 20, 40, 80, 160, 320, 640, 1280, 2560])
        rows(db, "reset billing.test_clock")
        self.assertEqual(self.claim(topic), [])
        refused(self.db, "select billing.fail_event(%s, 'x')", event_id, sqlstate="PT404")
        value(self.db, "select billing.requeue_event(%s)", event_id)
        self.assertEqual(len(self.claim(topic)), 1)

    def test_a_payment_that_nobody_could_ask_for(self):
        """It fails with its dead letter; should the money come all the same, it counts."""
        payment = self.buy(customer="cus_1")
        self.assertEqual(payment.status, "processing")
        (event_id,) = [r.event_id for r in rows(self.db, "select event_id from billing.outbox where org_id = %s", self.org)]
        rows(self.db, "update billing.outbox set attempts = 10 where event_id = %s", event_id)
        self.assertEqual(value(self.db, "select billing.fail_event(%s, 'no such customer')", event_id), "dead")
        found = rows(self.db, "select status, failure from billing.payments where org_id = %s", self.org)
        self.assertEqual([tuple(p) for p in found], [("failed", "no such customer")])
        self.deliver("payment_intent.succeeded", intent(payment))
        self.assertEqual(self.credit(), 1100)

    def test_whoever_waits_is_told(self):
        db = self.connect()
        rows(db, "listen billing_events")
        topic = uuid.uuid4().hex
        self.emit(topic)
        rows(db, "select 1")
        self.assertIn(topic, [notice.payload for notice in db.notifies])

    def test_what_is_rolled_back_is_not_there(self):
        db, topic = self.connect(autocommit=False), uuid.uuid4().hex
        value(db, "select billing_internal.emit_event(%s, %s, '{}')", self.org, topic)
        db.rollback()
        self.assertEqual(self.claim(topic), [])

    def test_bad_input(self):
        for statement in ("select billing.claim_events(null, 0)", "select billing.claim_events(null, 1, '0')",
                          "select billing.claim_events(null, null)", "select billing.ack_events(null)"):
            refused(self.db, statement, sqlstate="22023")


class Delivery(Payments):
    """Posting by pg_net or http. Neither is on every machine, so both have stand-ins here, with their functions' own signatures."""

    PG_NET = """
        create schema net;
        create table net._http_response (id bigint primary key, status_code integer, error_msg text);
        create table net.posted (id bigint generated always as identity, url text, body jsonb, headers jsonb);
        create function net.http_post(url text, body jsonb default '{}', params jsonb default '{}', headers jsonb default '{}',
                                      timeout_milliseconds integer default 5000) returns bigint language sql as
            $$ insert into net.posted (url, body, headers) values ($1, $2, $4) returning id $$;"""
    HTTP = """
        create type public.http_header as (field varchar, value varchar);
        create domain public.http_method as text;
        create type public.http_request as (method public.http_method, uri varchar, headers public.http_header[],
                                            content_type varchar, content varchar);
        create type public.http_response as (status integer, content_type varchar, headers public.http_header[], content varchar);
        create function public.http_header(varchar, varchar) returns public.http_header language sql as $$ select $1, $2 $$;
        create table public.posted (request public.http_request);
        create function public.http(public.http_request) returns public.http_response language plpgsql as $$
        begin
            if ($1).uri like '%%unreachable%%' then raise exception 'could not connect'; end if;
            insert into public.posted values ($1);
            return row(case when ($1).uri like '%%broken%%' then 500 else 200 end, 'text/plain', null, 'ok')::public.http_response;
        end $$;"""

    def stand_in(self, name, script):
        """A database in which that extension seems to be installed."""
        db = connect(self.new_database())
        self.addCleanup(db.close)
        self.install(db)
        rows(db, script.replace("%%", "%"))
        schema = "net" if name == "pg_net" else "public"
        rows(db, "set allow_system_table_mods = on")
        rows(db, "insert into pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)"
                 " values (999999, %s, 10, %s::regnamespace, false, '1')", name, schema)
        for (function,) in rows(db, "select oid::regprocedure::text from pg_proc where pronamespace = %s::regnamespace and proname like 'http%%'", schema):
            rows(db, f"alter extension {name} add function {function}")
        return db

    def test_nothing_to_deliver_with(self):
        db = connect(self.new_database())
        self.addCleanup(db.close)
        self.install(db)
        self.assertEqual(refused(db, "select billing.deliver_events()", sqlstate="55000")["code"], "not_configured")
        value(db, "select billing.configure_delivery('http://127.0.0.1/hook')")
        self.assertEqual(refused(db, "select billing.deliver_events()", sqlstate="55000")["code"], "no_http")
        for url in ("ftp://x", "javascript:1", "http://a b"):
            refused(db, "select billing.configure_delivery(%s)", url, sqlstate="22023")

    def test_http(self):
        db = self.stand_in("http", self.HTTP)
        value(db, "select billing.configure_delivery('http://127.0.0.1/hook', '{a}', '{\"Authorization\": \"Bearer t\"}')")
        event_id = value(db, "select billing_internal.emit_event(%s, 'a', '{\"n\": 1}')", self.org)
        value(db, "select billing_internal.emit_event(%s, 'other', '{}')", self.org)
        self.assertEqual(value(db, "select billing.deliver_events()"), 1)
        self.assertEqual(value(db, "select billing.deliver_events()"), 0)
        (posted,) = rows(db, "select (request).method, (request).uri, (request).headers::text, (request).content::jsonb from posted")
        self.assertEqual((posted.method, posted.uri, posted.headers), ("POST", "http://127.0.0.1/hook", '{"(Authorization,\\"Bearer t\\")"}'))
        self.assertEqual((posted.content["event_id"], posted.content["payload"]["n"]), (str(event_id), 1))
        for place, error in (("broken", "status 500"), ("unreachable", "could not connect")):
            value(db, "select billing.configure_delivery(%s)", f"http://127.0.0.1/{place}")
            rows(db, "update billing.outbox set available_at = '-infinity' where topic = 'other'")
            self.assertEqual(value(db, "select billing.deliver_events()"), 0)
            self.assertEqual(value(db, "select last_error from billing.outbox where topic = 'other'"), error)

    def test_pg_net(self):
        db = self.stand_in("pg_net", self.PG_NET)
        value(db, "select billing.configure_delivery('http://127.0.0.1/hook')")
        events = [value(db, "select billing_internal.emit_event(%s, 'a', '{}')", self.org) for _ in range(2)]
        self.assertEqual(value(db, "select billing.deliver_events()"), 0)
        rows(db, "insert into net._http_response values (1, 204, null), (2, null, 'timeout')")
        self.assertEqual(value(db, "select billing.deliver_events()"), 1)
        first, second = rows(db, "select delivered_at, last_error from billing.outbox order by event_id")
        self.assertEqual((first.delivered_at is None, second.delivered_at, second.last_error), (False, None, "timeout"))
        self.assertEqual(value(db, "select count(*) from net.posted"), len(events))

    def test_alerts_are_delivered_where_wanted(self):
        call(self.db, "create_wallet", self.org, low_balance_threshold=50)
        call(self.db, "grant_credits", self.org, 100)
        value(self.db, "select billing.configure_alerts(deliver => true)")
        self.addCleanup(value, self.db, "select billing.configure_alerts()")
        call(self.db, "consume_credits", self.org, "call", 60)
        kinds = {r.payload["kind"] for r in rows(self.db, "select payload from billing.outbox where org_id = %s and topic = 'alert.raised'", self.org)}
        self.assertEqual(kinds, {"low_balance", "balance"})


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


class Model(Payments):
    def test_any_order_ends_with_credit_for_the_money(self):
        """Random reports of several payments, repeated and in any order: credit is there for the money that is, and no other."""
        dice, seed = seeded()
        for _ in range(40):
            org, expected, reports = uuid.uuid4(), 0, []
            for _ in range(dice.randint(1, 4)):
                payment = self.buy(org=org)
                now = int(time.time())
                paid, refunded, lost = dice.random() < 0.7, 0, 0
                mine = [("payment_intent.processing", intent(payment, "processing"), now - dice.randint(0, 9))]
                if dice.random() < 0.4:
                    mine.append(("payment_intent.payment_failed", intent(payment, "requires_payment_method"), now - 5))
                if paid:
                    mine.append(("payment_intent.succeeded", intent(payment), now))
                    for _ in range(dice.choice([0, 0, 1, 2])):
                        refunded = dice.randint(refunded, payment.total)
                        data = charge(payment, refunded)
                        if dice.random() < 0.5:
                            data["metadata"] = {}
                        if refunded:
                            mine.append(("charge.refunded", data, now))
                    if dice.random() < 0.2:
                        mine.append(("charge.dispute.created", dispute(payment, "needs_response"), now))
                        lost = dice.choice([0, payment.total - refunded])
                        mine.append(("charge.dispute.closed", dispute(payment, "lost" if lost else "won", lost or None), now))
                    back = min(payment.total, refunded + lost)
                    for credits in (payment.credits, payment.bonus):
                        expected += credits - -(-credits * back // payment.total)
                reports += [event(kind, data, created) for kind, data, created in mine]
            reports += dice.choices(reports, k=dice.randint(0, len(reports)))
            dice.shuffle(reports)
            for payload in reports:
                call(self.db, "handle_webhook", "stripe", payload, sign(payload))
            self.assertEqual(self.credit(org), expected, f"SEED={seed} org {org}")
            wrong = rows(self.db, "select * from billing.payments where org_id = %s and (status in ('succeeded', 'refunded'))"
                                  " is distinct from (paid_at is not null)", org)
            self.assertEqual(wrong, [])


class Provider(threading.Thread):
    """Delivers its events in any order, each until it is taken."""

    def __init__(self, cluster, events):
        super().__init__(daemon=True)
        self.cluster, self.events = cluster, events
        self.taken, self.failure = 0, None

    def run(self):
        try:
            connection = self.cluster.connect("ledger")
            while self.events:
                payload = self.events[-1]
                call(connection, "handle_webhook", "stripe", payload, sign(payload))
                # Killed before this line, it is delivered once more.
                self.events.pop()
                self.taken += 1
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            pass
        except BaseException as error:  # pylint: disable=broad-except
            self.failure = error


class Crash(unittest.TestCase):
    """The server is killed with SIGKILL while reports come in, again and again."""

    def test_kill_nine(self):
        dice, seed = seeded()
        cluster = Cluster({"max_connections": "50"})
        self.addCleanup(cluster.remove)
        cluster.start()
        rows(cluster.connect(), "create database ledger")
        db = cluster.connect("ledger")
        rows(db, "create extension pg_billing")
        rows(db, "select billing.install()")
        apply_catalog(db, CATALOG)
        value(db, "select billing.set_webhook_secret('stripe', %s)", SECRET)
        orgs = [uuid.uuid4() for _ in range(4)]
        payments = [call(db, "start_purchase", dice.choice(orgs), "small", "USD") for _ in range(1500)]
        expected = dict.fromkeys(orgs, 0)
        queues = [[] for _ in range(6)]
        for payment in payments:
            reports = [event("payment_intent.succeeded", intent(payment))]
            if dice.random() < 0.3:
                reports.append(event("charge.refunded", charge(payment, payment.total)))
            else:
                expected[payment.org_id] += 1100
            for report in reports + dice.choices(reports, k=1):
                dice.choice(queues).append(report)
        for queue in queues:
            dice.shuffle(queue)
        for _ in range(3):
            providers = [Provider(cluster, queue) for queue in queues]
            for provider in providers:
                provider.start()
            goal = dice.randint(20, 60)
            await_condition(lambda: all(p.taken >= goal or not p.events or p.failure for p in providers), 120, "reports")
            cluster.kill()
            for provider in providers:
                provider.join(120)
                self.assertIsNone(provider.failure, f"SEED={seed}")
            cluster.start()
        providers = [Provider(cluster, queue) for queue in queues]
        for provider in providers:
            provider.start()
        for provider in providers:
            provider.join(300)
            self.assertEqual((provider.failure, provider.events), (None, []), f"SEED={seed}")
        db = cluster.connect("ledger")
        self.assertEqual({org: value(db, "select billing.get_total_credits(%s)", org) for org in orgs}, expected, f"SEED={seed}")
        self.assertEqual(rows(db, "select * from billing.webhook_events where status <> 'processed'"), [])
        self.assertEqual(violations(db), [])


if __name__ == "__main__":
    unittest.main()

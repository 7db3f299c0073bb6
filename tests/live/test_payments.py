"""Buying credit: quotes, payments, webhooks, refunds, recharging, the outbox and signals, as an application would use them.

Stripe's signature is made here by the rules of its documentation; test_stripe_sdk.py has it made, and checked, by Stripe's own
libraries.
"""

import hashlib
import hmac
import json
import time
import unittest
import uuid

from support import LiveTestCase, Refused, apply_catalog, call, connect, rows, seeded, together, total, value

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
        payment = self.buy("pages")
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
        for arguments in ["null, 'small', 'USD'", "%s, null, 'USD'", "%s, 'small', null", "%s, 'small', 'USD', 'Str!pe'",
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
                refused(db, f"select * from billing.{table}", sqlstate="42501")

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
                "status": "captured", "order_id": "order_1", "invoice_id": None, "amount_refunded": 0, "captured": True,
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

    def test_another_providers_payment(self):
        payment = self.buy(currency="INR", provider="stripe")
        self.assertEqual(self.deliver("payment.captured", {"payment": self.entity(payment)}).status, "review")
        self.assertEqual(self.credit(), 0)


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


if __name__ == "__main__":
    unittest.main()

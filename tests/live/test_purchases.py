"""Packs: what they cost, and payments whose status an application sets by hand."""

import json
import unittest
import uuid

from payments_support import Payments, refused
from support import apply_catalog, call, rows, total, value


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


if __name__ == "__main__":
    unittest.main()

"""The worker of examples/worker against a fake Stripe: whatever dies in between, a card is charged once and credit comes once."""

import json
import unittest
import urllib.parse

from stripe_support import PACK, WorkerTestCase, free_port, payment_event, request, sign
from support import rows

AMOUNT = PACK["price"]["USD"]


def key_of(payment, attempt=1):
    """The idempotency key that the database gives with a payment."""
    return f"pg_billing-{payment}-{attempt}"


class Worker(WorkerTestCase):
    """From the outbox to Stripe, and from Stripe's webhooks to the credit."""

    def tearDown(self):
        self.assert_sound()

    def test_paid(self):
        """A payment that the database asks for is charged once, and its credit comes; a notification suffices for that."""
        self.start_stripe()
        worker = self.start_worker(POLL=600)
        listening = "select pid from pg_stat_activity where usename = %s and state = 'idle' and query = 'listen billing_events'"
        self.wait(lambda: rows(self.admin, listening, self.role), "the worker to listen")
        # The first may be found by the look after LISTEN, the second only by its notification.
        for _ in range(2):
            org, payment = self.request_payment()
            self.wait_for_status(payment, "succeeded")
            self.assert_paid_once(org, payment)
            (intent,) = self.stripe.intents(payment)
            self.assertEqual((intent["status"], intent["amount"], intent["charged"]), ("succeeded", AMOUNT, AMOUNT))
            self.assertEqual((intent["currency"], intent["customer"], intent["payment_method"]), ("usd", f"cus_{org.hex}", "pm_card_visa"))
            self.assertEqual(intent["metadata"],
                             {"payment_id": str(payment), "org_id": str(org), "idempotency_key": key_of(payment)})
            self.wait(lambda line=f"payment {payment}: succeeded": line in worker.said(), "the acknowledgement")
            self.assertEqual(self.stripe.answers_to(key_of(payment)), [(200, False)])

    def test_waiting_payments(self):
        """What was asked for while no worker ran is charged when one starts; more than it takes at once, too."""
        payments = [self.request_payment() for _ in range(23)]
        self.start_stripe()
        self.start_worker(POLL=600)
        for org, payment in payments:
            self.wait_for_status(payment, "succeeded")
            self.assert_paid_once(org, payment)
            self.assertEqual(self.stripe.charged(payment), AMOUNT)

    def test_two_workers(self):
        """Two workers beside each other share the events: no request is made twice."""
        self.start_stripe()
        self.start_worker()
        self.start_worker(PORT=free_port())
        rows(self.db, "begin")
        payments = [self.request_payment() for _ in range(12)]
        rows(self.db, "commit")
        for org, payment in payments:
            self.wait_for_status(payment, "succeeded")
            self.assert_paid_once(org, payment)
        self.wait(lambda: len(self.stripe.get("requests")) >= len(payments), "all answers")
        self.assertEqual(sorted(asked["key"] for asked in self.stripe.get("requests")),
                         sorted(key_of(payment) for _, payment in payments))

    def test_killed_between_charge_and_acknowledgement(self):
        """The next worker repeats the call when the lease is over: while the first call is under way Stripe refuses that,
        and then gives the first answer again. One charge, one credit."""
        self.start_stripe()
        first = self.start_worker(LEASE=1.5)
        self.stripe.do("hold")
        self.stripe.do("mute")
        org, payment = self.request_payment()
        key = key_of(payment)
        self.wait(lambda: self.stripe.charged(payment), "the charge")
        first.kill()
        self.start_worker(LEASE=1.5)
        self.wait(lambda: (409, False) in self.stripe.answers_to(key), "the call to be repeated")
        self.stripe.do("release")
        self.wait(lambda: (200, True) in self.stripe.answers_to(key), "the first answer again")
        (event,) = self.stripe.events(payment)
        self.assertEqual(self.stripe.do("deliver", event=event["id"]), [200])
        self.assert_paid_once(org, payment)
        self.assertEqual((len(self.stripe.intents(payment)), self.stripe.charged(payment)), (1, AMOUNT))

    def test_killed_before_the_webhook(self):
        """Stripe repeats an event that nobody took until a worker is there again."""
        self.start_stripe()
        first = self.start_worker(LEASE=1.5)
        self.stripe.do("hold")
        self.stripe.do("mute")
        org, payment = self.request_payment()
        self.wait(lambda: self.stripe.charged(payment), "the charge")
        first.kill()
        self.stripe.do("release")
        self.stripe.do("unmute")
        self.wait(lambda: self.stripe.events(payment)[0]["answers"], "an event that nobody takes")
        self.assert_unpaid(org, payment)
        self.start_worker(LEASE=1.5)
        self.wait_for_status(payment, "succeeded")
        self.wait(lambda: (200, True) in self.stripe.answers_to(key_of(payment)), "the first answer again")
        self.assert_paid_once(org, payment)
        self.assertEqual((len(self.stripe.intents(payment)), self.stripe.charged(payment)), (1, AMOUNT))

    def test_repeated_after_days(self):
        """Stripe forgets idempotency keys; what is repeated later looks for the charge, and makes it only if there is none."""
        self.start_stripe()
        first = self.start_worker()
        self.stripe.do("hold")
        paid_org, paid = self.request_payment()
        self.wait_for_status(paid, "succeeded")
        first.kill()
        self.stripe.do("release")
        self.stripe.do("forget")
        new_org, new = self.request_payment()
        for payment in (paid, new):
            rows(self.db, """update billing.outbox set created_at = created_at - interval '3 days', available_at = created_at
                              where payload->>'payment_id' = %s""", str(payment))
        worker = self.start_worker()
        for org, payment in ((paid_org, paid), (new_org, new)):
            self.wait(lambda line=f"payment {payment}: succeeded": line in worker.said(), "the acknowledgement")
            self.wait_for_status(payment, "succeeded")
            self.assert_paid_once(org, payment)
            self.assertEqual((len(self.stripe.intents(payment)), self.stripe.charged(payment)), (1, AMOUNT))
            self.assertEqual(self.stripe.answers_to(key_of(payment)), [(200, False)])

    def test_declined(self):
        """A declined card is an answer: the payment has failed, no credit comes, and the call is not repeated."""
        self.start_stripe()
        worker = self.start_worker()
        org, payment = self.request_payment("pm_card_declined")
        self.wait_for_status(payment, "failed")
        self.assert_unpaid(org, payment)
        self.assertEqual(self.stripe.charged(payment), 0)
        self.wait(lambda: f"payment {payment}: declined" in worker.said(), "the acknowledgement")
        self.assertEqual(self.stripe.answers_to(key_of(payment)), [(402, False)])

    def test_events_twice_and_out_of_order(self):
        """Success that is told of twice at once, and before what came before it: credit once, and it stays."""
        self.start_stripe()
        self.start_worker()
        self.stripe.do("mute")
        org, payment = self.request_payment("pm_processing")
        self.wait(lambda: self.stripe.intents(payment), "the payment intent")
        (intent,) = self.stripe.intents(payment)
        self.assert_unpaid(org, payment)
        self.stripe.do("settle", intent=intent["id"], status="requires_payment_method")
        self.stripe.do("settle", intent=intent["id"], status="succeeded")
        processing, failed, succeeded = self.stripe.events(payment)
        self.assertEqual([event["type"] for event in (processing, failed, succeeded)],
                         [f"payment_intent.{kind}" for kind in ("processing", "payment_failed", "succeeded")])
        self.assertEqual(self.stripe.do("deliver", event=succeeded["id"], times=4), [200] * 4)
        self.assert_paid_once(org, payment)
        for late in (failed, processing, succeeded):
            self.assertEqual(self.stripe.do("deliver", event=late["id"]), [200])
            self.assert_paid_once(org, payment)

    def test_processing_then_paid(self):
        """A slow way to pay: there is no credit before the money is there."""
        self.start_stripe()
        self.start_worker()
        org, payment = self.request_payment("pm_processing")
        self.wait(lambda: [event["answers"][-1:] for event in self.stripe.events(payment)] == [[200]], "the first event")
        self.assert_unpaid(org, payment)
        self.stripe.do("settle", intent=self.stripe.intents(payment)[0]["id"], status="succeeded")
        self.wait_for_status(payment, "succeeded")
        self.assert_paid_once(org, payment)

    def test_not_signed_by_stripe(self):
        """Another secret, no signature, another body, no such path: refused, and nothing happens; then the real one is taken."""
        self.start_stripe()
        self.start_worker()
        self.stripe.do("mute")
        org, payment = self.request_payment()
        self.wait(lambda: self.stripe.events(payment), "the event")
        (event,) = self.stripe.events(payment)
        self.assertEqual(self.stripe.do("deliver", event=event["id"], secret="whsec_of_somebody_else"), [400])
        forged = payment_event("succeeded", org, payment)
        self.assertEqual(self.webhook(forged), 400)
        self.assertEqual(self.webhook(forged, {"stripe-signature": "t=1,v1="}), 400)
        self.assertEqual(self.webhook(forged.replace("1180", "1181"), {"stripe-signature": sign(forged)}), 400)
        self.assertEqual(self.webhook(b"\0\xff", {"stripe-signature": sign("")}), 400)
        self.assertEqual(self.webhook(b" " * (1024 * 1024 + 1)), 413)
        self.assertEqual(request(self.worker_port, "POST", "/", forged, {"stripe-signature": sign(forged)})[0], 404)
        self.assertEqual(request(self.worker_port, "GET", "/webhooks/stripe")[0], 404)
        self.assert_unpaid(org, payment)
        self.assertEqual(self.stripe.do("deliver", event=event["id"]), [200])
        self.assert_paid_once(org, payment)

    def test_stripe_is_down(self):
        """A call that fails goes back into the outbox and succeeds when Stripe is there."""
        worker = self.start_worker()
        org, payment = self.request_payment()
        self.wait(lambda: f"payment {payment}: retry, attempt 2 failed" in worker.said(), "two calls to fail")
        self.assert_unpaid(org, payment)
        self.start_stripe()
        self.wait_for_status(payment, "succeeded")
        self.assert_paid_once(org, payment)
        self.assertEqual(self.stripe.charged(payment), AMOUNT)

    def test_another_provider(self):
        """What another provider is to charge is handed back, not charged at Stripe."""
        self.start_stripe()
        worker = self.start_worker()
        _, payment = self.request_payment("pm_card_visa", "razorpay")
        self.wait(lambda: f"payment {payment}: retry, attempt 1 failed" in worker.said(), "the event to be handed back")
        self.assertEqual(self.stripe.get("requests"), [])
        rows(self.db, "update billing.outbox set dead_at = now() where payload->>'payment_id' = %s", str(payment))

    def test_graceful_stop(self):
        """SIGTERM: the call that is under way is finished and acknowledged."""
        self.start_stripe()
        worker = self.start_worker(LEASE=1.5)
        self.stripe.do("hold")
        org, payment = self.request_payment()
        self.wait(lambda: self.stripe.charged(payment), "the charge")
        worker.process.terminate()
        self.stripe.do("release")
        self.assertEqual(worker.process.wait(60), 0, worker.said())
        self.assertIn(f"payment {payment}: succeeded", worker.said())
        self.start_worker(LEASE=1.5)
        self.wait_for_status(payment, "succeeded")
        self.assert_paid_once(org, payment)
        self.assertEqual(self.stripe.answers_to(key_of(payment)), [(200, False)])

    def test_database_connections_break(self):
        """Connections that the server ends are made again, the one that listens too."""
        self.start_stripe()
        worker = self.start_worker(POLL=600)
        org, payment = self.request_payment()
        self.wait_for_status(payment, "succeeded")
        ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = %s"
        self.assertGreater(rows(self.admin, ended, self.role)[0][0], 0)
        org, payment = self.request_payment()
        self.wait_for_status(payment, "succeeded")
        self.assert_paid_once(org, payment)
        self.assertEqual(worker.stop(), 0, worker.said())


class Fake(WorkerTestCase):
    """The fake is worth its name: idempotency keys as Stripe has them."""

    def test_idempotency(self):
        """The same key: the first answer again, without another charge; with other parameters: an error."""
        self.start_stripe()

        def create(key, amount, method="pm_card_visa"):
            form = {"amount": amount, "currency": "usd", "confirm": "true", "payment_method": method, "metadata[payment_id]": key}
            headers = {"authorization": "Bearer sk_test_1", "idempotency-key": key}
            status, text = request(self.stripe_port, "POST", "/v1/payment_intents", urllib.parse.urlencode(form), headers)
            return status, json.loads(text)

        self.stripe.do("mute")
        first = create("one", 500)
        self.assertEqual((first[0], first[1]["status"]), (200, "succeeded"))
        self.assertEqual(create("one", 500), first)
        self.assertEqual(self.stripe.charged("one"), 500)
        status, answer = create("one", 501)
        self.assertEqual((status, answer["error"]["type"]), (400, "idempotency_error"))
        declined = create("two", 500, "pm_card_declined")
        self.assertEqual((declined[0], declined[1]["error"]["payment_intent"]["status"]), (402, "requires_payment_method"))
        self.assertEqual(create("two", 500, "pm_card_declined"), declined)
        self.assertEqual(create("three", "x")[0], 400)
        self.assertEqual(create("three", 7)[0], 200, "what was refused as invalid did not use up its key")
        self.assertEqual((self.stripe.charged("one"), self.stripe.charged("two"), len(self.stripe.get("intents"))), (500, 0, 3))


if __name__ == "__main__":
    unittest.main()

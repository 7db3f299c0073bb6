"""Payments, refunds and disputes as Stripe reports them: in any order, several at once, and while the server is killed."""

import json
import threading
import time
import unittest
import uuid

import psycopg2

from fixtures import stripe_event
from payments_support import CATALOG, SECRET, Payments, charge, checkout_session, dispute, intent, refused, sign
from support import Cluster, apply_catalog, await_condition, call, install_extension, rows, seeded, value, violations


class Stripe(Payments):
    def test_paid(self):
        payment = self.buy()
        receipt = self.deliver("payment_intent.succeeded", intent(payment, customer="cus_1"))
        self.assertEqual((receipt.status, receipt.org_id), ("processed", self.org))
        self.assertEqual((self.status(payment), self.credit()), ("succeeded", 1100))

    def test_once(self):
        """The same event twice, twenty times at once, and another event of the same payment: one grant."""
        payment = self.buy()
        payload = stripe_event("payment_intent.succeeded", intent(payment))
        results = self.parallel(20, lambda db, _: call(db, "handle_webhook", "stripe", payload, sign(payload)).status)
        self.assertEqual(sorted(results), ["duplicate"] * 19 + ["processed"])
        self.deliver("payment_intent.succeeded", intent(payment))
        session = checkout_session(payment, "paid", payment_intent=f"pi_{payment.payment_id.hex}")
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
            payload = stripe_event("payment_intent.succeeded", intent(payments[number // 2]))
            return call(db, "handle_webhook", "stripe", payload, sign(payload)).status

        self.parallel(24, work)
        self.assertEqual(self.credit(), 1000 + 12 * 1100 - 12 * 10)

    def test_checkout_that_is_paid_later(self):
        payment = self.buy()
        session = checkout_session(payment, "unpaid", id="cs_2")
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
        payload = stripe_event("charge.refunded", charge(payment, 500))
        at = int(value(db, "select extract(epoch from billing.clock())"))
        call(db, "handle_webhook", "stripe", payload, sign(payload, at=at))
        self.assertEqual(value(db, "select unrecovered from billing.payments where org_id = %s", self.org), 0)
        self.assertEqual(rows(db, "select * from billing.flags where org_id = %s", self.org), [])

    def test_an_error_that_is_caught_outside(self):
        """A report that fails halfway leaves the transaction as it was, and is taken the next time."""
        payment = self.buy()
        payload = stripe_event("payment_intent.succeeded", intent(payment))
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
                reports += [stripe_event(kind, data, created) for kind, data, created in mine]
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
        install_extension(db)
        apply_catalog(db, CATALOG)
        value(db, "select billing.set_webhook_secret('stripe', %s)", SECRET)
        orgs = [uuid.uuid4() for _ in range(4)]
        payments = [call(db, "start_purchase", dice.choice(orgs), "small", "USD") for _ in range(1500)]
        expected = dict.fromkeys(orgs, 0)
        queues = [[] for _ in range(6)]
        for payment in payments:
            reports = [stripe_event("payment_intent.succeeded", intent(payment))]
            if dice.random() < 0.3:
                reports.append(stripe_event("charge.refunded", charge(payment, payment.total)))
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

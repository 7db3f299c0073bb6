"""Stripe's own libraries agree with us about signatures: what the one for Node signs is taken, what is refused is refused by the
one for Python, too.
"""

import json
import subprocess
import time
import unittest

import stripe

from stripe_support import LONG, SECRET, WORKER, StripeTestCase, payment_event, sign
from support import Refused, call, code_of

SIGN = """import Stripe from 'stripe';
let text = '';
for await (const chunk of process.stdin.setEncoding('utf8')) text += chunk;
process.stdout.write(new Stripe('sk_test_none').webhooks.generateTestHeaderString(JSON.parse(text)));
"""


def sign_by_sdk(payload, secret=SECRET, at=None):
    """A Stripe-Signature header, made by Stripe's library for Node."""
    wanted = json.dumps({"payload": payload, "secret": secret, **({} if at is None else {"timestamp": int(at)})})
    return subprocess.run(["node", "--input-type=module", "-e", SIGN], cwd=WORKER, input=wanted, stdout=subprocess.PIPE,
                          text=True, encoding="utf-8", check=True, timeout=LONG).stdout


def refused_by_sdk(payload, signature):
    """Whether Stripe's library for Python refuses it."""
    try:
        stripe.WebhookSignature.verify_header(payload, signature, SECRET, tolerance=stripe.Webhook.DEFAULT_TOLERANCE)
    except stripe.SignatureVerificationError:
        return True
    return False


class StripeSdk(StripeTestCase):
    """Events about payments that the database asked for."""

    def tearDown(self):
        self.assert_sound()

    def refusal(self, payload, signature):
        """The SQLSTATE with which handle_webhook refuses; None when it takes it."""
        try:
            call(self.db, "handle_webhook", "stripe", payload, signature)
        except Refused as error:
            return code_of(error).split()[0]
        return None

    def test_taken(self):
        """Signed by either, also with text beyond ASCII, more than one signature, and schemes that we do not know."""
        def twice(payload):
            at, good = sign(payload).split(",")
            return f"{at},v1={'0' * 64},v0={'0' * 64},{good}"

        for signer in (sign_by_sdk, sign, twice):
            with self.subTest(signer=signer.__name__):
                org, payment = self.request_payment()
                payload = payment_event("succeeded", org, payment, description="Grüße für 10 € 🧾 \\ \"quoted\"")
                signature = signer(payload)
                self.assertEqual(stripe.Webhook.construct_event(payload, signature, SECRET).type, "payment_intent.succeeded")
                self.assertIsNone(self.refusal(payload, signature))
                self.assert_paid_once(org, payment)
                self.assertIsNone(self.refusal(payload, signature), "a replay is harmless")
                self.assert_paid_once(org, payment)

    def test_same_header(self):
        """Both write the same header."""
        self.assertEqual(sign_by_sdk("{}", at=1700000000), sign("{}", at=1700000000))

    def test_refused(self):
        """Tampered, stale, with another secret, of an old scheme only, garbled, missing: refused by us and by Stripe's library."""
        org, payment = self.request_payment()
        payload = payment_event("succeeded", org, payment)
        now = time.time()
        for signer in (sign_by_sdk, sign):
            good = signer(payload)
            cases = {"tampered": (payload.replace("1180", "1181"), good),
                     "shortened": (payload[:-1], good),
                     "stale": (payload, signer(payload, at=now - 3600)),
                     "another secret": (payload, signer(payload, "whsec_of_somebody_else")),
                     "another moment": (payload, good.replace("t=", "t=1")),
                     "old scheme": (payload, good.replace("v1=", "v0=")),
                     "no moment": (payload, good.split(",")[1]),
                     "no signature": (payload, good.split(",")[0]),
                     "half a signature": (payload, good[:-32]),
                     "garbled": (payload, "signed by Stripe"),
                     "empty": (payload, "")}
            for name, (body, signature) in cases.items():
                with self.subTest(case=name, signer=signer.__name__):
                    self.assertTrue(refused_by_sdk(body, signature))
                    self.assertEqual(self.refusal(body, signature), "PT401")
            self.assert_unpaid(org, payment)

    def test_missing(self):
        """No header at all."""
        org, payment = self.request_payment()
        payload = payment_event("succeeded", org, payment)
        self.assertTrue(refused_by_sdk(payload, None))
        self.assertIn(self.refusal(payload, None), ("PT401", "22023"))
        self.assert_unpaid(org, payment)

    def test_future(self):
        """A moment to come, which Stripe's library for Python lets pass and we do not."""
        org, payment = self.request_payment()
        payload = payment_event("succeeded", org, payment)
        for signer in (sign_by_sdk, sign):
            self.assertEqual(self.refusal(payload, signer(payload, at=time.time() + 3600)), "PT401")
        self.assert_unpaid(org, payment)


if __name__ == "__main__":
    unittest.main()

"""What the tests with Stripe share: a payment that the database asks for, events as Stripe sends and signs them, and the
programs of examples/worker as child processes.

bin/test puts Node, the npm packages of examples/worker and the Python packages of requirements.txt where they are found.
"""

import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import urllib.parse

from fixtures import fixture, stripe_event, stripe_signature
from support import CATALOG, ROOT, LiveTestCase, apply_catalog, await_condition, call, rows, total, value

WORKER = ROOT / "examples" / "worker"
SECRET = "whsec_of_the_live_tests"
PACK = {"credits": 1000, "price": {"USD": 1180}}
LONG = 60  # seconds after which a condition is given up


def sign(payload, secret=SECRET, at=None):
    """A header Stripe-Signature."""
    return stripe_signature(payload, secret, at)


def payment_event(kind, org, payment, **changes):
    """The text of an event about the payment intent of one of our payments, laid out as Stripe lays it out."""
    amount = PACK["price"]["USD"]
    intent = fixture("stripe/payment_intent", **{
        "id": f"pi_{payment.hex}", "amount": amount, "amount_received": amount if kind == "succeeded" else 0, "customer": "cus_1",
        "payment_method": "pm_card_visa", "latest_charge": f"ch_{payment.hex}", "status": kind,
        "metadata": {"payment_id": str(payment), "org_id": str(org)}, **changes})
    return json.dumps(json.loads(stripe_event(f"payment_intent.{kind}", intent)), ensure_ascii=False, indent=2)


def free_port():
    """A loopback port that nobody uses, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def request(port, method, path, body=None, headers=None):
    """Status and text of an answer from loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class StripeTestCase(LiveTestCase):
    """A database with a pack to buy, and Stripe's webhook secret."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        apply_catalog(cls.db, {**CATALOG, "packs": {"small": PACK}})
        rows(cls.db, "select billing.set_webhook_secret('stripe', %s)", SECRET)

    def request_payment(self, payment_method="pm_card_visa", provider="stripe"):
        """An org with 1 credit whose auto-recharge asks for a pack; gives org and payment."""
        org = self.org(1)
        call(self.db, "configure_auto_recharge", org, threshold=50, pack="small", currency="USD", provider=provider,
             customer=f"cus_{org.hex}", payment_method=payment_method)
        call(self.db, "settle_org", org)
        return org, value(self.db, "select payment_id from billing.payments where org_id = %s", org)

    def status(self, payment):
        """What the database knows of the payment."""
        return value(self.db, "select status from billing.payments where payment_id = %s", payment)

    def assert_paid_once(self, org, payment):
        """The payment succeeded, and the pack's credit is there once."""
        self.assertEqual((self.status(payment), total(self.db, org)), ("succeeded", 1 + PACK["credits"]))

    def assert_unpaid(self, org, payment):
        """The payment did not succeed, and there is no credit of it."""
        self.assertNotEqual(self.status(payment), "succeeded")
        self.assertEqual(total(self.db, org), 1)


class Program:
    """A program of examples/worker as a child process, and what it says."""

    def __init__(self, script, log, **environment):
        self.log = pathlib.Path(log)
        self.port = environment["PORT"]
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                ["node", str(WORKER / script)], env={**os.environ, **{name: str(text) for name, text in environment.items()}},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def answers(self):
        """Whether its port is open; an error if it has ended."""
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}:\n{self.said()}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def said(self):
        """All of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self):
        """SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(LONG)

    def stop(self):
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LONG)


class FakeStripe(Program):
    """examples/worker/fake-stripe.mjs"""

    def get(self, what):
        """What it has in memory."""
        return json.loads(self.ask("GET", what))

    def do(self, what, **arguments):
        """Steers it."""
        return json.loads(self.ask("POST", what, json.dumps(arguments)))

    def ask(self, method, what, body=None):
        """The text of a control request's answer."""
        status, text = request(self.port, method, f"/_{what}", body)
        assert status == 200, text
        return text

    def intents(self, payment):
        """The payment intents that were made for one of our payments."""
        return [intent for intent in self.get("intents") if intent["metadata"]["payment_id"] == str(payment)]

    def charged(self, payment):
        """The money that was taken for it."""
        return sum(intent["charged"] for intent in self.intents(payment))

    def events(self, payment):
        """The events about it, in the order in which things happened."""
        mine = [intent["id"] for intent in self.intents(payment)]
        return [event for event in self.get("events") if event["intent"] in mine]

    def answers_to(self, key):
        """The answers to requests with this idempotency key: status, and whether an earlier answer was repeated."""
        return [(asked["status"], asked["replayed"]) for asked in self.get("requests") if asked["key"] == key]


class WorkerTestCase(StripeTestCase):
    """With a fake Stripe, and a role for the worker."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not (WORKER / "node_modules").is_dir():
            raise AssertionError("examples/worker/node_modules is missing: bin/test live installs it")
        cls.role = cls.new_role(cls.db, "service")
        rows(cls.admin, f"alter role {cls.role} login")

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="pgbilling.")  # pylint: disable=consider-using-with
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.programs = []
        self.stripe_port, self.worker_port = free_port(), free_port()
        self.stripe = None

    def start(self, program, script, **environment):
        """Starts a program and waits until it answers; killed after the test."""
        started = program(script, self.folder / f"{len(self.programs)}", **environment)
        self.addCleanup(started.kill)
        self.programs.append(started)
        self.wait(started.answers, f"{script} to answer")
        return started

    def start_stripe(self):
        """A Stripe that remembers nothing."""
        self.stripe = self.start(FakeStripe, "fake-stripe.mjs", PORT=self.stripe_port, WEBHOOK_SECRET=SECRET,
                                 WEBHOOK_URL=f"http://127.0.0.1:{self.worker_port}/webhooks/stripe")

    def start_worker(self, **environment):
        """A worker; the environment says what is not to be as usual."""
        info = self.db.info
        where = urllib.parse.urlencode({"host": info.host, "port": info.port})
        usual = {"DATABASE_URL": f"postgresql://{self.role}@/{info.dbname}?{where}", "STRIPE_SECRET_KEY": "sk_test_fake",
                 "STRIPE_API_BASE": f"http://127.0.0.1:{self.stripe_port}", "PORT": self.worker_port,
                 "LEASE": 20, "POLL": 0.2, "RETRY": 0.2}
        return self.start(Program, "worker.mjs", **{**usual, **environment})

    def wait(self, condition, what):
        """Waits for a condition; in vain, the programs' words are in the error."""
        try:
            await_condition(condition, LONG, what)
        except AssertionError as error:
            words = "\n".join(f"--- {' '.join(program.process.args)}\n{program.said()}" for program in self.programs)
            raise AssertionError(f"{error}\n{words}") from error

    def wait_for_status(self, payment, status):
        """Waits until the database has heard what became of the payment."""
        self.wait(lambda: self.status(payment) == status, f"payment {payment} to be {status}")

    def webhook(self, body, headers=None):
        """Status of the worker's answer to an event."""
        return request(self.worker_port, "POST", "/webhooks/stripe", body, headers)[0]

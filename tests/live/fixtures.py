"""Payloads as providers send them: the files of tests/fixtures, with what a test wants to be different."""

import hashlib
import hmac
import json
import time
import uuid

from support import ROOT


def fixture(name, **changes):
    """What tests/fixtures/NAME.json has, changed.

    A change names a field; two underscores lead to a field within it, or to an element of a list: `items__data__0__id="si_2"`.
    Fields that the file does not have are added at the top, but never within.
    """
    found = json.loads((ROOT / "tests" / "fixtures" / f"{name}.json").read_text(encoding="utf-8"))
    for path, new in changes.items():
        *way, last = [int(step) if step.isdigit() else step for step in path.split("__")]
        place = found
        for step in way:
            place = place[step]
        if way and not isinstance(place, list) and last not in place and place:
            raise KeyError(f"{name}.json has no {path}")
        place[last] = new
    return found


def stripe_signature(payload, secret, at=None):
    """The header Stripe-Signature, by our own reading of Stripe's documentation; test_stripe_sdk.py has it made and checked by Stripe's."""
    at = int(time.time() if at is None else at)
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.{payload}'.encode(), hashlib.sha256).hexdigest()}"


def stripe_event(kind, data, created=None, event_id=None):
    """The text of an event about an object of Stripe's."""
    return json.dumps(fixture("stripe/event", id=event_id or f"evt_{uuid.uuid4().hex}", type=kind,
                              created=int(time.time()) if created is None else created, data__object=data))


def razorpay_signature(payload, secret):
    """The header X-Razorpay-Signature."""
    return hmac.new(secret.encode(), payload.encode(), hashlib.sha256).hexdigest()


def razorpay_event(kind, entities):
    """The text of an event about some entities of Razorpay's, by their names."""
    return json.dumps(fixture("razorpay/event", event=kind, contains=list(entities), created_at=int(time.time()),
                              payload={name: {"entity": entity} for name, entity in entities.items()}))

"""A live product's price steps, as a catalog, against exact fractions: costs at many quantities up to 2^63-1, and any split of
a usage into calls costs what it costs at once.
"""

import csv
import json
import math
import unittest
import uuid
from collections import defaultdict
from fractions import Fraction

from support import ROOT, LiveTestCase, Refused, apply_catalog, call, code_of, rows, seeded, total, value

CREDITS_PER_USD = 10_000
MOST = 2**63 - 1


def steps_of_the_table():
    """{metric: [(from, to or None, credits per unit)]} of data/capgo_credit_steps.csv, exactly."""
    steps = defaultdict(list)
    with open(ROOT / "data" / "capgo_credit_steps.csv", encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            steps[row["metric"]].append((int(row["step_min"]), int(row["step_max"]) if row["step_max"] else None,
                                         Fraction(row["price_usd"]) * CREDITS_PER_USD / int(row["per_units"])))
    return dict(steps)


def steps_of_the_catalog(catalog):
    """The same of the catalog document."""
    steps = {}
    for metric, spec in catalog["metrics"].items():
        start, steps[metric] = 0, []
        for step in spec["price"]["steps"]:
            steps[metric].append((start, step.get("up_to"), Fraction(step["credits"], step["per"])))
            start = step.get("up_to")
    return steps


def price(steps, quantity):
    """The exact price of the first so many units, rounded up to a whole credit."""
    exact = sum((min(quantity, end if end is not None else quantity) - start) * each for start, end, each in steps if quantity > start)
    return math.ceil(exact)


class Prices(LiveTestCase):
    """examples/catalogs/capgo.json"""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.catalog = json.loads((ROOT / "examples" / "catalogs" / "capgo.json").read_text(encoding="utf-8"))
        cls.steps = steps_of_the_table()
        apply_catalog(cls.db, cls.catalog)
        cls.rng, cls.seed = seeded()

    def test_catalog_is_the_table(self):
        """The document says what the table of facts says, and comes back as it went in."""
        self.assertEqual(steps_of_the_catalog(self.catalog), self.steps)
        self.assertEqual(sum(len(steps) for steps in self.steps.values()), 30)
        exported = value(self.db, "select billing.export_catalog()")
        self.assertEqual(steps_of_the_catalog(exported), self.steps)
        self.assertEqual(apply_catalog(self.db, self.catalog), [])

    def quantities(self, steps):
        """Boundaries and their neighbours, small numbers, powers, and random ones of every size."""
        near = {start + delta for start, _, _ in steps for delta in (-2, -1, 0, 1, 2)}
        near |= {end * factor for _, end, _ in steps if end for factor in (2, 3)}
        near |= set(range(1, 200)) | {2**n + delta for n in range(63) for delta in (-1, 0, 1)} | {MOST, MOST - 1, 10**18}
        near |= {self.rng.randrange(1, 2 ** self.rng.randint(1, 63)) for _ in range(500)}
        return sorted(q for q in near if 0 < q <= MOST)

    def test_costs_are_exact(self):
        """calculate_cost is the ceiling of the exact fraction at each quantity, or a refusal where it does not fit."""
        compared = overflows = 0
        for metric, steps in self.steps.items():
            fitting = [q for q in self.quantities(steps) if price(steps, q) <= MOST]
            answers = rows(self.db, "select q, billing.calculate_cost(%s, q) from unnest(%s::bigint[]) q", metric, fitting)
            for quantity, credits in answers:
                self.assertEqual(credits, price(steps, quantity), f"{quantity} of {metric}, SEED={self.seed}")
            compared += len(answers)
            for quantity in self.quantities(steps):
                if price(steps, quantity) > MOST:
                    overflows += 1
                    with self.assertRaises(Refused, msg=f"{quantity} of {metric}") as caught:
                        value(self.db, "select billing.calculate_cost(%s, %s::bigint)", metric, quantity)
                    self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
        self.assertGreater(compared, 2000)
        self.assertGreater(overflows, 0)
        self.assertEqual(price(self.steps["bandwidth"], 1024**4), 1024 * 600)

    def test_last_quantity_that_fits(self):
        """At the edge of 63 bits: the last quantity whose price fits is priced, the next one refused."""
        steps = self.steps["mau"]
        low, high = 1, MOST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if price(steps, middle) <= MOST else (low, middle - 1)
        self.assertEqual(value(self.db, "select billing.calculate_cost('mau', %s::bigint)", low), price(steps, low))
        with self.assertRaises(Refused):
            value(self.db, "select billing.calculate_cost('mau', %s::bigint)", low + 1)

    def test_requests_of_several_metrics(self):
        """The cost of a request is the sum of its parts."""
        for _ in range(50):
            items = {metric: self.rng.randrange(1, 10 ** self.rng.randint(1, 12)) for metric in self.rng.sample(list(self.steps), self.rng.randint(1, 4))}
            expected = sum(price(self.steps[metric], quantity) for metric, quantity in items.items())
            self.assertEqual(value(self.db, "select billing.calculate_cost(%s::jsonb)", json.dumps(items)), expected, items)

    def split(self, quantity):
        """Random parts of a quantity: a few large, many tiny."""
        parts = []
        while quantity > 0 and len(parts) < 60:
            part = min(quantity, self.rng.randrange(1, 1 + max(1, quantity // self.rng.choice((1, 2, 5, 50, 10**6)))))
            parts.append(part)
            quantity -= part
        return parts + ([quantity] if quantity else [])

    def test_any_split_costs_the_same(self):
        """Consumed call by call, each call costs the difference, and all together what the sum costs at once."""
        rows(self.db, "select set_config('billing.test_clock', '2026-03-15 12:00+00', false)")
        self.addCleanup(rows, self.db, "reset billing.test_clock")
        for metric, steps in self.steps.items():
            ends = [end for _, end, _ in steps if end]
            for quantity in [*self.rng.sample(ends, 2), self.rng.choice(ends) + self.rng.randint(1, 1000), self.rng.randrange(1, 2 * ends[-1]), 59, 61]:
                org, used, paid, parts = uuid.uuid4(), 0, 0, self.split(quantity)
                call(self.db, "grant_credits", org, 10**15)
                for part in parts:
                    with self.subTest(metric=metric, parts=parts, seed=self.seed):
                        expected = price(steps, used + part) - price(steps, used)
                        self.assertEqual(value(self.db, "select billing.calculate_cost(%s, %s::bigint, %s)", metric, part, org), expected)
                        charged = call(self.db, "consume_credits", org, metric, part)
                        self.assertEqual(charged.credits, expected)
                        used, paid = used + part, paid + charged.credits
                self.assertEqual(paid, price(steps, quantity), f"{parts} of {metric}, SEED={self.seed}")
                self.assertEqual(total(self.db, org), 10**15 - paid)
        self.assert_sound()

    def test_usage_that_does_not_fit(self):
        """A period's quantity beyond 63 bits is refused, and the counter stays."""
        rows(self.db, "select set_config('billing.test_clock', '2026-03-15 12:00+00', false)")
        self.addCleanup(rows, self.db, "reset billing.test_clock")
        org = self.org(10**18)
        self.assertEqual(call(self.db, "consume_credits", org, "bandwidth", MOST - 5).credits, price(self.steps["bandwidth"], MOST - 5))
        self.assert_refused("22023 invalid_argument", "consume_credits", org, "bandwidth", 6)
        expected = price(self.steps["bandwidth"], MOST) - price(self.steps["bandwidth"], MOST - 5)
        self.assertEqual(call(self.db, "consume_credits", org, "bandwidth", 5).credits, expected)
        self.assertEqual(value(self.db, "select quantity from billing_internal.period_usage where org_id = %s", org), MOST)
        self.assert_sound()


if __name__ == "__main__":
    unittest.main()

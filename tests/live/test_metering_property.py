"""Random histories of metered orgs against the model of metering_model.py.

Seeds are printed; SEED=… repeats a run, HISTORY=… plays one history of it, HISTORIES=… makes it longer.
"""

import os
import random
import unittest
from collections import Counter

from metering_history import STEPS, History
from support import LiveTestCase, installed_database, seeded


class MeteringProperty(LiveTestCase):
    """Metering and the model tell the same story."""

    def fresh_database(self):
        """With the extension and nothing else."""
        return self.new_database(installed_database(self.admin))

    @classmethod
    def install(cls, connection):
        """Nothing: each history has a database of its own."""

    def test_random_histories(self):
        """Each in a database of its own."""
        one = os.environ.get("HISTORY")
        rng, done = random.Random(0) if one else seeded()[0], Counter()
        for _ in range(1 if one else int(os.environ.get("HISTORIES", "10"))):
            history = History(self, int(one) if one else rng.randrange(2**32))
            for _ in range(history.rng.randint(40, 220)):
                getattr(history, history.rng.choices(list(STEPS), list(STEPS.values()))[0])()
                if history.rng.random() < 0.3:
                    history.look(history.some())
            history.finish()
            done += history.done
        if not one:
            missing = {"record_usage", "consume_credits", "settle", "subscribe", "cancel_subscription", "change_plan"} - set(done)
            self.assertEqual(missing, set(), "the histories left something out")


if __name__ == "__main__":
    unittest.main()

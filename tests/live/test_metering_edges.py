"""Short stories of metering: what the random histories of test_metering_property.py come to only now and then."""

import unittest

from metering_model import UTC
from support import LiveTestCase, apply_catalog, call, install_extension, rows, value


class Edges(LiveTestCase):
    """Periods, levels and prices at their edges."""

    @classmethod
    def install(cls, connection):
        """A catalog of its own."""
        install_extension(connection)
        cls.clock(connection, "2027-01-01")
        cls.metrics = {"api": {"price": 1}, "plain": {"price": 1}, "disk": {"aggregation": "last", "price": 1}, "peak": {"aggregation": "max", "price": 1}}
        cls.plans = {"solo": {"allowances": {"api": 5}}, "team": {"allowances": {"api": 100}}, "weekly": {"period": "week", "allowances": {"api": 50}},
                     "free": {"default": True, "allowances": {"api": 0, "disk": 0, "peak": 0}}}
        apply_catalog(connection, {"metrics": cls.metrics, "plans": cls.plans})

    @staticmethod
    def clock(connection, moment):
        """Of the session."""
        value(connection, "select set_config('billing.test_clock', %s, false)", f"{moment}+00" if " " in moment else f"{moment} 00:00+00")

    def at(self, moment):
        """Goes on to it."""
        self.clock(self.db, moment)

    def setUp(self):
        self.at("2027-01-01")
        self.org_id = self.org(1000)

    def tearDown(self):
        self.assert_sound()

    def record(self, metric, quantity, occurred_at=None):
        """An event."""
        self.assertTrue(call(self.db, "record_usage", self.org_id, metric, quantity, occurred_at=occurred_at and f"{occurred_at} 00:00+00")[0])

    def plan(self, function, *arguments):
        """A call about the subscription."""
        return call(self.db, function, self.org_id, *arguments)

    def settle(self):
        """What that charged."""
        return call(self.db, "settle_org", self.org_id).charged

    def limit(self, metric):
        """Used, included, and the day on which that ends."""
        row = call(self.db, "check_limit", self.org_id, metric)
        return row.used, row.included, row.resets_at.astimezone(UTC).date().isoformat()

    # ---- which period, and by whose terms

    def test_a_period_that_a_subscription_cuts_short_keeps_its_terms(self):
        """What comes late for it is not included in the new plan."""
        self.at("2027-01-10")
        self.record("api", 1)
        self.assertEqual(self.settle(), 1)
        self.at("2027-01-20")
        self.plan("subscribe", "team")
        self.at("2027-01-25")
        self.record("api", 50, "2027-01-12")
        self.assertEqual(self.settle(), 50)

    def test_a_period_that_was_cancelled_at_once_keeps_its_terms(self):
        """What was recorded before is included in the plan of then."""
        self.at("2027-01-10")
        self.plan("subscribe", "solo")
        self.at("2027-01-12")
        self.record("api", 5)
        self.at("2027-01-14")
        self.plan("cancel_subscription", False)
        self.assertEqual(self.settle(), 0)
        self.at("2027-01-16")
        self.record("api", 2, "2027-01-13")
        self.assertEqual(self.settle(), 2)

    def test_a_cancellation_holds_before_it_is_settled(self):
        """After the last period, usage belongs to calendar months, though no settlement ran."""
        self.at("2027-01-20")
        self.plan("subscribe", "solo")
        self.plan("cancel_subscription")
        self.at("2027-03-05")
        self.assertEqual(self.limit("api"), (0, 0, "2027-04-01"))
        self.record("api", 4)
        self.assertEqual(self.limit("api"), (4, 0, "2027-04-01"))
        self.assertEqual(self.settle(), 4)
        self.assertEqual(self.limit("api"), (4, 0, "2027-04-01"))

    def test_a_change_of_plan_holds_before_it_is_settled(self):
        """From the end of the period on, also where the new plan has other periods."""
        self.at("2027-01-20")
        self.plan("subscribe", "solo")
        self.plan("change_plan", "team", True)
        self.at("2027-02-25")
        self.assertEqual(self.limit("api"), (0, 100, "2027-03-20"))
        self.plan("change_plan", "weekly", True)
        self.at("2027-04-05")
        self.assertEqual(self.limit("api"), (0, 50, "2027-04-10"))
        self.record("api", 60)
        self.assertEqual(self.settle(), 10)
        self.assertEqual(self.limit("api"), (60, 50, "2027-04-10"))

    def test_a_scheduled_subscription_leaves_the_default_plan_alone(self):
        """Until it begins, the period runs on and the next ones begin."""
        self.addCleanup(apply_catalog, self.db, {"plans": self.plans})
        apply_catalog(self.db, {"plans": {**self.plans, "free": {**self.plans["free"], "credits": {"amount": 7, "rollover": "none"}}}})
        self.at("2027-02-05")
        self.assertEqual(self.settle(), 0)
        self.assertEqual(call(self.db, "consume_credits", self.org_id, "api", 10).credits, 10)
        self.at("2027-02-10")
        self.plan("subscribe", "solo", "2027-04-10 00:00+00")
        self.assertEqual(self.limit("api"), (10, 0, "2027-03-01"))
        self.at("2027-03-20")
        self.assertEqual(call(self.db, "settle_org", self.org_id).renewed, 1)
        self.assertEqual(rows(self.db, "select sum(amount) from billing.entries where org_id = %s and kind = 'plan'", self.org_id), [(14,)])

    # ---- levels

    def test_a_level_outlives_a_subscription(self):
        """Charged at the end of every period, wherever those begin."""
        self.at("2027-01-15")
        self.plan("subscribe", "solo")
        self.record("disk", 10)
        self.plan("cancel_subscription")
        found = []
        for day in ("2027-02-15", "2027-02-28", "2027-03-01", "2027-04-01", "2027-04-15"):
            self.at(day)
            found.append(self.settle())
        self.assertEqual(found, [10, 0, 10, 10, 0])
        self.plan("subscribe", "weekly")
        for day in ("2027-04-16", "2027-04-22", "2027-04-23"):
            self.at(day)
            found.append(self.settle())
        self.assertEqual(found[5:], [0, 10, 0])
        self.assertEqual(value(self.db, "select sum(quantity) from billing_internal.period_usage where org_id = %s", self.org_id), 50)

    def test_a_level_outlives_a_subscription_that_never_began(self):
        """The month is whole again."""
        self.at("2027-01-05")
        self.plan("subscribe", "solo", "2027-01-15 00:00+00")
        self.record("disk", 10)
        self.at("2027-01-10")
        self.plan("cancel_subscription")
        self.at("2027-01-20")
        self.assertEqual(self.settle(), 0)
        self.at("2027-02-20")
        self.assertEqual(self.settle(), 10)
        self.assertEqual(self.limit("disk"), (10, 0, "2027-03-01"))

    def test_a_late_level_of_nothing(self):
        """What was charged stays, but the level is gone from then on."""
        self.at("2027-01-10")
        self.record("disk", 10)
        self.record("peak", 10)
        self.at("2027-02-10")
        self.assertEqual(self.settle(), 10 + 10 + 10)
        self.record("disk", 0, "2027-01-20")
        self.record("peak", 0, "2027-01-20")
        self.assertEqual(self.limit("disk")[0], 0)
        self.assertEqual(self.settle(), 0)
        self.assertEqual(self.limit("disk")[0], 0)
        self.at("2027-04-10")
        self.assertEqual(self.settle(), 0)
        self.assertEqual((self.limit("disk")[0], self.limit("peak")[0]), (0, 0))

    def test_a_late_peak_is_seen_at_once(self):
        """check_limit() knows the level that the period will begin with."""
        self.at("2027-01-10")
        self.record("peak", 10)
        self.at("2027-02-10")
        self.record("peak", 3)
        self.settle()
        self.record("peak", 20, "2027-01-30")
        self.assertEqual(self.limit("peak")[0], 20)
        self.assertEqual(self.settle(), 10 + 10)
        self.assertEqual(self.limit("peak")[0], 20)

    def test_a_peak_is_charged_when_the_period_begins(self):
        """Not a moment before."""
        self.at("2027-01-10")
        self.record("peak", 10)
        self.at("2027-01-31 23:59:59.999999")
        self.assertEqual(self.settle(), 10)
        self.at("2027-02-01")
        self.assertEqual(self.settle(), 10)

    # ---- prices

    def test_a_price_that_changes(self):
        """Usage costs what it cost when it occurred, however late it comes and whenever it is settled."""
        self.at("2027-03-01")
        apply_catalog(self.db, {"metrics": {**self.metrics, "text": {"price": 3}}})
        self.record("text", 4)
        self.assertEqual(self.settle(), 12)
        self.at("2027-03-05")
        apply_catalog(self.db, {"metrics": {**self.metrics, "text": {"price": {"credits": 10, "effective_at": "2027-03-11"}}}})
        self.record("text", 2)
        self.at("2027-03-10 23:59:59.999999")
        self.assertEqual(call(self.db, "check_limit", self.org_id, "text", 5).credits_required, 15)
        self.record("text", 1)
        self.at("2027-03-11")
        self.assertEqual(call(self.db, "check_limit", self.org_id, "text", 5).credits_required, 50)
        self.record("text", 1)
        self.assertEqual(call(self.db, "consume_credits", self.org_id, "text", 2).credits, 20)
        self.assertEqual(self.settle(), 2 * 3 + 1 * 3 + 1 * 10)
        self.at("2027-03-20")
        self.record("text", 3, "2027-03-02")
        self.record("text", 3, "2027-03-12")
        self.assertEqual(self.settle(), 3 * 3 + 3 * 10)
        self.at("2027-05-20")
        self.record("text", 2, "2027-03-03")
        self.record("text", 2)
        self.assertEqual(self.settle(), 2 * 3 + 2 * 10)


if __name__ == "__main__":
    unittest.main()

"""The catalogs in examples/catalogs that sell in rupees, in dollars and by feature: each applies, comes back as it went in, and
charges what is written here.
"""

import json
import unittest
import uuid

from support import ROOT, LiveTestCase, Refused, apply_catalog, call, code_of, install_extension, rows, total, value

# (rupees or dollars, all credits, how many of these are a bonus)
RUPEE_PACKS = {
    "inr_150": (150, 1_500, 0),
    "inr_300": (300, 3_200, 200),
    "inr_500": (500, 5_500, 500),
    "inr_1000": (1_000, 12_000, 2_000),
    "inr_2500": (2_500, 32_000, 7_000),
}
DOLLAR_PACKS = {"usd_5": (5, 500, 0), "usd_15": (15, 2_000, 0), "usd_35": (35, 5_000, 0)}
# (dollars, credits a month)
DOLLAR_PLANS = {"free": (0, 100), "starter": (9, 1_000), "pro": (29, 5_000)}
DOLLAR_METRICS = {"query": 5, "retrieval": 5, "github_tools": 10, "further_tool": 3}
FEATURES = {
    "AI": {"ai_summary": 15, "ai_moderation": 5, "ai_search": 12, "ai_reply": 8},
    "API": {"api_request": 1, "heavy_query": 5, "export": 20, "analytics": 10},
    "Messages": {"mail": 1, "push": 1, "webhook": 1, "retry": 1},
    "Storage": {"storage_100mb": 5, "storage_1gb": 40, "media": 3},
    "Community": {"community": 0, "invite": 1, "branding": 3, "banner": 8, "role": 1},
}
AI_CALLS, WEBHOOKS, MAILS = 200, 10_000, 5_000
SECTIONS = {"metrics": {}, "plans": {}, "caps": [], "packs": {}, "surcharges": {}}


class Example:
    """What holds for each of the documents; the class's database has no other catalog."""

    document = None

    @classmethod
    def install(cls, connection):
        """The two steps, and the example."""
        install_extension(connection)
        cls.catalog = json.loads((ROOT / "examples" / "catalogs" / cls.document).read_text(encoding="utf-8"))
        cls.expected = sorted(
            [("create", section.removesuffix("s"), name) for section in ("metrics", "plans", "packs", "surcharges")
             for name in cls.catalog.get(section, {})]
            + [("create", "cap", f"{'metric' if 'metric' in cap else 'category'} {cap.get('metric') or cap['category']}"
                                 f" per {cap['per']} and {cap.get('for', 'org')}") for cap in cls.catalog.get("caps", [])])
        dry = rows(connection, "select * from billing.apply_catalog(%s, dry_run => true)", json.dumps(cls.catalog))
        cls.changes = [sorted(tuple(change)[:3] for change in changes) for changes in (dry, apply_catalog(connection, cls.catalog))]

    def setUp(self):
        self.org = uuid.uuid4()

    def tearDown(self):
        self.assert_sound()

    def set_clock(self, moment):
        """Billing time of this connection, until the end of the test."""
        rows(self.db, "select set_config('billing.test_clock', %s, false)", moment)
        self.addCleanup(rows, self.db, "reset billing.test_clock")

    def cost(self, metric, quantity=1):
        return value(self.db, "select billing.calculate_cost(%s, %s::bigint)", metric, quantity)

    def cost_of(self, items):
        return value(self.db, "select billing.calculate_cost(%s::jsonb)", json.dumps(items))

    def buy(self, pack, currency, amount=None):
        """Starts a purchase and has it paid; gives the payment, when nothing came before the money."""
        before = total(self.db, self.org)
        payment = call(self.db, "start_purchase", self.org, pack, currency, amount=amount)
        self.assertEqual((payment.status, total(self.db, self.org)), ("idle", before))
        paid = call(self.db, "set_payment_status", self.org, payment.payment_id, "succeeded")
        self.assertEqual((paid.status, paid.payment_id), ("succeeded", payment.payment_id))
        return paid

    def grants(self):
        """What purchases granted."""
        return [tuple(grant) for grant in rows(
            self.db, "select amount, source, category, cost_minor, currency, expires_at from billing.grants"
                     " where org_id = %s and source <> 'plan' order by grant_id", self.org)]

    def check_purchase(self, pack, currency, price, credits, bonus):
        """A purchase brings its credits and its bonus, each as what it is, for ever."""
        before = total(self.db, self.org)
        payment = self.buy(pack, currency)
        self.assertEqual((payment.pack, payment.currency, payment.price, payment.credits, payment.bonus),
                         (pack, currency, price, credits - bonus, bonus))
        self.assertEqual(total(self.db, self.org), before + credits)
        expected = [(credits - bonus, "purchase", "paid", price, currency, None)]
        if bonus:
            expected.append((bonus, "bonus", "promotional", 0, None, None))
        self.assertEqual(self.grants(), expected)
        return payment

    def test_applying_creates_what_the_document_names(self):
        """Both the dry run and the first application tell exactly what is in it."""
        self.assertGreater(len(self.expected), 0)
        self.assertEqual(self.changes, [self.expected, self.expected])

    def test_applying_again_changes_nothing(self):
        """Neither the document nor what is exported."""
        self.assertEqual(apply_catalog(self.db, self.catalog), [])
        self.assertEqual(apply_catalog(self.db, value(self.db, "select billing.export_catalog()")), [])

    def test_it_comes_back_as_it_went_in(self):
        """The document is written as export_catalog() writes it, with empty sections for what it does not have."""
        self.assertEqual(value(self.db, "select billing.export_catalog()"), {**SECTIONS, **self.catalog})


class Rupees(Example, LiveTestCase):
    """rupees.json"""

    document = "rupees.json"

    def test_nothing_else_is_for_sale(self):
        self.assertEqual(set(self.catalog["packs"]), {*RUPEE_PACKS, "top_up"})

    def test_quotes(self):
        """Price, 18 % of it as GST, 2.4 % of it as platform fee."""
        for pack, (rupees, credits, bonus) in RUPEE_PACKS.items():
            with self.subTest(pack=pack):
                quote = call(self.db, "quote_pack", pack, "INR")
                self.assertEqual((quote.price, quote.tax * 10_000, quote.fee * 10_000),
                                 (rupees * 100, rupees * 100 * 1_800, rupees * 100 * 240))
                self.assertEqual(quote.total, quote.price + quote.tax + quote.fee)
                self.assertEqual((quote.credits, quote.bonus, quote.unit, quote.valid_until), (credits - bonus, bonus, "credit", None))
                self.assert_refused("22023 invalid_argument", "quote_pack", pack, "USD")
                self.assert_refused("22023 invalid_argument", "quote_pack", pack, "INR", amount=rupees * 100)

    def test_quote_of_500_rupees(self):
        """GST ₹90, platform fee ₹12, together ₹602."""
        quote = call(self.db, "quote_pack", "inr_500", "INR")
        self.assertEqual((quote.price, quote.tax, quote.fee, quote.total), (500_00, 90_00, 12_00, 602_00))
        self.assertEqual((quote.credits, quote.bonus), (5_000, 500))
        quote = call(self.db, "quote_pack", "top_up", "INR", amount=500_00)
        self.assertEqual((quote.price, quote.tax, quote.fee, quote.total), (500_00, 90_00, 12_00, 602_00))
        self.assertEqual((quote.credits, quote.bonus), (5_000, 0))

    def test_any_amount(self):
        """₹10 are 100 credits; for less than a credit's price there is no credit."""
        for paise, credits in [(150_00, 1_500), (150_09, 1_500), (150_10, 1_501), (237_00, 2_370), (1_000_00, 10_000),
                               (99_999_99, 999_999)]:
            with self.subTest(paise=paise):
                quote = call(self.db, "quote_pack", "top_up", "INR", amount=paise)
                self.assertEqual((quote.price, quote.credits, quote.bonus), (paise, credits, 0))
                self.assertEqual((quote.tax, quote.fee), ((paise * 1_800 + 5_000) // 10_000, (paise * 240 + 5_000) // 10_000))

    def test_minimum(self):
        """₹149.99 are refused, and so is the listed ₹10 where no amount is said."""
        for named in ({"amount": 149_99}, {"amount": 10_00}, {"amount": 1}, {}):
            with self.subTest(**named):
                for function, arguments in (("quote_pack", ()), ("start_purchase", (self.org,))):
                    with self.assertRaises(Refused) as caught:
                        call(self.db, function, *arguments, "top_up", "INR", **named)
                    self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
                    self.assertEqual(json.loads(caught.exception.diag.message_detail)["minimum"], 150_00)
        self.assertEqual(value(self.db, "select count(*) from billing.payments where org_id = %s", self.org), 0)

    def test_purchases(self):
        """Each pack once, by an org of its own."""
        for pack, (rupees, credits, bonus) in RUPEE_PACKS.items():
            with self.subTest(pack=pack):
                self.org = uuid.uuid4()
                payment = self.check_purchase(pack, "INR", rupees * 100, credits, bonus)
                quote = call(self.db, "quote_pack", pack, "INR")
                self.assertEqual((payment.tax, payment.fee, payment.total), (quote.tax, quote.fee, quote.total))

    def test_purchase_of_any_amount(self):
        payment = self.buy("top_up", "INR", amount=237_00)
        self.assertEqual((payment.price, payment.tax, payment.fee, payment.total), (237_00, 42_66, 5_69, 285_35))
        self.assertEqual(total(self.db, self.org), 2_370)
        self.assertEqual(self.grants(), [(2_370, "purchase", "paid", 237_00, "INR", None)])


class Dollars(Example, LiveTestCase):
    """dollars.json"""

    document = "dollars.json"

    def setUp(self):
        self.set_clock("2027-05-10 09:00+00")
        self.org = self.new_org()

    def new_org(self):
        """An org that has been seen: it has the credits of the free plan for this calendar month."""
        org = uuid.uuid4()
        call(self.db, "create_wallet", org)
        value(self.db, "select billing.begin_periods(%s)", org)
        self.assertEqual(total(self.db, org), DOLLAR_PLANS["free"][1])
        return org

    def test_nothing_else_is_for_sale(self):
        for section, names in (("packs", DOLLAR_PACKS), ("plans", DOLLAR_PLANS), ("metrics", DOLLAR_METRICS)):
            self.assertEqual(set(self.catalog[section]), set(names))

    def test_quotes(self):
        """The price is all there is to pay."""
        for pack, (dollars, credits, bonus) in DOLLAR_PACKS.items():
            with self.subTest(pack=pack):
                quote = call(self.db, "quote_pack", pack, "USD")
                self.assertEqual((quote.price, quote.tax, quote.fee, quote.total), (dollars * 100, 0, 0, dollars * 100))
                self.assertEqual((quote.credits, quote.bonus, quote.unit, quote.valid_until), (credits - bonus, bonus, "credit", None))

    def test_purchases(self):
        """Each pack once, by an org of its own."""
        for pack, (dollars, credits, bonus) in DOLLAR_PACKS.items():
            with self.subTest(pack=pack):
                self.org = self.new_org()
                self.check_purchase(pack, "USD", dollars * 100, credits, bonus)

    def test_costs(self):
        for metric, credits in DOLLAR_METRICS.items():
            self.assertEqual((self.cost(metric), self.cost(metric, 7)), (credits, 7 * credits), metric)

    def test_cost_of_a_request(self):
        """A query 5, with retrieval 10, with GitHub tools 20, with two further tools 26."""
        items = {}
        for metric, quantity, credits in [("query", 1, 5), ("retrieval", 1, 10), ("github_tools", 1, 20), ("further_tool", 2, 26)]:
            items[metric] = quantity
            self.assertEqual(self.cost_of(items), credits)

    def test_a_request_is_charged_what_it_costs(self):
        before = total(self.db, self.org)
        for metric, quantity in (("query", 1), ("retrieval", 1), ("github_tools", 1), ("further_tool", 2)):
            call(self.db, "consume_credits", self.org, metric, quantity)
        self.assertEqual(total(self.db, self.org), before - 26)

    def test_prices_of_plans(self):
        self.assertEqual({name: plan["price"] for name, plan in self.catalog["plans"].items()},
                         {name: {"USD": dollars * 100} for name, (dollars, _) in DOLLAR_PLANS.items()})

    def test_credits_of_plans(self):
        """They come with the subscription, beside what the free plan gave before, and with each month of it; rests do not go on."""
        for plan in ("starter", "pro"):
            with self.subTest(plan=plan):
                credits = DOLLAR_PLANS[plan][1]
                self.set_clock("2027-05-10 09:00+00")
                self.org = self.new_org()
                before = total(self.db, self.org)
                subscription = call(self.db, "subscribe", self.org, plan)
                self.assertEqual((subscription.plan, subscription.status), (plan, "active"))
                self.assertEqual(total(self.db, self.org), before + credits)
                self.set_clock("2027-06-10 08:59:59+00")
                call(self.db, "consume_credits", self.org, "query", 2)
                self.assertEqual(total(self.db, self.org), credits - 10)
                for month in (6, 7):
                    self.set_clock(f"2027-{month:02}-10 09:00+00")
                    self.assertEqual(value(self.db, "select billing.begin_periods(%s)", self.org), 1)
                    self.assertEqual(total(self.db, self.org), credits)

    def test_free_plan(self):
        """Whoever has no subscription has 100 credits for each calendar month, there with the first use; rests do not go on."""
        self.org = uuid.uuid4()
        call(self.db, "create_wallet", self.org)
        self.assertEqual(call(self.db, "consume_credits", self.org, "further_tool").balance_after, 97)
        self.assert_refused("PT402 insufficient_credits", "consume_credits", self.org, "github_tools", 10)
        self.set_clock("2027-06-01 00:00+00")
        self.assertEqual(call(self.db, "consume_credits", self.org, "github_tools", 10).balance_after, 0)
        self.set_clock("2027-07-31 23:59+00")
        self.assertEqual(call(self.db, "consume_credits", self.org, "query", 20).balance_after, 0)

    def test_subscribing_to_the_free_plan(self):
        """Its 100 credits come through a subscription, too."""
        before = total(self.db, self.org)
        self.assertEqual(call(self.db, "subscribe", self.org, "free").status, "active")
        self.set_clock("2027-06-10 09:00+00")
        value(self.db, "select billing.begin_periods(%s)", self.org)
        self.assertEqual((before, total(self.db, self.org)), (100, 100))

    def test_placeholders_of_stripe(self):
        """All that is paid has a price id, each another one, which nobody takes for a real one."""
        ids = {(section, name): item.get("provider_ids", {}) for section in ("packs", "plans") for name, item in self.catalog[section].items()}
        self.assertEqual(ids.pop(("plans", "free")), {})
        self.assertTrue(all(set(providers) == {"stripe"} for providers in ids.values()), ids)
        prices = [price for providers in ids.values() for price in providers["stripe"]]
        self.assertEqual(len(set(prices)), len(ids))
        self.assertTrue(all(price.startswith("price_replace_me_") for price in prices), prices)


class Features(Example, LiveTestCase):
    """features.json"""

    document = "features.json"

    def setUp(self):
        self.org = self.org_with(1_000_000)
        self.set_clock("2027-05-10 09:00+00")

    def org_with(self, credits):
        org = uuid.uuid4()
        call(self.db, "grant_credits", org, credits)
        return org

    def use(self, metric, quantity=1):
        return call(self.db, "consume_credits", self.org, metric, quantity).credits

    def assert_capped(self, metric, quantity, limit, used):
        """The use is refused with PT429, until the next day, and takes nothing."""
        before = total(self.db, self.org)
        with self.assertRaises(Refused) as caught:
            self.use(metric, quantity)
        self.assertEqual(code_of(caught.exception), "PT429 cap_exceeded")
        detail = json.loads(caught.exception.diag.message_detail)
        self.assertEqual((detail["per"], detail["limit"], detail["used"], detail["required"]), ("day", limit, used, quantity))
        self.assertTrue(detail["resets_at"].startswith("2027-05-11"), detail)
        self.assertEqual(total(self.db, self.org), before)

    def test_categories(self):
        by_category = {}
        for name, metric in self.catalog["metrics"].items():
            by_category.setdefault(metric["category"], {})[name] = metric["price"]
        self.assertEqual(by_category, FEATURES)

    def test_costs(self):
        """As calculated, and as charged."""
        for metrics in FEATURES.values():
            for metric, credits in metrics.items():
                self.assertEqual((self.cost(metric), self.cost(metric, 9)), (credits, 9 * credits), metric)
                before = total(self.db, self.org)
                self.assertEqual((self.use(metric), self.use(metric, 3)), (credits, 3 * credits), metric)
                self.assertEqual(total(self.db, self.org), before - 4 * credits, metric)
        self.assertEqual(self.cost_of({name: 1 for metrics in FEATURES.values() for name in metrics}),
                         sum(sum(metrics.values()) for metrics in FEATURES.values()))

    def test_a_community_is_free(self):
        """Even for an org that has no credit left."""
        self.org = self.org_with(1)
        self.use("invite")
        self.assertEqual((self.use("community"), total(self.db, self.org)), (0, 0))
        self.assert_refused("PT402 insufficient_credits", "consume_credits", self.org, "role")

    def test_201st_ai_call_of_a_day(self):
        """Whichever they are, 200 of an org are charged, and none more until the next day."""
        metrics = list(FEATURES["AI"].items())
        spent = 0
        for i in range(AI_CALLS):
            metric, credits = metrics[i % len(metrics)]
            self.assertEqual(self.use(metric), credits)
            spent += credits
        self.assertEqual(total(self.db, self.org), 1_000_000 - spent)
        for metric, _ in metrics:
            self.assert_capped(metric, 1, AI_CALLS, AI_CALLS)
            self.assert_refused("PT429 cap_exceeded", "reserve_credits", self.org, metric, 1)
            limit = call(self.db, "check_limit", self.org, metric)
            self.assertFalse(limit.allowed, limit)
        # Others go on: what is not AI, and another org.
        self.use("api_request")
        other = self.org_with(15)
        self.assertEqual(call(self.db, "consume_credits", other, "ai_summary").credits, 15)
        self.set_clock("2027-05-10 23:59:59.999999+00")
        self.assert_capped("ai_reply", 1, AI_CALLS, AI_CALLS)
        self.set_clock("2027-05-11 00:00+00")
        self.assertEqual(self.use("ai_summary", AI_CALLS), AI_CALLS * 15)

    def test_webhooks_and_mails_of_a_day(self):
        for metric, limit in (("webhook", WEBHOOKS), ("mail", MAILS)):
            with self.subTest(metric=metric):
                self.assert_capped(metric, limit + 1, limit, 0)
                self.assertEqual(self.use(metric, limit - 1), limit - 1)
                self.assert_capped(metric, 2, limit, limit - 1)
                self.assertEqual(self.use(metric), 1)
                self.assert_capped(metric, 1, limit, limit)
        # What is not capped has no such end.
        self.assertEqual((self.use("push", 50_000), self.use("retry", 50_000)), (50_000, 50_000))
        self.set_clock("2027-05-11 00:00+00")
        self.assertEqual((self.use("webhook", WEBHOOKS), self.use("mail", MAILS)), (WEBHOOKS, MAILS))


if __name__ == "__main__":
    unittest.main()

"""What members read: by indexes, whatever other orgs have, and as much work as they have orgs."""

import json
import unittest

from support import LiveTestCase, Refused, apply_catalog, rows, value

ORGS = 1500
# What a page asks for, with no condition but what row security adds.
READS = {
    "wallets": "select * from billing.wallets",
    "entries": "select * from billing.entries",
    "the newest entries": "select * from billing.entries order by created_at desc limit 20",
    "count of entries": "select count(*) from billing.entries",
    "grants": "select * from billing.grants",
    "operations": "select * from billing.operations",
    "usage_by_day": "select * from billing.usage_by_day",
    "usage_by_month": "select * from billing.usage_by_month",
    "subscriptions": "select * from billing.subscriptions",
    "payments": "select * from billing.payments",
    "holds": "select * from billing.holds",
}


def nodes(plan):
    """All nodes of a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


class Members(LiveTestCase):
    """A database in which many orgs have something of everything."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.member, cls.service = cls.new_role(cls.db, "member"), cls.new_role(cls.db, "service")
        apply_catalog(cls.db, {"metrics": {"call": {"price": 1}}, "plans": {"solo": {"allowances": {"call": 1}}},
                               "packs": {"small": {"credits": 10, "price": {"USD": 100}}}})
        rows(cls.db, "create temp table orgs as select gen_random_uuid() as org from generate_series(1, %s)", ORGS)
        for work in ("billing.grant_credits(org, 1000)", "billing.consume_credits(org, 'call', 2)", "billing.reserve_credits(org, 'call', 1)",
                     "billing.subscribe(org, 'solo')", "billing.start_purchase(org, 'small', 'USD')"):
            rows(cls.db, f"select count(*) from orgs, lateral {work}")
        # Some is folded into days and months, some is not.
        rows(cls.db, "select count(*) from orgs, lateral billing.settle_org(org)")
        rows(cls.db, "select count(*) from orgs, lateral billing.consume_credits(org, 'call', 3)")
        rows(cls.db, "select count(billing.record_usage(org, 'call', 5)) from orgs")
        cls.orgs = [org for (org,) in rows(cls.db, "select org from orgs order by org")]
        rows(cls.db, "vacuum analyze")

    def tearDown(self):
        self.assert_sound()

    def as_member(self, orgs, **options):
        """A connection of a member of these orgs."""
        connection = self.connect(**options)
        rows(connection, f"set role {self.member}")
        rows(connection, "select set_config('request.jwt.claims', %s, false)", json.dumps({"app_metadata": {"org_ids": [str(org) for org in orgs]}}))
        return connection

    def explain(self, connection, statement):
        """The nodes of the plan that was carried out."""
        ((((plan,),)),) = (rows(connection, f"explain (analyze, timing off, format json) {statement}"),)
        return list(nodes(plan[0]["Plan"]))

    def test_rows_are_found_by_indexes(self):
        """No read of a member goes over the rows of others: no sequential scan but of the catalog, and hardly a row that is looked at in vain."""
        member = self.as_member(self.orgs[:1])
        for name, statement in READS.items():
            with self.subTest(name):
                self.assertGreater(len(rows(member, statement)), 0, "there is something to be seen")
                for node in self.explain(member, statement):
                    self.assertFalse(node["Node Type"] == "Seq Scan" and node["Relation Name"] != "metrics", f"{node['Node Type']} on {node.get('Relation Name')}")
                    self.assertLess(node.get("Rows Removed by Filter", 0) * node["Actual Loops"], 50, node)
                    self.assertLess(node["Actual Rows"] * node["Actual Loops"], 200, node)

    def test_the_same_as_by_a_condition(self):
        """A member sees just what the owner sees with its orgs as the condition; a service sees everything."""
        for count in (1, 7, ORGS):
            mine = self.orgs[:count]
            member, service = self.as_member(mine), self.connect()
            rows(service, f"set role {self.service}")
            for name, statement in READS.items():
                if "limit" in statement or "count" in statement:
                    continue
                with self.subTest(name, orgs=count):
                    seen = value(member, f"select array_agg(x::text order by x::text) from ({statement}) x")
                    self.assertTrue(seen == value(self.db, f"select array_agg(x::text order by x::text) from ({statement}) x where org_id = any (%s)", mine))
                    self.assertEqual(len(rows(service, statement)), len(rows(self.db, statement)))

    def test_many_orgs_are_no_more_work_each(self):
        """The orgs of the caller are computed a few times per statement, not per row; and no table is read again for each of them."""
        for name, statement in READS.items():
            with self.subTest(name):
                loops = []
                for count in (100, ORGS):
                    member = self.as_member(self.orgs[:count])
                    plan = self.explain(member, statement)
                    # How often anything is begun again, and how much it goes over, by org.
                    work = sum(node["Actual Loops"] + node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                                                                              + node.get("Rows Removed by Join Filter", 0)) for node in plan)
                    loops.append(work / count)
                self.assertLess(loops[1], 2 * loops[0] + 20, f"work per org of {name}: {loops}")

    def test_claims_change_within_a_transaction(self):
        """The orgs are those of the moment: of the claims, and of the table of members, also where that changes in between."""
        one, two = self.orgs[:2]
        rows(self.db, "create table public.members_of (org uuid, person text, primary key (person, org))")
        self.addCleanup(rows, self.db, "drop table public.members_of")
        rows(self.db, "insert into public.members_of values (%s, 'ann')", one)
        value(self.db, "select billing.configure_membership('public.members_of', 'org', 'person')")
        self.addCleanup(value, self.db, "select billing.configure_membership(null, null, null)")
        session = self.connect(autocommit=False)
        rows(session, "select set_config('request.jwt.claims', '{\"sub\": \"ann\"}', true)")
        sees = lambda: {org for (org,) in rows(session, "select org_id from billing.wallets")}
        for _ in range(2):
            rows(session, f"set local role {self.member}")
            self.assertEqual(sees(), {one})
            rows(session, "set local role none; savepoint s")
            rows(session, "insert into public.members_of values (%s, 'ann')", two)
            rows(session, f"set local role {self.member}")
            self.assertEqual(sees(), {one, two})
            rows(session, "rollback to s")
            rows(session, f"set local role {self.member}")
            self.assertEqual(sees(), {one})
            rows(session, "set local role none")
        # In one and the same statement, too.
        rows(session, f"set local role {self.member}")
        seen = rows(session, """select set_config('request.jwt.claims', format('{"org_id": "%%s"}', o), true) is not null, billing.my_orgs()
                                  from unnest(%s::uuid[]) o""", [one, two])
        self.assertEqual([orgs for _, orgs in seen], [[one], [two]])

    def test_taken_back_and_gone(self):
        """Without the table of members, or a column of it, members see the orgs of their claims; status() says so."""
        one, two = self.orgs[:2]
        rows(self.db, "create table public.gone (org uuid, person text); insert into public.gone values (%s, 'ann')", one)
        self.addCleanup(rows, self.db, "drop table if exists public.gone")
        session = self.connect()
        claims = json.dumps({"sub": "ann", "org_id": str(two)})

        def sees():
            rows(session, f"set role {self.member}")
            rows(session, "select set_config('request.jwt.claims', %s, false)", claims)
            try:
                return set(value(session, "select billing.my_orgs()"))
            finally:
                rows(session, "reset role")

        def level():
            return value(self.db, "select level from billing.status() where check_name = 'membership'")

        value(self.db, "select billing.configure_membership('public.gone', 'org', 'person')")
        self.addCleanup(value, self.db, "select billing.configure_membership(null, null, null)")
        self.assertEqual((sees(), level()), ({one, two}, "ok"))
        rows(self.db, "alter table public.gone rename column person to who")
        self.assertEqual((sees(), level()), ({two}, "bad"))
        rows(self.db, "alter table public.gone rename column who to person")
        self.assertEqual((sees(), level()), ({one, two}, "ok"))
        rows(self.db, "alter table public.gone rename to elsewhere")
        self.assertEqual((sees(), level()), ({one, two}, "ok"), "it is followed")
        rows(self.db, "alter table public.elsewhere rename to gone")
        value(self.db, "select billing.configure_membership(null, null, null)")
        self.assertEqual((sees(), level()), ({two}, "ok"))
        for wrong in (("public.gone", None, "person"), (None, "org", "person"), ("public.gone", "nothing", "person"), ("public.gone", "person", "person"),
                      ("billing.wallets", "org_id", "unit"), ("pg_catalog.pg_stat_activity", "datid", "usename")):
            with self.assertRaises(Refused) as caught:
                value(self.db, "select billing.configure_membership(%s, %s, %s)", *wrong)
            self.assertEqual(caught.exception.pgcode, "22023", wrong)


if __name__ == "__main__":
    unittest.main()

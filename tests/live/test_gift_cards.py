"""Gift cards and vouchers: redeemed as often as they may be and not once more, by whoever is fast; and nobody can guess one.

A failed attempt is noted although the call that failed is rolled back: that needs a server with background workers.
"""

import datetime
import json
import random
import unittest
import uuid

import psycopg2.extensions

from support import CATALOG, Cluster, LiveTestCase, Refused, apply_catalog, call, code_of, connect, install_extension, retrying, rows, together, total, value

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
UNKNOWN, TOO_MANY = "PT404 unknown_code", "PT429 too_many_attempts"


def check_character(characters):
    """The last character of a code for those before it."""
    total_so_far = 0
    for character in characters:
        total_so_far = (total_so_far ^ ALPHABET.index(character)) << 1
        total_so_far ^= 0b100101 if total_so_far & 0b100000 else 0
    return ALPHABET[total_so_far]


def wrong_code():
    """A code that could be one."""
    characters = "".join(random.choices(ALPHABET, k=24))
    return characters + check_character(characters)


def create(connection, *arguments, **named):
    """The codes of a new batch."""
    places = ["%s"] * len(arguments) + [f"{name} => %s" for name in named]
    return [code for (code,) in rows(connection, f"select billing.create_gift_cards({', '.join(places)})", *arguments, *named.values())]


def answer(connection, org, code, *arguments, **named):
    """The receipt, or the code of the refusal."""
    try:
        return call(connection, "redeem_gift_card", org, code, *arguments, **named)
    except Refused as error:
        return code_of(error)


class GiftCards(LiveTestCase):
    """Codes in a database of their own."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.service = cls.new_role(cls.db, "service")
        cls.member = cls.new_role(cls.db, "member")
        cls.auditor = cls.new_role(cls.db, "auditor")

    def tearDown(self):
        self.assert_sound()

    def at(self, moment, **options):
        """A connection whose billing time stands still at a moment."""
        connection = self.connect(**options)
        rows(connection, "select set_config('billing.test_clock', %s, false)", moment)
        if not connection.autocommit:
            connection.commit()
        return connection

    def attempts(self, org):
        """How many failed attempts of an org are noted."""
        return value(self.db, "select count(*) from billing_internal.gift_card_attempts where org_id = %s", org)

    def refusal(self, org, code, connection=None):
        """All that a refusal says."""
        with self.assertRaises(Refused) as caught:
            call(connection or self.db, "redeem_gift_card", org, code)
        diag = caught.exception.diag
        return tuple(getattr(diag, part) for part in ("severity", "sqlstate", "message_primary", "message_detail", "message_hint", "context", "table_name"))

    # ------------------------------------------------------------ what a code is worth

    def test_redeeming(self):
        """A code becomes credit: the receipt, the grant, the entry, the redemption; the wallet is made."""
        org = uuid.uuid4()
        (code,) = create(self.db, "welcome", 500)
        self.assertRegex(code, "^([0-9A-HJKMNP-TV-Z]{5}-){4}[0-9A-HJKMNP-TV-Z]{5}$")
        self.assertEqual(code[-1], check_character(code.replace("-", "")[:-1]))
        receipt = call(self.db, "redeem_gift_card", org, code, metadata={"campaign": 7})
        self.assertEqual((receipt.credits, receipt.unit, receipt.expires_at, receipt.balance_after, receipt.replayed), (500, "credit", None, 500, False))
        (grant,) = rows(self.db, "select * from billing.grants where org_id = %s", org)
        self.assertEqual((grant.grant_id, grant.source, grant.category, grant.amount, grant.remaining, grant.cost_minor, grant.priority, grant.metrics, grant.expires_at, grant.metadata),
                         (receipt.grant_id, "gift_card", "promotional", 500, 500, 0, 50, None, None, {"campaign": 7}))
        (entry,) = rows(self.db, "select * from billing.entries where org_id = %s", org)
        self.assertEqual((entry.kind, entry.source, entry.source_id, entry.amount), ("gift_card", "gift_card", "welcome", 500))
        self.assertTrue(entry.actor)
        self.assertEqual(rows(self.db, "select grant_id, name from billing.gift_card_redemptions where org_id = %s", org), [(receipt.grant_id, "welcome")])
        self.assertEqual(value(self.db, "select redemptions from billing.gift_card_batches where name = 'welcome'"), 1)

    def test_typing(self):
        """However people type it."""
        for change in (str.lower, lambda c: c.replace("-", ""), lambda c: f"  {c.replace('-', ' ')}\n", lambda c: c.replace("0", "o").replace("1", "l"),
                       lambda c: c.replace("0", "O").replace("1", "I").replace("-", "\u2013"), "-".join):
            (code,) = create(self.db, "typed", 5)
            self.assertEqual(call(self.db, "redeem_gift_card", self.org(), change(code)).credits, 5)

    def test_scope_and_money(self):
        """Credit for some metrics only; a voucher in a currency."""
        org = self.org(3)
        (scoped,) = create(self.db, "calls only", 20, metrics=["page", "call", "call"])
        receipt = call(self.db, "redeem_gift_card", org, scoped)
        self.assertEqual((receipt.balance_after, total(self.db, org), total(self.db, org, metric="call"), total(self.db, org, metric="third")), (23, 3, 23, 3))
        (voucher,) = create(self.db, "ten euros", 1000, unit="EUR", source="voucher")
        receipt = call(self.db, "redeem_gift_card", org, voucher)
        self.assertEqual((receipt.unit, receipt.credits, receipt.balance_after, total(self.db, org, "EUR"), total(self.db, org)), ("EUR", 1000, 1000, 1000, 3))
        self.assertEqual(value(self.db, "select source from billing.grants where org_id = %s and unit = 'EUR'", org), "voucher")

    def test_validity_and_expiry(self):
        """The credit is good for so long from its redemption on; the code itself has an end of its own."""
        org = uuid.uuid4()
        early, last, late = (self.at(moment) for moment in ("2027-01-31 10:00+00", "2027-05-31 23:59:59.999999+00", "2027-06-01 00:00+00"))
        month, week, year, days, dead = (create(early, f"good for {validity}", 10, validity=validity, expires_at="2027-06-01 00:00+00")[0]
                                         for validity in ("1 month", " 2  weeks", "1 year", "30 days", None))
        for code, connection, expires in ((month, early, "2027-02-28 10:00+00"), (week, early, "2027-02-14 10:00+00"), (year, early, "2028-01-31 10:00+00"),
                                          (days, last, "2027-06-30 23:59:59.999999+00")):
            receipt = call(connection, "redeem_gift_card", org, code)
            self.assertEqual(receipt.expires_at, datetime.datetime.fromisoformat(expires.replace("+00", "+00:00")))
        self.assertEqual(answer(late, org, dead), UNKNOWN)
        self.assertEqual(total(late, org), 20)
        self.assertEqual(call(last, "redeem_gift_card", org, dead).expires_at, None)
        self.assertEqual(value(self.db, "select validity from billing.gift_card_batches where name = 'good for  2  weeks'"), "2 weeks")

    def test_debts_are_paid_first(self):
        """Overage that the org owes is paid from the card."""
        org = self.org(1)
        rows(self.db, "select billing.record_usage(%s, 'page', 2)", org)
        self.assertEqual(call(self.db, "settle_org", org).unpaid, 13)
        (code,) = create(self.db, "helps", 20)
        self.assertEqual(call(self.db, "redeem_gift_card", org, code).balance_after, 7)
        self.assertEqual(rows(self.db, "select credits from billing.unpaid_overage where org_id = %s and credits > 0", org), [])

    def test_split_wallet(self):
        """A wallet of several lanes."""
        org = self.org(1000)
        rows(self.db, "select billing.set_wallet_lanes(%s, 4)", org)
        (code,) = create(self.db, "lanes", 77)
        self.assertEqual(call(self.db, "redeem_gift_card", org, code).balance_after, 1077)

    # ------------------------------------------------------------ how often

    def test_one_code_for_a_hundred(self):
        """A hundred orgs and one code at the same moment: one has it, the others are told it is unknown."""
        (code,) = create(self.db, "one", 50)
        orgs, connections = [self.org(1) for _ in range(100)], self.connections(100)

        def redeem(i, barrier):
            barrier.wait()
            return answer(connections[i], orgs[i], code)

        results = together(100, redeem)
        self.assertEqual(sum(not isinstance(r, str) for r in results), 1)
        self.assertEqual({r for r in results if isinstance(r, str)}, {UNKNOWN})
        self.assertEqual(sum(total(self.db, org) for org in orgs), 150)
        self.assertEqual(value(self.db, "select count(*) from billing_internal.gift_card_attempts where org_id = any (%s)", orgs), 99)

    def test_one_code_for_one_org_a_hundred_times(self):
        """One org, a hundred connections: redeemed once, and after ten failures nothing is said about the code any more."""
        org, connections = self.org(1), self.connections(100)
        (code,) = create(self.db, "again", 50, max_redemptions=1000)

        def redeem(i, barrier):
            barrier.wait()
            return answer(connections[i], org, code)

        results = together(100, redeem)
        self.assertEqual(sum(not isinstance(r, str) for r in results), 1)
        self.assertLessEqual({r for r in results if isinstance(r, str)}, {UNKNOWN, TOO_MANY})
        self.assertLessEqual(results.count(UNKNOWN), 10)
        self.assertEqual(total(self.db, org), 51)

    def test_n_times(self):
        """A code for twenty, and sixty who want it."""
        (code,) = create(self.db, "twenty", 5, max_redemptions=20)
        orgs, connections = [uuid.uuid4() for _ in range(60)], self.connections(60)

        def redeem(i, barrier):
            barrier.wait()
            return answer(connections[i], orgs[i], code)

        results = together(60, redeem)
        self.assertEqual(sum(not isinstance(r, str) for r in results), 20)
        self.assertEqual(sum(total(self.db, org) for org in orgs), 100)
        (batch,) = rows(self.db, "select cards, redemptions, credits_granted, used_up from billing.gift_card_batches where name = 'twenty'")
        self.assertEqual(tuple(batch), (1, 20, 100, 1))
        self.assertEqual(value(self.db, "select count(*) from billing.gift_card_redemptions where name = 'twenty'"), 20)

    def test_many_codes_for_one_wallet(self):
        """Forty codes into one wallet, from as many connections."""
        org, connections = self.org(1), self.connections(40)
        codes = create(self.db, "forty", 3, 40)
        self.assertEqual(len(set(codes)), 40)

        def redeem(i, barrier):
            barrier.wait()
            return call(connections[i], "redeem_gift_card", org, codes[i]).grant_id

        self.assertEqual(len(set(together(40, redeem))), 40)
        self.assertEqual(total(self.db, org), 121)

    def test_rolled_back(self):
        """What is rolled back was not redeemed."""
        org, app = self.org(1), self.connect(autocommit=False)
        (code,) = create(self.db, "back", 50)
        self.assertEqual(call(app, "redeem_gift_card", org, code).balance_after, 51)
        app.rollback()
        self.assertEqual(total(self.db, org), 1)
        self.assertEqual(call(self.db, "redeem_gift_card", org, code).balance_after, 51)

    def test_isolation_levels(self):
        """Under repeatable read and serializable, too: one has it; 40001 is tried again."""
        for level in (psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ, psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE):
            with self.subTest(level):
                (code,) = create(self.db, f"level {level}", 50)
                orgs, connections = [self.org(1) for _ in range(12)], self.connections(12, autocommit=False)
                for connection in connections:
                    connection.set_session(isolation_level=level)

                def redeem(i, barrier, orgs=orgs, connections=connections, code=code):
                    rows(connections[i], "select 1")
                    barrier.wait()
                    try:
                        return retrying(connections[i], lambda: call(connections[i], "redeem_gift_card", orgs[i], code))[0]
                    except Refused as error:
                        return code_of(error)

                results = together(12, redeem)
                self.assertEqual(sum(not isinstance(r, str) for r in results), 1)
                self.assertEqual({r for r in results if isinstance(r, str)}, {UNKNOWN})
                self.assertEqual(sum(total(self.db, org) for org in orgs), 62)

    # ------------------------------------------------------------ the same call again

    def test_replay(self):
        """The same key and code: the same answer, whatever became of the code or the org; another code with it is a conflict."""
        org = self.org(1)
        code, other = create(self.db, "keyed", 50, 2, validity="1 year")
        first = call(self.db, "redeem_gift_card", org, code, "k", {"a": 1})
        again = call(self.db, "redeem_gift_card", org, code.lower().replace("-", ""), "k", {"a": 1})
        self.assertEqual((first.replayed, again.replayed), (False, True))
        self.assertEqual(first[:-1], again[:-1])
        self.assertEqual((total(self.db, org), self.attempts(org)), (51, 0))
        self.assert_refused("PT409 idempotency_conflict", "redeem_gift_card", org, other, "k", {"a": 1})
        self.assert_refused("PT409 idempotency_conflict", "redeem_gift_card", org, code, "k", {"a": 2})
        for _ in range(10):
            self.assertEqual(answer(self.db, org, wrong_code()), UNKNOWN)
        self.assertEqual(answer(self.db, org, other), TOO_MANY)
        self.assertTrue(call(self.db, "redeem_gift_card", org, code, "k", {"a": 1}).replayed)

    def test_the_same_call_at_the_same_time(self):
        """Fifty times the same call: one redemption, fifty times its answer, no attempt."""
        org, connections = self.org(1), self.connections(50)
        (code,) = create(self.db, "same", 50)

        def redeem(i, barrier):
            barrier.wait()
            return call(connections[i], "redeem_gift_card", org, code, "once")

        results = together(50, redeem)
        self.assertEqual(sorted(r.replayed for r in results), [False] + [True] * 49)
        self.assertEqual(len({r[:-1] for r in results}), 1)
        self.assertEqual((total(self.db, org), self.attempts(org)), (51, 0))

    # ------------------------------------------------------------ guessing

    def test_nothing_is_told(self):
        """Malformed, unknown, used up, expired, voided, redeemed by the org itself: the same refusal, to the letter."""
        org, now = self.org(1), self.at("2027-01-01 00:00+00")
        (used,) = create(now, "used", 5)
        (mine,) = create(now, "mine", 5, max_redemptions=9)
        (voided,) = create(now, "voided", 5)
        (expired,) = create(now, "expired", 5, expires_at="2027-02-01 00:00+00")
        call(now, "redeem_gift_card", self.org(1), used)
        call(now, "redeem_gift_card", org, mine)
        self.assertEqual(value(now, "select billing.void_gift_cards('voided')"), 1)
        later = self.at("2027-03-01 00:00+00")
        told = {self.refusal(org, code, later) for code in ("", "nonsense", used[:-1] + ("0" if used[-1] != "0" else "2"), wrong_code(), used, mine, voided, expired)}
        self.assertEqual(len(told), 1)
        ((severity, state, message, detail, *_),) = told
        self.assertEqual((severity, state, message, json.loads(detail)), ("ERROR", "PT404", "unknown code", {"code": "unknown_code"}))

    def test_limit(self):
        """Ten attempts fail, each rolled back with its transaction; then no code is looked at for an hour."""
        org, (code,) = self.org(1), create(self.db, "limit", 50)
        early = self.at("2027-01-01 12:00+00", autocommit=False)
        for n in range(10):
            self.assertEqual(answer(early, org, wrong_code()), UNKNOWN)
            early.rollback()
            self.assertEqual(self.attempts(org), n + 1)
        for tried in (code, wrong_code(), "nonsense"):
            with self.assertRaises(Refused) as caught:
                call(early, "redeem_gift_card", org, tried)
            early.rollback()
            self.assertEqual((code_of(caught.exception), json.loads(caught.exception.diag.message_detail)["retry_at"]), (TOO_MANY, "2027-01-01T13:00:00+00:00"))
        self.assertEqual(self.attempts(org), 10, "what is not looked at does not count")
        self.assertEqual(answer(self.at("2027-01-01 12:59:59.999999+00"), org, code), TOO_MANY)
        self.assertEqual(answer(early, self.org(1), code).balance_after, 51, "another org may")
        early.rollback()
        self.assertEqual(call(self.at("2027-01-01 13:00+00"), "redeem_gift_card", org, code).balance_after, 51)
        self.assertEqual(answer(self.at("2027-01-02 12:00:01+00"), org, wrong_code()), UNKNOWN)
        self.assertEqual(self.attempts(org), 1, "those of the day before are forgotten")

    def test_limit_within_a_transaction(self):
        """Who catches the errors in one long transaction, with a snapshot from before, is counted all the same."""
        for level in (psycopg2.extensions.ISOLATION_LEVEL_READ_COMMITTED, psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ,
                      psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE):
            with self.subTest(level):
                org, guesser = self.org(1), self.connect(autocommit=False)
                guesser.set_session(isolation_level=level)
                self.assertEqual(total(guesser, org), 1)
                told = []
                for _ in range(12):
                    rows(guesser, "savepoint guess")
                    told.append(answer(guesser, org, wrong_code()))
                    rows(guesser, "rollback to guess")
                self.assertEqual(told, [UNKNOWN] * 10 + [TOO_MANY] * 2)
                guesser.rollback()
                self.assertEqual(self.attempts(org), 10)

    def test_limit_of_many_at_once(self):
        """Eighty guesses at the same moment: no more than ten are answered."""
        org, connections = self.org(1), self.connections(80)

        def guess(i, barrier):
            barrier.wait()
            return answer(connections[i], org, wrong_code())

        results = together(80, guess)
        self.assertLessEqual(set(results), {UNKNOWN, TOO_MANY})
        self.assertLessEqual(results.count(UNKNOWN), 10)
        self.assertGreaterEqual(self.attempts(org), 10)

    def test_slips_do_not_count(self):
        """What the check character shows to be a slip of the keyboard is refused, and not noted."""
        org, (code,) = self.org(1), create(self.db, "slips", 50)
        plain = code.replace("-", "")
        for place in range(25):
            wrong = ALPHABET[(ALPHABET.index(plain[place]) + 1 + place) % 32]
            self.assertEqual(answer(self.db, org, plain[:place] + wrong + plain[place + 1:]), UNKNOWN)
        self.assertEqual(self.attempts(org), 0)
        self.assertEqual(call(self.db, "redeem_gift_card", org, code).balance_after, 51)

    def test_signal(self):
        """With the tenth failure a flag is raised, where there is who takes it."""
        if value(self.db, "select to_regprocedure('billing.note_signal(uuid, text, integer, text, jsonb)') is not null"):
            self.skipTest("the engine has a note_signal of its own")
        rows(self.db, """create table public.signals (org_id uuid, kind text, score int, reason text, detail jsonb);
                         create function billing.note_signal(org_id uuid, kind text, score int, reason text, detail jsonb) returns void
                             language sql security definer set search_path = pg_catalog, pg_temp as 'insert into public.signals values ($1, $2, $3, $4, $5)'""")
        try:
            org = self.org(1)
            for n in range(10):
                self.assertEqual(rows(self.db, "select * from public.signals"), [], n)
                self.assertEqual(answer(self.db, org, wrong_code()), UNKNOWN)
            self.assertEqual([tuple(row) for row in rows(self.db, "select org_id, kind, detail from public.signals")], [(org, "code_guessing", {"attempts": 10})])
        finally:
            rows(self.db, "drop function billing.note_signal(uuid, text, integer, text, jsonb); drop table public.signals")

    def test_trap_of_the_owner(self):
        """A trigger on the table of attempts runs as the owner of the table, not as the superuser that the worker is."""
        owner, org = f"billing_owner_{uuid.uuid4().hex[:8]}", self.org(1)
        rows(self.admin, f"create role {owner}")
        self.roles.append(owner)
        rows(self.db, f"""create table public.ran_as (who text);
                          grant insert on public.ran_as to {owner}; grant usage, create on schema billing to {owner};
                          alter table billing_internal.gift_card_attempts owner to {owner};
                          create function public.trap() returns trigger language plpgsql as
                              'begin insert into public.ran_as values (current_user); return new; end';
                          create trigger trap before insert on billing_internal.gift_card_attempts for each row execute function public.trap()""")
        try:
            self.assertEqual(answer(self.db, org, wrong_code()), UNKNOWN)
            self.assertEqual(rows(self.db, "select who from public.ran_as"), [(owner,)])
        finally:
            rows(self.db, f"""drop trigger trap on billing_internal.gift_card_attempts; drop function public.trap(); drop table public.ran_as;
                              alter table billing_internal.gift_card_attempts owner to current_user; revoke all on schema billing from {owner}""")

    def test_database_that_reads_only(self):
        """Attempts are noted whatever a database has set; in a transaction that only reads, no code is looked at."""
        org, (code,) = self.org(1), create(self.db, "read", 50)
        try:
            rows(self.admin, f'alter database "{self.database}" set default_transaction_read_only = on')
            rows(self.admin, f'alter database "{self.database}" set default_transaction_isolation = \'serializable\'')
            reader = self.connect()
            self.assertEqual(answer(reader, org, code), "25006")
            self.assertEqual(answer(reader, org, wrong_code()), "25006")
            rows(reader, "set default_transaction_read_only = off")
            self.assertEqual(answer(reader, org, wrong_code()), UNKNOWN)
        finally:
            rows(self.admin, f'alter database "{self.database}" reset all')
        self.assertEqual(self.attempts(org), 1)

    def test_tables_that_are_not_committed(self):
        """In the transaction that makes the tables, a failed attempt cannot be noted, and is told as such."""
        new = connect(self.new_database(), autocommit=False)
        self.addCleanup(new.close)
        rows(new, "create extension pg_billing")
        rows(new, "select billing.install()")
        rows(new, "savepoint guess")
        self.assertEqual(answer(new, uuid.uuid4(), wrong_code()), UNKNOWN)
        rows(new, "rollback to guess")
        (code,) = create(new, "first", 5)
        self.assertEqual(call(new, "redeem_gift_card", uuid.uuid4(), code).balance_after, 5)
        new.rollback()

    # ------------------------------------------------------------ who may, and what is kept

    def test_rights(self):
        """Members redeem for their own orgs; only services make and void codes; nobody reads the key, a hash or the attempts."""
        mine, other = self.org(1), self.org(1)
        first, second = create(self.db, "rights", 50, 2)
        member, service, auditor = self.connections(3)
        for connection, role in ((member, self.member), (service, self.service), (auditor, self.auditor)):
            rows(connection, f"set role {role}")
        rows(member, "select set_config('request.jwt.claims', %s, false)", json.dumps({"sub": "ann", "org_id": str(mine)}))
        self.assertEqual(answer(member, other, first), "42501 not_authorized")
        self.assertEqual(self.attempts(other), 0)
        self.assertEqual(call(member, "redeem_gift_card", mine, first).balance_after, 51)
        self.assertEqual(value(self.db, "select actor from billing.entries where org_id = %s and kind = 'gift_card'", mine), "ann")
        self.assertEqual(answer(member, mine, wrong_code()), UNKNOWN)
        self.assertEqual(self.attempts(mine), 1)
        self.assertEqual(call(service, "redeem_gift_card", other, second).balance_after, 51)
        self.assertEqual(answer(auditor, other, wrong_code()), "42501")
        for connection in (member, auditor):
            for refused in ("billing.create_gift_cards('x', 1)", "billing.void_gift_cards('rights')"):
                with self.assertRaises(Refused) as caught:
                    rows(connection, f"select {refused}")
                self.assertEqual(code_of(caught.exception), "42501")
        self.assertEqual(len(create(service, "of a service", 1, 3)), 3)
        self.assertEqual(rows(auditor, "select cards, redemptions from billing.gift_card_batches where name = 'rights'"), [(2, 2)])
        self.assertEqual({row.org_id for row in rows(auditor, "select * from billing.gift_card_redemptions where name = 'rights'")}, {mine, other})
        for connection in (member, service, auditor):
            for secret in ("* from billing_internal.secrets", "* from billing_internal.gift_card_attempts", "code_hash from billing.gift_cards", "* from billing.gift_cards"):
                with self.assertRaises(Refused) as caught:
                    rows(connection, f"select {secret}")
                self.assertEqual(code_of(caught.exception), "42501")

    def test_voiding(self):
        """Codes of a batch that leaked are worth nothing any more; what was redeemed stays."""
        org = self.org(1)
        codes = create(self.db, "leak", 50, 3) + create(self.db, "leak", 50, 2, max_redemptions=2)
        call(self.db, "redeem_gift_card", org, codes[0])
        call(self.db, "redeem_gift_card", org, codes[3])
        self.assertEqual(value(self.db, "select billing.void_gift_cards('leak')"), 4)
        self.assertEqual(value(self.db, "select billing.void_gift_cards('leak')"), 0)
        for code in codes:
            self.assertEqual(answer(self.db, org, code), UNKNOWN)
        self.assertEqual(total(self.db, org), 101)
        self.assertEqual([tuple(row) for row in rows(self.db, "select max_redemptions, cards, redemptions, used_up, voided from billing.gift_card_batches where name = 'leak' order by 1")],
                         [(1, 3, 1, 1, 2), (2, 2, 1, 0, 2)])
        self.assert_refused("PT404 unknown_batch", "void_gift_cards", "leek")

    def test_voiding_against_redeeming(self):
        """A batch voided while it is redeemed: each code is one or the other."""
        codes = create(self.db, "race", 1, 200)
        orgs, connections = [uuid.uuid4() for _ in range(8)], self.connections(8)

        def work(i, barrier):
            barrier.wait()
            if i == 0:
                return value(connections[0], "select billing.void_gift_cards('race')")
            done = 0
            for code in codes[i - 1::7]:
                if isinstance(answer(connections[i], orgs[i], code), str):
                    break
                done += 1
            return done

        voided, *redeemed = together(8, work)
        self.assertEqual(voided + sum(redeemed), 200)
        self.assertEqual(sum(total(self.db, org) for org in orgs), sum(redeemed))

    def test_bad_input(self):
        """What cannot be, with its SQLSTATE."""
        org = self.org(1)
        for arguments in ((None, 5), ("", 5), (" ", 5), ("n" * 201, 5), ("n", None), ("n", 0), ("n", -1), ("n", 5, 0), ("n", 5, 10_001), ("n", 5, None),
                          ("n", 5, 1, None), ("n", 5, 1, "eur"), ("n", 5, 1, "XXZ"), ("n", 5, 1, "credit", []), ("n", 5, 1, "credit", [None]), ("n", 5, 1, "credit", None, 0),
                          ("n", 5, 1, "credit", None, 1_000_001), ("n", 5, 1, "credit", None, 1, "2020-01-01"), ("n", 5, 1, "credit", None, 1, "-infinity"),
                          ("n", 5, 1, "credit", None, 1, None, "soon"), ("n", 5, 1, "credit", None, 1, None, "0 days"), ("n", 5, 1, "credit", None, 1, None, "1 day", "bonus"),
                          ("n", 5, 1, "credit", None, 1, None, "1 day", None), ("n", 5, 1, "credit", None, 1, None, "1 day", "voucher", "[]")):
            with self.subTest(arguments):
                typed = [f"%s::{kind}" for kind in ("text", "bigint", "int", "text", "text[]", "int", "timestamptz", "text", "text", "jsonb")][:len(arguments)]
                with self.assertRaises(Refused) as caught:
                    rows(self.db, f"select billing.create_gift_cards({', '.join(typed)})", *arguments)
                self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
        with self.assertRaises(Refused) as caught:
            create(self.db, "n", 5, metrics=["teleport"])
        self.assertEqual(code_of(caught.exception), "PT404 unknown_metric")
        (code,) = create(self.db, "good", 5)
        self.assert_refused("22023 invalid_argument", "redeem_gift_card", None, code)
        self.assert_refused("22023 invalid_argument", "redeem_gift_card", org, None)
        self.assert_refused("22023 invalid_argument", "redeem_gift_card", org, code, "")
        with self.assertRaises(Refused) as caught:
            rows(self.db, "select billing.redeem_gift_card(%s, %s, null, '[]')", org, code)
        self.assertEqual(code_of(caught.exception), "22023 invalid_argument")
        self.assert_refused("22023 invalid_argument", "void_gift_cards", None)
        rows(self.db, "select billing.create_gift_cards('for ever', 5, expires_at => 'infinity')")
        self.assertEqual(value(self.db, "select count(*) from billing.gift_cards where name = 'for ever' and expires_at is null"), 1)
        self.assertEqual(len(set(create(self.db, "ten thousand", 1, 10_000))), 10_000)
        self.assertEqual(value(self.db, "select count(*) from billing.gift_cards where name = 'n'"), 0)
        self.assertEqual(self.attempts(org), 0)

    def test_guards(self):
        """Neither a card nor a redemption goes away."""
        (code,) = create(self.db, "guarded", 5)
        call(self.db, "redeem_gift_card", self.org(1), code)
        for change in ("delete from billing.gift_cards", "truncate billing.gift_cards", "delete from billing.gift_card_redemptions",
                       "update billing.gift_card_redemptions set grant_id = 1", "truncate billing.gift_card_redemptions"):
            with self.assertRaises(Refused) as caught:
                rows(self.db, change)
            self.assertEqual(code_of(caught.exception), "42501 append_only")

    def test_codes_are_nowhere(self):
        """After all of it, no code stands in any row of any table of the database, however written."""
        org = self.org(1)
        codes = create(self.db, "nowhere", 5, 3, metadata=json.dumps({"a": 1}))
        call(self.db, "redeem_gift_card", org, codes[0], "key of the first", {"b": 2})
        call(self.db, "redeem_gift_card", org, codes[1])
        tried = wrong_code()
        self.assertEqual(answer(self.db, org, tried, "key of the wrong one"), UNKNOWN)
        forms = set()
        for code in [*codes, tried]:
            plain = code.replace("-", "")
            forms |= {plain, plain[:24], "-".join(plain[i:i + 5] for i in range(0, 25, 5)), plain.encode().hex(), plain[:24].encode().hex()}
        forms = {form.lower() for form in forms}
        tables = rows(self.db, "select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'm') and c.relname <> 'pg_largeobject'")
        self.assertGreater(len(tables), 80)
        for (table,) in tables:
            for (text,) in rows(self.db, f"select lower(t::text) from {table} t"):
                found = [form for form in forms if form in (text or "")]
                self.assertEqual(found, [], table)


class NoWorkers(unittest.TestCase):
    """A server without a background worker to spare."""

    def test_refused_without_a_worker(self):
        """What cannot be noted is refused without a word about the code; what is right is redeemed."""
        with connect() as main:
            # What the installed library needs to be found, where that is not the default.
            settings = {name: setting for name in ("dynamic_library_path", "extension_control_path")
                        if (setting := value(main, "select current_setting(%s, true)", name))}
        main.close()
        cluster = Cluster({"max_worker_processes": "0", "max_connections": "20", **settings})
        self.addCleanup(cluster.remove)
        cluster.start()
        connection = cluster.connect()
        self.addCleanup(connection.close)
        install_extension(connection)
        apply_catalog(connection, CATALOG)
        org, (code,) = uuid.uuid4(), create(connection, "alone", 5)
        self.assertEqual(answer(connection, org, wrong_code()), TOO_MANY)
        self.assertEqual(answer(connection, org, "nonsense"), UNKNOWN)
        self.assertEqual(call(connection, "redeem_gift_card", org, code).balance_after, 5)


if __name__ == "__main__":
    unittest.main()

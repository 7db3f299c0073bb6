"""What the attack tests share: roles without and with levels, pasted grants, calls built from the catalogs, and a look at everything.

Each function is called with arguments of the right types that mean something, made from its signature in pg_proc: one that is
added later is attacked without anybody writing it down here.
"""

import collections
import contextlib
import os
import re
import uuid

import psycopg2

from support import LiveTestCase, apply_catalog, call, code_of, install_extension, rows

# Where a test fails and leaves a transaction open, the next one is not to wait for it without end.
os.environ["PGOPTIONS"] = "-c statement_timeout=20s"

OWN = uuid.UUID("00000000-0000-4000-8000-0000000000aa")
OTHER = uuid.UUID("00000000-0000-4000-8000-0000000000bb")
# No argument ever names it: whoever is told of it was told of others.
THIRD = uuid.UUID("00000000-0000-4000-8000-0000000000cc")
MEMBER = uuid.UUID("00000000-0000-4000-8000-0000000000dd")
CATALOG = {"metrics": {"call": {"price": 1}, "page": {"price": 7}, "user": {"aggregation": "unique"}},
           "plans": {"solo": {"credits": {"amount": 10}, "allowances": {"call": 2}}, "team": {"credits": {"amount": 20}}},
           "packs": {"small": {"credits": 10, "price": {"USD": 100}}},
           "caps": [{"metric": "page", "per": "day", "limit": 1000}]}

# As guides to custom schemas recommend it.
PASTED = """grant usage on schema billing, billing_internal to {0};
            grant all on all tables in schema billing, billing_internal to {0};
            grant all on all routines in schema billing, billing_internal to {0};
            grant all on all sequences in schema billing, billing_internal to {0}"""

ROUTINES = """
    select p.oid, n.nspname as schema, p.proname as name, p.oid::regprocedure::text as signature, p.prokind as kind, p.proretset as many,
           coalesce(p.proargnames[1:p.pronargs], '{}') as names, p.proargtypes::oid[]::regtype[]::text[] as types,
           array(select format('%I.%I', tn.nspname, t.typname) from unnest(p.proargtypes::oid[]) with ordinality a (o, i)
                   join pg_type t on t.oid = a.o join pg_namespace tn on tn.oid = t.typnamespace order by a.i) as exact
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname in ('billing', 'billing_internal') and p.prokind in ('f', 'p') and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
     order by n.nspname, p.oid::regprocedure::text"""

RELATIONS = """
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind as kind, c.relispartition as is_partition,
           array(select quote_ident(a.attname) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname in ('billing', 'billing_internal') and c.relkind in ('r', 'p', 'v', 'S') order by c.relname"""

@contextlib.contextmanager
def unguarded(connection):
    """Lets others make things beside ours, as they could before there was a guard."""
    rows(connection, "alter event trigger pg_billing_guard disable")
    try:
        yield
    finally:
        rows(connection, "alter event trigger pg_billing_guard enable")


# Says who runs it, and tries to become more than that.
NOTE = """
    create function {schema}.note(what text) returns boolean language plpgsql as $$
    begin
        raise warning 'RAN % as % (session %)', what, current_user, session_user;
        begin
            execute 'alter role {role} superuser';
            raise warning 'RAN % and made a superuser', what;
        exception when others then
            null;
        end;
        return true;
    end $$"""


def quote(thing):
    """A value as a literal of SQL."""
    if thing is None:
        return "null"
    text = str(thing)
    return ("E" if "\\" in text else "") + "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


class AttackCase(LiveTestCase):
    """A class of attacks with a database of its own, in which three orgs have rows in many tables."""

    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rows(cls.db, "create schema app")
        cls.service = cls.new_role(cls.db, "service")
        cls.member = cls.new_role(cls.db, "member")
        cls.auditor = cls.new_role(cls.db, "auditor")
        cls.webhook = cls.new_role(cls.db, "webhook")
        cls.stranger = cls.bare_role("stranger")
        cls.db.notices = collections.deque()
        cls.fill()

    @classmethod
    def install(cls, connection):
        install_extension(connection)
        apply_catalog(connection, CATALOG)

    @classmethod
    def bare_role(cls, name, options=""):
        """A role that no level was given to; dropped at the end."""
        name = f"billing_{name}_{uuid.uuid4().hex[:8]}"
        rows(cls.admin, f"create role {name} {options}")
        cls.roles.append(name)
        return name

    @classmethod
    def fill(cls):
        """Three orgs with something in most tables; what is found of them is what arguments may name."""
        cls.things = {}
        (cls.code,) = rows(cls.db, "select code from billing.create_gift_cards('party', 5, max_redemptions => 9) code")[0]
        rows(cls.db, "select billing.set_webhook_secret('stripe', 'whsec_of_the_test'), billing.configure_alerts()")
        for org in (OWN, OTHER, THIRD):
            granted = call(cls.db, "grant_credits", org, 7777)
            used = call(cls.db, "consume_credits", org, "call", 3, "first", member_id=MEMBER)
            held = call(cls.db, "reserve_credits", org, "call", 2)
            call(cls.db, "subscribe", org, "solo", idempotency_key="plan")
            rows(cls.db, "select billing.record_usage(%s, 'call', 5, 'event')", org)
            rows(cls.db, "select billing.link_customer(%s, 'stripe', %s)", org, f"cus_{org}")
            paid = call(cls.db, "start_purchase", org, "small", "USD")
            call(cls.db, "redeem_gift_card", org, cls.code)
            call(cls.db, "configure_auto_recharge", org, 5, "small", "USD", monthly_ceiling=1000)
            rows(cls.db, "select billing.note_signal(%s, 'odd', 1, 'odd'), billing.set_org_price(%s, 'page', '1')", org, org)
            cls.things[org] = {"grant_id": granted.grant_id, "operation_id": used.operation_id, "hold_id": held.hold_id, "payment_id": paid.payment_id}
        rows(cls.db, "create table if not exists app.metered (org_id uuid, n int)")

    def setUp(self):
        self.digests = {}

    def connect(self, **options):
        """As everywhere; but all notices are kept, not only the last fifty."""
        connection = super().connect(**options)
        connection.notices = collections.deque()
        return connection

    def session(self, role=None, claims=None, **options):
        """A connection as a role, with claims."""
        connection = self.connect(**options)
        if role:
            rows(connection, f"set role {role}")
        if claims:
            rows(connection, "select pg_catalog.set_config('request.jwt.claims', %s, false)", claims)
        return connection

    def paste(self, *roles):
        """Gives the rights that guides recommend."""
        for role in roles:
            rows(self.db, PASTED.format(role))

    def assert_code(self, expected, connection, statement, *values):
        """The statement is refused with this SQLSTATE (and code)."""
        with self.assertRaises(psycopg2.Error, msg=statement) as caught:
            rows(connection, statement, *values)
        self.assertIn(expected, (caught.exception.pgcode, code_of(caught.exception)), f"{statement}: {caught.exception}")

    def digest(self, connection, sequences=True):
        """One row per table (and sequence) of billing, with what is in it."""
        if sequences not in self.digests:
            parts = []
            for relation in rows(self.db, RELATIONS):
                if relation.kind in "rp" and not relation.is_partition:
                    parts.append(f"select '{relation.name}', md5(string_agg(t::text, ',' order by t::text)) from {relation.name} t")
                elif relation.kind == "S" and sequences:
                    parts.append(f"select '{relation.name}', last_value || ' ' || is_called from {relation.name}")
            self.digests[sequences] = " union all ".join(parts)
        return dict(tuple(row) for row in rows(connection, self.digests[sequences]))

    def arguments(self, routine, org=OTHER, texts=None):
        """Arguments of a routine as SQL, of the exact types; texts: what some of them are to be instead."""
        return [f"{quote((texts or {}).get(name, self.argument(routine, name, kind, org)))}::{exact}"
                for name, kind, exact in zip(list(routine.names) or [""] * len(routine.types), routine.types, routine.exact)]

    def statement(self, routine, org=OTHER, texts=None):
        """The call of a routine."""
        arguments = ", ".join(self.arguments(routine, org, texts))
        if routine.kind == "p":
            return f"call {routine.schema}.{routine.name}({arguments})"
        return f"select * from {routine.schema}.{routine.name}({arguments})"

    def argument(self, routine, name, kind, org):
        """A value for one argument: what it means is told by its name, else by its type."""
        things = self.things[org]
        if name in ("run", "operation_id", "grant_id", "hold_id") and kind == "bigint":
            return things.get(name, 1)
        if name == "payment_id":
            return things[name]
        named = {"metric": "call", "plan": "team", "pack": "small", "currency": "USD", "provider": "stripe", "unit": "credit", "level": "service",
                 "role": self.stranger, "to_org": OWN if org != OWN else OTHER, "member_id": MEMBER, "code": self.code, "category": "promotional",
                 "schedule": "0 * * * *", "mode": "charge", "status": "succeeded", "source": "bonus", "url": "https://example.invalid/", "relation": "app.metered",
                 "org_column": "org_id", "user_column": "n", "quantity_column": "n", "member_column": None, "key_column": None, "idempotency_key": "key",
                 "metrics": None, "topics": None, "lanes": 2, "shards": 1, "of": 1, "shard": 0, "effective_at": None, "expires_at": None, "starts_at": None,
                 "as_of": "2020-01-01" if routine.name == "make_partitions" else None, "occurred_at": None, "price": "1", "customer": f"cus_{org}",
                 "payment_method": None, "owner_type": "organization", "secret": "whsec_another", "time_zone": "UTC", "phase": "settling"}
        if name in named and not (name == "price" and kind != "jsonb"):
            return named[name]
        if kind == "uuid":
            return org
        if kind == "uuid[]":
            return "{" + str(org) + "}"
        if kind == "jsonb":
            item = f'{{"org_id": "{org}", "metric": "call", "quantity": 1}}'
            return {"items": f"[{item}]", "events": f"[{item}]", "catalog": '{"metrics": {"call": {"price": 999}}}'}.get(name, "{}") \
                if not (routine.name == "calculate_cost") else '{"call": 1}'
        return {"text": "text", "name": "name", "bigint": 1, "integer": 1, "smallint": 1, "boolean": True, "json": "{}", "interval": "1 hour", "numeric": 1,
                "timestamp with time zone": "2020-01-01", "date": "2020-01-01", "regclass": "app.metered", "regprocedure": "pg_catalog.now()", "text[]": "{text}",
                "integer[]": "{1}", "oid": 0, "bytea": ""}.get(kind)

    def outcomes(self, session, role, claims="", org=OTHER, before="", routines=None, texts=None):
        """Calls every function (procedures commit and are called elsewhere) as a role, each in a savepoint that is rolled back.

        Yields the routine, how the call ended ('00000', or SQLSTATE and code), its rows, and which tables it changed.
        """
        rows(session, "set statement_timeout = '20s'; set search_path = pg_catalog, public, pg_temp")
        known = self.digest(session, sequences=False)
        for routine in routines or rows(self.db, ROUTINES):
            if routine.kind == "p":
                continue
            statement = self.statement(routine, org, texts)
            rows(session, "savepoint before")
            result = []
            try:
                rows(session, f"select pg_catalog.set_config('request.jwt.claims', %s, true); set local role {role}", claims)
                if before:
                    rows(session, before)
                result = rows(session, statement)
                state = "00000"
            except psycopg2.Error as error:
                state = code_of(error)
                rows(session, "rollback to before")
            rows(session, "reset role; set local search_path = pg_catalog, public, pg_temp")
            # What failed was rolled back.
            after = self.digest(session, sequences=False) if state == "00000" else known
            rows(session, "rollback to before; release before")
            yield routine, state, result, [name for name in known if after.get(name) != known[name]]

    def service_at_work(self, session, org=OWN):
        """Most of what a service does, for one org: whatever hangs on a table of ours comes to run."""
        # As texts: a driver that writes the type beside a value looks for it on the path of the session.
        org, other, somebody = str(org), str(OTHER), str(uuid.uuid4())
        call(session, "grant_credits", org, 50)
        used = call(session, "consume_credits", org, "call", 3)
        call(session, "refund_credits", org, used.operation_id, 1)
        held = call(session, "reserve_credits", org, "call", 2)
        call(session, "capture_credits", org, held.hold_id)
        call(session, "release_credits", org, call(session, "reserve_credits", org, "call", 2).hold_id)
        rows(session, "select billing.record_usage(%s, 'call', 2) a, billing.record_usage(%s, 'user', member_id => %s) b", org, org, somebody)
        call(session, "start_purchase", org, "small", "USD")
        rows(session, "select billing.freeze_org(%s, 'odd') a, billing.unfreeze_org(%s) b", org, org)
        call(session, "transfer_credits", org, other, 1)
        call(session, "settle_org", org)
        call(session, "change_plan", org, "team")
        apply_catalog(session, {**CATALOG, "metrics": {**CATALOG["metrics"], "new": {"price": 3}}})

    def ran(self, session, *harmless):
        """What hostile code said in a session, but for what ran as a role to which it belongs."""
        said = [re.sub(r"^WARNING:\s*", "", notice).strip() for notice in session.notices if "RAN " in notice]
        session.notices.clear()
        return sorted({line for line in said if not any(f" as {role} " in line for role in harmless)})

"""The outbox: events that are claimed, or posted by pg_net or http."""

import json
import unittest
import uuid

from payments_support import Payments, intent, refused
from support import call, connect, rows, value


class Outbox(Payments):
    def emit(self, topic="t", **payload):
        return value(self.db, "select billing_internal.emit_event(%s, %s, %s)", self.org, topic, json.dumps(payload))

    def claim(self, topic, db=None, **more):
        return rows(db or self.db, "select * from billing.claim_events(%s, %s, %s)", [topic], more.get("limit", 10), more.get("lease", "1 minute"))

    def test_each_is_claimed_once(self):
        """Twenty workers at once: no event twice."""
        topic = uuid.uuid4().hex
        emitted = {self.emit(topic, n=n) for n in range(100)}
        claims = self.parallel(20, lambda db, _: [e.event_id for e in self.claim(topic, db, limit=7)])
        claimed = [event_id for some in claims for event_id in some]
        self.assertEqual((len(claimed), set(claimed)), (100, emitted))
        self.assertEqual(value(self.db, "select billing.ack_events(%s)", claimed), 100)
        self.assertEqual(value(self.db, "select billing.ack_events(%s)", claimed), 0)

    def test_the_lease(self):
        topic = uuid.uuid4().hex
        event_id = self.emit(topic, a=1)
        db = self.connect()
        rows(db, "select set_config('billing.test_clock', now()::text, false)")
        (first,) = self.claim(topic, db, lease="30 seconds")
        self.assertEqual((first.event_id, first.attempt, first.payload), (event_id, 1, {"a": 1, "org_id": str(self.org)}))
        self.assertEqual(self.claim(topic, db), [])
        rows(db, "select set_config('billing.test_clock', (now() + interval '31 seconds')::text, false)")
        (second,) = self.claim(topic, db)
        self.assertEqual((second.event_id, second.attempt), (event_id, 2))

    def test_failures_and_the_dead_letter(self):
        topic = uuid.uuid4().hex
        event_id = self.emit(topic)
        db = self.connect()
        pauses = []
        for attempt in range(1, 11):
            rows(db, "select set_config('billing.test_clock', available_at::text, false) from billing.outbox where event_id = %s", event_id)
            (claimed,) = self.claim(topic, db)
            self.assertEqual(claimed.attempt, attempt)
            answer = value(db, "select billing.fail_event(%s, 'no answer')", event_id)
            self.assertEqual(answer, "retry" if attempt < 10 else "dead")
            pauses.append(value(db, "select extract(epoch from available_at - billing.clock())::int from billing.outbox where event_id = %s", event_id))
        self.assertEqual(pauses[:9], [10, 20, 40, 80, 160, 320, 640, 1280, 2560])
        rows(db, "reset billing.test_clock")
        self.assertEqual(self.claim(topic), [])
        refused(self.db, "select billing.fail_event(%s, 'x')", event_id, sqlstate="PT404")
        value(self.db, "select billing.requeue_event(%s)", event_id)
        self.assertEqual(len(self.claim(topic)), 1)

    def test_a_payment_that_nobody_could_ask_for(self):
        """It fails with its dead letter; should the money come all the same, it counts."""
        payment = self.buy(customer="cus_1")
        self.assertEqual(payment.status, "processing")
        (event_id,) = [r.event_id for r in rows(self.db, "select event_id from billing.outbox where org_id = %s", self.org)]
        rows(self.db, "update billing.outbox set attempts = 10 where event_id = %s", event_id)
        self.assertEqual(value(self.db, "select billing.fail_event(%s, 'no such customer')", event_id), "dead")
        found = rows(self.db, "select status, failure from billing.payments where org_id = %s", self.org)
        self.assertEqual([tuple(p) for p in found], [("failed", "no such customer")])
        self.deliver("payment_intent.succeeded", intent(payment))
        self.assertEqual(self.credit(), 1100)

    def test_whoever_waits_is_told(self):
        db = self.connect()
        rows(db, "listen billing_events")
        topic = uuid.uuid4().hex
        self.emit(topic)
        rows(db, "select 1")
        self.assertIn(topic, [notice.payload for notice in db.notifies])

    def test_what_is_rolled_back_is_not_there(self):
        db, topic = self.connect(autocommit=False), uuid.uuid4().hex
        value(db, "select billing_internal.emit_event(%s, %s, '{}')", self.org, topic)
        db.rollback()
        self.assertEqual(self.claim(topic), [])

    def test_bad_input(self):
        for statement in ("select billing.claim_events(null, 0)", "select billing.claim_events(null, 1, '0')",
                          "select billing.claim_events(null, null)", "select billing.ack_events(null)"):
            refused(self.db, statement, sqlstate="22023")



class Delivery(Payments):
    """Posting by pg_net or http. Neither is on every machine, so both have stand-ins here, with their functions' own signatures."""

    PG_NET = """
        create schema net;
        create table net._http_response (id bigint primary key, status_code integer, error_msg text);
        create table net.posted (id bigint generated always as identity, url text, body jsonb, headers jsonb);
        create function net.http_post(url text, body jsonb default '{}', params jsonb default '{}', headers jsonb default '{}',
                                      timeout_milliseconds integer default 5000) returns bigint language sql as
            $$ insert into net.posted (url, body, headers) values ($1, $2, $4) returning id $$;"""
    HTTP = """
        create type public.http_header as (field varchar, value varchar);
        create domain public.http_method as text;
        create type public.http_request as (method public.http_method, uri varchar, headers public.http_header[],
                                            content_type varchar, content varchar);
        create type public.http_response as (status integer, content_type varchar, headers public.http_header[], content varchar);
        create function public.http_header(varchar, varchar) returns public.http_header language sql as $$ select $1, $2 $$;
        create table public.posted (request public.http_request);
        create function public.http(public.http_request) returns public.http_response language plpgsql as $$
        begin
            if ($1).uri like '%%unreachable%%' then raise exception 'could not connect'; end if;
            insert into public.posted values ($1);
            return row(case when ($1).uri like '%%broken%%' then 500 else 200 end, 'text/plain', null, 'ok')::public.http_response;
        end $$;"""

    def stand_in(self, name, script):
        """A database in which that extension seems to be installed."""
        db = connect(self.new_database())
        self.addCleanup(db.close)
        self.install(db)
        rows(db, script.replace("%%", "%"))
        schema = "net" if name == "pg_net" else "public"
        rows(db, "set allow_system_table_mods = on")
        rows(db, "insert into pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)"
                 " values (999999, %s, 10, %s::regnamespace, false, '1')", name, schema)
        for (function,) in rows(db, "select oid::regprocedure::text from pg_proc where pronamespace = %s::regnamespace and proname like 'http%%'", schema):
            rows(db, f"alter extension {name} add function {function}")
        return db

    def test_nothing_to_deliver_with(self):
        db = connect(self.new_database())
        self.addCleanup(db.close)
        self.install(db)
        self.assertEqual(refused(db, "select billing.deliver_events()", sqlstate="55000")["code"], "not_configured")
        value(db, "select billing.configure_delivery('http://127.0.0.1/hook')")
        self.assertEqual(refused(db, "select billing.deliver_events()", sqlstate="55000")["code"], "no_http")
        for url in ("ftp://x", "javascript:1", "http://a b"):
            refused(db, "select billing.configure_delivery(%s)", url, sqlstate="22023")

    def test_http(self):
        db = self.stand_in("http", self.HTTP)
        value(db, "select billing.configure_delivery('http://127.0.0.1/hook', '{a}', '{\"Authorization\": \"Bearer t\"}')")
        event_id = value(db, "select billing_internal.emit_event(%s, 'a', '{\"n\": 1}')", self.org)
        value(db, "select billing_internal.emit_event(%s, 'other', '{}')", self.org)
        self.assertEqual(value(db, "select billing.deliver_events()"), 1)
        self.assertEqual(value(db, "select billing.deliver_events()"), 0)
        (posted,) = rows(db, "select (request).method, (request).uri, (request).headers::text, (request).content::jsonb from posted")
        self.assertEqual((posted.method, posted.uri, posted.headers), ("POST", "http://127.0.0.1/hook", '{"(Authorization,\\"Bearer t\\")"}'))
        self.assertEqual((posted.content["event_id"], posted.content["payload"]["n"]), (str(event_id), 1))
        for place, error in (("broken", "status 500"), ("unreachable", "could not connect")):
            value(db, "select billing.configure_delivery(%s)", f"http://127.0.0.1/{place}")
            rows(db, "update billing.outbox set available_at = '-infinity' where topic = 'other'")
            self.assertEqual(value(db, "select billing.deliver_events()"), 0)
            self.assertEqual(value(db, "select last_error from billing.outbox where topic = 'other'"), error)

    def test_pg_net(self):
        db = self.stand_in("pg_net", self.PG_NET)
        value(db, "select billing.configure_delivery('http://127.0.0.1/hook')")
        events = [value(db, "select billing_internal.emit_event(%s, 'a', '{}')", self.org) for _ in range(2)]
        self.assertEqual(value(db, "select billing.deliver_events()"), 0)
        rows(db, "insert into net._http_response values (1, 204, null), (2, null, 'timeout')")
        self.assertEqual(value(db, "select billing.deliver_events()"), 1)
        first, second = rows(db, "select delivered_at, last_error from billing.outbox order by event_id")
        self.assertEqual((first.delivered_at is None, second.delivered_at, second.last_error), (False, None, "timeout"))
        self.assertEqual(value(db, "select count(*) from net.posted"), len(events))

    def test_alerts_are_delivered_where_wanted(self):
        call(self.db, "create_wallet", self.org, low_balance_threshold=50)
        call(self.db, "grant_credits", self.org, 100)
        value(self.db, "select billing.configure_alerts(deliver => true)")
        self.addCleanup(value, self.db, "select billing.configure_alerts()")
        call(self.db, "consume_credits", self.org, "call", 60)
        kinds = {r.payload["kind"] for r in rows(self.db, "select payload from billing.outbox where org_id = %s and topic = 'alert.raised'", self.org)}
        self.assertEqual(kinds, {"low_balance", "balance"})


if __name__ == "__main__":
    unittest.main()

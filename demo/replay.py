#!/usr/bin/env python3
"""Replays a production hour of LLM requests against pg_billing, as the app that sells them would.

Each request reserves credits for its context before it runs and captures what it really took
afterwards, in one transaction with the app's own row. bin/demo starts this; the connection comes
from the PG* variables.
"""

import argparse
import bisect
import collections
import csv
import itertools
import json
import random
import sys
import threading
import time
import uuid

import psycopg2

APP_ROLE = "demo_app"
METRIC = "llm_tokens"
NAMESPACE = uuid.UUID("6f1c1f0a-5f0e-4c0e-9a64-2f0d3a8f2023")
# From the busiest to the quietest: the first sends every fifth request, the last every twenty-fifth.
ORGS = [
    "Ferrum Robotics", "Blue Heron Health", "Papaya Games", "Northwind Legal", "Kumo Travel", "Tidal Analytics",
    "Lumen Schools", "Quarry Insurance", "Otter Logistics", "Saffron Kitchens", "Alder & Finch", "Marble Museum",
]
DRY_ORG = "Papaya Games"          # buys too little at first
HESITANT_ORG = "Marble Museum"    # reserves, and never comes back
TRIAL_ORG = "Dormant Labs"        # has trial credits and sends nothing
MEMBERS = [
    "Ada", "Bruno", "Chitra", "Dmitri", "Elif", "Farid", "Grace", "Hana", "Ines", "Jonas", "Kofi", "Lena", "Mateo", "Nuria",
    "Oscar", "Priya", "Quentin", "Rosa", "Sven", "Tomoko", "Uma", "Viktor", "Wanjiru", "Ximena", "Yusuf", "Zoe",
]

GRANT = """select grant_id, balance_after, replayed
             from billing.grant_credits(%s, %s, source => %s, expires_at => %s, cost_minor => %s, currency => %s, idempotency_key => %s)"""
RESERVE = """select hold_id, credits, expires_at, balance_after, replayed
               from billing.reserve_credits(%s, %s, %s, ttl => %s, idempotency_key => %s, member_id => %s)"""
CAPTURE = """select operation_id, credits, balance_after, replayed
               from billing.capture_credits(%s, %s, quantity => %s, idempotency_key => %s, metadata => %s)"""

Request = collections.namedtuple("Request", "number org_id member_id arrived_at context generated")

TERMINAL = sys.stdout.isatty()
BOLD, DIM, RED, GREEN, PLAIN = ("\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[0m") if TERMINAL else ("",) * 5
screen = threading.Lock()


def say(text=""):
    """Prints a line, over the progress line if there is one."""
    with screen:
        print(("\r\033[K" if TERMINAL else "") + text, flush=True)


def title(text):
    say()
    say(f"{BOLD}{text}{PLAIN}")


def identifier(kind, name):
    return str(uuid.uuid5(NAMESPACE, f"{kind}/{name}"))


def connect(user=None):
    """A connection in autocommit mode; the user is the superuser of PGUSER unless named."""
    conn = psycopg2.connect(**({"user": user} if user else {}))
    conn.autocommit = True
    return conn


def query(conn, sql, *params):
    with conn.cursor() as cur:
        cur.execute(sql, params)
        return cur.fetchall() if cur.description else []


def wait_until(condition, timeout):
    """Asks again and again until the answer is true; returns the seconds it took, or None."""
    start = time.monotonic()
    pause = threading.Event()
    while not condition():
        if time.monotonic() - start > timeout:
            return None
        pause.wait(0.05)
    return time.monotonic() - start


def detail_of(error):
    """The JSON detail that every refusal of pg_billing carries."""
    try:
        return json.loads(error.diag.message_detail or "{}")
    except ValueError:
        return {"detail": error.diag.message_detail}


# ---------------------------------------------------------------- the input


def read_trace(path):
    """The requests, spread over the organizations and their members in the same way on every run."""
    shares = list(itertools.accumulate(1 / (n + 3) for n in range(len(ORGS))))
    members = {org: [identifier("member", name) for name in names] for org, names in members_of_orgs().items()}
    dice = random.Random(2023)
    requests = []
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            org = ORGS[bisect.bisect(shares, dice.random() * shares[-1])]
            # Squaring favours the first members of each organization.
            member = members[org][int(dice.random() ** 2 * len(members[org]))]
            requests.append(Request(number, identifier("org", org), member, row["TIMESTAMP"].rstrip("0"),
                                    int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return requests


def members_of_orgs():
    """Two or three members for each organization."""
    names = iter(MEMBERS)
    return {org: list(itertools.islice(names, 3 if n < 2 else 2)) for n, org in enumerate(ORGS)}


# ---------------------------------------------------------------- before the replay


def price_words(price, unit):
    if isinstance(price, int):
        return f"{price} credits each"
    if "steps" not in price:
        return json.dumps(price)
    return ", then ".join(f"{step['credits']} credits per {step.get('per', 1):,} {unit}s"
                          + (f" up to {step['up_to']:,}" if "up_to" in step else "") for step in price["steps"])


def apply_catalog(conn, path):
    with open(path, encoding="utf-8") as file:
        catalog = json.load(file)
    title("The price list is one document (billing.apply_catalog)")
    for action, kind, name in query(conn, "select action, kind, name from billing.apply_catalog(%s)", json.dumps(catalog)):
        price = catalog.get("metrics", {}).get(name, {}).get("price") if kind.startswith("metric") else None
        say(f"  {action} {kind} {name}" + (f": {price_words(price, catalog['metrics'][name].get('unit', 'unit'))}" if price is not None else ""))
    return catalog


def cost_of(catalog, tokens):
    """What the tokens of a whole month cost: the exact price, rounded up once."""
    step = catalog["metrics"][METRIC]["price"]["steps"][0]
    return -(-tokens * step["credits"] // step["per"])


def sell_credits(admin, app, catalog, tokens_of):
    """The app's own rows, and what each organization buys before the hour begins."""
    for org, names in members_of_orgs().items():
        query(admin, "insert into app.orgs values (%s, %s)", identifier("org", org), org)
        for name in names:
            query(admin, "insert into app.members values (%s, %s, %s)", identifier("member", name), identifier("org", org), name)
    query(admin, "insert into app.orgs values (%s, %s)", identifier("org", TRIAL_ORG), TRIAL_ORG)

    title(f"{len(ORGS)} organizations buy credits (billing.grant_credits)")
    [(welcome_until,)] = query(app, "select billing.clock() + interval '30 days'")
    for org in ORGS:
        org_id = identifier("org", org)
        share = 35 if org == DRY_ORG else 130
        amount = -(-(cost_of(catalog, tokens_of[org_id]) + 100) * share // 10000) * 100
        query(app, GRANT, org_id, amount, "purchase", None, amount, "USD", "first-purchase")
        [(_, balance, _)] = query(app, GRANT, org_id, 200, "bonus", welcome_until, 0, None, "welcome")
        query(app, "select * from billing.consume_credits(%s, 'repo_index', 1, idempotency_key => 'index-1')", org_id)
        say(f"  {org:<18} {amount:>7,} bought + 200 welcome bonus = {balance:>7,}   − 40 for indexing its repository")

    [(trial_until,)] = query(app, "select billing.clock() + interval '1 second'")
    query(app, GRANT, identifier("org", TRIAL_ORG), 500, "bonus", trial_until, 0, None, "trial")
    say(f"  {TRIAL_ORG:<18}     500 trial credits that expire in one second: pg_cron will book that")


# ---------------------------------------------------------------- the replay


class Replay:
    """Several connections that work off one queue of requests."""

    def __init__(self, requests, connections, top_up_amount, started):
        self.requests = requests
        self.connections = connections
        self.top_up_amount = top_up_amount
        self.started = started
        self.queue = iter(requests)
        self.lock = threading.Lock()
        self.top_up_lock = threading.Lock()
        self.top_ups = 0
        self.refused = 0
        self.reserve_times = []
        self.capture_times = []
        self.first_charge = None
        self.failure = None
        self.finished = threading.Event()
        self.seconds = 0.0

    def run(self):
        title(f"{len(self.requests):,} requests over {self.connections} connections: reserve_credits before each, capture_credits after it")
        begin = time.monotonic()
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(self.connections)]
        for thread in threads:
            thread.start()
        reporter = threading.Thread(target=self.report_progress, args=(begin,), daemon=True)
        reporter.start()
        for thread in threads:
            thread.join()
        self.seconds = time.monotonic() - begin
        self.finished.set()
        reporter.join()
        if self.failure:
            raise self.failure
        say(f"  {len(self.requests):,} requests charged in {self.seconds:.1f} s: {len(self.requests) / self.seconds:,.0f} requests/s")

    def work(self):
        try:
            conn = connect(APP_ROLE)
            while self.failure is None:
                with self.lock:
                    request = next(self.queue, None)
                if request is None:
                    return
                self.serve(conn, request)
        except Exception as error:  # pylint: disable=broad-except  # handed to the main thread
            self.failure = self.failure or error

    def serve(self, conn, request):
        """One request of a customer: reserve, do the work, capture."""
        begin = time.perf_counter()
        hold_id = self.insist(conn, request, lambda: reserve(conn, request))
        between = time.perf_counter()
        # Here the model would run.
        self.insist(conn, request, lambda: capture(conn, request, hold_id))
        end = time.perf_counter()
        with self.lock:
            self.reserve_times.append(between - begin)
            self.capture_times.append(end - between)
            if self.first_charge is None:
                self.first_charge = time.time() - self.started
                first = self.first_charge
            else:
                return
        say(f"  first request charged {first:.1f} s after bin/demo started")

    def insist(self, conn, request, call):
        """Makes a call; when the wallet has run dry, buys credits and makes the same call again."""
        while True:
            seen = self.top_ups
            try:
                return call()
            except psycopg2.Error as error:
                if error.pgcode != "PT402":
                    raise
                self.top_up(conn, request, error, seen)

    def top_up(self, conn, request, error, seen):
        with self.top_up_lock:
            self.refused += 1
            if self.top_ups > seen:
                return  # another connection has bought credits meanwhile
            detail = detail_of(error)
            amount = max(self.top_up_amount.get(request.org_id, 0), 2 * int(detail.get("required", 0)), 1000)
            org = query(conn, "select name from app.orgs where org_id = %s", request.org_id)[0][0]
            say(f"  {RED}refused{PLAIN} with {error.pgcode}: {org} has run dry, request {request.number:,} does not go through")
            say(f"    {error.diag.message_primary}")
            say(f"    detail  {json.dumps(detail)}")
            [(grant_id, balance, _)] = query(conn, GRANT, request.org_id, amount, "purchase", None, amount, "USD",
                                             f"top-up-{self.top_ups + 1}")
            say(f"  {GREEN}top-up{PLAIN}: grant_credits(…, {amount:,}, source => 'purchase') → grant {grant_id}, "
                f"balance {balance:,}; the same call is made again")
            self.top_ups += 1

    def report_progress(self, begin):
        total = len(self.requests)
        while not self.finished.wait(0.1 if TERMINAL else 2):
            done = len(self.capture_times)
            rate = done / (time.monotonic() - begin)
            line = f"{done:>6,} of {total:,} requests · {rate:,.0f} requests/s · {self.refused} refused"
            if TERMINAL:
                filled = done * 30 // total
                with screen:
                    print(f"\r\033[K  {'█' * filled}{'░' * (30 - filled)} {line}", end="", flush=True)
            else:
                say("  " + line)


def reserve(conn, request, key=None, ttl="5 minutes"):
    [(hold_id, *_)] = query(conn, RESERVE, request.org_id, METRIC, request.context, ttl,
                            key or f"request-{request.number}-reserve", request.member_id)
    return hold_id


def capture(conn, request, hold_id):
    """Charges the request and writes the app's own row: both, or neither."""
    with conn.cursor() as cur:
        cur.execute("begin")
        try:
            # The charge comes last: from there to the commit other requests of this organization wait.
            cur.execute("insert into app.requests values (%s, %s, %s, %s, %s, %s, %s)",
                        (request.number, request.org_id, request.member_id, request.arrived_at,
                         request.context, request.generated, hold_id))
            charge = run_capture(cur, request, hold_id)
        except BaseException:
            cur.execute("rollback")
            raise
        cur.execute("commit")
    return charge


def run_capture(cur, request, hold_id):
    cur.execute(CAPTURE, (request.org_id, hold_id, request.context + request.generated, f"request-{request.number}-capture",
                          json.dumps({"request": request.number})))
    return cur.fetchone()


# ---------------------------------------------------------------- after the replay


def retry_charges_nothing(app, request):
    title("A retry with the same keys charges nothing")
    org = query(app, "select name from app.orgs where org_id = %s", request.org_id)[0][0]
    total = "select billing.get_total_credits(%s)"
    [(before,)] = query(app, total, request.org_id)
    [(hold_id, _, _, _, reserve_replayed)] = query(app, RESERVE, request.org_id, METRIC, request.context, "5 minutes",
                                                   f"request-{request.number}-reserve", request.member_id)
    with app.cursor() as cur:
        operation_id, credits, _, capture_replayed = run_capture(cur, request, hold_id)
    [(after,)] = query(app, total, request.org_id)
    say(f"  request {request.number} of {org} again: hold {hold_id}, replayed = {str(reserve_replayed).lower()}; "
        f"operation {operation_id} for {credits} credits, replayed = {str(capture_replayed).lower()}")
    say(f"  balance before {before:,}, after {after:,}")
    if not (reserve_replayed and capture_replayed and before == after):
        raise SystemExit("error: the retry was charged")


def expired_hold_frees_itself(app):
    title("A hold that nobody captures frees itself")
    org_id = identifier("org", HESITANT_ORG)
    total = "select billing.get_total_credits(%s)"
    [(before,)] = query(app, total, org_id)
    [(hold_id, held, *_)] = query(app, RESERVE, org_id, METRIC, 50_000, "1 second", "forgotten-reserve", None)
    [(during,)] = query(app, total, org_id)
    say(f"  {HESITANT_ORG}: {before:,} credits; hold {hold_id} takes {held:,} for one second, leaving {during:,}")
    if during != before - held:
        raise SystemExit("error: the hold does not count against the balance")
    waited = wait_until(lambda: query(app, total, org_id)[0][0] == before, 15)
    if waited is None:
        raise SystemExit("error: the hold has not freed its credits after 15 seconds")
    say(f"  {waited:.1f} s later, with no job and no call in between: {before:,} credits again")


def cron_books_the_expiry(admin):
    title("pg_cron runs the extension's job by itself")
    [(command, schedule, version)] = query(admin, """
        select j.command, j.schedule, e.extversion from cron.job j, pg_extension e
         where e.extname = 'pg_cron' and j.jobname = 'book expiries'""")
    minutely = schedule == "* * * * *"
    say(f"  pg_cron {version} runs \"{command}\" " + ("every minute" if minutely else f"every {schedule}")
        + (f", next in {60 - time.time() % 60:.0f} s" if minutely else ""))
    org_id = identifier("org", TRIAL_ORG)
    booked = """select amount, created_at from billing.entries where org_id = %s and kind = 'expiry'"""
    ran = "select count(*) from cron.job_run_details where status = 'succeeded' and command = %s"
    if TERMINAL:
        with screen:
            print(f"  {DIM}waiting …{PLAIN}", end="", flush=True)
    waited = wait_until(lambda: query(admin, booked, org_id) and query(admin, ran, command)[0][0], 150)
    if waited is None:
        for row in query(admin, "select status, return_message from cron.job_run_details order by start_time desc limit 3"):
            say(f"  last run: {row}")
        raise SystemExit("error: pg_cron has not booked the expiry of the trial credits after 150 seconds")
    [(amount, created_at), *_] = query(admin, booked, org_id)
    say(f"  {TRIAL_ORG}: its {-amount:,} trial credits had expired; the job booked that as an entry of kind expiry at {created_at:%H:%M:%S}")


def check(admin, replay, catalog, tokens_of, month):
    """Compares with an independent calculation, and lets the ledger prove itself."""
    title("Is it right?")
    charged = dict(query(admin, "select org_id::text, -sum(amount) from billing.entries where kind = 'usage' and metric = %s group by 1", METRIC))
    [(operations, same_month)] = query(admin, """
        select count(distinct (org_id, source_id)), date_trunc('month', billing.clock() at time zone 'UTC') = %s
          from billing.entries where kind = 'usage' and metric = %s""", month, METRIC)
    expected = {org_id: cost_of(catalog, tokens) for org_id, tokens in tokens_of.items()}
    # Prices are rounded up once per calendar month: an hour across its end may cost one credit more.
    slack = 0 if same_month else 1
    wrong = [org_id for org_id in expected if not 0 <= charged.get(org_id, 0) - expected[org_id] <= slack]
    say(f"  {operations:,} of {len(replay.requests):,} requests are in the ledger, each once")
    say(f"  charged {sum(charged.values()):,} credits for {sum(tokens_of.values()):,} tokens; "
        f"the exact price of each organization's total, rounded up once: {sum(expected.values()):,}")
    begin = time.monotonic()
    violations = query(admin, "select violation, detail from billing.verify_ledger()")
    seconds = time.monotonic() - begin
    [(entries,)] = query(admin, "select count(*) from billing.entries")
    say(f"  verify_ledger(): {len(violations)} violations in {entries:,} entries ({seconds:.2f} s)")
    for violation, detail in violations[:5]:
        say(f"    {violation}: {detail}")

    def milliseconds(times):
        ordered = sorted(times)
        return f"{ordered[len(ordered) // 2] * 1000:.2f} ms median, {ordered[len(ordered) * 99 // 100] * 1000:.2f} ms at 99 %"

    for what, value in [
        ("requests", f"{len(replay.requests):,} over {replay.connections} connections"),
        ("elapsed", f"{replay.seconds:.1f} s"),
        ("throughput", f"{len(replay.requests) / replay.seconds:,.0f} requests/s, two calls and two commits each"),
        ("reserve_credits", milliseconds(replay.reserve_times)),
        ("capture_credits and the app's row", milliseconds(replay.capture_times)),
        ("refused with PT402, then topped up", f"{replay.refused:,}"),
        ("first charged request", f"{replay.first_charge:.1f} s after the start"),
        ("charged against exact price", "equal for every organization" if not wrong else f"different for {len(wrong)} organizations"),
        ("verify_ledger()", f"sound, {len(violations)} violations in {entries:,} entries" if not violations
         else f"{len(violations)} VIOLATIONS in {entries:,} entries"),
    ]:
        query(admin, "insert into app.replay_report (what, value) values (%s, %s)", what, value)
    if wrong or violations or operations != len(replay.requests):
        for org_id in wrong:
            say(f"  {org_id}: charged {charged.get(org_id, 0):,}, expected {expected[org_id]:,}")
        raise SystemExit("error: the ledger is not what it should be")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", required=True, help="CSV file: TIMESTAMP, ContextTokens, GeneratedTokens")
    parser.add_argument("--catalog", required=True, help="the price list, a JSON document")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--limit", type=int, help="only the first so many requests")
    parser.add_argument("--started", type=float, default=time.time(), help="when the demo began, in seconds since 1970")
    options = parser.parse_args()

    requests = read_trace(options.trace)[:options.limit]
    tokens_of = collections.Counter()
    for request in requests:
        tokens_of[request.org_id] += request.context + request.generated

    admin, app = connect(), connect(APP_ROLE)
    [(month,)] = query(admin, "select date_trunc('month', billing.clock() at time zone 'UTC')")
    catalog = apply_catalog(admin, options.catalog)
    sell_credits(admin, app, catalog, tokens_of)

    dry_org = identifier("org", DRY_ORG)
    replay = Replay(requests, options.connections, {dry_org: cost_of(catalog, tokens_of[dry_org]) // 100 * 100}, options.started)
    replay.run()

    retry_charges_nothing(app, requests[0])
    expired_hold_frees_itself(app)
    cron_books_the_expiry(admin)
    check(admin, replay, catalog, tokens_of, month)


if __name__ == "__main__":
    try:
        main()
    except psycopg2.Error as failure:
        say(f"{RED}error{PLAIN} {failure.pgcode or 'connection'}: {(failure.diag.message_primary or str(failure)).strip()}")
        for label, text in [("detail", failure.diag.message_detail), ("hint", failure.diag.message_hint), ("context", failure.diag.context)]:
            if text:
                say(f"  {label}: {text}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)

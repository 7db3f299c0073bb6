#!/usr/bin/python3
"""Benchmark of pg_billing against what is written by hand instead, both in one interleaved run on one cluster.

bin/bench starts a private cluster and calls this; README.md beside this file says what is measured and why.
"""

import argparse
import ctypes
import dataclasses
import datetime
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psycopg2

HERE = pathlib.Path(__file__).resolve().parent
ROLE = "billing_bench"
SMALL, SCRATCH, LARGE, USAGE, UNSETTLED = (f"{ROLE}_{name}" for name in ("small", "scratch", "large", "usage", "unsettled"))
LEDGERS = (SMALL, LARGE)
LEDGER_PARTS, USAGE_PARTS = ("consume", "total"), ("record", "settle", "check")
OURS, HAND = "pg_billing", "hand-written"
SCRIPTS = {
    ("consume", OURS): "consume.sql",
    ("consume", HAND): "consume_handwritten.sql",
    ("total", OURS): "total.sql",
    ("total", HAND): "total_handwritten.sql",
    ("record", OURS): "record.sql",
    ("record", HAND): "record_handwritten.sql",
    ("check", OURS): "check.sql",
    ("check", HAND): "total_handwritten.sql",
}
LEDGER = {OURS: "billing.entries", HAND: "handwritten.ledger"}
PRICE = 15  # consume_handwritten.sql passes the same number
CATALOG = '{"metrics": {"bench_call": {"price": %d}}}' % PRICE
# Every org goes over what its plan includes, so that each settlement charges each of them, for both metrics.
USAGE_CATALOG = """{
    "metrics": {"bench_event": {"price": {"steps": [{"up_to": 1000, "credits": 3, "per": 2}, {"credits": 1, "per": 1}]}},
                "bench_byte": {"price": {"steps": [{"credits": 7, "per": 1000}]}}},
    "plans": {"bench": {"price": {"USD": 900}, "allowances": {"bench_event": 100, "bench_byte": 10000}, "limits": {"bench_event": "hard"}}}
}"""
CREDIT = 10**12
CHECK_ORGS = 20
ORG = "('00000000-0000-4000-8000-' || lpad(to_hex(({})::int), 12, '0'))::uuid"
WARM_UP = 3  # seconds
THROUGHPUT_AIM = 0.9
TOTAL_AIM = 1.5
RECORD_AIM = 0.8
SETTLE_AIM = 6
CHECK_AIM = 4
FLAT_AIM = 1.1
SIZES_AIM = 0.10
BYTES_AIM = 350
STATED_SETTINGS = (
    "fsync", "full_page_writes", "synchronous_commit", "wal_level", "wal_compression", "data_checksums", "shared_buffers",
    "max_wal_size", "checkpoint_timeout", "autovacuum", "jit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Measure:
    """One line of the table; `aim` holds for the ratio pg_billing / hand-written."""

    name: str
    digits: int = 0
    more_is_better: bool = False
    aim: float | None = None
    ratio: bool = True

    def met(self, ratio):
        """Whether a ratio reaches the aim."""
        return ratio >= self.aim if self.more_is_better else ratio <= self.aim


def arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", required=True, help="socket directory or address of a private cluster on this machine")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--entries", type=int, help="entries in the large ledger (5,000,000)")
    parser.add_argument("--small-entries", type=int, help="entries in the small ledger (10,000)")
    parser.add_argument("--rounds", type=int, help="rounds; medians are reported (5)")
    parser.add_argument("--seconds", type=int, help="measured seconds of each throughput block (5)")
    parser.add_argument("--calls", type=int, help="calls of each single-client block (20,000)")
    parser.add_argument("--wallets", type=int, default=1000)
    parser.add_argument("--clients", help="client counts, comma-separated (8,32)")
    parser.add_argument("--only", help="parts, comma-separated, of consume, total, record, settle and check (all of them)")
    parser.add_argument("--events", type=int, help="events that a settlement finds (1,000,000)")
    parser.add_argument("--unsettled", type=int, help="unsettled events of an org that check_limit finds (10,000)")
    parser.add_argument("--quick", action="store_true", help="small numbers everywhere: shows that it runs, the figures mean nothing")
    parser.add_argument("--profile", action="store_true", help="also run perf on a backend that consumes")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file (docs/BENCHMARKS.md; with --quick none)")
    parser.add_argument("--template", help="start from a copy of this database, which has the extension, instead of an empty one")
    parser.add_argument("--keep", action="store_true", help="leave the databases behind")
    options = parser.parse_args()
    usual = {
        "entries": 5_000_000, "small_entries": 10_000, "rounds": 5, "seconds": 5, "calls": 20_000, "clients": "8,32",
        "events": 1_000_000, "unsettled": 10_000,
    }  # fmt: skip
    quick = {
        "entries": 5_000, "small_entries": 1_000, "rounds": 1, "seconds": 1, "calls": 500, "clients": "8",
        "events": 20_000, "unsettled": 500,
    }  # fmt: skip
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.clients = [int(count) for count in options.clients.split(",")]
    options.parts = options.only.split(",") if options.only else [*LEDGER_PARTS, *USAGE_PARTS]
    unknown = set(options.parts) - {*LEDGER_PARTS, *USAGE_PARTS}
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    # The page is whole or not written.
    if options.output is None and not options.quick and not options.only:
        options.output = HERE.parent / "docs" / "BENCHMARKS.md"
    if options.output and not os.access(options.output if options.output.exists() else options.output.parent, os.W_OK):
        parser.error(f"cannot write {options.output}: choose another file with --output")
    if min(options.rounds, options.seconds, options.calls, options.wallets, options.events, options.unsettled, *options.clients) < 1:
        parser.error("counts must be positive")
    if not 0 < options.small_entries <= options.entries:
        parser.error("--small-entries must be positive and no more than --entries")
    return options


def written(number):
    """A count as people say it: 5 million, 10 thousand, 1,234."""
    for unit, name in ((1_000_000, "million"), (1_000, "thousand")):
        if number >= unit and number % unit == 0:
            return f"{number // unit:,} {name}"
    return f"{number:,}"


def say(text):
    """Progress; the tables alone go to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class PreparedCall:
    """Calls one prepared statement of one integer parameter as an application's driver does.

    psycopg2 only knows the simple protocol, whose parsing would be added to both sides and hide the difference; libpq under it knows better.
    """

    TUPLES_OK, COMMAND_OK = 2, 1

    def __init__(self, connection, sql):
        self.pg = ctypes.CDLL("libpq.so.5")
        for name in ("PQprepare", "PQexecPrepared"):
            getattr(self.pg, name).restype = ctypes.c_void_p
        self.pg.PQresultErrorMessage.restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p(connection.pgconn_ptr)
        self.take(self.pg.PQprepare(self.handle, b"bench", sql.encode(), 1, None))

    def take(self, result):
        """Frees a result, or raises what it says."""
        result = ctypes.c_void_p(result)
        if self.pg.PQresultStatus(result) not in (self.TUPLES_OK, self.COMMAND_OK):
            raise RuntimeError((self.pg.PQresultErrorMessage(result) or b"connection lost").decode())
        self.pg.PQclear(result)

    def __call__(self, number):
        values = (ctypes.c_char_p * 1)(str(number).encode())
        self.take(self.pg.PQexecPrepared(self.handle, b"bench", 1, values, None, None, 0))


def cpu_seconds(pid):
    """User and system time of a process. schedstat counts nanoseconds, stat hundredths of a second; not every kernel has the first."""
    try:
        nanoseconds = int(pathlib.Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])
        if nanoseconds:
            return nanoseconds / 1e9
    except OSError:
        pass
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """The run, measured block by block: two ledgers, one small and one large, and recorded usage."""

    def __init__(self, options):
        self.options = options
        pg_config = os.environ.get("PG_CONFIG", "pg_config")
        bindir = subprocess.run([pg_config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip()
        self.pgbench = pathlib.Path(bindir) / "pgbench"
        self.admin = self.connect("postgres")
        self.measures = {}
        self.samples = {}  # (measure, database, side) → one value per round
        self.filled_bytes = {}  # (ledger size, side) → bytes per entry
        self.wal_stats = False

    # -- databases ------------------------------------------------------------------------------------------------

    def connect(self, database, options=""):
        """An autocommit connection."""
        connection = psycopg2.connect(host=self.options.host, port=self.options.port, dbname=database, options=options)
        connection.autocommit = True
        return connection

    @staticmethod
    def run(connection, sql, parameters=None):
        """The rows of a statement, or None when it has none."""
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else None

    def value(self, connection, sql, parameters=None):
        """The first column of the first row."""
        return self.run(connection, sql, parameters)[0][0]

    def copy_database(self, name, template):
        """Creates a database, over a former one of that name."""
        self.run(self.admin, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self.run(self.admin, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def wants(self, parts):
        """Which of these parts are to be measured."""
        return [part for part in parts if part in self.options.parts]

    def prepare(self):
        """Settings, role, and the databases that the parts need."""
        # A checkpoint that starts inside a block would hit whichever side is running.
        self.run(self.admin, "ALTER SYSTEM SET max_wal_size = '16GB'")
        self.run(self.admin, "ALTER SYSTEM SET checkpoint_timeout = '1h'")
        self.run(self.admin, "SELECT pg_reload_conf()")
        if not self.run(self.admin, "SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)):
            self.run(self.admin, f"CREATE ROLE {ROLE}")
        if self.run(self.admin, "SELECT 1 FROM pg_available_extensions WHERE name = 'pg_walinspect'"):
            self.run(self.admin, "CREATE EXTENSION IF NOT EXISTS pg_walinspect")
            self.wal_stats = True

        if self.wants(LEDGER_PARTS):
            self.prepare_ledgers()
        if self.wants(USAGE_PARTS):
            self.prepare_usage()

    def make_database(self, name, catalog):
        """A database with the tables of both sides, and credit for every wallet; and a connection to it."""
        self.copy_database(name, self.options.template or "template0")
        connection = self.connect(name)
        if not self.options.template:
            self.run(connection, "CREATE EXTENSION pg_billing")
        self.run(connection, "SELECT billing.install()")
        self.run(connection, (HERE / "handwritten.sql").read_text(encoding="utf-8"))
        self.run(connection, "SELECT billing.grant_access(%s, 'service')", (ROLE,))
        self.run(connection, "SELECT * FROM billing.apply_catalog(%s)", (catalog,))
        parameters = {"wallets": self.options.wallets, "credit": CREDIT}
        # Credits that expire are burned first, so that every consumption has an expiry to watch.
        self.run(
            connection,
            f"""
            SELECT sum(granted.amount)
              FROM generate_series(1, %(wallets)s) AS wallet,
                   LATERAL (VALUES ('purchase', NULL), ('bonus', now() + interval '1 year')) AS kind (source, expires_at),
                   LATERAL billing.grant_credits({ORG.format("wallet")}, %(credit)s, kind.source, expires_at => kind.expires_at) AS granted
            """,
            parameters,
        )
        self.run(
            connection,
            f"INSERT INTO handwritten.balances SELECT {ORG.format('wallet')}, 2 * %(credit)s FROM generate_series(1, %(wallets)s) AS wallet",
            parameters,
        )
        return connection

    def prepare_ledgers(self):
        """Both ledgers, filled."""
        with_admin = self.make_database(SMALL, CATALOG)
        empty = {side: self.ledger_bytes(with_admin, side) for side in LEDGER}
        with_admin.close()

        self.fill(SMALL, 0, self.options.small_entries)
        self.note_filled(SMALL, self.options.small_entries, empty)
        self.copy_database(LARGE, SMALL)
        self.fill(LARGE, self.options.small_entries, self.options.entries)
        self.note_filled(LARGE, self.options.entries, empty)

    def prepare_usage(self):
        """Orgs with a plan, credit and no usage; and, for check_limit, the same with usage of some that was not settled."""
        with_admin = self.make_database(USAGE, USAGE_CATALOG)
        self.run(
            with_admin,
            f"SELECT count(s.plan) FROM generate_series(1, %s) AS wallet, LATERAL billing.subscribe({ORG.format('wallet')}, 'bench') AS s",
            (self.options.wallets,),
        )
        self.run(with_admin, "CALL billing.settle()")
        with_admin.close()
        self.vacuum(USAGE)
        if "check" in self.options.parts:
            started = time.monotonic()
            self.copy_database(UNSETTLED, USAGE)
            orgs, clients = self.check_orgs(), 8
            # A call for each event, from several clients at once: as many rows of counts as that makes.
            calls = -(-self.options.unsettled * orgs // clients)
            self.run_pgbench(("record", OURS), UNSETTLED, clients, ["--transactions", str(calls)], False, orgs)
            self.vacuum(UNSETTLED)
            say(f"{UNSETTLED}: {written(self.options.unsettled)} unsettled events of each of {orgs} orgs ({time.monotonic() - started:.0f} s)")

    def check_orgs(self):
        """How many orgs check_limit is asked for."""
        return min(CHECK_ORGS, self.options.wallets)

    def vacuum(self, database):
        """So that no such work is left for the blocks."""
        connection = self.connect(database)
        self.run(connection, "VACUUM (ANALYZE)")
        connection.close()

    def ledger_bytes(self, connection, side):
        """Heap, TOAST, maps and all indexes of a ledger, partitions included."""
        relations = "SELECT %(ledger)s::regclass UNION SELECT relid FROM pg_partition_tree(%(ledger)s)"
        sql = f"SELECT sum(pg_total_relation_size(relation))::bigint FROM ({relations}) AS parts (relation)"
        return self.value(connection, sql, {"ledger": LEDGER[side]})

    def note_filled(self, database, entries, empty):
        """Bytes per consumption of a ledger just filled, then everything in it vacuumed, so that no such work is left for the blocks."""
        connection = self.connect(database)
        for side in LEDGER:
            self.filled_bytes[database, side] = (self.ledger_bytes(connection, side) - empty[side]) / entries
        self.run(connection, "VACUUM (ANALYZE)")
        connection.close()

    def fill(self, database, first, last):
        """Adds the entries first..last-1 on both sides, spread evenly over the wallets, as consumptions with random keys."""
        started = time.monotonic()
        self.fill_ours(database, first, last)
        say(f"{database}: {written(last)} entries through consume_credits_batch ({time.monotonic() - started:.0f} s)")
        started = time.monotonic()
        self.fill_handwritten(database, first, last)
        say(f"{database}: {written(last)} hand-written rows ({time.monotonic() - started:.0f} s)")

    def fill_ours(self, database, first, last):
        """Batches of 2,000 consumptions; the workers have their own wallets each and so never wait for one another."""
        workers = min(os.cpu_count() or 1, 4, self.options.wallets)
        chunk, failures, done = 2000, [], [0] * workers

        def work(worker):
            try:
                connection = self.connect(database, "-c synchronous_commit=off")
                mine = (self.options.wallets - worker + workers - 1) // workers
                start, stop = (last - first) * worker // workers, (last - first) * (worker + 1) // workers
                for position in range(start, stop, chunk):
                    until = min(position + chunk, stop)
                    refused = self.value(
                        connection,
                        f"""
                        SELECT count(*) FILTER (WHERE status IS DISTINCT FROM 'ok')
                          FROM billing.consume_credits_batch((
                              SELECT jsonb_agg(jsonb_build_object(
                                         'org_id', {ORG.format("1 + %(worker)s + %(workers)s * (i %% %(mine)s)")},
                                         'metric', 'bench_call', 'quantity', 1, 'idempotency_key', gen_random_uuid()::text) ORDER BY i)
                                FROM generate_series(%(position)s, %(until)s - 1) AS i))
                        """,
                        {"worker": worker, "workers": workers, "mine": mine, "position": position, "until": until},
                    )
                    if refused:
                        raise RuntimeError(f"consume_credits_batch refused {refused} items")
                    done[worker] = until - start
                    if failures:
                        return
                    if worker == 0 and position // 250_000 != until // 250_000:
                        say(f"{database}: {first + sum(done):,} entries")
                connection.close()
            except Exception as error:  # pylint: disable=broad-except  # handed to the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def fill_handwritten(self, database, first, last):
        """Plain INSERT … SELECT, then the balances that follow from it."""
        connection = self.connect(database, "-c synchronous_commit=off")
        parameters = {"wallets": self.options.wallets, "price": PRICE, "balance": 2 * CREDIT}
        for position in range(first, last, 250_000):
            self.run(
                connection,
                f"""
                INSERT INTO handwritten.ledger (org, amount, balance_after, metric, quantity, idempotency_key)
                SELECT {ORG.format("1 + i %% %(wallets)s")}, -%(price)s, %(balance)s - %(price)s * (i / %(wallets)s + 1), 'bench_call', 1,
                       gen_random_uuid()::text
                  FROM generate_series(%(first)s::bigint, %(last)s::bigint - 1) AS i
                """,
                {**parameters, "first": position, "last": min(position + 250_000, last)},
            )
        self.run(
            connection,
            """
            UPDATE handwritten.balances
               SET balance = %(balance)s + spent.amount
              FROM (SELECT org, sum(amount) AS amount FROM handwritten.ledger GROUP BY org) AS spent
             WHERE balances.org = spent.org
            """,
            parameters,
        )
        self.run(connection, "VACUUM handwritten.balances")
        connection.close()

    def clean_up(self):
        """Leaves the cluster as it was."""
        for setting in ("max_wal_size", "checkpoint_timeout"):
            self.run(self.admin, f"ALTER SYSTEM RESET {setting}")
        self.run(self.admin, "SELECT pg_reload_conf()")
        if not self.options.keep:
            for database in (SCRATCH, SMALL, LARGE, USAGE, UNSETTLED):
                self.run(self.admin, f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
            self.run(self.admin, f"DROP ROLE IF EXISTS {ROLE}")
            self.run(self.admin, "DROP EXTENSION IF EXISTS pg_walinspect")

    # -- blocks ---------------------------------------------------------------------------------------------------

    def fresh(self, ledger, reads_only=False):
        """The database a block runs in. A block adds many times ten thousand entries: what is small is set back before each."""
        database = ledger
        if ledger in (SMALL, USAGE) and not reads_only:
            self.copy_database(SCRATCH, ledger)
            database = SCRATCH
        self.run(self.admin, "CHECKPOINT")
        return database

    def note(self, measure, ledger, side, number):
        """Keeps one value of one round."""
        self.measures.setdefault(measure.name, measure)
        self.samples.setdefault((measure.name, ledger, side), []).append(number)

    def single_client(self, work, ledger, side):
        """CPU and time per call over one connection, and what the calls leave on disk and in the WAL."""
        script = (HERE / SCRIPTS[work, side]).read_text(encoding="utf-8")
        statement = re.sub(r"(?<!:):wallet\b", "$1", script.split("\n", 1)[1]).strip().rstrip(";")
        database = self.fresh(ledger, work == "check")
        wallets = self.check_orgs() if work == "check" else self.options.wallets
        # Waiting for the disk is no CPU: with synchronous_commit on the same calls would only take longer.
        connection = self.connect(database, f"-c role={ROLE} -c synchronous_commit=off")
        pid = connection.get_backend_pid()
        call = PreparedCall(connection, statement)
        chosen = random.Random(self.options.wallets)
        numbers = [chosen.randint(1, wallets) for _ in range(self.options.calls)]
        inspector = self.connect(database)
        before_bytes = self.ledger_bytes(inspector, side)
        warm_up = min(500, len(numbers))
        for number in numbers[:warm_up]:
            call(number)

        lsn = self.value(self.admin, "SELECT pg_current_wal_insert_lsn()")
        cpu, wall = cpu_seconds(pid), time.perf_counter()
        for number in numbers:
            call(number)
        wall, cpu = time.perf_counter() - wall, cpu_seconds(pid) - cpu
        calls = len(numbers)
        end_lsn, wal = self.run(self.admin, "SELECT l, l - %s FROM pg_current_wal_insert_lsn() AS l", (lsn,))[0]

        label = f"{work}, 1 client: "
        aim = {"total": TOTAL_AIM, "check": CHECK_AIM}.get(work)
        self.note(Measure(label + "CPU of the backend per call, µs", 1, aim=aim), ledger, side, cpu / calls * 1e6)
        self.note(Measure(label + "time per call, µs", 1, aim=aim), ledger, side, wall / calls * 1e6)
        if work == "record":
            self.note(Measure("record: WAL bytes per call"), ledger, side, int(wal) / calls)
        if work == "consume":
            grown = self.ledger_bytes(inspector, side) - before_bytes
            self.note(Measure("consume: WAL bytes per call"), ledger, side, int(wal) / calls)
            if self.wal_stats:
                # The function reads flushed WAL only; a commit that waits for the disk flushes all before it.
                self.run(self.admin, "SELECT pg_logical_emit_message(true, 'bench', 'flush')")
                images = self.value(self.admin, "SELECT coalesce(sum(fpi_size), 0) FROM pg_get_wal_stats(%s, %s)", (lsn, end_lsn))
                self.note(Measure("consume: of these full-page images", ratio=False), ledger, side, int(images) / calls)
            self.note(Measure("consume: ledger bytes added per call"), ledger, side, grown / (calls + warm_up))
        inspector.close()
        connection.close()

    def throughput(self, work, ledger, side, clients, durable):
        """Calls per second of pgbench with so many clients."""
        database = self.fresh(ledger)
        # Not counted: new backends load libraries, fill caches and meet the pages of shared memory for the first time.
        warm_up = 0 if self.options.quick else WARM_UP
        seconds = self.options.seconds + warm_up
        result = self.run_pgbench((work, side), database, clients, ["--time", str(seconds), "--progress", "1"], durable, self.options.wallets)
        per_second = [float(tps) for tps in re.findall(r"^progress: .*? s, ([\d.]+) tps", result.stderr, re.MULTILINE)]
        if len(per_second) > warm_up:
            calls_per_second = statistics.fmean(per_second[warm_up:])
        else:
            calls_per_second = float(re.search(r"^tps = ([\d.]+)", result.stdout, re.MULTILINE).group(1))
        how = "" if durable or work == "total" else ", synchronous_commit off"
        aim = {"consume": THROUGHPUT_AIM, "record": RECORD_AIM, "total": 1 / TOTAL_AIM}[work]
        name = f"{work}, {clients} client{'s' if clients > 1 else ''}{how}: calls/s"
        self.note(Measure(name, more_is_better=True, aim=aim), ledger, side, calls_per_second)
        if (work, side) == ("record", OURS):
            self.check_counts(database)

    def run_pgbench(self, script, database, clients, how_long, durable, wallets):
        """pgbench on one of the scripts, and what it printed."""
        result = subprocess.run(
            [
                str(self.pgbench), "--host", self.options.host, "--port", str(self.options.port), "--no-vacuum", "--protocol", "prepared",
                "--client", str(clients), "--jobs", str(min(clients, os.cpu_count() or 1)), *how_long,
                "--define", f"wallets={wallets}", "--file", str(HERE / SCRIPTS[script]), database,
            ],
            env={**os.environ, "PGOPTIONS": f"-c role={ROLE} -c synchronous_commit={'on' if durable else 'off'}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode:
            raise RuntimeError(f"pgbench failed on {SCRIPTS[script]}:\n{result.stderr}")
        return result

    def check_counts(self, database):
        """Every event that was recorded is counted."""
        connection = self.connect(database)
        sql = "SELECT (SELECT count(*) FROM billing.usage_events), (SELECT sum(events) FROM billing.unsettled_usage)"
        events, counted = self.run(connection, sql)[0]
        connection.close()
        if events != counted:
            raise RuntimeError(f"record: {events} events, {counted} counted")

    def record_events(self, database):
        """What a settlement finds: events of all orgs alike, for two metrics, in batches as collectors report them."""
        workers, batch, failures = min(os.cpu_count() or 1, 4), 10_000, []

        def work(worker):
            try:
                connection = self.connect(database, "-c synchronous_commit=off")
                start, stop = self.options.events * worker // workers, self.options.events * (worker + 1) // workers
                for position in range(start, stop, batch):
                    self.run(
                        connection,
                        f"""
                        SELECT billing.record_usage_batch((
                            SELECT jsonb_agg(jsonb_build_object(
                                       'org_id', {ORG.format("1 + i %% %(wallets)s")},
                                       'metric', CASE WHEN i / %(wallets)s %% 2 = 0 THEN 'bench_event' ELSE 'bench_byte' END,
                                       'quantity', CASE WHEN i / %(wallets)s %% 2 = 0 THEN 1 ELSE 1000 + i %% 100 END,
                                       'event_id', gen_random_uuid()::text))
                              FROM generate_series(%(position)s, %(until)s - 1) AS i))
                        """,
                        {"wallets": self.options.wallets, "position": position, "until": min(position + batch, stop)},
                    )
                connection.close()
            except Exception as error:  # pylint: disable=broad-except  # handed to the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def settling(self, sides):
        """CALL settle() on events that are new to it, and the bare GROUP BY over the same events."""
        database = self.fresh(USAGE)
        self.record_events(database)
        self.vacuum(database)
        connection = self.connect(database)
        # Neither is the first to read them.
        events = self.value(connection, "SELECT count(*) FROM billing.usage_events WHERE quantity > 0")
        measure = Measure(f"settle, {self.options.wallets:,} orgs: time, ms", aim=SETTLE_AIM)
        self.run(self.admin, "CHECKPOINT")
        for side in sides:
            started = time.perf_counter()
            if side == OURS:
                self.run(connection, "CALL billing.settle()")
            else:
                self.run(connection, "SELECT org_id, metric, sum(quantity), count(*) FROM billing.usage_events GROUP BY org_id, metric")
            self.note(measure, USAGE, side, (time.perf_counter() - started) * 1000)
        done = self.run(connection, "SELECT orgs_done, orgs_failed FROM billing.settlement_runs ORDER BY run_id DESC LIMIT 1")[0]
        wrong = self.value(
            connection,
            """
            SELECT count(*)
              FROM (SELECT org_id, metric, sum(quantity) AS quantity FROM billing.usage_events GROUP BY org_id, metric) AS recorded
              FULL JOIN billing.period_usage AS settled USING (org_id, metric)
             WHERE recorded.quantity IS DISTINCT FROM settled.quantity
                OR EXISTS (SELECT FROM billing.unpaid_overage)
            """,
        )
        violations = self.run(connection, "SELECT * FROM billing.verify_ledger() LIMIT 5")
        connection.close()
        if events != self.options.events or done != (min(self.options.wallets, self.options.events), 0) or wrong or violations:
            raise RuntimeError(f"settle: {events} events, {done} orgs done and failed, {wrong} sums differ, verify_ledger() found {violations}")

    def rounds(self):
        """Every block on both sides and both ledgers in every round; who goes first alternates."""
        clients = self.options.clients
        blocks = []
        if "consume" in self.options.parts:
            blocks.append((self.single_client, "consume", (), LEDGERS))
            blocks += [(self.throughput, "consume", (count, durable), LEDGERS) for durable in (True, False) for count in clients]
        if "total" in self.options.parts:
            blocks.append((self.single_client, "total", (), LEDGERS))
            blocks += [(self.throughput, "total", (count, True), LEDGERS) for count in clients]
        if "record" in self.options.parts:
            blocks.append((self.single_client, "record", (), (USAGE,)))
            blocks += [(self.throughput, "record", (count, durable), (USAGE,)) for durable in (True, False) for count in sorted({1, *clients})]
        if "check" in self.options.parts:
            blocks.append((self.single_client, "check", (), (USAGE, UNSETTLED)))
        for number in range(self.options.rounds):
            say(f"round {number + 1} of {self.options.rounds}")
            sides = (OURS, HAND) if number % 2 == 0 else (HAND, OURS)
            for measure, work, rest, databases in blocks:
                for database in databases:
                    for side in sides:
                        measure(work, database, side, *rest)
            if "settle" in self.options.parts:
                self.settling(sides)

    def check_ledger(self):
        """The small ledger after one last block: fast and wrong would not count."""
        database = self.fresh(SMALL)
        connection = self.connect(database)
        call = PreparedCall(connection, f"SELECT * FROM billing.consume_credits({ORG.format('$1')}, 'bench_call', 1)")
        for number in range(1, self.options.wallets + 1):
            call(number)
        violations = self.run(connection, "SELECT * FROM billing.verify_ledger() LIMIT 5")
        connection.close()
        if violations:
            raise RuntimeError(f"verify_ledger() found: {violations}")

    def profile(self):
        """Where a consuming backend's time goes, by perf; or why that cannot be said here."""
        connection = self.connect(self.fresh(LARGE), f"-c role={ROLE} -c synchronous_commit=off")
        call = PreparedCall(connection, f"SELECT * FROM billing.consume_credits({ORG.format('$1')}, 'bench_call', 1, gen_random_uuid()::text)")
        for number in range(1, min(500, self.options.wallets) + 1):
            call(number)
        with tempfile.TemporaryDirectory() as folder:
            data = f"{folder}/perf.data"
            try:
                perf = subprocess.Popen(
                    ["perf", "record", "--freq", "4000", "--output", data, "--pid", str(connection.get_backend_pid())],
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
            except OSError as error:
                return f"perf cannot be run here: {error}"
            until = time.monotonic() + 2 * self.options.seconds
            while time.monotonic() < until and perf.poll() is None:
                call(random.randint(1, self.options.wallets))
            if perf.poll() is None:
                perf.send_signal(signal.SIGINT)
            errors = perf.communicate()[1]
            if not os.path.exists(data) or not os.path.getsize(data):
                return f"perf does not work here: {errors.strip()}"
            report = []
            for sort, limit in (("dso", "0.5"), ("dso,symbol", "0.8")):
                shown = subprocess.run(
                    ["perf", "report", "--input", data, "--stdio", "--no-children", "--sort", sort, "--percent-limit", limit],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                lines = [line.rstrip() for line in shown.stdout.splitlines() if line.strip() and not line.startswith("#")]
                report.append("\n".join(lines[:40]) or shown.stderr.strip())
        connection.close()
        return "\n\n".join(report)

    # -- report ---------------------------------------------------------------------------------------------------

    def ratios(self, name, ledger):
        """pg_billing / hand-written, round by round."""
        pairs = zip(self.samples[name, ledger, OURS], self.samples[name, ledger, HAND], strict=True)
        return [ours / hand for ours, hand in pairs if hand]

    def found(self, measure, database):
        """What a measure found in its database, in words."""
        if measure.name.startswith("settle"):
            return written(self.options.events)
        if database == USAGE:
            return "none"
        return written({SMALL: self.options.small_entries, LARGE: self.options.entries, UNSETTLED: self.options.unsettled}[database])

    def measures_of(self, databases):
        """The measures that were taken there, each with those of the databases."""
        for measure in self.measures.values():
            taken = [database for database in databases if (measure.name, database, OURS) in self.samples]
            if taken:
                yield measure, taken

    def measured_rows(self, databases):
        """One row per measure and database."""
        rows = []
        for measure, taken in self.measures_of(databases):
            for database in taken:
                medians = [f"{statistics.median(self.samples[measure.name, database, side]):,.{measure.digits}f}" for side in (OURS, HAND)]
                ratios = self.ratios(measure.name, database) if measure.ratio else []
                shown = [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} – {max(ratios):.2f}"] if ratios else ["", ""]
                rows.append([measure.name, self.found(measure, database), *medians, *shown])
        return rows

    def bytes_rows(self):
        """Bytes per consumption in each ledger."""
        rows = []
        for ledger, entries in ((SMALL, self.options.small_entries), (LARGE, self.options.entries)):
            ours, hand = (self.filled_bytes[ledger, side] for side in (OURS, HAND))
            rows.append(["bytes on disk per consumption, all indexes", written(entries), f"{ours:,.0f}", f"{hand:,.0f}", f"{ours / hand:.2f}", ""])
        return rows

    def usage_aim_rows(self):
        """Aims of recording, settling and checking beside what was reached."""
        rows = []
        for measure, taken in self.measures_of((USAGE, UNSETTLED)):
            if measure.aim is None:
                continue
            for database in taken:
                ratio = statistics.median(self.ratios(measure.name, database))
                wanted = f"{'≥' if measure.more_is_better else '≤'} {measure.aim:.2f}"
                rows.append([measure.name, self.found(measure, database), wanted, f"{ratio:.2f}", yes(measure.met(ratio))])
            if len(taken) == 2:
                none, many = (self.ratios(measure.name, database) for database in taken)
                grown = statistics.median(more / less for more, less in zip(many, none, strict=True))
                found = f"{self.found(measure, UNSETTLED)} / none"
                rows.append([measure.name, found, f"≤ {FLAT_AIM:.2f}", f"{grown:.2f}", yes(grown <= FLAT_AIM)])
        return rows

    def aim_rows(self):
        """Aims beside what was reached."""
        rows = []
        for measure, _ in self.measures_of(LEDGERS):
            if measure.aim is None:
                continue
            small, large = (statistics.median(self.ratios(measure.name, ledger)) for ledger in LEDGERS)
            change = large / small - 1
            rows.append([
                measure.name, f"{'≥' if measure.more_is_better else '≤'} {measure.aim:.2f}", f"{small:.2f}", f"{large:.2f}",
                yes(measure.met(small) and measure.met(large)), f"{change * 100:+.0f} %", yes(abs(change) <= SIZES_AIM),
            ])  # fmt: skip
        small, large = (self.filled_bytes[ledger, OURS] for ledger in LEDGERS)
        rows.append(["bytes on disk per consumption", f"≤ {BYTES_AIM}", f"{small:.0f}", f"{large:.0f}", yes(max(small, large) <= BYTES_AIM), "", ""])
        return rows

    def report_ledgers(self):
        """Consumptions and totals, over a small ledger and a large one."""
        small, large = written(self.options.small_entries), written(self.options.entries)
        return [
            "## Aims and what was reached",
            "Ratios are pg_billing / hand-written in the same round, the median over the rounds. The total may take at most"
            f" {TOTAL_AIM} times a primary-key SELECT, so its throughput must be at least {1 / TOTAL_AIM:.2f} of that."
            f" Change is how the ratio differs between the two ledgers; the aim is at most {SIZES_AIM * 100:.0f} %.",
            table(["Aim for", "Wanted", f"{small} entries", f"{large} entries", "Reached", "Change", "Same at both"], self.aim_rows(), 1),
            "## Measured",
            "Medians over the rounds; spread is the smallest and the largest ratio of a round. Consume is consume_credits against UPDATE + INSERT,"
            " total is get_total_credits against a primary-key SELECT. The single client runs with synchronous_commit off.",
            table(
                ["Measure", "Ledger entries", "pg_billing", "Hand-written", "Ratio", "Spread"],
                self.measured_rows(LEDGERS) + self.bytes_rows(),
                2,
            ),
        ]

    def report_usage(self):
        """Recording, settling and checking."""
        return [
            "## Usage: aims and what was reached",
            f"Of {self.options.wallets:,} orgs with a plan. Record is record_usage against a bare INSERT into a table with a primary key and a unique event id;"
            " settle is CALL settle() on events that are new to it against SELECT … GROUP BY org, metric over the same events; check is check_limit against a"
            " primary-key SELECT. A line with two numbers of events is the ratio at the first by the ratio at the second.",
            table(["Aim for", "Unsettled events", "Wanted", "Ratio", "Reached"], self.usage_aim_rows(), 2),
            "## Usage: measured",
            "Unsettled events are those of an org for check, and of all orgs for settle.",
            table(["Measure", "Unsettled events", "pg_billing", "Hand-written", "Ratio", "Spread"], self.measured_rows((USAGE, UNSETTLED)), 2),
        ]

    def report(self, profile):
        """The whole page in Markdown."""
        options = self.options
        settings = ", ".join(f"{name} {self.value(self.admin, f'SHOW {name}')}" for name in STATED_SETTINGS)
        run = f"- Run: {options.rounds} rounds, {options.seconds} s per throughput block, {options.calls:,} calls per single-client block"
        run += f", {options.wallets:,} wallets"
        if self.wants(LEDGER_PARTS):
            run += f", ledgers of {written(options.small_entries)} and {written(options.entries)} entries"
        parts = [
            "# Benchmarks",
            "Written by `bin/bench`; [bench/README.md](../bench/README.md) says how each figure is taken."
            + (" **A quick run: the figures mean nothing.**" if options.quick else ""),
            "\n".join([
                f"- Date: {datetime.date.today().isoformat()}",
                f"- Machine: {cpu_model()}, {os.cpu_count()} cores, shared by server and clients",
                f"- Server: {self.value(self.admin, 'SELECT version()')}",
                f"- Settings: {settings}",
                run,
            ]),
        ]  # fmt: skip
        if self.wants(LEDGER_PARTS):
            parts += self.report_ledgers()
        if self.wants(USAGE_PARTS):
            parts += self.report_usage()
        if profile:
            parts += ["## Where the time of a consuming backend goes", f"```\n{profile}\n```"]
        return "\n\n".join(parts) + "\n"


def yes(reached):
    """For tables."""
    return "yes" if reached else "**no**"


def table(head, rows, text_columns):
    """A Markdown table, padded so that it reads well on a terminal too."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells):
        return "| " + " | ".join(c.ljust(w) if i < text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < text_columns else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def cpu_model():
    """The processor's name."""
    names = re.findall(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return names[0] if names else os.uname().machine


def main():
    """Runs everything and prints the page."""
    options = arguments()
    bench = Bench(options)
    try:
        bench.prepare()
        bench.rounds()
        if bench.wants(LEDGER_PARTS):
            bench.check_ledger()
        page = bench.report(bench.profile() if options.profile and "consume" in options.parts else None)
    finally:
        bench.clean_up()
    print(page)
    if options.output:
        options.output.write_text(page, encoding="utf-8")
        say(f"written to {options.output}")


if __name__ == "__main__":
    main()

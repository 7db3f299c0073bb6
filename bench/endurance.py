#!/usr/bin/python3 -B
"""A long run of everything that a busy application calls: does throughput last, do tables or backends grow?

bin/bench --endure MINUTES starts a private cluster and calls this; README.md beside this file says more.
"""

import argparse
import pathlib
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time

from databases import ORG, Databases, written
from report import ENDURANCE, Report
from results import Results
from run import DOCS, machine, started_now, write
from server import ROLE, Calls, Server, anonymous_bytes, say

DATABASE = f"{ROLE}_endurance"
CLIENTS, HOT_LANES, MEMBERS = 8, 4, 10
# Of 1,000 transactions.
MIX = {
    "consume": 349, "consume_hot": 100, "consume_member": 50, "consume_plan": 50, "reserve_capture": 100, "record": 150, "total": 100,
    "check_usage": 100, "grant": 1,
}  # fmt: skip
HOT_TABLES = ("lanes", "grants", "holds", "period_usage", "unsettled_usage", "member_usage")
# A plan without hard limits: nothing of the load is refused.
CATALOG = """{
    "metrics": {"bench_call": {"price": 15},
                "bench_event": {"price": {"steps": [{"up_to": 1000, "credits": 3, "per": 2}, {"credits": 1, "per": 1}]}}},
    "plans": {"bench": {"price": {"USD": 900}, "allowances": {"bench_event": 100}}}
}"""


def arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="bin/bench --endure")
    parser.add_argument("minutes", type=float, help="how long the mixed load lasts")
    parser.add_argument("--host", required=True, help="socket directory or address of a private cluster (bin/bench gives its own)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calls", type=int, default=1_000_000, help="calls that one backend makes afterwards (1,000,000)")
    parser.add_argument("--wallets", type=int, default=1000)
    parser.add_argument("--docs", type=pathlib.Path, help="folder of page, results and plots (docs; below 10 minutes none)")
    parser.add_argument("--template", help="start from a copy of this database, which has the extension, instead of an empty one")
    parser.add_argument("--keep", action="store_true", help="leave the database behind")
    options = parser.parse_args()
    if options.minutes <= 0 or options.calls < 0 or options.wallets < 1:
        parser.error("counts must be positive")
    if options.docs is None and options.minutes >= 10:
        options.docs = DOCS
    return options


class Endurance:
    """The load, who settles, who samples."""

    def __init__(self, server, results, options):
        self.server, self.results, self.options = server, results, options
        self.seconds = options.minutes * 60
        # A minute, as pg_cron settles at most; short trials have as many samples.
        self.interval = min(60, self.seconds / 20)
        self.hot = options.wallets + 1
        self.settling = []  # seconds that each settlement took

    def add(self, value, **at):
        """One more value of the part."""
        self.results.add(ENDURANCE, value, **at)

    def prepare(self):
        """Orgs with a plan and credit, and one more with several lanes."""
        self.server.create_role()
        databases = Databases(self.server, self.options)
        connection = databases.make(DATABASE, CATALOG)
        databases.subscribe_all(connection)
        if databases.has_lanes:
            self.server.run(connection, f"SELECT billing.set_wallet_lanes({ORG.format(self.hot)}, {HOT_LANES})")
        self.server.run(connection, "CALL billing.settle()")
        connection.close()
        databases.vacuum(DATABASE)

    def settle_regularly(self, stop):
        """As pg_cron does: a connection for each settlement."""
        while not stop.wait(self.interval):
            started = time.monotonic()
            self.server.run_in(DATABASE, "CALL billing.settle()")
            self.settling.append(time.monotonic() - started)

    def sample(self, connection, seconds):
        """Sizes of the tables that are written again and again, and the memory of the backend that is there longest."""
        sql = """
            SELECT relname, pg_table_size(relid), pg_indexes_size(relid), n_dead_tup
              FROM pg_stat_user_tables WHERE schemaname IN ('billing', 'billing_internal') AND relname = ANY (%s)
        """
        sizes = {name: rest for name, *rest in self.server.run(connection, sql, (list(HOT_TABLES),))}
        backends = """
            SELECT pid FROM pg_stat_activity
             WHERE application_name = 'pgbench' AND datname = %s ORDER BY backend_start, pid LIMIT 1
        """
        clients = self.server.run(connection, backends, (DATABASE,))
        if not clients:
            return  # the load is over
        memory = anonymous_bytes(clients[0][0])
        self.add(seconds, measure="seconds")
        self.add(memory, measure="memory", where="load")
        for name in HOT_TABLES:
            for measure, value in zip(("heap", "indexes", "dead"), sizes[name], strict=True):
                self.add(value, measure=measure, table=name)

    def load(self):
        """The mixed load, sampled while it lasts."""
        every = 10 if self.seconds >= 600 else 1
        how_long = ["--time", str(round(self.seconds)), "--progress", str(every), "--max-tries", "10"]
        define = {"first": 1, "last": self.options.wallets, "hot": self.hot}
        scripts = [f"{name}@{weight}" for name, weight in MIX.items()]
        command = self.server.pgbench_command(scripts, DATABASE, CLIENTS, how_long, define)
        stop = threading.Event()
        failures = []

        def settle():
            try:
                self.settle_regularly(stop)
            except Exception as error:  # pylint: disable=broad-except  # handed to the main thread
                failures.append(error)

        settler = threading.Thread(target=settle)
        sampler = self.server.connect(DATABASE)
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as progress:
            started = time.monotonic()
            with subprocess.Popen(command, env=self.server.pgbench_environment(True), stdout=output, stderr=progress) as pgbench:
                settler.start()
                try:
                    tick = 0
                    while pgbench.poll() is None and not failures:
                        tick += 1
                        try:
                            pgbench.wait(max(0, started + tick * self.interval - time.monotonic()))
                        except subprocess.TimeoutExpired:
                            self.sample(sampler, time.monotonic() - started)
                            if tick % 5 == 0:
                                say(f"{(time.monotonic() - started) / 60:.1f} of {self.options.minutes:g} minutes")
                finally:
                    stop.set()
                    settler.join()
                    if pgbench.poll() is None:
                        pgbench.terminate()
            sampler.close()
            output.seek(0)
            progress.seek(0)
            self.note_load(pgbench.returncode, output.read(), progress.read(), failures)

    def note_load(self, status, output, progress, failures):
        """What pgbench says of its calls."""
        failed = re.search(r"^number of failed transactions: (\d+)", output, re.MULTILINE)
        if failures or status or (failed and int(failed[1])):
            errors = [line for line in progress.splitlines() if not line.startswith("progress:")]
            raise RuntimeError(f"the load failed: {failures}\n" + "\n".join(errors[:20]) + (failed[0] if failed else ""))
        rates = [(float(at), float(tps)) for at, tps in re.findall(r"^progress: ([\d.]+) s, ([\d.]+) tps", progress, re.MULTILINE)]
        done = at = 0
        calls = []
        for seconds, rate in rates:
            self.add(seconds, measure="progress seconds")
            self.add(rate, measure="calls/s")
            done += rate * (seconds - at)
            at = seconds
            calls.append((seconds, done))
        for seconds in self.results.values(ENDURANCE, measure="seconds"):
            so_far = max((count for end, count in calls if end <= seconds + 1), default=0)
            self.add(round(so_far / CLIENTS), measure="calls of the backend", where="load")
        for name, count in zip(MIX, re.findall(r"^ - (\d+) transactions \(", output, re.MULTILINE), strict=True):
            self.add(int(count), measure="script calls", script=name)
        self.add(int(re.search(r"^number of transactions actually processed: (\d+)", output, re.MULTILINE)[1]), measure="calls")
        warm = [rate for seconds, rate in rates if seconds > min(60, self.seconds / 10)]
        tenth = max(1, len(warm) // 10)
        self.add(statistics.fmean(warm[:tenth]), measure="tenth", which="first")
        self.add(statistics.fmean(warm[-tenth:]), measure="tenth", which="last")
        for seconds in self.settling:
            self.add(seconds, measure="settle seconds")

    def loop(self):
        """One backend that makes all these calls by itself, its memory looked at a hundred times."""
        connection = self.server.connect(DATABASE, f"-c role={ROLE} -c synchronous_commit=off")
        scripts = [Calls(connection, name) for name in MIX]
        pid, drawn, done, started = connection.get_backend_pid(), random.Random(1), 0, time.monotonic()
        step = max(1, self.options.calls // 100)
        while done < self.options.calls:
            until = min(done + step, self.options.calls)
            while done < until:
                call = drawn.choices(scripts, list(MIX.values()))[0]
                call(wallet=drawn.randint(1, self.options.wallets), member=drawn.randint(1, MEMBERS), hot=self.hot)
                done += len(call.statements)
            self.add(done, measure="calls of the backend", where="loop")
            self.add(anonymous_bytes(pid), measure="memory", where="loop")
        connection.close()
        say(f"one backend: {done:,} calls ({time.monotonic() - started:.0f} s)")

    def check(self):
        """Nothing failed in silence, and the ledger is sound."""
        connection = self.server.connect(DATABASE)
        self.server.run(connection, "CALL billing.settle()")
        faults = self.server.run(connection, "SELECT * FROM billing.settlement_faults LIMIT 5")
        entries = self.server.value(connection, "SELECT count(*) FROM billing.entries")
        started = time.monotonic()
        violations = self.server.run(connection, "SELECT * FROM billing.verify_ledger() LIMIT 5")
        say(f"verify_ledger() of {written(entries)} entries ({time.monotonic() - started:.0f} s)")
        connection.close()
        if faults or violations:
            raise RuntimeError(f"settlement_faults: {faults}, verify_ledger(): {violations}")
        self.add(entries, measure="entries verified")

    def clean_up(self):
        """Leaves the cluster as it was."""
        if not self.options.keep:
            self.server.drop_database(DATABASE)
            self.server.run(self.server.admin, f"DROP ROLE IF EXISTS {ROLE}")


def main():
    """Runs and writes."""
    options = arguments()
    server = Server(options.host, options.port)
    results = Results.load(options.docs / "performance.json") if options.docs else Results()
    endurance = Endurance(server, results, options)
    stated = {name: getattr(options, name) for name in ("minutes", "calls", "wallets")}
    results.begin([ENDURANCE], started_now(), {**machine(server), **stated, "clients": CLIENTS, "mix": MIX})
    try:
        endurance.prepare()
        endurance.load()
        if options.calls:
            endurance.loop()
        endurance.check()
    finally:
        endurance.clean_up()
    print(Report(results).endurance())
    if options.docs:
        write(results, options.docs)


if __name__ == "__main__":
    main()

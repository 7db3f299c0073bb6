#!/usr/bin/python3 -B
"""Benchmark of pg_billing against what is written by hand instead, both in one interleaved run on one cluster.

bin/bench starts a private cluster and calls this; README.md beside this file says what is measured and why.
"""

import argparse
import datetime
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time

from blocks import Blocks
from databases import Databases, ledger_sizes
from report import Report
from results import Results
from server import HERE, ROLE, Calls, Server, cores, cpu_model, say

DOCS = HERE.parent / "docs"
# What an option is worth in a full run, and in a quick one.
DEFAULTS = {
    "entries": (10_000_000, 5_000), "small_entries": (10_000, 1_000), "rounds": (5, 1), "seconds": (3, 1), "warm_up": (2, 0),
    "calls": (10_000, 500), "clients": ("8,32", "8"), "events": (1_000_000, 20_000), "unsettled": (10_000, 500),
}  # fmt: skip
STATED = ("rounds", "seconds", "warm_up", "calls", "wallets", "clients", "entries", "small_entries", "events", "unsettled", "quick")


def arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="bin/bench")
    parser.add_argument("--host", help="socket directory or address of a private cluster on this machine (bin/bench gives its own)")
    parser.add_argument("--port", type=int)
    parser.add_argument("--only", help=f"parts to measure anew, comma-separated, of {', '.join(Blocks.parts())}")
    parser.add_argument("--draw", action="store_true", help="only write page and plots again, from the results of former runs")
    parser.add_argument("--entries", type=int, help="entries in the largest ledger (10,000,000)")
    parser.add_argument("--small-entries", type=int, help="entries in the smallest ledger (10,000)")
    parser.add_argument("--rounds", type=int, help="rounds; medians are reported (5)")
    parser.add_argument("--seconds", type=int, help="measured seconds of each throughput block (3)")
    parser.add_argument("--warm-up", type=int, help="seconds before these that are not counted (2)")
    parser.add_argument("--calls", type=int, help="calls of each single-client block (10,000)")
    parser.add_argument("--wallets", type=int, default=1000)
    parser.add_argument("--clients", help="client counts, comma-separated (8,32)")
    parser.add_argument("--events", type=int, help="events that a settlement finds (1,000,000)")
    parser.add_argument("--unsettled", type=int, help="unsettled events of an org that check_limit finds (10,000)")
    parser.add_argument("--quick", action="store_true", help="small numbers everywhere: shows that it runs, the figures mean nothing")
    parser.add_argument("--profile", action="store_true", help="also run perf on a backend that consumes, and print what it found")
    parser.add_argument("--docs", type=pathlib.Path, help="folder of PERFORMANCE.md, performance.json and plots (docs; with --quick none)")
    parser.add_argument("--template", help="start from a copy of this database, which has the extension, instead of an empty one")
    parser.add_argument("--keep", action="store_true", help="leave the databases behind")
    options = parser.parse_args()
    for name, (usual, quick) in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    options.clients = [int(count) for count in options.clients.split(",")]
    options.parts = options.only.split(",") if options.only else list(Blocks.parts())
    unknown = set(options.parts) - Blocks.parts().keys()
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if not options.draw and (options.host is None or options.port is None):
        parser.error("--host and --port are needed")
    if options.docs is None and not options.quick:
        options.docs = DOCS
    counts = (options.rounds, options.seconds, options.calls, options.wallets, options.events, options.unsettled, *options.clients)
    if min(counts) < 1 or options.warm_up < 0:
        parser.error("counts must be positive")
    if not 0 < options.small_entries <= options.entries:
        parser.error("--small-entries must be positive and no more than --entries")
    if options.docs and not os.access(options.docs if options.docs.exists() else options.docs.parent, os.W_OK):
        parser.error(f"cannot write to {options.docs}: choose another folder with --docs")
    return options


def started_now():
    """The name of a run: when it started."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"


def machine(server):
    """Where a run took place."""
    version = server.value(server.admin, "SELECT version()").split(" on ")[0]
    return {"machine": cpu_model(), "cores": cores(), "server": version, "settings": server.stated_settings()}


def write(results, docs):
    """Results, page and plots; the page is the one that is there, or begins as a copy of the usual one."""
    docs.mkdir(exist_ok=True)
    results.save(docs / "performance.json")
    draw(results, docs)


def draw(results, docs):
    """Page and plots."""
    report = Report(results)
    page = docs / "PERFORMANCE.md"
    text = (page if page.exists() else DOCS / page.name).read_text(encoding="utf-8")
    page.write_text(report.page(text), encoding="utf-8")
    (docs / "plots").mkdir(exist_ok=True)
    for name, drawing in report.plots().items():
        (docs / "plots" / name).write_text(drawing, encoding="utf-8")
    say(f"written: {page} and {docs / 'plots'}")


def profile(server, databases, options):
    """Where a consuming backend's time goes, by perf; or why that cannot be said here."""
    connection = server.connect(databases.fresh(databases.small), f"-c role={ROLE} -c synchronous_commit=off")
    call = Calls(connection, "consume")
    for number in range(1, min(500, options.wallets) + 1):
        call(wallet=number)
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/perf.data"
        try:
            perf = subprocess.Popen(
                ["perf", "record", "--freq", "4000", "--output", data, "--pid", str(connection.get_backend_pid())],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        except OSError as error:
            return f"perf cannot be run here: {error}"
        until = time.monotonic() + 10
        while time.monotonic() < until and perf.poll() is None:
            call(wallet=random.randint(1, options.wallets))
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


def measure(options, results):
    """Runs the parts and notes what they find in the results."""
    server = Server(options.host, options.port)
    databases = Databases(server, options, ledger_sizes(options.small_entries, options.entries))
    blocks = Blocks(server, databases, results, options)
    try:
        blocks.prepare()
        results.begin(options.parts, started_now(), {**machine(server), **{name: getattr(options, name) for name in STATED}})
        blocks.rounds()
        if options.profile and databases.bytes:
            print(profile(server, databases, options))
    finally:
        blocks.clean_up()


def main():
    """Measures and writes, or only writes."""
    options = arguments()
    results = Results.load(options.docs / "performance.json") if options.docs else Results()
    if options.draw:
        draw(results, options.docs)
        return
    measure(options, results)
    for name, text in Report(Results(results.runs, {part: results.parts[part] for part in options.parts})).sections().items():
        if text and not text.startswith("*Not measured"):
            print(f"## {name}\n\n{text}\n")
    if options.docs:
        write(results, options.docs)


if __name__ == "__main__":
    main()

"""How pytest runs tests/live and tests/attack: each worker with a server of its own, the longest classes first, one line per class.

bin/test starts the servers and names them in PGBILLING_SERVERS, a line "directory of the socket, tab, port" for each worker. By hand,
without that variable, libpq's own environment says where the only server is.
"""

import collections
import json
import os
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


def take_server(worker):
    """Points libpq at the server of a worker, which is named as pytest-xdist names it: gw0, gw1, …"""
    if "PGBILLING_SERVERS" in os.environ:
        servers = pathlib.Path(os.environ["PGBILLING_SERVERS"]).read_text(encoding="utf-8").splitlines()
        host, port = servers[int(worker.removeprefix("gw"))].split("\t")
        os.environ.update(PGHOST=host, PGPORT=port, PGUSER="postgres", PGDATABASE="postgres")


def pytest_configure(config):
    """In a worker: takes its server. In the process that leads the workers: reports."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker or not config.getoption("numprocesses", None):
        take_server(worker or "gw0")
    if not worker:
        config.pluginmanager.register(Report(config), "report")


def pytest_collection_modifyitems(items):
    """The longest classes first, or the last one to start would run alone; what seconds.json does not name is short.

    pytest-xdist gives a class as a whole to one worker (--dist loadscope), because its tests share a database.
    """
    seconds = json.loads((HERE / "seconds.json").read_text(encoding="utf-8"))
    items.sort(key=lambda item: -seconds.get(item.nodeid.rsplit("::", 1)[0], 0))


# ---------------------------------------------------------------- what is told


class Report:
    """One line per class as soon as all its tests are done, with its time; counts for bin/test; times for seconds.json."""

    def __init__(self, config):
        self.config = config
        self.missing = collections.Counter()            # by class: tests that are still to come
        self.outcomes = collections.defaultdict(dict)   # by class: of each test
        self.seconds = collections.Counter()            # by class
        self.out = None

    def say(self, text, **markup):
        """A line on the terminal."""
        self.out = self.out or self.config.pluginmanager.get_plugin("terminalreporter")
        self.out.ensure_newline()
        self.out.write_line(text, **markup)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids):
        """What a worker has collected; each collects everything."""
        self.missing = collections.Counter(nodeid.rsplit("::", 1)[0] for nodeid in ids)

    def pytest_collection_finish(self, session):
        """What there is to run, without workers."""
        if session.items:
            self.pytest_xdist_node_collection_finished([item.nodeid for item in session.items])

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        """No dots and letters: what passes is told by its class, what fails by a line of ours."""
        if report.passed:
            return ("passed" if report.when == "call" and not hasattr(report, "context") else ""), "", ""
        if report.skipped:
            return "skipped", "", ""
        return ("failed" if report.when == "call" else "error"), "", ""

    def pytest_runtest_logreport(self, report):
        """Counts a phase of a test."""
        name, _, test = report.nodeid.rpartition("::")
        if report.failed:
            part = f" {report.context.msg or ''} {dict(report.context.kwargs) or ''}" if hasattr(report, "context") else ""
            when = "" if report.when == "call" else f" ({report.when})"
            self.say(f"FAILED {report.nodeid}{part}{when}", red=True)
            self.outcomes[name][test] = "failed"
        elif report.skipped:
            self.outcomes[name].setdefault(test, "skipped")
        if hasattr(report, "context"):
            return
        self.seconds[name] += report.duration
        if report.when == "teardown":
            self.outcomes[name].setdefault(test, "passed")
            self.missing[name] -= 1
            if self.missing[name] == 0:
                self.tell(name)

    def pytest_collectreport(self, report):
        """A file that cannot be read is a failure."""
        if report.failed:
            self.outcomes[report.nodeid]["collection"] = "failed"

    def tell(self, name):
        """The line of a class."""
        count = collections.Counter(self.outcomes[name].values())
        words = "  ".join(f"{count[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped") if count[outcome])
        self.say(f"{name.replace('.py::', ' '):<58} {words:<32} {self.seconds[name]:7.1f} s", red=bool(count["failed"]))

    def pytest_sessionfinish(self):
        """Leaves the counts and the times where bin/test looks for them."""
        if "PGBILLING_COUNTS" in os.environ:
            count = collections.Counter(outcome for of_class in self.outcomes.values() for outcome in of_class.values())
            pathlib.Path(os.environ["PGBILLING_COUNTS"]).write_text(
                f"{count['passed']} {count['failed']} {count['skipped']}\n", encoding="ascii")
        if "PGBILLING_SECONDS" in os.environ:
            times = {name: round(seconds, 1) for name, seconds in self.seconds.most_common() if seconds >= 1}
            pathlib.Path(os.environ["PGBILLING_SECONDS"]).write_text(json.dumps(times, indent=0) + "\n", encoding="utf-8")

"""A private cluster as the benchmarks see it: connections, databases, pgbench, and what the kernel says of a backend."""

import ctypes
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
import time

import psycopg2

HERE = pathlib.Path(__file__).resolve().parent
ROLE = "billing_bench"
STATED_SETTINGS = (
    "fsync", "full_page_writes", "synchronous_commit", "wal_level", "wal_compression", "data_checksums", "shared_buffers",
    "max_wal_size", "checkpoint_timeout", "autovacuum", "jit",
)  # fmt: skip
TURN = 0.5  # seconds: short beside the minutes in which a machine is faster or slower


def say(text):
    """Progress; what was measured alone goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def cores():
    """Processors of this machine."""
    return os.cpu_count() or 1


def cpu_model():
    """The processor's name."""
    names = re.findall(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return names[0] if names else os.uname().machine


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


def anonymous_bytes(pid):
    """Memory that a process has for itself: heap, stack and what it changed of private mappings.

    Pss_Anon leaves shared memory out. Resident size does not, and not even Private_Dirty does: a page of shared_buffers that
    only this process has touched so far counts as private there, so both grow with the buffers that a backend has seen.
    """
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(re.search(r"^Pss_Anon:\s*(\d+) kB", rollup, re.MULTILINE).group(1)) * 1024


def in_parallel(workers, work):
    """Runs work(0), work(1), … in threads, and raises what the first of them raised."""
    failures = []

    def guarded(worker):
        try:
            work(worker)
        except Exception as error:  # pylint: disable=broad-except  # handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def script(name):
    """Path of a pgbench script."""
    return HERE / "scripts" / f"{name}.sql"


class Calls:
    """Runs a pgbench script over one connection as an application's driver does: prepared statements of the extended protocol.

    psycopg2 only knows the simple protocol, whose parsing would be added to both sides and hide the difference; libpq under it knows
    better. The variables that \\set draws in the script are given by the caller; \\gset sets variables from the row as in pgbench.
    """

    TUPLES_OK, COMMAND_OK = 2, 1

    def __init__(self, connection, name):
        self.pg = ctypes.CDLL("libpq.so.5")
        for function in ("PQprepare", "PQexecPrepared"):
            getattr(self.pg, function).restype = ctypes.c_void_p
        for function in ("PQresultErrorMessage", "PQfname", "PQgetvalue"):
            getattr(self.pg, function).restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p(connection.pgconn_ptr)
        self.statements = []
        lines = script(name).read_text(encoding="utf-8").splitlines()
        parts = re.split(r"(;|\\gset)", "\n".join(line for line in lines if not line.startswith("\\set ")))
        for sql, end in zip(parts[::2], parts[1::2], strict=False):
            self.prepare(f"{name}_{len(self.statements)}", sql.strip(), end == "\\gset")

    def prepare(self, name, sql, sets):
        """One statement of the script, its variables turned into parameters."""
        variables = list(dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", sql)))
        numbered = re.sub(r"(?<!:):([a-z_]+)", lambda match: f"${variables.index(match[1]) + 1}", sql)
        result = self.checked(self.pg.PQprepare(self.handle, name.encode(), numbered.encode(), len(variables), None))
        self.pg.PQclear(result)
        self.statements.append((name.encode(), variables, sets))

    def checked(self, result):
        """A result, unless it is an error."""
        result = ctypes.c_void_p(result)
        if self.pg.PQresultStatus(result) not in (self.TUPLES_OK, self.COMMAND_OK):
            raise RuntimeError((self.pg.PQresultErrorMessage(result) or b"connection lost").decode())
        return result

    def __call__(self, **variables):
        for name, wanted, sets in self.statements:
            values = (ctypes.c_char_p * len(wanted))(*(str(variables[variable]).encode() for variable in wanted))
            result = self.checked(self.pg.PQexecPrepared(self.handle, name, len(wanted), values, None, None, 0))
            if sets:
                for column in range(self.pg.PQnfields(result)):
                    variables[self.pg.PQfname(result, column).decode()] = self.pg.PQgetvalue(result, 0, column).decode()
            self.pg.PQclear(result)


class Server:
    """The cluster, seen by its superuser."""

    def __init__(self, host, port):
        self.host, self.port = host, port
        pg_config = os.environ.get("PG_CONFIG", "pg_config")
        bindir = subprocess.run([pg_config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip()
        self.pgbench_path = pathlib.Path(bindir) / "pgbench"
        self.admin = self.connect("postgres")

    def connect(self, database, options=""):
        """An autocommit connection."""
        connection = psycopg2.connect(host=self.host, port=self.port, dbname=database, options=options)
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

    def run_in(self, database, *statements):
        """Runs statements in a database, over a connection of their own; the rows of the last one."""
        connection = self.connect(database)
        try:
            return [self.run(connection, statement) for statement in statements][-1]
        finally:
            connection.close()

    def set(self, **settings):
        """ALTER SYSTEM, for the cluster's life; None resets."""
        for name, value in settings.items():
            change = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
            self.run(self.admin, f"ALTER SYSTEM {change}")
        self.run(self.admin, "SELECT pg_reload_conf()")

    def stated_settings(self):
        """The settings that matter, for the page."""
        return {name: self.value(self.admin, f"SHOW {name}") for name in STATED_SETTINGS}

    def create_role(self):
        """Who calls, on both sides."""
        if not self.run(self.admin, "SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)):
            self.run(self.admin, f"CREATE ROLE {ROLE}")

    def copy_database(self, name, template):
        """Creates a database, over a former one of that name."""
        self.drop_database(name)
        size = self.value(self.admin, "SELECT pg_database_size(%s)", (template,))
        # Through the WAL is quicker while there is little to copy: it needs no checkpoint.
        strategy = "WAL_LOG" if size < 100_000_000 else "FILE_COPY"
        self.run(self.admin, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY {strategy}')

    def drop_database(self, name):
        """Drops a database, whoever is in it."""
        self.run(self.admin, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def databases(self):
        """Those that the benchmarks made."""
        return [name for (name,) in self.run(self.admin, "SELECT datname FROM pg_database WHERE datname LIKE %s", (f"{ROLE}\\_%",))]

    def checkpoint(self):
        """So that none starts in the middle of what comes next."""
        self.run(self.admin, "CHECKPOINT")

    def pgbench_command(self, scripts, database, clients, how_long, define):
        """The command line of pgbench for one or more scripts, each a name or a name with a weight."""
        files = [part for name in scripts for part in ("--file", f"{script(name.split('@')[0])}{name[len(name.split('@')[0]):]}")]
        defined = [part for name, value in define.items() for part in ("--define", f"{name}={value}")]
        return [
            str(self.pgbench_path), "--host", self.host, "--port", str(self.port), "--no-vacuum", "--protocol", "prepared",
            "--client", str(clients), "--jobs", str(min(clients, cores())), *how_long, *defined, *files, database,
        ]  # fmt: skip

    @staticmethod
    def pgbench_environment(durable):
        """Who the clients are, and whether they wait for the disk."""
        return {**os.environ, "PGOPTIONS": f"-c role={ROLE} -c synchronous_commit={'on' if durable else 'off'}"}

    def pgbench(self, name, database, clients, how_long, durable=True, **define):
        """Runs pgbench on a script; what it printed."""
        result = subprocess.run(
            self.pgbench_command([name], database, clients, how_long, define),
            env=self.pgbench_environment(durable), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode:
            raise RuntimeError(f"pgbench failed on {name}:\n{result.stderr}")
        return result

    def throughput(self, name, database, clients, seconds, warm_up, durable=True, **define):
        """Transactions per second of so many clients after warming up, and how many transactions there were in all."""
        result = self.pgbench(name, database, clients, ["--time", str(seconds + warm_up), "--progress", "1"], durable, **define)
        # Not counted: new backends load libraries, fill caches and meet the pages of shared memory for the first time.
        per_second = [float(tps) for tps in re.findall(r"^progress: .*? s, ([\d.]+) tps", result.stderr, re.MULTILINE)][warm_up:]
        transactions = int(re.search(r"^number of transactions actually processed: (\d+)", result.stdout, re.MULTILINE).group(1))
        if not per_second:
            per_second = [float(re.search(r"^tps = ([\d.]+)", result.stdout, re.MULTILINE).group(1))]
        return statistics.fmean(per_second), transactions

    def in_turns(self, contenders, clients, seconds, warm_up, durable=True):
        """Transactions per second of contenders (script, database, variables), each with so many clients that stay connected.

        One of them runs at a time, for half a second, while the others are stopped; so all of them meet the machine in the
        same moods. Each of their transactions must take a transaction id, by which they are counted. A turn ends when the last
        of its transactions has.
        """
        running = []
        try:
            for name, database, variables in contenders:
                running.append(
                    subprocess.Popen(
                        self.pgbench_command([name], database, clients, ["--time", "86400"], variables),
                        env=self.pgbench_environment(durable), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    )  # fmt: skip
                )
                time.sleep(max(warm_up, TURN))
                self.pause(running[-1], name)
            self.checkpoint()
            spent, done = [0.0] * len(running), [0] * len(running)
            for turn in range(max(1, round(seconds / TURN))):
                for i in range(len(running)) if turn % 2 == 0 else reversed(range(len(running))):
                    before, started = self.transaction_ids(), time.monotonic()
                    running[i].send_signal(signal.SIGCONT)
                    time.sleep(TURN)
                    self.pause(running[i], contenders[i][0])
                    spent[i] += time.monotonic() - started
                    done[i] += self.transaction_ids() - before
            return [count / time for count, time in zip(done, spent, strict=True)]
        finally:
            for process in running:
                process.kill()
                process.communicate()

    def pause(self, process, name):
        """Stops a pgbench, and waits until the server has done what it was asked for."""
        if process.poll() is not None:
            raise RuntimeError(f"pgbench failed on {name}:\n{process.stderr.read()}")
        process.send_signal(signal.SIGSTOP)
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND state <> 'idle'"
        while self.value(self.admin, busy):
            time.sleep(0.002)

    def transaction_ids(self):
        """How many transactions have written something, ever."""
        return int(self.value(self.admin, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))

"""What the live tests share: a database of their own, calls and refusals, parallel callers, clusters that may be killed.

The server is found by libpq's environment (PGHOST, PGPORT, PGUSER, PGDATABASE). PGBIN is the directory of PostgreSQL's
programs; PGBILLING_RUNAS is the unix user who may run a server (none: ourselves); PGBILLING_SETTINGS, as in
"billing.direct_rows=off", is what all servers of this run are set to.
"""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import uuid

import psycopg2
import psycopg2.errors
import psycopg2.extras

psycopg2.extras.register_uuid()

ROOT = pathlib.Path(__file__).resolve().parents[2]
PGBIN = os.environ.get("PGBIN", "")
RUN_AS = os.environ.get("PGBILLING_RUNAS", "")
SETTINGS = dict(setting.split("=", 1) for setting in os.environ.get("PGBILLING_SETTINGS", "").split())
Refused = psycopg2.Error
CATALOG = {"metrics": {"call": {"price": 1}, "page": {"price": 7}, "view": {"price": 0},
                       "third": {"price": {"steps": [{"credits": 1, "per": 3}]}}}}


# What is folded of the ledger into months and days, beside the entries themselves.
MISFOLDED = """
    with entry as (
        select e.* from billing.entries e join billing_internal.fold_positions f on f.org_id = e.org_id and f.slot = e.entry_id >> 40 where e.entry_id <= f.entry_id),
    operation as (
        select org_id, metric, (min(created_at) at time zone 'UTC')::date as day, min(quantity) as quantity from entry
         where kind = 'usage' and source is distinct from 'settlement' group by org_id, metric, operation_id),
    month as (
        select org_id, unit, date_trunc('month', created_at at time zone 'UTC')::date as month, kind,
               case when kind = 'usage' then coalesce(metric, '') else '' end as metric, sum(amount) as credits
          from entry group by 1, 2, 3, 4, 5)
    select org_id, month::text as at, kind || ' ' || metric as what, m.credits as entries, c.credits as folded
      from month m full join billing_internal.credit_months c using (org_id, unit, month, kind, metric) where coalesce(m.credits, 0) <> coalesce(c.credits, 0)
    union all
    select org_id, day::text, metric, o.quantity, d.consumed
      from (select org_id, metric, day, sum(quantity) as quantity from operation group by 1, 2, 3) o
      full join billing_internal.usage_days d using (org_id, metric, day) where coalesce(o.quantity, 0) <> coalesce(d.consumed, 0)"""


def connect(database=None, **options):
    """A connection in autocommit mode; with autocommit=False the caller ends its transactions."""
    autocommit = options.pop("autocommit", True)
    connection = psycopg2.connect(dbname=database or os.environ.get("PGDATABASE", "postgres"), **options)
    connection.autocommit = autocommit
    return connection


def rows(connection, statement, *values):
    """All rows of a statement, as named tuples."""
    with connection.cursor(cursor_factory=psycopg2.extras.NamedTupleCursor) as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def value(connection, statement, *values):
    """The only value of a statement."""
    ((result,),) = rows(connection, statement, *values)
    return result


def adapt(argument):
    """Python's dictionaries are jsonb; lists are arrays."""
    return psycopg2.extras.Json(argument) if isinstance(argument, dict) else argument


def call(connection, function, *arguments, **named):
    """select * from billing.function(…): the row that it returns."""
    places = ["%s"] * len(arguments) + [f"{name} => %s" for name in named]
    values = [adapt(argument) for argument in [*arguments, *named.values()]]
    (row,) = rows(connection, f"select * from billing.{function}({', '.join(places)})", *values)
    return row


def statements_of(connection, step):
    """The statements that the server runs for a step, with those inside of functions."""
    rows(connection, """load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
                        set client_min_messages = log""")
    del connection.notices[:]
    step()
    found = [notice.partition("Query Text:")[2].strip() for notice in connection.notices if "Query Text:" in notice]
    rows(connection, "reset client_min_messages; reset auto_explain.log_min_duration")
    return found


def total(connection, org, unit="credit", metric=None):
    """What the org may spend."""
    return value(connection, "select billing.get_total_credits(%s, %s, %s)", org, unit, metric)


def apply_catalog(connection, catalog):
    """Applies a catalog document and gives what changed."""
    return rows(connection, "select * from billing.apply_catalog(%s)", psycopg2.extras.Json(catalog))


def install_extension(connection):
    """The two steps, unless the database has been made from one that has them behind it."""
    if not value(connection, "select exists (select from pg_extension where extname = 'pg_billing')"):
        rows(connection, "create extension pg_billing")
        rows(connection, "select billing.install()")


def violations(connection):
    """What verify_ledger() finds: nothing, if all is well."""
    return rows(connection, "select * from billing.verify_ledger()")


# What amcheck finds in our tables, and in our indexes against their tables.
DAMAGED_TABLES = """
    select format('%s: block %s, row %s: %s', c.oid::regclass, h.blkno, h.offnum, h.msg)
      from pg_class c cross join lateral amcheck.verify_heapam(c.oid, check_toast => true) h
     where c.relnamespace in (to_regnamespace('billing'), to_regnamespace('billing_internal')) and c.relkind = 'r'"""
CHECK_INDEXES = """
    select amcheck.bt_index_check(c.oid, heapallindexed => true)
      from pg_class c join pg_index i on i.indexrelid = c.oid join pg_am a on a.oid = c.relam
     where c.relnamespace in (to_regnamespace('billing'), to_regnamespace('billing_internal')) and c.relkind = 'i' and a.amname = 'btree'
       and i.indisvalid"""


def damage(connection):
    """What is wrong with a database, as an empty list if nothing is: every database of a test ends with this.

    That is what verify_ledger() finds, what is folded otherwise than the entries come to, and what amcheck finds in tables and indexes.
    A superuser's connection is wanted.
    """
    rows(connection, "set client_min_messages = warning; reset role; reset search_path")
    rows(connection, "create schema if not exists amcheck; create extension if not exists amcheck schema amcheck")
    found = [text for (text,) in rows(connection, DAMAGED_TABLES)]
    try:
        rows(connection, CHECK_INDEXES)
    except Refused as error:
        found.append(str(error))
    installed = """select exists (select from pg_extension where extname = 'pg_billing') and to_regclass('billing.ledger') is not null"""
    if value(connection, installed):
        found += [tuple(row) for row in violations(connection) + rows(connection, MISFOLDED)]
    return found


def code_of(error):
    """SQLSTATE and code of a refusal, as in 'PT402 insufficient_credits'."""
    detail = error.diag.message_detail or ""
    return f"{error.pgcode} {json.loads(detail)['code']}" if detail.startswith("{") else str(error.pgcode)


def retrying(connection, work):
    """Runs work() in a transaction of the connection until it is serialized: 40001 is tried again, all else is raised.

    Gives its result and the number of attempts.
    """
    for attempt in range(1, 1000):
        try:
            result = work()
            connection.commit()
            return result, attempt
        except psycopg2.errors.SerializationFailure:
            connection.rollback()
        except Refused:
            connection.rollback()
            raise
    raise AssertionError("never serialized")


def together(count, body):
    """Runs body(i, barrier) in so many threads; gives their results in order, or raises the first exception."""
    barrier = threading.Barrier(count)
    results, errors = [None] * count, []

    def run(i):
        try:
            results[i] = body(i, barrier)
        except BaseException as error:  # pylint: disable=broad-except
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if any(thread.is_alive() for thread in threads):
        raise AssertionError("a caller hangs")
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results


def await_condition(condition, seconds, what):
    """Polls until condition() is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.05)


def program(name):
    """Path of one of PostgreSQL's programs."""
    return str(pathlib.Path(PGBIN) / name) if PGBIN else name


def run(*command, as_server=False, cwd=None):
    """Runs a program and gives its output; as_server: as the unix user who may run a server."""
    environment = {name: text for name, text in os.environ.items() if name != "RUST_BACKTRACE"}
    if as_server and RUN_AS and os.geteuid() == 0:
        command = ("runuser", "-u", RUN_AS, "--", *command)
    done = subprocess.run(command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}")
    return done.stdout


def installed_database(connection):
    """A database in which nothing but the two steps have been done, once per server: a template is copied faster than it is made."""
    name = "billing_installed"
    if not value(connection, "select exists (select from pg_database where datname = %s)", name):
        rows(connection, f"create database {name} template template0")
        parameters = connection.info.dsn_parameters
        with contextlib.closing(connect(name, host=parameters["host"], port=parameters["port"])) as installing:
            install_extension(installing)
    return name


class LiveTestCase(unittest.TestCase):
    """A class of tests with a database of its own, in which the extension is installed; self.db is a connection to it."""

    @classmethod
    def setUpClass(cls):
        cls.roles = []
        cls.admin = connect()
        cls.addClassCleanup(lambda: cls.admin.close())
        # Cleanups run in reverse order: roles go when the databases in which they have rights are gone.
        cls.addClassCleanup(lambda: [rows(cls.admin, f"drop role if exists {role}") for role in cls.roles])
        cls.database = cls.new_database(installed_database(cls.admin))
        cls.db = connect(cls.database)
        cls.addClassCleanup(lambda: cls.db.close())
        cls.install(cls.db)

    @classmethod
    def new_database(cls, template="template0", options=""):
        """A database, empty if no other is its template. At the end of the class it must be sound, and is dropped."""
        name = f"billing_{cls.__name__.lower()}_{uuid.uuid4().hex[:8]}"
        rows(cls.admin, f'create database "{name}" template "{template}" {options}')
        cls.addClassCleanup(cls.drop_database, name)
        return name

    @classmethod
    def drop_database(cls, name):
        """Looks for damage, and drops it in any case."""
        try:
            with contextlib.closing(connect(name)) as connection:
                found = damage(connection)
        finally:
            rows(cls.admin, f'drop database if exists "{name}" with (force)')
        assert not found, f"damage in {name}:\n" + "\n".join(map(str, found))

    @classmethod
    def new_role(cls, connection, level):
        """A role that has been granted a level; dropped at the end."""
        name = f"billing_{level}_{uuid.uuid4().hex[:8]}"
        rows(cls.admin, f"create role {name}")
        cls.roles.append(name)
        rows(connection, "select billing.grant_access(%s, %s)", name, level)
        return name

    @classmethod
    def install(cls, connection):
        """The two steps, and a catalog."""
        install_extension(connection)
        apply_catalog(connection, CATALOG)

    def connect(self, **options):
        """Another connection to the class's database, closed after the test."""
        connection = connect(self.database, **options)
        self.addCleanup(connection.close)
        return connection

    def connections(self, count, **options):
        """As many connections."""
        return [self.connect(**options) for _ in range(count)]

    def org(self, *amounts):
        """A new org with a grant of each amount."""
        org = uuid.uuid4()
        for amount in amounts:
            call(self.db, "grant_credits", org, amount)
        return org

    def assert_refused(self, expected, function, *arguments, connection=None, **named):
        """The call is refused with this SQLSTATE and code."""
        with self.assertRaises(Refused) as caught:
            call(connection or self.db, function, *arguments, **named)
        self.assertEqual(code_of(caught.exception), expected)

    def assert_sound(self, connection=None):
        """verify_ledger() finds nothing, and what is folded is what the entries come to."""
        self.assertEqual(violations(connection or self.db), [])
        self.assertEqual(rows(connection or self.db, MISFOLDED), [])


def server_directory():
    """A new directory that the user who may run a server can write."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgbilling."))
    if RUN_AS and os.geteuid() == 0:
        owner = pwd.getpwnam(RUN_AS)
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    return directory


@functools.cache
def initialized_data():
    """What initdb makes, once per process: clusters are copies of it."""
    base = server_directory()
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    run(program("initdb"), "-D", str(base / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync",
        as_server=True, cwd=base)
    return base / "data"


class Cluster:
    """A PostgreSQL server of its own in a temporary directory, which may be killed. At its end, what runs must be sound."""

    def __init__(self, settings):
        self.base = server_directory()
        self.data = self.base / "data"
        self.host, self.port = str(self.base), "5432"
        run("cp", "-a", str(initialized_data()), str(self.data), as_server=True, cwd=self.base)
        settings = {"listen_addresses": "", "unix_socket_directories": self.host, "port": self.port, **SETTINGS, **settings}
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as configuration:
            configuration.writelines(f"{name} = '{setting}'\n" for name, setting in settings.items())

    def start(self):
        """Starts the server, with recovery where it was killed, and waits for it."""
        try:
            run(program("pg_ctl"), "start", "-w", "-t", "120", "-D", str(self.data), "-l", str(self.base / "log"),
                as_server=True, cwd=self.base)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-2000:]}") from error

    def connect(self, database="postgres", **options):
        """A connection to it."""
        return connect(database, host=self.host, port=self.port, user="postgres", **options)

    def kill(self):
        """SIGKILL for the postmaster and, at once, for everything that it started."""
        postmaster = int((self.data / "postmaster.pid").read_text(encoding="ascii").split()[0])
        # Stopped first, it can neither start nor reap a child while we look for them.
        os.kill(postmaster, signal.SIGSTOP)
        killed = [postmaster, *children_of(postmaster)]
        for process in killed:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await_condition(lambda: not any(is_running(process) for process in killed), 60, "the end of the killed server")
        # Where nobody reaps orphans, the dead postmaster stays as a zombie, and a new one would take it for alive.
        if process_state(postmaster):
            (self.data / "postmaster.pid").unlink()
            (self.base / f".s.PGSQL.{self.port}.lock").unlink()
        return len(killed)

    def log(self):
        """What the server logged."""
        return (self.base / "log").read_text(encoding="utf-8", errors="replace")

    def damage(self):
        """What is wrong in its databases."""
        found = []
        with contextlib.closing(self.connect()) as admin:
            names = [name for (name,) in rows(admin, "select datname from pg_database where datallowconn and not datistemplate")]
        for name in names:
            with contextlib.closing(self.connect(name)) as connection:
                found += [f"{name}: {text}" for text in damage(connection)]
        return found

    def remove(self):
        """Looks for damage, if the server runs; stops it and removes everything."""
        try:
            found = self.damage() if (self.data / "postmaster.pid").exists() else []
        finally:
            self.stop_and_delete()
        assert not found, "damage in\n" + "\n".join(found)

    def stop_and_delete(self):
        """Without ceremony."""
        if (self.data / "postmaster.pid").exists():
            try:
                run(program("pg_ctl"), "stop", "-m", "immediate", "-D", str(self.data), as_server=True, cwd=self.base)
            except AssertionError:
                pass
        shutil.rmtree(self.base, ignore_errors=True)


def process_state(process):
    """State and parent of a process, as /proc has them; None when it is gone."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = text.rsplit(")", 1)[1].split()[:2]
    return state, int(parent)


def is_running(process):
    """Whether it is there and not a zombie."""
    state = process_state(process)
    return state is not None and state[0] != "Z"


def children_of(parent):
    """The processes that it started."""
    processes = [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]
    return [process for process in processes if (process_state(process) or (None, None))[1] == parent]


def seeded():
    """A random generator whose seed is printed, or taken from SEED to repeat a run."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    print(f"SEED={seed}", flush=True)
    return random.Random(seed), seed

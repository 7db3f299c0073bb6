"""The databases that are measured: ledgers of several sizes, and recorded usage; each with the tables of both sides."""

import time

from results import HAND, OURS
from server import HERE, ROLE, cores, in_parallel, say

SCRATCH, USAGE, UNSETTLED, RECORDED = (f"{ROLE}_{name}" for name in ("scratch", "usage", "unsettled", "recorded"))
LEDGER = {OURS: "billing.ledger", HAND: "handwritten.ledger"}
PRICE = 15  # consume_handwritten.sql passes the same number
CATALOG = '{"metrics": {"bench_call": {"price": %d}}}' % PRICE
# Every org goes over what its plan includes, so that each settlement charges each of them, for both metrics.
USAGE_CATALOG = """{
    "metrics": {"bench_event": {"price": {"steps": [{"up_to": 1000, "credits": 3, "per": 2}, {"credits": 1, "per": 1}]}},
                "bench_byte": {"price": {"steps": [{"credits": 7, "per": 1000}]}}},
    "plans": {"bench": {"price": {"USD": 900}, "allowances": {"bench_event": 100, "bench_byte": 10000}, "limits": {"bench_event": "hard"}}}
}"""
CREDIT = 10**12
ORG = "('00000000-0000-4000-8000-' || lpad(to_hex(({})::int), 12, '0'))::uuid"
CHECK_ORGS = 20
# Wallets beside those that share the load, each by how many lanes it has; 0: as many as the server finds good.
HOT_LANES = (1, 16, 0)
DOCUMENTS, BATCH_ITEMS, BATCH_WALLETS = 64, 1000, 100


def written(number):
    """A count as people say it: 5 million, 10 thousand, 1,234."""
    for unit, name in ((1_000_000, "million"), (1_000, "thousand")):
        if number >= unit and number % unit == 0:
            return f"{number // unit:,} {name}"
    return f"{number:,}"


def ledger_sizes(smallest, largest):
    """From the smallest ledger to the largest, each ten times the one before."""
    sizes = [smallest]
    while sizes[-1] * 10 < largest:
        sizes.append(sizes[-1] * 10)
    return sizes if smallest == largest else [*sizes, largest]


class Databases:
    """Makes and fills them. What is small is a template, which blocks that write get a copy of."""

    def __init__(self, server, options, sizes=()):
        self.server = server
        self.options = options
        self.sizes = sizes
        self.has_lanes = False
        self.bytes = {}  # (entries, side) → bytes per consumption

    def ledger(self, entries):
        """Name of the database with a ledger of that size."""
        return f"{ROLE}_{entries}"

    @property
    def small(self):
        """The smallest ledger."""
        return self.ledger(self.sizes[0])

    @property
    def large(self):
        """The largest ledger."""
        return self.ledger(self.sizes[-1])

    def hot_wallet(self, lanes):
        """Number of the wallet with so many lanes."""
        return self.options.wallets + 1 + HOT_LANES.index(lanes)

    def fresh(self, database, writes=True):
        """The database a block runs in. A block adds many times ten thousand entries: what is small is set back before each."""
        if writes and database in (self.small, USAGE, RECORDED):
            self.server.copy_database(SCRATCH, database)
            database = SCRATCH
        self.server.checkpoint()
        return database

    def make(self, name, catalog):
        """A database with the tables of both sides, and credit for every wallet; and a connection to it."""
        server = self.server
        server.copy_database(name, self.options.template or "template0")
        connection = server.connect(name)
        if not self.options.template:
            server.run(connection, "CREATE EXTENSION pg_billing")
        server.run(connection, "SELECT billing.install()")
        server.run(connection, (HERE / "handwritten.sql").read_text(encoding="utf-8"))
        server.run(connection, "SELECT billing.grant_access(%s, 'service')", (ROLE,))
        server.run(connection, "SELECT * FROM billing.apply_catalog(%s)", (catalog,))
        parameters = {"wallets": self.options.wallets + len(HOT_LANES), "credit": CREDIT}
        # Credits that expire are burned first, so that every consumption has an expiry to watch.
        server.run(
            connection,
            f"""
            SELECT sum(granted.amount)
              FROM generate_series(1, %(wallets)s) AS wallet,
                   LATERAL (VALUES ('purchase', NULL), ('bonus', now() + interval '1 year')) AS kind (source, expires_at),
                   LATERAL billing.grant_credits({ORG.format("wallet")}, %(credit)s, kind.source, expires_at => kind.expires_at) AS granted
            """,
            parameters,
        )
        server.run(
            connection,
            f"""
            INSERT INTO handwritten.balances
            SELECT {ORG.format("wallet")}, 2 * %(credit)s FROM generate_series(1, %(wallets)s) AS wallet
            """,
            parameters,
        )
        self.has_lanes = server.value(connection, "SELECT to_regprocedure('billing.set_wallet_lanes(uuid,integer,text)') IS NOT NULL")
        if self.has_lanes:
            for lanes in HOT_LANES:
                server.run(connection, f"SELECT billing.set_wallet_lanes({ORG.format(self.hot_wallet(lanes))}, %s)", (lanes,))
        return connection

    def vacuum(self, database):
        """So that no such work is left for the blocks."""
        self.server.run_in(database, "VACUUM (ANALYZE)")

    # -- ledgers --------------------------------------------------------------------------------------------------

    def prepare_ledgers(self, largest):
        """The ledgers up to this size; each begins as a copy of the one before."""
        empty, last = {}, 0
        for entries in [size for size in self.sizes if size <= largest]:
            name = self.ledger(entries)
            if last:
                self.server.copy_database(name, self.ledger(last))
            else:
                connection = self.make(name, CATALOG)
                empty = {side: self.ledger_bytes(connection, side) for side in LEDGER}
                connection.close()
            # Vacuuming what grows would only take the cores away from growing it; all is vacuumed at the end.
            self.server.set(autovacuum="off")
            self.fill(name, last, entries)
            self.server.set(autovacuum=None)
            connection = self.server.connect(name)
            for side in LEDGER:
                self.bytes[entries, side] = (self.ledger_bytes(connection, side) - empty[side]) / entries
            started = time.monotonic()
            self.server.run(connection, "VACUUM (ANALYZE)")
            connection.close()
            self.server.checkpoint()
            say(f"{name}: vacuumed and on disk ({time.monotonic() - started:.0f} s)")
            last = entries

    def ledger_bytes(self, connection, side):
        """Heap, TOAST, maps and all indexes of a ledger, partitions included."""
        relations = "SELECT %(ledger)s::regclass UNION SELECT relid FROM pg_partition_tree(%(ledger)s)"
        sql = f"SELECT sum(pg_total_relation_size(relation))::bigint FROM ({relations}) AS parts (relation)"
        return self.server.value(connection, sql, {"ledger": LEDGER[side]})

    def fill(self, database, first, last):
        """Adds the entries first..last-1 on both sides, as consumptions of wallets drawn at random, with random keys."""
        for side, work in ((OURS, self.fill_ours), (HAND, self.fill_handwritten)):
            started = time.monotonic()
            work(database, first, last)
            say(f"{database}: {written(last)} entries, {side} ({time.monotonic() - started:.0f} s)")

    def fill_ours(self, database, first, last):
        """consume_credits for every row of a SELECT; the workers have their own wallets each and so never wait for one another.

        One worker per core is quickest; consume_credits_batch is not quicker than this.
        """
        workers, chunk = min(cores(), 8, self.options.wallets), 1000
        done = [0] * workers

        def work(worker):
            connection = self.server.connect(database, "-c synchronous_commit=off")
            mine = (self.options.wallets - worker + workers - 1) // workers
            start, stop = (last - first) * worker // workers, (last - first) * (worker + 1) // workers
            # A row that is updated again and again in one transaction leaves versions that nobody can clear away meanwhile.
            step = min(chunk, mine)
            for position in range(start, stop, step):
                until = min(position + step, stop)
                self.server.run(
                    connection,
                    f"""
                    SELECT count(used.operation_id)
                      FROM generate_series(%(position)s, %(until)s - 1) AS i,
                           -- With i, or one wallet would be drawn for all of them.
                           LATERAL (SELECT 1 + %(worker)s + %(workers)s * floor(random() * %(mine)s + 0 * i)) AS drawn (wallet),
                           LATERAL billing.consume_credits({ORG.format("wallet")}, 'bench_call', 1, gen_random_uuid()::text) AS used
                    """,
                    {"worker": worker, "workers": workers, "mine": mine, "position": position, "until": until},
                )
                done[worker] = until - start
                if worker == 0 and position // 500_000 != until // 500_000:
                    say(f"{database}: {first + sum(done):,} entries")
            connection.close()

        in_parallel(workers, work)

    def fill_handwritten(self, database, first, last):
        """Plain INSERT … SELECT, then the balances that follow from it."""
        workers, chunk = min(cores(), 4), 100_000
        parameters = {"wallets": self.options.wallets, "price": PRICE, "balance": 2 * CREDIT}

        def work(worker):
            connection = self.server.connect(database, "-c synchronous_commit=off")
            for position in range(first + worker * chunk, last, workers * chunk):
                self.server.run(
                    connection,
                    f"""
                    INSERT INTO handwritten.ledger (org, amount, balance_after, metric, quantity, idempotency_key)
                    SELECT {ORG.format("1 + floor(random() * %(wallets)s)")}, -%(price)s,
                           %(balance)s - %(price)s * (i / %(wallets)s + 1), 'bench_call', 1, gen_random_uuid()::text
                      FROM generate_series(%(first)s::bigint, %(last)s::bigint - 1) AS i
                    """,
                    {**parameters, "first": position, "last": min(position + chunk, last)},
                )
            connection.close()

        in_parallel(workers, work)
        connection = self.server.connect(database)
        self.server.run(
            connection,
            """
            UPDATE handwritten.balances
               SET balance = %(balance)s + spent.amount
              FROM (SELECT org, sum(amount) AS amount FROM handwritten.ledger GROUP BY org) AS spent
             WHERE balances.org = spent.org
            """,
            parameters,
        )
        connection.close()

    def make_documents(self, database):
        """Batches to be picked from: 1,000 items each, for one of several groups of 100 wallets, as collectors report their own customers.

        So two batches that run at once have all of their wallets in common, or none.
        """
        connection = self.server.connect(database)
        wallets = min(BATCH_WALLETS, self.options.wallets)
        self.server.run(
            connection,
            f"""
            CREATE SCHEMA bench;
            CREATE TABLE bench.documents (id int PRIMARY KEY, items jsonb NOT NULL);
            -- Neither compressed nor in pieces, as a parameter that a client sends.
            ALTER TABLE bench.documents ALTER items SET STORAGE external;
            INSERT INTO bench.documents
            SELECT document, jsonb_agg(jsonb_build_object(
                       'org_id', {ORG.format("1 + document %% %(groups)s * %(wallets)s + i %% %(wallets)s")},
                       'metric', 'bench_call', 'quantity', 1) ORDER BY i)
              FROM generate_series(1, %(documents)s) AS document, generate_series(1, %(items)s) AS i
             GROUP BY document;
            GRANT USAGE ON SCHEMA bench TO {ROLE};
            GRANT SELECT ON bench.documents TO {ROLE};
            """,
            {"documents": DOCUMENTS, "items": BATCH_ITEMS, "wallets": wallets, "groups": self.options.wallets // wallets},
        )
        connection.close()

    # -- usage ----------------------------------------------------------------------------------------------------

    def prepare_usage(self):
        """Orgs with a plan, credit and no usage."""
        connection = self.make(USAGE, USAGE_CATALOG)
        self.subscribe_all(connection)
        self.server.run(connection, "CALL billing.settle()")
        connection.close()
        self.vacuum(USAGE)

    def subscribe_all(self, connection):
        """The plan for every org."""
        self.server.run(
            connection,
            f"SELECT count(s.plan) FROM generate_series(1, %s) AS wallet, LATERAL billing.subscribe({ORG.format('wallet')}, 'bench') AS s",
            (self.options.wallets,),
        )

    def check_orgs(self):
        """How many orgs check_limit is asked for."""
        return min(CHECK_ORGS, self.options.wallets)

    def prepare_unsettled(self):
        """The same with usage of some orgs that was not settled."""
        started = time.monotonic()
        self.server.copy_database(UNSETTLED, USAGE)
        orgs, clients = self.check_orgs(), 8
        # A call for each event, from several clients at once: as many rows of counts as that makes.
        calls = -(-self.options.unsettled * orgs // clients)
        self.server.pgbench("record", UNSETTLED, clients, ["--transactions", str(calls)], durable=False, first=1, last=orgs)
        self.vacuum(UNSETTLED)
        say(f"{UNSETTLED}: {written(self.options.unsettled)} unsettled events of each of {orgs} orgs ({time.monotonic() - started:.0f} s)")

    def prepare_recorded(self):
        """What a settlement finds: events of all orgs alike, for two metrics, in batches as collectors report them."""
        started = time.monotonic()
        self.server.copy_database(RECORDED, USAGE)
        workers, batch = min(cores(), 4), 10_000

        def work(worker):
            connection = self.server.connect(RECORDED, "-c synchronous_commit=off")
            start, stop = self.options.events * worker // workers, self.options.events * (worker + 1) // workers
            for position in range(start, stop, batch):
                self.server.run(
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

        in_parallel(workers, work)
        self.vacuum(RECORDED)
        say(f"{RECORDED}: {written(self.options.events)} events ({time.monotonic() - started:.0f} s)")

"""The blocks of a round: each measures one thing on both sides and notes it in the results."""

import json
import random
import statistics
import time

from databases import BATCH_ITEMS, DOCUMENTS, HOT_LANES, RECORDED, UNSETTLED, USAGE, written
from results import HAND, OURS
from server import ROLE, Calls, cpu_seconds, say

CPU, TIME, WAL, IMAGES, CALLS, PAIRS, ITEMS, MILLISECONDS, BYTES = (
    "CPU of the backend, µs", "time, µs", "WAL bytes", "of these full-page images", "calls/s", "pairs/s", "items/s", "ms", "bytes",
)  # fmt: skip
SCRIPTS = {
    ("consume", OURS): "consume",
    ("consume", HAND): "consume_handwritten",
    ("total", OURS): "total",
    ("total", HAND): "total_handwritten",
    ("record", OURS): "record",
    ("record", HAND): "record_handwritten",
    ("check", OURS): "check",
    ("check usage", OURS): "check_usage",
    ("reserve + capture", OURS): "reserve_capture",
    ("batch", OURS): "batch",
    ("batch with keys", OURS): "batch_keys",
}
READS = ("total", "check", "check usage")
# What a member's page asks for, without any condition; and the same of everybody's rows with the orgs as condition.
MEMBER_READS = {
    "a page of entries": "SELECT * FROM billing.entries {} ORDER BY created_at DESC LIMIT 20",
    "count of entries": "SELECT count(*) FROM billing.entries {}",
    "wallets": "SELECT * FROM billing.wallets {}",
    "usage_by_month": "SELECT * FROM billing.usage_by_month {}",
}
MEMBER_ORGS = (1, 1000)
HOT_CLIENTS, BATCH_CLIENTS = 64, 8
SWEEP_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SWEEP_SECONDS, SWEEP_WARM_UP = 2, 1
SLOW_ROUNDS = 3  # rounds of what takes long and is drawn as a line
VERIFY_ENTRIES = 1_000_000
COMMIT = {True: "on", False: "off"}


class Blocks:
    """All parts; a method of each does one round of it, in the order of the sides that it is given."""

    def __init__(self, server, databases, results, options):
        self.server, self.databases, self.results, self.options = server, databases, results, options
        self.warm_up = 0 if options.quick else options.warm_up
        self.wal_stats = False
        self.last_round = False

    # -- what the parts need --------------------------------------------------------------------------------------

    @staticmethod
    def parts():
        """Every part by name."""
        return {
            "storage": Blocks.storage, "cost": Blocks.cost, "consume": Blocks.consume, "wallet": Blocks.wallet, "holds": Blocks.holds,
            "batch": Blocks.batch, "total": Blocks.total, "record": Blocks.record, "settle": Blocks.settle, "verify": Blocks.verify,
            "members": Blocks.members, "clients": Blocks.clients,
        }  # fmt: skip

    def verified(self):
        """Size of the ledger that is verified: a million entries, or what there is."""
        return max(size for size in self.databases.sizes if size <= max(VERIFY_ENTRIES, self.databases.sizes[0]))

    def prepare(self):
        """Settings, role, and the databases that the parts need."""
        # A checkpoint that starts inside a block would hit whichever side is running.
        self.server.set(max_wal_size="16GB", checkpoint_timeout="1h")
        self.server.create_role()
        if self.server.run(self.server.admin, "SELECT 1 FROM pg_available_extensions WHERE name = 'pg_walinspect'"):
            self.server.run(self.server.admin, "CREATE EXTENSION IF NOT EXISTS pg_walinspect")
            self.wal_stats = True
        parts, sizes = set(self.options.parts), self.databases.sizes
        if parts & {"storage", "cost", "consume", "total"}:
            self.databases.prepare_ledgers(sizes[-1])
        elif parts & {"verify", "members"}:
            self.databases.prepare_ledgers(self.verified())
        elif parts & {"wallet", "holds", "batch", "clients"}:
            self.databases.prepare_ledgers(sizes[0])
        if parts & {"cost", "record", "settle"}:
            self.databases.prepare_usage()
        if "cost" in parts:
            self.databases.prepare_unsettled()
        if "settle" in parts:
            self.databases.prepare_recorded()

    def clean_up(self):
        """Leaves the cluster as it was."""
        self.server.set(max_wal_size=None, checkpoint_timeout=None, autovacuum=None)
        if not self.options.keep:
            for database in self.server.databases():
                self.server.drop_database(database)
            self.server.run(self.server.admin, f"DROP ROLE IF EXISTS {ROLE}, {ROLE}_member")
            self.server.run(self.server.admin, "DROP EXTENSION IF EXISTS pg_walinspect")

    def rounds(self):
        """Every part in every round; who goes first alternates."""
        for number in range(self.options.rounds):
            started = time.monotonic()
            self.last_round = number + 1 == self.options.rounds
            sides = (OURS, HAND) if number % 2 == 0 else (HAND, OURS)
            for name, measure in self.parts().items():
                if name in self.options.parts:
                    part_started = time.monotonic()
                    measure(self, number, sides)
                    say(f"round {number + 1}, {name}: {time.monotonic() - part_started:.0f} s")
            say(f"round {number + 1} of {self.options.rounds}: {time.monotonic() - started:.0f} s")

    def verify_sound(self, database, why, org=None):
        """Fast and wrong would not count."""
        connection = self.server.connect(database)
        violations = self.server.run(connection, "SELECT * FROM billing.verify_ledger(%s) LIMIT 5", (org,))
        connection.close()
        if violations:
            raise RuntimeError(f"{why}: verify_ledger() found {violations}")

    def wallets(self, lanes=None):
        """Variables of the scripts: all wallets that share the load, or one, by its lanes."""
        first = self.databases.hot_wallet(lanes) if lanes is not None else 1
        return {"first": first, "last": first if lanes is not None else self.options.wallets}

    # -- single client --------------------------------------------------------------------------------------------

    def storage(self, number, sides):
        """Bytes per consumption of the ledgers as filled: that is the same in every round."""
        if number == 0:
            for entries in self.databases.sizes:
                for side in sides:
                    self.results.add("storage", self.databases.bytes[entries, side], measure=BYTES, entries=entries, side=side)

    def cost(self, number, sides):
        """CPU, time and WAL per call over one connection, for every size of the ledger."""
        sizes = self.databases.sizes
        shown = sizes if number < SLOW_ROUNDS else [sizes[0], sizes[-1]]
        for call in ("consume", "total", "check", "reserve + capture"):
            for entries in shown if call != "reserve + capture" else [sizes[0]]:
                for side in sides:
                    self.single_client(call, self.databases.ledger(entries), side, entries=entries)
        for side in sides:
            self.single_client("record", USAGE, side)
        for call in ("check usage", "total"):
            for database, unsettled in ((USAGE, 0), (UNSETTLED, self.options.unsettled)):
                for side in sides if call == "total" else (OURS,):
                    if (call, side) != ("total", OURS):
                        self.single_client(call, database, side, unsettled=unsettled)

    def single_client(self, call, database, side, **at):
        """What each of many calls costs, one after another. Sides that have no such call are left out."""
        if (call, side) not in SCRIPTS:
            return
        server, options = self.server, self.options
        database = self.databases.fresh(database, call not in READS)
        # Waiting for the disk is no CPU: with synchronous_commit on the same calls would only take longer.
        connection = server.connect(database, f"-c role={ROLE} -c synchronous_commit=off")
        pid = connection.get_backend_pid()
        calls = Calls(connection, SCRIPTS[call, side])
        chosen = random.Random(options.wallets)
        last = self.databases.check_orgs() if "unsettled" in at else options.wallets
        numbers = [chosen.randint(1, last) for _ in range(options.calls)]
        for number in numbers[:500]:
            calls(wallet=number)

        lsn = server.value(server.admin, "SELECT pg_current_wal_insert_lsn()")
        cpu, wall = cpu_seconds(pid), time.perf_counter()
        for number in numbers:
            calls(wallet=number)
        wall, cpu = time.perf_counter() - wall, cpu_seconds(pid) - cpu
        end_lsn, wal = server.run(server.admin, "SELECT l, l - %s FROM pg_current_wal_insert_lsn() AS l", (lsn,))[0]

        at = {"call": call, "side": side, **at}
        count = len(numbers)
        self.results.add("cost", cpu / count * 1e6, measure=CPU, **at)
        self.results.add("cost", wall / count * 1e6, measure=TIME, **at)
        if call not in READS:
            self.results.add("cost", int(wal) / count, measure=WAL, **at)
            if self.wal_stats:
                # The function reads flushed WAL only; a commit that waits for the disk flushes all before it.
                server.run(server.admin, "SELECT pg_logical_emit_message(true, 'bench', 'flush')")
                images = server.value(server.admin, "SELECT coalesce(sum(fpi_size), 0) FROM pg_get_wal_stats(%s, %s)", (lsn, end_lsn))
                self.results.add("cost", int(images) / count, measure=IMAGES, **at)
        connection.close()

    # -- throughput -----------------------------------------------------------------------------------------------

    def throughput(self, part, call, database, side, clients, durable=True, measure=CALLS, variables=None, **at):
        """Calls per second of pgbench with so many clients; how many there were in all."""
        seconds, warm_up = (SWEEP_SECONDS, SWEEP_WARM_UP) if part == "clients" else (self.options.seconds, self.warm_up)
        if self.options.quick:
            seconds, warm_up = 1, 0
        per_second, transactions = self.server.throughput(
            SCRIPTS[call, side], database, clients, seconds, warm_up, durable, **(variables or self.wallets())
        )
        factor = BATCH_ITEMS if measure == ITEMS else 1
        self.results.add(
            part, per_second * factor, measure=measure, call=call, side=side, clients=clients, commit=COMMIT[durable], **at
        )
        return transactions

    def in_turns(self, part, contenders, clients, durable=True):
        """Calls per second of several at once, in turns: (call, side, variables, ids of transactions that one takes, attributes)."""
        database = self.databases.fresh(self.databases.large if part == "consume" else self.databases.small)
        seconds = 1 if self.options.quick else self.options.seconds
        scripts = [(SCRIPTS[call, side], database, variables) for call, side, variables, _, _ in contenders]
        rates = self.server.in_turns(scripts, clients, seconds, self.warm_up, durable)
        for (call, side, _, ids, at), rate in zip(contenders, rates, strict=True):
            measure = PAIRS if ids == 2 else CALLS
            self.results.add(part, rate / ids, measure=measure, call=call, side=side, clients=clients, commit=COMMIT[durable], **at)
        return database

    def consume(self, _number, sides):
        """Spread over all wallets, with the disk and without it."""
        at = {"entries": self.databases.sizes[-1]}
        for clients, durable in [(clients, durable) for durable in (True, False) for clients in self.options.clients]:
            self.in_turns("consume", [("consume", side, self.wallets(), 1, at) for side in sides], clients, durable)

    def wallet(self, _number, sides):
        """Many clients on one wallet, by its lanes, beside the same clients spread over all."""
        ours = [(OURS, None)] + [(OURS, lanes) for lanes in HOT_LANES if self.databases.has_lanes or lanes == 1]
        blocks = [*ours, (HAND, 1)]
        contenders = []
        for side, lanes in blocks if sides[0] == OURS else reversed(blocks):
            at = {"wallets": "one" if lanes is not None else "spread", "lanes": lanes if side == OURS else None}
            contenders.append(("consume", side, self.wallets(lanes), 1, at))
        self.verify_sound(self.in_turns("wallet", contenders, HOT_CLIENTS), "one wallet")

    def holds(self, _number, sides):
        """Reserve and capture, each a transaction of its own, beside consume."""
        contenders = [("reserve + capture", OURS, self.wallets(), 2, {}), ("consume", OURS, self.wallets(), 1, {})]
        database = self.in_turns("holds", contenders if sides[0] == OURS else contenders[::-1], BATCH_CLIENTS)
        if self.last_round:
            self.verify_sound(database, "reserve + capture")

    def batch(self, _number, sides):
        """Batches beside single calls."""
        calls = ("batch", "batch with keys", "consume")
        for call in calls if sides[0] == OURS else reversed(calls):
            database = self.databases.fresh(self.databases.small)
            if call == "consume":
                self.throughput("batch", call, database, OURS, BATCH_CLIENTS)
                continue
            self.databases.make_documents(database)
            self.server.checkpoint()
            counting = "SELECT count(*) FROM billing.entries WHERE kind = 'usage'"
            before = self.server.run_in(database, counting)[0][0]
            batches = self.throughput("batch", call, database, OURS, BATCH_CLIENTS, measure=ITEMS, variables={"documents": DOCUMENTS})
            added = self.server.run_in(database, counting)[0][0] - before
            if added != batches * BATCH_ITEMS:
                raise RuntimeError(f"{call}: {batches} batches added {added} consumptions")
            if self.last_round:
                self.verify_sound(database, call)

    def total(self, _number, sides):
        """Reading what a wallet can spend, beside a primary-key SELECT."""
        for side in sides:
            database = self.databases.fresh(self.databases.large, writes=False)
            self.throughput("total", "total", database, side, max(self.options.clients), entries=self.databases.sizes[-1])

    def record(self, _number, sides):
        """Recording usage, beside a bare INSERT."""
        clients = self.options.clients
        for count, durable in [(count, True) for count in sorted({1, *clients})] + [(count, False) for count in clients]:
            for side in sides:
                database = self.databases.fresh(USAGE)
                self.throughput("record", "record", database, side, count, durable)
                if side == OURS:
                    self.check_counts(database)

    def check_counts(self, database):
        """Every event that was recorded is counted."""
        sql = "SELECT (SELECT count(*) FROM billing.usage_events), (SELECT sum(events) FROM billing_internal.unsettled_usage)"
        events, counted = self.server.run_in(database, sql)[0]
        if events != counted:
            raise RuntimeError(f"record: {events} events, {counted} counted")

    def members(self, _number, sides):
        """What a member reads under row security, beside the same without it and with its orgs as condition."""
        entries = self.verified()
        database = self.databases.ledger(entries)
        member = f"{ROLE}_member"
        admin = self.server.connect(database, "-c max_parallel_workers_per_gather=0")
        if not self.server.run(admin, "SELECT 1 FROM pg_roles WHERE rolname = %s", (member,)):
            self.server.run(admin, f"CREATE ROLE {member}")
        self.server.run(admin, "SELECT billing.grant_access(%s, 'member')", (member,))
        reader = self.server.connect(database, f"-c role={member} -c max_parallel_workers_per_gather=0")
        orgs = [org for (org,) in self.server.run(admin, "SELECT org_id::text FROM billing_internal.wallet_settings ORDER BY 1")]
        for count in MEMBER_ORGS:
            mine = orgs[:count]
            self.server.run(reader, "SELECT set_config('request.jwt.claims', %s, false)", (json.dumps({"app_metadata": {"org_ids": mine}}),))
            where = f"WHERE org_id = '{mine[0]}'" if count == 1 else f"WHERE org_id = ANY ('{{{','.join(mine)}}}')"
            for name, sql in MEMBER_READS.items():
                asks = {side: (reader, sql.format("")) if side == OURS else (admin, sql.format(where)) for side in sides}
                # The first ones read the catalogs.
                seen = {side: len(self.server.run(*ask)) for side, ask in asks.items()}
                # One after the other, since each takes less than what a machine is away for now and then.
                times = {side: [] for side in asks}
                for _ in range(200 if count == 1 else 3):
                    for side, ask in asks.items():
                        started = time.perf_counter()
                        self.server.run(*ask)
                        times[side].append((time.perf_counter() - started) * 1000)
                for side, values in times.items():
                    elapsed = statistics.median(values)
                    self.results.add("members", elapsed, measure=MILLISECONDS, call=name, side=side, orgs=len(mine), entries=entries)
                if len(set(seen.values())) != 1:
                    raise RuntimeError(f"{name}, {len(mine)} orgs: {seen}")
        reader.close()
        admin.close()

    def clients(self, number, sides):
        """By number of clients: consuming, spread and from one wallet."""
        if number >= SLOW_ROUNDS:
            return
        one_wallet = [(OURS, lanes) for lanes in (1, 16) if self.databases.has_lanes or lanes == 1]
        blocks = [(OURS, None), (HAND, None), *one_wallet, (HAND, 1)]
        for clients in SWEEP_CLIENTS if not self.options.quick else (1, 8):
            database = self.databases.fresh(self.databases.small)
            for side, lanes in blocks if sides[0] == OURS else reversed(blocks):
                at = {"wallets": "one" if lanes is not None else "spread", "lanes": lanes if side == OURS else None}
                self.throughput("clients", "consume", database, side, clients, variables=self.wallets(lanes), **at)
            if number + 1 == min(SLOW_ROUNDS, self.options.rounds):
                self.verify_sound(database, f"{clients} clients")

    # -- work on many rows ----------------------------------------------------------------------------------------

    def timed(self, part, connection, sql, **at):
        """Milliseconds of one statement, and what it returned."""
        started = time.perf_counter()
        rows = self.server.run(connection, sql)
        self.results.add(part, (time.perf_counter() - started) * 1000, measure=MILLISECONDS, **at)
        return rows

    def settle(self, _number, sides):
        """CALL settle() on events that are new to it, and the bare GROUP BY over the same events."""
        database = self.databases.fresh(RECORDED)
        connection = self.server.connect(database)
        # Neither is the first to read them.
        events = self.server.value(connection, "SELECT count(*) FROM billing.usage_events WHERE quantity > 0")
        statements = {
            OURS: "CALL billing.settle()",
            HAND: "SELECT org_id, metric, sum(quantity), count(*) FROM billing.usage_events GROUP BY org_id, metric",
        }
        for side in sides:
            self.timed("settle", connection, statements[side], call="settle", side=side, events=self.options.events)
        done = self.server.run(connection, "SELECT orgs_done, orgs_failed FROM billing.settlement_runs ORDER BY run_id DESC LIMIT 1")[0]
        wrong = self.server.value(
            connection,
            """
            SELECT count(*)
              FROM (SELECT org_id, metric, sum(quantity) AS quantity FROM billing.usage_events GROUP BY org_id, metric) AS recorded
              FULL JOIN billing_internal.period_usage AS settled USING (org_id, metric)
             WHERE recorded.quantity IS DISTINCT FROM settled.quantity
                OR EXISTS (SELECT FROM billing.unpaid_overage)
            """,
        )
        connection.close()
        if events != self.options.events or done != (min(self.options.wallets, self.options.events), 0) or wrong:
            raise RuntimeError(f"settle: {events} events, {done} orgs done and failed, {wrong} sums differ")
        self.verify_sound(database, "settle")

    def verify(self, _number, sides):
        """verify_ledger() of the whole ledger, and a bare scan that hashes each of its rows."""
        entries = self.verified()
        database = self.databases.ledger(entries)
        connection = self.server.connect(database)
        # Neither is the first to read them.
        there = self.server.value(connection, "SELECT count(*) FROM billing.entries")
        statements = {
            OURS: "SELECT * FROM billing.verify_ledger()",
            HAND: "SELECT count(sha256(convert_to(t::text, 'UTF8'))) FROM billing.entries t",
        }
        for side in sides:
            rows = self.timed("verify", connection, statements[side], call="verify", side=side, entries=entries)
            if side == OURS and rows:
                raise RuntimeError(f"verify_ledger() of {written(there)} entries found {rows[:5]}")
        connection.close()

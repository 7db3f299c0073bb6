"""The generated parts of docs/PERFORMANCE.md: Markdown tables between markers of a page that is otherwise written by hand."""

import dataclasses
import re
import statistics
import textwrap

import plots
from blocks import BATCH_CLIENTS, CALLS, CPU, HOT_CLIENTS, IMAGES, ITEMS, PAIRS, TIME, WAL
from databases import BATCH_ITEMS, BATCH_WALLETS, written
from results import HAND, OURS

CONSUME_AIM, RECORD_AIM = 1.0, 0.8
HOT_AIM, HOT_SPREAD_AIM = 5, 0.7
HOLDS_AIM, BATCH_AIM = 0.5, 10
TOTAL_AIM, CHECK_AIM, FLAT_AIM = 1.2, 2.5, 1.1
BYTES_AIM, SETTLE_AIM, VERIFY_AIM = 300, 4, 10
MEMBER_AIM = 1.3
MARKED = re.compile(r"(<!-- bench:begin (\w+) -->\n).*?(<!-- bench:end \2 -->)", re.DOTALL)
ENDURANCE = "endurance"
COLUMNS = 100


@dataclasses.dataclass(frozen=True)
class Target:
    """One line of the table of targets: what is wanted of the median of some values, a value per round."""

    what: str
    wanted: float
    values: list[float]
    at_least: bool = False
    digits: int = 2

    def row(self):
        """For the table."""
        reached = statistics.median(self.values)
        met = reached >= self.wanted if self.at_least else reached <= self.wanted
        wanted = f"{'≥' if self.at_least else '≤'} {self.wanted:,.{self.digits}f}"
        return [self.what, wanted, f"{reached:,.{self.digits}f}", spread(self.values, self.digits), "yes" if met else "**no**"]


def spread(values, digits=2):
    """The smallest and the largest; nothing for a single one."""
    return f"{min(values):,.{digits}f} – {max(values):,.{digits}f}" if len(values) > 1 else ""


def table(head, rows, text_columns):
    """A Markdown table, padded so that it reads well on a terminal too."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells):
        padded = zip(cells, widths, strict=True)
        return "| " + " | ".join(c.ljust(w) if i < text_columns else c.rjust(w) for i, (c, w) in enumerate(padded)) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < text_columns else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def wrapped(section):
    """A section with its prose in lines of at most COLUMNS; tables and pictures stay as they are."""
    lines = []
    for line in section.split("\n"):
        if line.startswith(("|", "!")) or not line:
            lines.append(line)
        else:
            indent = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def people(clients):
    """For tables."""
    return f"{clients} client{'s' if clients > 1 else ''}"


def kilobytes(count):
    """For tables."""
    return f"{count / 1024:,.0f}"


class Report:
    """What the results say, section by section."""

    def __init__(self, results):
        self.results = results

    def sections(self):
        """Text by name of the marker; sections of which nothing was measured say so."""
        sections = {
            "runs": self.runs, "targets": self.targets_section, "consume": self.consume, "wallet": self.wallet, "batch": self.batch,
            "cost": self.cost, "total": self.total, "usage": self.usage, "storage": self.storage, "clients": self.clients,
            "sizes": self.sizes, "members": self.members, "endurance": self.endurance,
        }  # fmt: skip
        return {name: wrapped(section() or "*Not measured yet.*") for name, section in sections.items()}

    def page(self, text):
        """A page with the sections put between its markers."""
        sections = self.sections()
        missing = sections.keys() - {match[1] for match in MARKED.findall(text)}
        if missing:
            raise ValueError(f"the page has no markers for {', '.join(sorted(missing))}")
        return MARKED.sub(lambda match: f"{match[1]}{sections[match[2]]}\n{match[3]}", text)

    def plots(self):
        """The drawings by file name, of what was measured."""
        results = self.results
        drawn = {}
        if results.samples("clients"):
            drawn["clients.svg"] = plots.by_clients(results)
        if len(results.seen("cost", "entries")) > 1:
            drawn["ledger_size.svg"] = plots.by_ledger_size(results)
        if results.samples(ENDURANCE, measure="seconds"):
            drawn["endurance.svg"] = plots.over_time(results)
        return drawn

    def measured(self, *parts):
        """From which run the parts of a section are."""
        lines = []
        for part in parts:
            if not self.results.samples(part):
                continue
            started, run = self.results.run_of(part)
            line = f"run of {started}"
            rounds = max(len(sample["values"]) for sample in self.results.samples(part))
            if part == ENDURANCE:
                line += f", {run['minutes']:g} minutes"
            elif part != "storage":
                line += f", {rounds} round{'s' if rounds > 1 else ''}"
            if part in ("consume", "wallet", "holds", "batch", "total", "record"):
                line += f", {run['seconds']} s per block after {run['warm_up']} s of warm-up"
            if part == "cost":
                line += f", {run['calls']:,} calls per block"
            if run.get("quick"):
                line += ", **a quick run: the figures mean nothing**"
            lines.append((part, line))
        if len({line for _, line in lines}) == 1:
            return f"*{lines[0][1][0].upper()}{lines[0][1][1:]}.*"
        return "*" + "; ".join(f"{part}: {line}" for part, line in lines) + ".*"

    def pair(self, part, ours, hand, digits=0):
        """Medians of both sides, the ratio and its spread."""
        medians = [self.results.median(part, **side) for side in (ours, hand)]
        ratios = self.results.ratios(part, ours, hand)
        shown = ["" if median is None else f"{median:,.{digits}f}" for median in medians]
        return [*shown, f"{statistics.median(ratios):.2f}" if ratios else "", spread(ratios) if ratios else ""]

    # -- sections -------------------------------------------------------------------------------------------------

    def runs(self):
        """The machine, and what each run was told."""
        used = {}
        for part in sorted(self.results.parts):
            used.setdefault(self.results.run_of(part)[0], []).append(part)
        lines = []
        for started, parts in sorted(used.items()):
            run = self.results.runs[started]
            settings = ", ".join(f"{name} {value}" for name, value in run["settings"].items())
            lines.append(
                f"- **Run of {started}** ({', '.join(parts)}): {run['machine']}, {run['cores']} cores shared by server and clients;"
                f" {run['server']}; {settings}."
            )
        return "\n".join(lines)

    def targets(self):
        """All targets of what was measured."""
        return [
            target
            for targets in (
                self.consume_targets, self.wallet_targets, self.batch_targets, self.read_targets, self.many_rows_targets,
                self.record_targets, self.member_targets,
            )  # fmt: skip
            for target in targets()
            if target.values
        ]

    def targets_section(self):
        """Targets beside what was reached."""
        rows = [target.row() for target in self.targets()]
        return rows and table(["Target", "Wanted", "Reached", "Spread", "Met"], rows, 1)

    def consume_targets(self):
        """Throughput of consumption by ledger and clients."""
        for entries in self.results.seen("consume", "entries"):
            for clients in self.results.seen("consume", "clients", entries=entries, commit="on"):
                at = {"clients": clients, "entries": entries, "commit": "on"}
                what = f"consume_credits, {people(clients)}, ledger of {written(entries)}: calls/s, by hand-written"
                yield Target(what, CONSUME_AIM, self.results.ratios("consume", {**at, "side": OURS}, {**at, "side": HAND}), True)

    def wallet_targets(self):
        """One wallet with lanes."""
        lanes = {"lanes": 16, "side": OURS}
        one_row, all_wallets = {"side": HAND}, {"side": OURS, "wallets": "spread"}
        what = f"one wallet with 16 lanes, {HOT_CLIENTS} clients: calls/s, by"
        yield Target(f"{what} hand-written on one row", HOT_AIM, self.results.ratios("wallet", lanes, one_row), True)
        yield Target(f"{what} our own spread over all wallets", HOT_SPREAD_AIM, self.results.ratios("wallet", lanes, all_wallets), True)

    def batch_targets(self):
        """Holds and batches against single calls."""
        pairs, items, calls = {"measure": PAIRS}, {"measure": ITEMS, "call": "batch"}, {"measure": CALLS}
        what = f"reserve_credits + capture_credits, {BATCH_CLIENTS} clients: pairs/s, by calls/s of consume_credits"
        yield Target(what, HOLDS_AIM, self.results.ratios("holds", pairs, calls), True)
        what = f"consume_credits_batch, {BATCH_CLIENTS} clients: items/s, by calls/s of consume_credits"
        yield Target(what, BATCH_AIM, self.results.ratios("batch", items, calls), True)

    def read_targets(self):
        """CPU of reads by a primary-key SELECT, and whether it stays as the ledger or the usage grows."""
        ratios, key = self.results.ratios, {"call": "total", "side": HAND, "measure": CPU}
        for call, name, aim in (("total", "get_total_credits", TOTAL_AIM), ("check", "check_limit", CHECK_AIM)):
            ours, sizes = {"call": call, "side": OURS, "measure": CPU}, self.results.seen("cost", "entries", call=call)
            for entries in dict.fromkeys([*sizes[:1], *sizes[-1:]]):
                at = {"entries": entries}
                yield Target(f"{name}, ledger of {written(entries)}: CPU, by primary-key SELECT", aim, ratios("cost", ours | at, key | at))
            if len(sizes) > 1:
                what = f"{name}: CPU at {written(sizes[-1])} entries, by that at {written(sizes[0])}"
                yield Target(what, FLAT_AIM, ratios("cost", {**ours, "entries": sizes[-1]}, {**ours, "entries": sizes[0]}))
        usage, events = {"call": "check usage", "side": OURS, "measure": CPU}, self.results.seen("cost", "unsettled", call="check usage")
        for count in events:
            what = f"check_limit of a plan, {written(count) if count else 'no'} unsettled events: CPU, by primary-key SELECT"
            yield Target(what, CHECK_AIM, ratios("cost", {**usage, "unsettled": count}, {**key, "unsettled": count}))
        if len(events) > 1:
            what = f"check_limit of a plan: CPU at {written(events[-1])} unsettled events, by that at none"
            yield Target(what, FLAT_AIM, ratios("cost", {**usage, "unsettled": events[-1]}, {**usage, "unsettled": events[0]}))

    def many_rows_targets(self):
        """Disk, settlement and proof."""
        for entries in self.results.seen("storage", "entries")[-1:]:
            values = self.results.values("storage", entries=entries, side=OURS)
            yield Target(f"bytes on disk per consumption with all indexes, ledger of {written(entries)}", BYTES_AIM, values, digits=0)
        for events in self.results.seen("settle", "events"):
            what = f"settle() of {written(events)} events: time, by GROUP BY over them"
            yield Target(what, SETTLE_AIM, self.results.ratios("settle", {"side": OURS}, {"side": HAND}))
        for entries in self.results.seen("verify", "entries"):
            what = f"verify_ledger() of {written(entries)} entries: time, by a scan that hashes each row"
            yield Target(what, VERIFY_AIM, self.results.ratios("verify", {"side": OURS}, {"side": HAND}))

    def record_targets(self):
        """Throughput of recording."""
        for commit in ("on", "off"):
            for clients in self.results.seen("record", "clients", commit=commit):
                at = {"clients": clients, "commit": commit}
                what = f"record_usage, {people(clients)}, synchronous_commit {commit}: calls/s, by bare INSERT"
                yield Target(what, RECORD_AIM, self.results.ratios("record", {**at, "side": OURS}, {**at, "side": HAND}), True)

    def member_reads(self):
        """What members read, and of how many orgs."""
        for orgs in self.results.seen("members", "orgs"):
            for call in self.results.seen("members", "call", orgs=orgs):
                yield call, orgs, {"call": call, "orgs": orgs}

    def member_targets(self):
        """What row security costs a member."""
        for call, orgs, at in self.member_reads():
            what = f"{call}, a member of {written(orgs)} org{'s' if orgs > 1 else ''}: time, by the same without row security"
            yield Target(what, MEMBER_AIM, self.results.ratios("members", {**at, "side": OURS}, {**at, "side": HAND}))

    def members(self):
        """Reads under row security."""
        rows = [
            [call, written(orgs), *self.pair("members", {**at, "side": OURS}, {**at, "side": HAND}, 2)]
            for call, orgs, at in self.member_reads()
        ]
        head = ["Read without any condition", "Orgs", "Member, ms", "Without row security, with the orgs as condition, ms", "Ratio", "Spread"]
        return rows and f"{self.measured('members')}\n\n{table(head, rows, 1)}"

    def throughput_table(self, part, first, entries=None):
        """Calls per second of both sides by clients and commit."""
        rows = []
        for commit in ("on", "off"):
            for size in self.results.seen(part, "entries") if entries else [None]:
                for clients in self.results.seen(part, "clients", commit=commit, **({"entries": size} if size else {})):
                    at = {"clients": clients, "commit": commit, **({"entries": size} if size else {})}
                    label = [people(clients), commit, *([written(size)] if size else [])]
                    rows.append([*label, *self.pair(part, {**at, "side": OURS}, {**at, "side": HAND})])
        head = ["Clients", "synchronous_commit", *(["Ledger entries"] if entries else []), *first, "Ratio", "Spread"]
        return table(head, rows, len(head) - 4)

    def consume(self):
        """Consumption spread over all wallets."""
        if not self.results.samples("consume"):
            return None
        head = ["consume_credits, calls/s", "Hand-written, calls/s"]
        return f"{self.measured('consume')}\n\n{self.throughput_table('consume', head, True)}"

    def wallet(self):
        """One wallet."""
        if not self.results.samples("wallet"):
            return None
        spread_ours, one_row = {"side": OURS, "wallets": "spread"}, {"side": HAND}
        blocks = [("pg_billing, spread over all wallets", spread_ours)]
        for lanes, name in ((1, "one lane"), (16, "16 lanes"), (0, "lanes chosen by the server")):
            if self.results.samples("wallet", side=OURS, lanes=lanes):
                blocks.append((f"pg_billing, one wallet, {name}", {"side": OURS, "lanes": lanes}))
        blocks.append(("hand-written, one row", one_row))
        rows = []
        for name, at in blocks:
            values = self.results.values("wallet", **at)
            by = [statistics.median(self.results.ratios("wallet", at, under)) for under in (one_row, spread_ours)]
            rows.append([name, f"{statistics.median(values):,.0f}", spread(values, 0), *(f"{ratio:.2f}" for ratio in by)])
        text = table([f"{HOT_CLIENTS} clients", "Calls/s", "Spread", "By hand-written, one row", "By pg_billing, spread"], rows, 1)
        if len(blocks) == 3:
            text += "\n\nThe version that was measured knows no `set_wallet_lanes`: a wallet has one lane."
        return f"{self.measured('wallet')}\n\n{text}"

    def batch(self):
        """Holds and batches."""
        rows = []
        for part, call, measure, name in (
            ("holds", "reserve + capture", PAIRS, "reserve_credits + capture_credits, pairs/s"),
            ("batch", "batch", ITEMS, f"consume_credits_batch of {BATCH_ITEMS:,} over {BATCH_WALLETS} wallets, items/s"),
            ("batch", "batch with keys", ITEMS, "the same with idempotency keys, which the statement adds to the items, items/s"),
        ):
            ours, single = {"call": call, "measure": measure}, {"call": "consume"}
            if self.results.samples(part, **ours):
                rows.append([name, *self.pair(part, ours, single)])
        head = [f"{BATCH_CLIENTS} clients", "Measured", "consume_credits, calls/s", "Ratio", "Spread"]
        return rows and f"{self.measured('holds', 'batch')}\n\n{table(head, rows, 1)}"

    def cost(self):
        """What one call costs."""
        results, rows = self.results, []
        names = {
            "consume": "consume_credits / UPDATE + INSERT", "reserve + capture": "reserve_credits + capture_credits",
            "record": "record_usage / INSERT", "total": "get_total_credits / primary-key SELECT", "check": "check_limit",
            "check usage": "check_limit of a plan",
        }  # fmt: skip
        for call, name in names.items():
            sizes = results.seen("cost", "entries", call=call)
            states = [{"entries": size} for size in dict.fromkeys([*sizes[:1], *sizes[-1:]])]
            states += [{"unsettled": count} for count in results.seen("cost", "unsettled", call=call, side=OURS)]
            for state in states or [{}]:
                at = {"call": call, **state}
                if not results.samples("cost", side=OURS, measure=CPU, **at):
                    continue
                size = written(state["entries"]) if "entries" in state else ""
                if "unsettled" in state:
                    size = f"{written(state['unsettled']) if state['unsettled'] else 'no'} unsettled events"
                cells = []
                for measure in (CPU, TIME, WAL, IMAGES):
                    for side in (OURS, HAND):
                        median = results.median("cost", side=side, measure=measure, **at)
                        cells.append("" if median is None else f"{median:,.0f}")
                both = zip(cells[::2], cells[1::2], strict=True)
                rows.append([name, size, *(f"{ours} / {hand}" if hand else ours for ours, hand in both)])
        head = ["Call", "Ledger entries", CPU, TIME, WAL, IMAGES]
        return rows and f"{self.measured('cost')}\n\n{table(head, rows, 2)}"

    def total(self):
        """Totals by many clients."""
        if not self.results.samples("total"):
            return None
        head = ["get_total_credits, calls/s", "Primary-key SELECT, calls/s"]
        return f"{self.measured('total')}\n\n{self.throughput_table('total', head, True)}"

    def usage(self):
        """Recording and settling."""
        parts = []
        if self.results.samples("record"):
            parts.append(self.throughput_table("record", ["record_usage, calls/s", "Bare INSERT, calls/s"]))
        rows = []
        for events in self.results.seen("settle", "events"):
            rows.append([f"settle() of {written(events)} events, ms", *self.pair("settle", {"side": OURS}, {"side": HAND})])
        if rows:
            parts.append(table(["", "pg_billing", "GROUP BY", "Ratio", "Spread"], rows, 1))
        return parts and "\n\n".join([self.measured("record", "settle"), *parts])

    def storage(self):
        """Bytes on disk and the proof."""
        parts = []
        rows = []
        for entries in self.results.seen("storage", "entries"):
            sides = [{"entries": entries, "side": side} for side in (OURS, HAND)]
            rows.append([written(entries), *self.pair("storage", *sides)[:3]])
        if rows:
            parts.append(table(["Ledger entries", "pg_billing, bytes per consumption", "Hand-written", "Ratio"], rows, 1))
        rows = []
        for entries in self.results.seen("verify", "entries"):
            rows.append([f"verify_ledger() of {written(entries)} entries, ms", *self.pair("verify", {"side": OURS}, {"side": HAND})])
        if rows:
            parts.append(table(["", "pg_billing", "Scan that hashes", "Ratio", "Spread"], rows, 1))
        return parts and "\n\n".join([self.measured("storage", "verify"), *parts])

    def clients(self):
        """By number of clients."""
        if not self.results.samples("clients"):
            return None
        series = [(name, at) for name, at in plots.CLIENT_SERIES if self.results.samples("clients", **at)]
        rows = []
        for clients in self.results.seen("clients", "clients"):
            medians = [self.results.median("clients", clients=clients, **at) for _, at in series]
            rows.append([str(clients), *(f"{median:,.0f}" for median in medians)])
        text = table(["Clients", *(name for name, _ in series)], rows, 0)
        return f"{self.measured('clients')}\n\n![Calls per second by number of clients](plots/clients.svg)\n\n{text}"

    def sizes(self):
        """CPU by size of the ledger."""
        sizes = self.results.seen("cost", "entries", call="consume")
        if len(sizes) < 2:
            return None
        rows = []
        for name, at in plots.SIZE_SERIES:
            medians = [self.results.median("cost", measure=CPU, entries=entries, **at) for entries in sizes]
            rows.append([name, *("" if median is None else f"{median:,.0f}" for median in medians)])
        text = table(["CPU of the backend per call, µs", *(written(entries) for entries in sizes)], rows, 1)
        return f"{self.measured('cost')}\n\n![CPU per call by size of the ledger](plots/ledger_size.svg)\n\n{text}"

    def endurance(self):
        """The long run."""
        results = self.results
        if not results.samples(ENDURANCE, measure="seconds"):
            return None
        first, last = (results.values(ENDURANCE, measure="tenth", which=which)[0] for which in ("first", "last"))
        calls = results.values(ENDURANCE, measure="calls")[0]
        lines = [
            f"- Throughput: {calls:,.0f} transactions in all; {first:,.0f} per second in the first tenth after warm-up,"
            f" {last:,.0f} in the last: {(last / first - 1) * 100:+.1f} %."
        ]
        for where, name in (("load", "A backend of the mixed load"), ("loop", "One backend alone")):
            counts, memory = (results.values(ENDURANCE, measure=measure, where=where) for measure in ("calls of the backend", "memory"))
            if not counts:
                continue
            after = next((used for count, used in zip(counts, memory, strict=True) if count >= 100_000), memory[0])
            since = next((count for count in counts if count >= 100_000), counts[0])
            lines.append(
                f"- {name}: {counts[-1]:,.0f} calls; {kilobytes(memory[-1])} kB of its own at the end, {kilobytes(after)} kB"
                f" after {since:,.0f} calls: {(memory[-1] - after) / 1024:+,.0f} kB."
            )
        settling = results.values(ENDURANCE, measure="settle seconds")
        lines.append(
            f"- settle(): {len(settling)} times, {statistics.median(settling):.2f} s (median), {max(settling):.2f} s (longest);"
            f" verify_ledger() then found {results.values(ENDURANCE, measure='entries verified')[0]:,} entries sound."
        )
        rows = []
        for relation in results.seen(ENDURANCE, "table", measure="heap"):
            samples = {measure: results.values(ENDURANCE, measure=measure, table=relation) for measure in ("heap", "indexes", "dead")}
            at = (0, len(samples["heap"]) // 2, -1)
            rows.append([
                relation, *(kilobytes(samples["heap"][i]) for i in at), *(kilobytes(samples["indexes"][i]) for i in at),
                f"{max(samples['dead']):,.0f}",
            ])  # fmt: skip
        columns = ["Heap, kB: start", "middle", "end", "Indexes, kB: start", "middle", "end", "Most dead rows"]
        mixes = results.samples(ENDURANCE, measure="script calls")
        mix = "- Calls: " + ", ".join(f"{sample['at']['script']} {sample['values'][0]:,.0f}" for sample in mixes) + "."
        text = "\n".join([lines[0], mix, *lines[1:]])
        plot = "![Throughput, table sizes and memory over time](plots/endurance.svg)"
        return f"{self.measured(ENDURANCE)}\n\n{plot}\n\n{text}\n\n{table(['Table', *columns], rows, 1)}"

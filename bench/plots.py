"""Line charts as SVG, by hand: axes with ticks, a legend, and a white ground so that they read on dark pages too."""

import dataclasses
import math
from xml.sax.saxutils import escape

from results import HAND, OURS

WIDTH, PLOT_HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 254, 44, 56
FONT = "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif\""
INK, FAINT = "#222222", "#d9d9d9"
# Colour, dash, marker. The colours (of Okabe and Ito) differ in grey as well, and no two lines share both dash and marker.
STYLES = (
    ("#0072b2", "", "circle"),
    ("#d55e00", "7 4", "square"),
    ("#000000", "", "triangle"),
    ("#e69f00", "2 3", "diamond"),
    ("#7a7a7a", "9 3 2 3", "ring"),
    ("#56b4e9", "", "square"),
    ("#009e73", "4 3", "circle"),
)
CLIENT_SERIES = (
    ("pg_billing, all wallets", {"side": OURS, "wallets": "spread"}),
    ("hand-written, all wallets", {"side": HAND, "wallets": "spread"}),
    ("pg_billing, one wallet, 16 lanes", {"side": OURS, "lanes": 16}),
    ("pg_billing, one wallet, one lane", {"side": OURS, "lanes": 1}),
    ("hand-written, one row", {"side": HAND, "wallets": "one"}),
)
SIZE_SERIES = (
    ("consume_credits", {"call": "consume", "side": OURS}),
    ("hand-written UPDATE + INSERT", {"call": "consume", "side": HAND}),
    ("check_limit", {"call": "check", "side": OURS}),
    ("get_total_credits", {"call": "total", "side": OURS}),
    ("primary-key SELECT", {"call": "total", "side": HAND}),
)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Numbers to places on the paper."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple
    log: bool = False

    def place(self, value):
        """Where a number stands."""
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / ((scale(self.high) - scale(self.low)) or 1)
        return self.start + share * (self.end - self.start)


def nice_ticks(high, most=6):
    """Round numbers from zero to just beyond the highest value."""
    if high <= 0:
        high = 1
    magnitude = 10 ** math.floor(math.log10(high / most))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor * most >= high * 0.999)
    return tuple(step * i for i in range(math.ceil(high / step * 0.999) + 1))


def short(number):
    """A number at a tick."""
    for unit, name in ((1_000_000, " million"), (1_000, " thousand")):
        if number >= unit and number % unit == 0:
            return f"{number // unit:g}{name}"
    return f"{number:g}"


def number(value):
    """A number on the y axis."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def text(x, y, content, size=12, anchor="middle", more=""):
    """Words on the paper."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{INK}" {more}>{escape(content)}</text>'


def stroke(x1, y1, x2, y2, colour=FAINT, width=1.0):
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def marker(shape, x, y, colour):
    """A point of a line."""
    if shape in ("circle", "ring"):
        fill = colour if shape == "circle" else "#ffffff"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.6"/>'
    corners = {
        "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        "triangle": ((0, -4.8), (4.6, 3.4), (-4.6, 3.4)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def panel(top, height, title, x_label, y_label, x_axis, x_names, series):
    """One chart: series of (name, points, style); every point a pair."""
    right = WIDTH - RIGHT
    highest = max((y for _, points, _ in series for _, y in points), default=1)
    ticks = nice_ticks(highest)
    y_axis = Axis(0, ticks[-1], top + height, top, ticks)
    drawn = [text(LEFT, top - 16, title, 14, "start", 'font-weight="600"')]
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        drawn += [stroke(LEFT, y, right, y), text(LEFT - 8, y + 4, number(tick), anchor="end")]
    for tick, name in zip(x_axis.ticks, x_names, strict=True):
        x = x_axis.place(tick)
        drawn += [stroke(x, top + height, x, top + height + 5, INK), text(x, top + height + 19, name)]
    drawn += [
        stroke(LEFT, top, LEFT, top + height, INK, 1.2),
        stroke(LEFT, top + height, right, top + height, INK, 1.2),
        text((LEFT + right) / 2, top + height + 40, x_label),
        text(0, 0, y_label, more=f'transform="translate(18 {top + height / 2:.1f}) rotate(-90)"'),
    ]
    for place, (name, points, (colour, dash, shape)) in enumerate(series):
        placed = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes} stroke-linejoin="round"/>')
        # Many points stand too close for a mark on each.
        every = max(1, len(placed) // 12)
        drawn += [marker(shape, x, y, colour) for x, y in placed[::every]]
        y = top + 8 + 20 * place
        drawn.append(
            f'<line x1="{right + 14}" y1="{y}" x2="{right + 44}" y2="{y}" stroke="{colour}" stroke-width="2"{dashes}/>'
            + marker(shape, right + 29, y, colour)
            + text(right + 50, y + 4, name, 11.5, "start")
        )
    return "\n".join(drawn)


def page(height, title, panels):
    """The file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" {FONT} role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def styled(series):
    """Series in the styles that belong to their places; those without points are left out."""
    return [(name, points, style) for (name, points), style in zip(series, STYLES, strict=False) if points]


def by_clients(results):
    """Calls per second by number of clients."""
    counts = results.seen("clients", "clients")
    series = []
    for name, at in CLIENT_SERIES:
        medians = [(count, results.median("clients", clients=count, **at)) for count in counts]
        series.append((name, [point for point in medians if point[1] is not None]))
    axis = Axis(min(counts), max(counts), LEFT + 20, WIDTH - RIGHT - 20, tuple(counts), log=True)
    title = "consume_credits: calls per second by number of clients"
    names = [str(count) for count in counts]
    chart = panel(TOP, PLOT_HEIGHT, title, "clients (logarithmic)", "calls per second", axis, names, styled(series))
    return page(TOP + PLOT_HEIGHT + BOTTOM, title, [chart])


def by_ledger_size(results):
    """CPU per call by size of the ledger."""
    sizes = results.seen("cost", "entries", call="consume")
    series = []
    for name, at in SIZE_SERIES:
        medians = [(size, results.median("cost", measure="CPU of the backend, µs", entries=size, **at)) for size in sizes]
        series.append((name, [point for point in medians if point[1] is not None]))
    axis = Axis(min(sizes), max(sizes), LEFT + 30, WIDTH - RIGHT - 30, tuple(sizes), log=True)
    title = "CPU of the backend per call by size of the ledger"
    names = [short(size) for size in sizes]
    chart = panel(TOP, PLOT_HEIGHT, title, "ledger entries (logarithmic)", "µs per call", axis, names, styled(series))
    return page(TOP + PLOT_HEIGHT + BOTTOM, title, [chart])


def over_time(results):
    """Throughput, table sizes and memory of a long run."""
    part = "endurance"
    minutes = [seconds / 60 for seconds in results.values(part, measure="seconds")]
    progress = [seconds / 60 for seconds in results.values(part, measure="progress seconds")]
    rates = results.values(part, measure="calls/s")
    end = max([*minutes, *progress, 1e-9])
    ticks = tuple(tick for tick in nice_ticks(end, 10) if tick <= end * 1.001)
    axis = Axis(0, end, LEFT, WIDTH - RIGHT - 10, ticks)
    names = [f"{tick:g}" for tick in ticks]
    sizes = []
    for relation in results.seen(part, "table", measure="heap"):
        heap, indexes = (results.values(part, measure=measure, table=relation) for measure in ("heap", "indexes"))
        sizes.append((relation, [(x, (a + b) / 1e6) for x, a, b in zip(minutes, heap, indexes, strict=True)]))
    memory = [(x, used / 1e6) for x, used in zip(minutes, results.values(part, measure="memory", where="load"), strict=False)]
    height = 170
    step = TOP + height + BOTTOM
    charts = [
        ("Throughput of the mixed load", "calls per second", styled([("all calls", list(zip(progress, rates, strict=True)))])),
        ("Tables with their indexes", "MB", styled(sizes)),
        ("Memory of one backend, without shared memory", "MB", styled([("one backend", memory)])),
    ]
    panels = [
        panel(TOP + i * step, height, title, "minutes", label, axis, names, series) for i, (title, label, series) in enumerate(charts)
    ]
    calls, alone = (results.values(part, measure=measure, where="loop") for measure in ("calls of the backend", "memory"))
    if calls:
        ticks = tuple(tick for tick in nice_ticks(calls[-1], 10) if tick <= calls[-1] * 1.001)
        axis = Axis(0, calls[-1], LEFT, WIDTH - RIGHT - 10, ticks)
        series = styled([("one backend alone", [(count, used / 1e6) for count, used in zip(calls, alone, strict=True)])])
        title, names = "Memory of one backend by its calls, without shared memory", [f"{tick / 1000:g}" for tick in ticks]
        panels.append(panel(TOP + len(panels) * step, height, title, "thousand calls", "MB", axis, names, series))
    return page(step * len(panels), "Long run", panels)

"""What was measured, in a file: every value of every round, so that the page and the plots can be drawn again without a run."""

import json
import statistics

OURS, HAND = "pg_billing", "hand-written"


class Results:
    """Parts, each with the run it is from and its samples; a sample says what was measured and has one value per round.

    A part is replaced as a whole: a page may show parts of several runs, but no table mixes them.
    """

    def __init__(self, runs=None, parts=None):
        self.runs = runs or {}
        self.parts = parts or {}

    @classmethod
    def load(cls, path):
        """The results in a file; empty ones if it does not exist."""
        if not path.exists():
            return cls()
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(stored["runs"], stored["parts"])

    def save(self, path):
        """One line per sample, so that a change of the file can be read."""
        used = {part["run"] for part in self.parts.values()}
        runs = ",\n".join(f"    {line(name)}: {line(run)}" for name, run in sorted(self.runs.items()) if name in used)
        parts = ",\n".join(
            f'    {line(name)}: {{"run": {line(part["run"])}, "samples": [\n'
            + ",\n".join(f"      {line(sample)}" for sample in part["samples"])
            + "\n    ]}"
            for name, part in sorted(self.parts.items())
        )
        path.write_text(f'{{\n  "runs": {{\n{runs}\n  }},\n  "parts": {{\n{parts}\n  }}\n}}\n', encoding="utf-8")

    def begin(self, names, started, run):
        """Forgets what was measured of these parts: they are measured anew."""
        while self.runs.get(started, run) != run:  # another run of the same minute
            started += "'"
        self.runs[started] = run
        for name in names:
            self.parts[name] = {"run": started, "samples": []}

    def add(self, part, value, **at):
        """One more value of a sample."""
        for sample in self.parts[part]["samples"]:
            if sample["at"] == at:
                sample["values"].append(value)
                return
        self.parts[part]["samples"].append({"at": at, "values": [value]})

    def run_of(self, part):
        """When the run of a part started, and its settings."""
        started = self.parts[part]["run"]
        return started, self.runs[started]

    def samples(self, part, **at):
        """The samples of a part with these attributes."""
        if part not in self.parts:
            return []
        return [sample for sample in self.parts[part]["samples"] if at.items() <= sample["at"].items()]

    def seen(self, part, attribute, **at):
        """The values that an attribute has among samples, in the order in which they were measured first."""
        return list(dict.fromkeys(sample["at"][attribute] for sample in self.samples(part, **at) if attribute in sample["at"]))

    def values(self, part, **at):
        """The values of the one sample with these attributes; none if there is no such sample."""
        found = self.samples(part, **at)
        if len(found) > 1:
            raise ValueError(f"{part}: {at} is ambiguous")
        return found[0]["values"] if found else []

    def median(self, part, **at):
        """The median of a sample, or None."""
        values = self.values(part, **at)
        return statistics.median(values) if values else None

    def ratios(self, part, over, under):
        """One sample by another, round by round."""
        return [a / b for a, b in zip(self.values(part, **over), self.values(part, **under), strict=False) if b]


def line(value):
    """JSON on one line; floats no longer than they are exact."""
    return json.dumps(rounded(value), ensure_ascii=False)


def rounded(value):
    """Five significant digits are more than a round is good for."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value

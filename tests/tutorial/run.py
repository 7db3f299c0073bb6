#!/usr/bin/env python3
"""Runs the statements of a page of Markdown and compares what psql prints with what the page says it prints.

    tests/tutorial/run.py PAGE… [--update]

Every ```sql block of a page is run, in the order of the page, in one session of psql; the ```text block that follows
it is what psql prints, errors included. A ```sql block that none follows must print no error. Fences of other kinds
(```sh, ```python …) are not run.

Exactly means: line by line, but for spaces at the end of a line, which editors take away. Where a value is another one
every time, the page shows "…" in its place, which stands for any text within the line. With --update the blocks are
written anew from what psql printed, except where they fit already.

psql (PSQL, or the first one in PATH) finds the database by libpq's environment (PGHOST, PGPORT, PGUSER, PGDATABASE).
"""

import argparse
import dataclasses
import difflib
import os
import pathlib
import re
import subprocess
import sys

MARK = "-- end of block --"


@dataclasses.dataclass
class Block:
    """A fenced block of SQL and what stands below it."""

    line: int  # of its opening fence, from 1
    sql: list
    shown: list | None = None  # what the page says; None: nothing
    start: int = 0  # of the lines of `shown`, as indexes
    end: int = 0


def blocks(lines):
    """The blocks of SQL of a page, each with the block of text that follows it directly."""
    found, waiting, at = [], None, 0
    while at < len(lines):
        line = lines[at]
        if not line.startswith("```"):
            if line.strip():
                waiting = None
            at += 1
            continue
        kind, first = line[3:].strip(), at + 1
        end = next((i for i in range(first, len(lines)) if lines[i].rstrip() == "```"), None)
        if end is None:
            raise SystemExit(f"line {at + 1}: this block does not end")
        if kind == "sql":
            waiting = Block(at + 1, lines[first:end])
            found.append(waiting)
        elif kind == "text" and waiting:
            waiting.shown, waiting.start, waiting.end = lines[first:end], first, end
            waiting = None
        elif kind in ("text", ""):
            raise SystemExit(f"line {at + 1}: a block {'of text after no block of SQL' if kind else 'that does not say its kind'}")
        else:
            waiting = None
        at = end + 1
    return found


def printed(found):
    """What psql prints for each block: a list of lines per block."""
    script = []
    for block in found:
        script += [*block.sql, f"\\echo '{MARK}'"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PGTZ": "UTC"}
    psql = subprocess.run(
        [os.environ.get("PSQL", "psql"), "-X", "-P", "pager=off"],
        input="\n".join(script) + "\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment,
    )  # fmt: skip
    outputs, lines = [], []
    for line in psql.stdout.splitlines():
        if line == MARK:
            outputs.append(lines)
            lines = []
        else:
            lines.append(line.rstrip())
    if len(outputs) != len(found) or psql.returncode:
        print(psql.stdout)
        sys.exit(f"psql ended early (exit {psql.returncode}): {len(outputs)} of {len(found)} blocks were run")
    for output in outputs:
        while output and not output[-1]:
            output.pop()
    return outputs


def fits(shown, output):
    """Whether the page shows what was printed; "…" on the page stands for any text within its line."""
    shown = [line.rstrip() for line in shown]
    return len(shown) == len(output) and all(
        re.fullmatch(".*".join(re.escape(part) for part in page.split("…")), real) for page, real in zip(shown, output, strict=True)
    )


def check(path, update):
    """Runs a page; the numbers of blocks that were as they should be and that were not."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = blocks(lines)
    good = bad = 0
    changes = []
    for block, output in zip(found, printed(found), strict=True):
        if block.shown is not None and not fits(block.shown, output):
            changes.append((block, output))
            shown = [line.rstrip() for line in block.shown]
            fault = "\n".join(difflib.unified_diff(shown, output, "the page", "psql", lineterm=""))
        elif block.shown is None and any(line.startswith("ERROR:") for line in output):
            fault = "\n".join(output)
        else:
            good += 1
            continue
        bad += 1
        if not update:
            print(f"{path}:{block.line}: psql prints something else\n{fault}\n")
    if update and changes:
        for block, output in reversed(changes):
            lines[block.start : block.end] = output
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(changes)} blocks written anew")
    return good, bad


def main():
    """Exit code 1 where a page does not show what psql prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--update", action="store_true", help="write the blocks of text anew")
    parser.add_argument("--counts", type=pathlib.Path, help="a file that the two numbers are added to")
    arguments = parser.parse_args()
    good, bad = check(arguments.page, arguments.update)
    if not good + bad:
        sys.exit(f"{arguments.page} has no statements")
    if arguments.update:
        good, bad = good + bad, 0
    if arguments.counts:
        with arguments.counts.open("a", encoding="utf-8") as counts:
            counts.write(f"{good} {bad}\n")
    print(f"{arguments.page}: {good} blocks as shown, {bad} not")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

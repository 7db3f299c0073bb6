#!/usr/bin/env python3
"""Holds the tree to the part of docs/STYLE.md that a program can see.

It checks every file that git knows, fails on a finding, and its last line is "N files, M with findings".

The rules:

    doc         a doc comment begins with "Of ", "As ", "And ", "The same" or "Whose ": it goes on with the sentence of
                the item before, so an editor that shows it alone shows nothing
    width       a line of Markdown or Rust has more than 160 columns (rows of Markdown tables and generated pages may)
    readme      README.md has more than 150 lines
    machine     a path of somebody's own machine
    link        a relative link in Markdown leads to no file, or to no heading of it
    page        the text names a page below docs/ that does not exist
    text        a file is not text, and its kind is not in LEFT_OUT
"""

import pathlib
import re
import subprocess
import sys
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Written by a program from other sources, which are checked themselves.
GENERATED = {"docs/REFERENCE.md", "Cargo.lock", "examples/worker/package-lock.json", "docs/performance.json"}
# Neither text nor ours.
LEFT_OUT = re.compile(r"\.(csv|svg|png)$")

WIDTH = 160
README_LINES = 150
DOC_BEGINNINGS = re.compile(r"(Of|As|And|Whose) |The same\b")
DOC_COMMENT = re.compile(r"\s*//[/!](?!/)\s?(.*)")
# The first folder of a path is put together here, so that this file passes its own rule.
MACHINE = re.compile(r"(?<![\w.$}/*-])/(?:" + "|".join(["root", "work", "Users", "home"]) + r")/\w")
LINK = re.compile(r"\[[^\[\]]*\]\(([^)\s]+)\)")
PAGE = re.compile(r"(?<![\w/.-])docs/[\w/.-]*\w\.md\b")
FENCE = re.compile(r"\s*(```|~~~)")


def files():
    """All files that git knows, or would: paths relative to ROOT, with slashes."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=False
    )
    if listing.returncode == 0:
        names = sorted(name for name in listing.stdout.decode().split("\0") if name)
        return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]
    # An unpacked archive: no git, and only what was made since is in these folders.
    skipped = {".git", "target", "node_modules", "__pycache__"}
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path.as_posix() for path in found if not skipped & set(path.parts))


def slug(heading):
    """The anchor that GitHub gives a heading."""
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    kept = (c for c in heading.strip().lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def outside_fences(lines):
    """(number, line) of the lines of Markdown that are no code."""
    fenced = False
    for number, line in enumerate(lines, 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(text):
    """All anchors of a page of Markdown."""
    found = set()
    for _, line in outside_fences(text.splitlines()):
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            plain, again = slug(heading[1]), 0
            anchor = plain
            while anchor in found:
                again += 1
                anchor = f"{plain}-{again}"
            found.add(anchor)
    return found


def doc_beginnings(lines):
    """Rule doc."""
    before = False
    for number, line in enumerate(lines, 1):
        comment = DOC_COMMENT.match(line)
        if comment and not before and DOC_BEGINNINGS.match(comment[1]):
            yield number, "doc", line.strip()
        before = bool(comment)


def wide_lines(name, lines):
    """Rule width."""
    for number, line in enumerate(lines, 1):
        if len(line) > WIDTH and not (name.endswith(".md") and line.lstrip().startswith("|")):
            yield number, "width", f"{len(line)} columns: {line.strip()[:60]}…"


def dead_links(name, lines, root):
    """Rule link."""
    prose = [""] * len(lines)
    for number, line in outside_fences(lines):
        prose[number - 1] = re.sub(r"`[^`]*`", "", line)
    text = "\n".join(prose)  # since a link may begin on one line and end on the next
    for match in LINK.finditer(text):
        link = match[1]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        number = text.count("\n", 0, match.start()) + 1
        path, _, anchor = link.partition("#")
        target = (root / name).parent / path if path else root / name
        if not target.exists():
            yield number, "link", f"{link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            yield number, "link", f"{link}: no such heading"


def findings(name, text, root=ROOT):
    """(line, rule, what) for all that is wrong with a file."""
    lines = text.splitlines()
    if name.endswith(".rs"):
        yield from doc_beginnings(lines)
    if name.endswith((".md", ".rs")) and name not in GENERATED:
        yield from wide_lines(name, lines)
    if name.endswith(".md"):
        yield from dead_links(name, lines, root)
    if name == "README.md" and len(lines) > README_LINES:
        yield README_LINES + 1, "readme", f"{len(lines)} lines, {README_LINES} at most"
    for number, line in enumerate(lines, 1):
        if MACHINE.search(line):
            yield number, "machine", line.strip()[:100]
        for page in PAGE.findall(line):
            if not (root / page).is_file():
                yield number, "page", f"{page} does not exist"


def main():
    """Checks all files."""
    if sys.argv[1:]:
        sys.exit(__doc__)
    checked = bad = 0
    rules = {}
    for name in files():
        if LEFT_OUT.search(name):
            continue
        checked += 1
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            found = [(1, "text", "not text: name it in LEFT_OUT")]
        else:
            found = list(findings(name, text))
        bad += bool(found)
        for line, rule, what in found:
            rules[rule] = rules.get(rule, 0) + 1
            print(f"{name}:{line}: {rule}: {what}")
    for rule, count in sorted(rules.items()):
        print(f"  {rule}: {count}")
    print(f"{checked} files, {bad} with findings")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

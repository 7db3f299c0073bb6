#!/usr/bin/env python3
"""Writes the comments of the functions in Rust into sql/extension/comments.sql, from the docs in src/.

  sql/comments.py            writes them
  sql/comments.py --check    says where they differ, and fails then

The doc of an item under #[pg_extern] is the comment: its first paragraph is what is seen at a glance (psql's \\df+, the summary in
PostgREST's OpenAPI), the others follow after an empty line. Functions in plpgsql have their comment beside them in sql/extension.
"""
import difflib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "sql" / "extension" / "comments.sql"
BEGIN = "-- Written by sql/comments.py from the docs in src/: do not edit.\n"
END = "-- Until here.\n"

# Needed where functions share a name.
TYPES = {"&str": "text", "i32": "integer", "i64": "bigint", "bool": "boolean", "pgrx::Uuid": "uuid", "Jsonb": "jsonb"}


class Function:
    def __init__(self, path, line, attribute, signature, doc):
        self.place = f"{path.relative_to(ROOT)}:{line + 1}"
        named = re.search(r'\bname = "(\w+)"', attribute)
        written = re.search(r"create function (\w+)\.(\w+)\(", attribute, re.I)
        placed = re.search(r'\bschema = "(\w+)"', attribute)
        self.name = written[2] if written else named[1] if named else re.match(r"(?:pub )?fn (\w+)", signature)[1]
        self.schema = written[1] if written else placed[1] if placed else "billing"
        self.signature = signature
        self.doc = doc

    def arguments(self):
        """The types of the arguments, as SQL names them."""
        listed = re.search(r"\((.*)\)", self.signature, re.S)[1]
        found = []
        for rust in re.findall(r"\w+: (?:default!\()?Option<([^<>]*)>", listed):
            if rust not in TYPES:
                sys.exit(f"{self.place}: sql/comments.py does not know the SQL type of {rust}")
            found.append(TYPES[rust])
        return ", ".join(found)

    def comment(self):
        """The doc as plain text: a line per paragraph, without the marks of Markdown."""
        paragraphs = re.split(r"\n\s*\n", "\n".join(self.doc).strip())
        texts = [re.sub(r"\s+", " ", re.sub(r"`|\[(?=`)|(?<=`)\]", "", paragraph)) for paragraph in paragraphs]
        if not texts[0] or not texts[0].endswith("."):
            sys.exit(f"{self.place}: the doc of {self.name} must begin with a whole sentence")
        return "\n\n".join(texts)


def functions():
    for path in sorted((ROOT / "src").rglob("*.rs")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
        for start, line in enumerate(lines):
            if not line.startswith("#[pg_extern"):
                continue
            before = start - 1
            while lines[before].startswith("#["):
                before -= 1
            doc = []
            while lines[before].startswith("///"):
                doc.insert(0, lines[before].removeprefix("///").removeprefix(" "))
                before -= 1
            end = start
            while not re.match(r"(?:pub )?fn ", lines[end]):
                end += 1
            last = end
            while not lines[last].endswith("{"):
                last += 1
            yield Function(path, start, "\n".join(lines[start:end]), " ".join(lines[end:last + 1]), doc)


def statements():
    every = sorted(functions(), key=lambda function: (function.schema, function.name, function.signature))
    names = [(function.schema, function.name) for function in every]
    text = ""
    for function in every:
        overloaded = names.count((function.schema, function.name)) > 1
        called = f"{function.schema}.{function.name}" + (f"({function.arguments()})" if overloaded else "")
        quoted = function.comment().replace("'", "''")
        text += f"comment on function {called} is\n'{quoted}';\n"
    return text


def main():
    now = TARGET.read_text(encoding="utf-8")
    head, rest = now.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = head + BEGIN + statements() + END + tail
    if sys.argv[1:] == ["--check"]:
        differing = list(difflib.unified_diff(now.splitlines(), wanted.splitlines(), str(TARGET.relative_to(ROOT)), "docs in src/", lineterm="", n=0))
        print("\n".join(differing) if differing else f"{TARGET.relative_to(ROOT)} says what the docs in src/ say")
        return 1 if differing else 0
    if now != wanted:
        TARGET.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

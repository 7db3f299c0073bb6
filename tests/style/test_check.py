"""Does tests/style/check.py find what it is there for, and nothing else?"""

import pathlib
import tempfile
import unittest

import check

# Apart from the names of the pages, so that this file passes the rule that a page which is named exists.
D = "docs" + "/"


class Findings(unittest.TestCase):
    """Each rule against a text that breaks it and one that does not."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def rules(self, name, text):
        """The rules that a file with this text breaks, with the line."""
        return [(line, rule) for line, rule, _ in check.findings(name, text, self.root)]

    def test_doc_that_goes_on_with_another_sentence(self):
        for beginning in ("Of the table.", "As the others.", "And its key.", "The same for holds.", "Whose it is."):
            self.assertEqual(self.rules("a.rs", f"struct A;\n    /// {beginning}\nstruct B;\n"), [(2, "doc")], beginning)
            self.assertEqual(self.rules("a.rs", f"//! {beginning}\n"), [(1, "doc")], beginning)

    def test_doc_that_begins_well(self):
        text = "/// A wallet.\n/// Of its lanes, the first is the lock.\nstruct A;\n// As the others.\n//// Of no doc.\n/// Ask it.\n/// Offers.\n"
        self.assertEqual(self.rules("a.rs", text), [])

    def test_wide_lines(self):
        wide = "x" * 161
        self.assertEqual(self.rules("a.md", f"{wide}\n| {wide} |\n{'ü' * 160}\n"), [(1, "width")])
        self.assertEqual(self.rules("a.rs", f"// {wide}\n"), [(1, "width")])
        self.assertEqual(self.rules("docs/REFERENCE.md", wide), [])
        self.assertEqual(self.rules("a.py", wide), [])

    def test_length_of_the_readme(self):
        self.assertEqual(self.rules("README.md", "x\n" * 150), [])
        self.assertEqual(self.rules("README.md", "x\n" * 151), [(151, "readme")])
        self.assertEqual(self.rules(f"{D}README.md", "x\n" * 151), [])

    def test_paths_of_a_machine(self):
        for folder in ("root", "work", "Users", "home"):
            self.assertEqual(self.rules("a.sh", f"cd /{folder}/me\n"), [(1, "machine")], folder)
        self.assertEqual(self.rules("a.sh", "cd $ROOT/work/me ./home/x a/root/b https://x/home/y /usr/lib /tmp/x\n"), [])

    def test_links(self):
        (self.root / "docs").mkdir()
        (self.root / "docs" / "B.md").write_text("# Two `words`, here\n## Twice\n## Twice\n```\n# Not one\n```\n", encoding="utf-8")
        good = f"[a]({D}B.md) [b]({D}B.md#two-words-here) [c]({D}B.md#twice-1) [d](https://x.y/z) [e](docs) [f](#g)\n# G\n`[x](y)`\n"
        self.assertEqual(self.rules("a.md", good.replace("[f](#g)", "")), [])
        (self.root / "a.md").write_text(good, encoding="utf-8")
        self.assertEqual(self.rules("a.md", good), [])
        bad = f"[a](C.md)\n[b and\nc]({D}B.md#not-one)\n![p](plot.svg)\n```\n[x](y)\n```\n"
        self.assertEqual(self.rules("a.md", bad), [(1, "link"), (2, "link"), (4, "link")])

    def test_pages_that_are_named(self):
        (self.root / "docs").mkdir()
        (self.root / "docs" / "B.md").write_text("", encoding="utf-8")
        self.assertEqual(self.rules("a.rs", f"//! Read `{D}B.md` and {D}GONE.md.\n"), [(1, "page")])


if __name__ == "__main__":
    unittest.main()

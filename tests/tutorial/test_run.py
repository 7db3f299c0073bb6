"""Does tests/tutorial/run.py see what a page shows, and what psql printed instead?"""

import unittest

import run

PAGE = """Words.

```sql
select 1;
```

```text
 one
```

```sql
select 2;
```

More words.

```sh
bin/demo
```
"""


class Blocks(unittest.TestCase):
    """What is run, and what is compared."""

    def test_a_block_of_text_belongs_to_the_sql_above_it(self):
        first, second = run.blocks(PAGE.splitlines())
        self.assertEqual((first.line, first.sql, first.shown), (3, ["select 1;"], [" one"]))
        self.assertEqual((second.sql, second.shown), (["select 2;"], None))

    def test_text_that_belongs_to_nothing_is_refused(self):
        for page in (PAGE.replace("```sh", "```text"), PAGE.replace("```sh", "```"), PAGE.rstrip()[:-3]):
            with self.assertRaises(SystemExit):
                run.blocks(page.splitlines())


class Fits(unittest.TestCase):
    """When a page shows what was printed."""

    def test_line_by_line(self):
        self.assertTrue(run.fits(["a  ", "(b)"], ["a", "(b)"]))
        for output in (["a"], ["a", "(b)", ""], ["a", "b"], [" a", "(b)"]):
            self.assertFalse(run.fits(["a", "(b)"], output), output)

    def test_what_varies(self):
        self.assertTrue(run.fits(["took … ms."], ["took 1.5 ms."]))
        self.assertFalse(run.fits(["took … ms."], ["took 1.5 s."]))
        self.assertFalse(run.fits(["took … ms."], ["took 1.5 mss"]))


if __name__ == "__main__":
    unittest.main()

"""The tables of docs/formulas.md."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "formulas.md").read_text()


def table(first_column):
    """The rows of the page's table with that heading, as dicts from heading to cell."""
    (block,) = re.findall(rf"^\| {first_column} \|.*?(?=\n\n)", PAGE, re.MULTILINE | re.DOTALL)
    headings, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in block.split("\n")]
    return [dict(zip(headings, row, strict=True)) for row in rows]

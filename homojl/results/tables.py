"""Tables: written once, shown in a terminal, in Markdown or in HTML."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDE = 1000  # columns where the output is no terminal, so that nothing is wrapped


class Marked(str):
    """A cell that is Markdown already; any other cell is plain text."""


@dataclass(frozen=True, eq=False)
class Table:
    """Texts in rows and columns.

    Attributes:
        head: name of each column; all empty: the table has no head in a terminal.
        rows: cells, as many in each row as in the head.
        words: how many of the first columns are words, which stand at the left; the others are numbers.
        titles: what each column means, shown on a page where the pointer rests.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    titles: Sequence[str] = ()

    def text(self, *, width: int | None = None) -> str:
        """For a terminal, where long cells are wrapped, but no word is cut.

        Args:
            width: columns of the terminal; None: of the present one, and no limit where there is none.
        """
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        if width is None:
            width = Console().width if sys.stdout.isatty() else _WIDE
        columns = list(zip(self.head, *self.rows, strict=True))
        widths = [max(map(cell_len, column)) for column in columns]
        least = [max(cell_len(part) for cell in column for part in _parts(cell)) for column in columns]
        gap = 2 if sum(least) + 2 * (len(columns) - 1) <= width else 1
        while sum(widths) + gap * (len(columns) - 1) > width and widths != least:
            widest = max((n, p) for p, n in enumerate(widths) if n > least[p])[1]
            widths[widest] -= 1
        table = RichTable(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=any(self.head))
        for place, (name, wide) in enumerate(zip(self.head, widths, strict=True)):
            table.add_column(Text(name), justify="left" if place < self.words else "right", width=wide)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        written = io.StringIO()
        Console(file=written, width=max(width, sum(widths) + gap * len(columns)), color_system=None).print(table)
        return "".join(f"{line.rstrip()}\n" for line in written.getvalue().splitlines())

    def markdown(self) -> str:
        """For a Markdown file."""
        lines = ([c if isinstance(c, Marked) else escape_markdown(c) for c in line] for line in (self.head, *self.rows))
        head, *rows = (f"| {' | '.join(line)} |\n" for line in lines)
        return "".join([head, f"|{'---|' * len(self.head)}\n", *rows])

    def html(self, kind: str = "", caption: str = "") -> Markup:
        """For a page: the first cell of a row is its header.

        Args:
            kind: classes in the style sheet.
            caption: above the table.
        """
        titles = self.titles or [""] * len(self.head)
        head = Markup("").join(
            self._cell("th", p, name, {"scope": "col", "title": titles[p]}) for p, name in enumerate(self.head)
        )
        rows = [
            Markup("").join(
                self._cell("td", p, cell, {}) if p else self._cell("th", p, cell, {"scope": "row"})
                for p, cell in enumerate(row)
            )
            for row in self.rows
        ]
        body = Markup("\n").join(Markup("<tr>{}</tr>").format(row) for row in rows)
        title = Markup("<caption>{}</caption>\n").format(caption) if caption else ""
        return Markup('<table class="{}">\n{}<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>').format(
            kind, title, head, body
        )

    def _cell(self, tag: str, place: int, text: str, attributes: Mapping[str, str]) -> Markup:
        given = {**attributes, "class": "" if place < self.words else "n"}
        written = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in given.items() if value)
        return Markup("<{}{}><bdi>{}</bdi></{}>").format(tag, written, text, tag)


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values without a head."""
    return Table(("", ""), list(facts))


def _parts(cell: str) -> list[str]:
    """What is not broken over lines: words, and a number with its deviation."""
    return [cell] if "±" in cell else cell.split() or [""]


def code(text: str) -> Marked:
    """A text as code in Markdown."""
    return Marked(f"`{text}`")


def escape_markdown(text: str) -> str:
    """A text as it must be written in a Markdown table to be shown as it is, on one line."""
    return re.sub(r"([\\`*_|<>]|\](?=[(\[]))", r"\\\1", " ".join(text.split()))

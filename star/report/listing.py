"""Tables that fit the terminal, and the same tables as HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2  # spaces between columns


@dataclass(frozen=True)
class Column:
    """One column. head: its lines. right: align to the right, as numbers are.

    spare: where the table is too wide, columns with 1 are left out first, then those with 2, and so on; 0: never.
    fill: takes the room that is left, with whole words in several lines; cut: in one line, and the number of words that
    do not fit ("GConv-1 +3").
    """

    head: str
    right: bool = False
    spare: int = 0
    fill: bool = False
    cut: bool = False


class Listing:
    """Rows of text below the heads of columns. Rich prints it as wide as the terminal; `html` is for a page."""

    def __init__(self, *columns: Column):
        self.columns = columns
        self.rows: list[tuple[tuple[str, ...], str]] = []  # cells, and "bold", "dim" or ""
        self.whole: set[int] = set()  # rows of which nothing is cut
        self.sections: set[int] = set()  # rows above which there is a gap

    def add(self, *cells: str, style: str = "", whole: bool = False) -> None:
        """Add a row. style: "bold" or "dim". whole: cut nothing of it."""
        assert len(cells) == len(self.columns)
        if whole:
            self.whole.add(len(self.rows))
        self.rows.append((cells, style))

    def section(self) -> None:
        """Leave a gap before the next row."""
        self.sections.add(len(self.rows))

    def html(self) -> str:
        """A table element; styles become classes."""
        kinds = [' class="number"' if column.right else "" for column in self.columns]
        heads = (f"<th{kind}>{escape(column.head)}</th>" for kind, column in zip(kinds, self.columns, strict=True))
        lines = [f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>"]
        for cells, style in self.rows:
            row = (f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True))
            lines.append(f'<tr class="{style}">{"".join(row)}</tr>')
        return "\n".join([*lines, "</tbody></table>"])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown = list(range(len(self.columns)))
        for n in sorted((n for n in shown if self.columns[n].spare), key=lambda n: self.columns[n].spare):
            if self._width(shown) > options.max_width:
                shown.remove(n)
        room = options.max_width - self._width([n for n in shown if not self.columns[n].fill]) - GAP
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
        for n in shown:
            column = self.columns[n]
            table.add_column(column.head, justify="right" if column.right else "left", no_wrap=not column.fill)
        cut: set[int] = set()
        for i, (cells, style) in enumerate(self.rows):
            if i in self.sections:
                table.add_section()
            texts = {n: _cut(cells[n], room) if self._cuts(i, n) else cells[n] for n in shown}
            cut |= {n for n, text in texts.items() if text != cells[n]}
            table.add_row(*map(Text, texts.values()), style=style)
        yield table
        names = [column.head for n, column in enumerate(self.columns) if n not in shown]
        names += [f"all of {self.columns[n].head} (+1: one more)" for n in cut]
        if names:
            text = ", ".join(" ".join(name.split()) for name in names)
            yield Text(f"{options.max_width} columns have no room for {text}", style="dim")

    def _cuts(self, row: int, column: int) -> bool:
        return self.columns[column].cut and row not in self.whole

    def _width(self, shown: list[int]) -> int:
        """Least width of these columns."""
        widths = []
        for n in shown:
            column, parts = self.columns[n], self.columns[n].head.splitlines()
            for i, (cells, _) in enumerate(self.rows):
                parts += [_cut(cells[n], 0)] if self._cuts(i, n) else cells[n].split() if column.fill else [cells[n]]
            widths.append(max(map(len, parts), default=0))
        return sum(widths) + GAP * (len(widths) - 1)


def _cut(text: str, room: int) -> str:
    """As many of its words as fit, and the number of the rest: "GConv-1 +3"; at least one word."""
    words = text.split()
    if len(text) <= room:
        return text
    fits = [f"{' '.join(words[:n])} +{len(words) - n}" for n in range(1, len(words))] or [text]
    return [fits[0], *(cut for cut in fits if len(cut) <= room)][-1]

"""The Markdown tables that the scripts print, each row as soon as it is measured."""

from __future__ import annotations


def head(*names: str) -> None:
    """Begin a table."""
    print()
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def row(*cells: object) -> None:
    """One line of the table that was begun last."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)

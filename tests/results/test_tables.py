"""Tables in a terminal: whole words, within its width where they fit."""

from __future__ import annotations

import pytest

from homojl.results.tables import Table

HEAD = ("", "parameters", "test accuracy [%]", "evaluations, test", "message")
ROWS = [
    ("homojl-pytorch", "34,154", "96.38 ± 0.79", "19.0", "the state or its derivative is no longer finite"),
    ("deq", "10,026", "92.62 ± 1.77", "7.5 ± 0.1", ""),
]


@pytest.mark.parametrize("width", [40, 70, 80, 200])
def test_no_word_and_no_deviation_is_cut_in_a_narrow_terminal(width):
    text = Table(HEAD, ROWS).text(width=width)
    lines = text.splitlines()
    for cell in (*HEAD, *(cell for row in ROWS for cell in row)):
        for part in [cell] if "±" in cell else cell.split():
            assert any(part in line for line in lines), part
    if width >= 70:
        assert max(map(len, lines)) <= width

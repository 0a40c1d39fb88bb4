"""What follows from lines of metrics."""

from __future__ import annotations

import math

from homojl.results.records import best_line


def test_of_equals_the_last_line_is_the_best_as_in_training():
    rows = [{"epoch": e, "val_accuracy": a} for e, a in ((1, 0.5), (2, 0.9), (3, 0.9), (4, math.nan), (5, 0.8))]
    assert best_line(rows)["epoch"] == 3
    assert best_line(rows[3:4]) is None
    assert best_line([]) is None

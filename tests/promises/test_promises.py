"""The matrix of promises: pairwise in these tests, whole in benchmarks/promises.py."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.promises.cells import AXES, JULIA_HOLDERS, PROBLEMS, USES, Cell, Verdict, pairwise, run, together, whole

CELLS = pairwise()

IMPLICIT = ("KenCarp4", "GaussLegendre4")
ADAMS = ("AdamsBashforth", "AdamsMoulton")


def transformed(cell: Cell) -> bool:
    return cell.use.startswith(("torch.func", "forward mode"))


def drawn(cell: Cell) -> bool:
    return cell.use == "function that draws random numbers"


def failing(cell: Cell) -> bool:
    return cell.use == "a sample that fails among good ones" or drawn(cell)


# What may be refused, and where: a refusal anywhere else is a promise that has been taken back.
REFUSALS: dict[str, Callable[[Cell], bool]] = {
    r"modified by an inplace operation": lambda cell: "changed in place" in cell.use,
    r"do(es)? not go (with|through) torch\.func": transformed,
    r"first derivatives only": lambda cell: (
        cell.use == "second derivative" or (transformed(cell) and cell.holder in JULIA_HOLDERS)
    ),
    r"does not go through torch\.vmap": lambda cell: transformed(cell) and cell.holder in JULIA_HOLDERS,
    r"has tangents by its state alone": lambda cell: transformed(cell) and cell.holder in JULIA_HOLDERS,
    r"^batch='per-sample' needs backend='pytorch'": lambda cell: transformed(cell) and cell.problem == "Julia",
    r"no longer finite|no longer falls|fell below|largest number of steps": lambda cell: (
        failing(cell) or (cell.use == "autocast to bfloat16" and cell.state == "float32")
    ),
    r"another value|cannot be taken again|not deterministic": drawn,
    r"^Adams\w+ does not go with bfloat16": lambda cell: cell.use == "autocast to bfloat16",
    r"no tableau of Adams": lambda cell: cell.algorithm in ADAMS and cell.adjoint.startswith("Checkpoint"),
    r"batch='per-sample' (has|does not go|needs)": lambda cell: (
        cell.problem == "per-sample" and cell.adjoint not in ("Direct", "Checkpoint")
    ),
    r"state of a JuliaField must be": lambda cell: cell.holder in JULIA_HOLDERS,
    r"a complex state needs backend='pytorch'": lambda cell: (cell.problem, cell.state) == ("Julia", "complex"),
    r"which has no tableau of": lambda cell: cell.problem == "Julia" and cell.adjoint not in ("Gauss", "Backsolve"),
    r"the operations of the PyTorch backend": lambda cell: (
        (cell.problem, cell.adjoint) == ("Julia fixed point", "Unrolled")
    ),
    r"^LevenbergMarquardt: the largest number of steps": lambda cell: cell.state == "float32",
    r"cannot pass through (NewtonKrylov|PseudoTransient|Homotopy)": lambda cell: cell.adjoint == "Unrolled",
    r"mixes the samples": lambda cell: cell.use == "BatchNorm in training mode" or drawn(cell),
    r"its first evaluation did not use": lambda cell: cell.use == "function that returns a buffer of its own",
    r"no path to follow": lambda cell: (cell.problem, cell.state) == ("path", "empty"),
    r"is PerSample, but a path": lambda cell: cell.problem == "path" and cell.use.startswith("arguments marked"),
}


NEEDS_JULIA = [pytest.mark.needs("julia"), pytest.mark.slow]
PARAMETERS = [pytest.param(c, marks=NEEDS_JULIA if c.problem.startswith("Julia") else (), id=str(c)) for c in CELLS]


@pytest.mark.parametrize("cell", PARAMETERS)
def test_a_cell_is_right_or_refused(cell):
    verdict = run(cell)
    assert verdict.kind in ("right", "refused"), verdict.words
    if verdict.kind == "refused":
        assert verdict.words.isprintable()
        assert any(re.search(words, verdict.words) and where(cell) for words, where in REFUSALS.items()), verdict.words


def test_all_pairs_of_values_that_may_meet_do():
    met = set()
    for cell in map(asdict, CELLS):
        met |= {(a, cell[a], b, cell[b]) for a, b in itertools.combinations(AXES, 2)}
    for a, b in itertools.combinations(AXES, 2):
        for x, y in itertools.product(AXES[a], AXES[b]):
            assert ((a, x, b, y) in met) == together(a, x, b, y)


def test_the_whole_matrix_has_every_combination():
    cells = list(whole())
    assert len(cells) == len(set(cells))
    for one, other in (("problem", "state"), ("problem", "use"), ("holder", "state"), ("holder", "use")):
        pairs = itertools.product(AXES[one], AXES[other])
        wanted = {(a, b) for a, b in pairs if together(one, a, other, b)}
        assert {(getattr(c, one), getattr(c, other)) for c in cells} == wanted


def test_a_wrong_value_and_a_raw_error_are_seen(monkeypatch):
    cell = Cell("joint", "Tsit5", "Direct", "float64", "closure", "backward")
    assert run(cell) == Verdict("right")
    monkeypatch.setattr("tests.promises.cells.END", 0.6)  # of the solve; the closed form has its own
    monkeypatch.setattr("tests.promises.cells.decayed", lambda w, y, x, s: y / (1 + w * x * s * 0.5 * y))
    assert run(cell).kind == "wrong"
    monkeypatch.setattr("tests.promises.cells.decayed", lambda w, y, x, s: {}["missing"])
    assert run(cell) == Verdict("raw", "KeyError: 'missing'")


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "promises.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (.*) \|$", page, re.MULTILINE)
    uses = [row for row in rows if row[0] in USES]
    assert len(uses) == len(PROBLEMS) * len(USES)
    assert all(row[3] == row[4] == "0" for row in uses), "a fault"
    assert all(bool(row[5]) == (int(row[2]) > 0) for row in uses), "refusals have words"
    (total,) = re.findall(r"^\| \*\*all\*\* \| (\d+) \| (\d+) \| (\d+) \| 0 \| 0 \|$", page, re.MULTILINE)
    assert int(total[0]) == int(total[1]) + int(total[2]) == sum(int(row[1]) + int(row[2]) for row in uses)
    assert int(total[0]) <= len(list(whole()))

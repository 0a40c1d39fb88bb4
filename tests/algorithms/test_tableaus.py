"""The coefficients satisfy the equations that define them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.catalogue import EXPLICIT

TABLEAUS = {name: cls.tableau for name, cls in EXPLICIT.items()}


def _dense_a(tableau) -> np.ndarray:
    a = np.zeros((tableau.stages, tableau.stages))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    return a


def _trees(order: int) -> list[tuple]:
    """Rooted trees with `order` nodes, each as the sorted tuple of its subtrees."""
    if order == 1:
        return [()]
    found = set()
    for sizes in _partitions(order - 1):
        for subtrees in itertools.product(*(_trees(size) for size in sizes)):
            found.add(tuple(sorted(subtrees)))
    return sorted(found)


def _partitions(n: int, largest: int | None = None):
    largest = n if largest is None else largest
    if n == 0:
        yield ()
    for first in range(min(n, largest), 0, -1):
        for rest in _partitions(n - first, first):
            yield (first, *rest)


def _size(tree: tuple) -> int:
    return 1 + sum(_size(t) for t in tree)


def _density(tree: tuple) -> int:
    return _size(tree) * math.prod(_density(t) for t in tree)


def _stage_weight(tree: tuple, a: np.ndarray) -> np.ndarray:
    product = np.ones(len(a))
    for subtree in tree:
        product = product * (a @ _stage_weight(subtree, a))
    return product


@pytest.mark.parametrize("name", TABLEAUS)
def test_every_order_condition_up_to_the_stated_order_holds(name):
    tableau = TABLEAUS[name]
    a, b = _dense_a(tableau), np.array(tableau.b)
    for order in range(1, tableau.order + 1):
        for tree in _trees(order):
            assert b @ _stage_weight(tree, a) == pytest.approx(1 / _density(tree), abs=2e-14), tree


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_stated_order_is_not_too_low(name):
    tableau = TABLEAUS[name]
    a, b = _dense_a(tableau), np.array(tableau.b)
    defects = [abs(b @ _stage_weight(t, a) - 1 / _density(t)) for t in _trees(tableau.order + 1)]
    assert max(defects) > 1e-6


@pytest.mark.parametrize("name", TABLEAUS)
def test_stage_times_are_row_sums(name):
    tableau = TABLEAUS[name]
    np.testing.assert_allclose(_dense_a(tableau).sum(axis=1), tableau.c, atol=1e-14)


@pytest.mark.parametrize("name", [n for n, t in TABLEAUS.items() if t.b_error is not None])
def test_the_embedded_solution_has_an_order_of_its_own(name):
    tableau = TABLEAUS[name]
    a, embedded = _dense_a(tableau), np.array(tableau.b) - np.array(tableau.b_error)
    for order in range(1, tableau.order):
        for tree in _trees(order):
            assert embedded @ _stage_weight(tree, a) == pytest.approx(1 / _density(tree), abs=2e-14), tree
    defects = [abs(embedded @ _stage_weight(t, a) - 1 / _density(t)) for t in _trees(tableau.order)]
    assert max(defects) > 1e-6, "an error estimate of full order would estimate nothing"


@pytest.mark.parametrize("name", [n for n, t in TABLEAUS.items() if t.dense is not None])
def test_the_continuous_extension_has_its_order_at_every_fraction(name):
    tableau = TABLEAUS[name]
    a, dense = _dense_a(tableau), np.array(tableau.dense)
    for fraction in (0.1, 0.35, 0.5, 0.8, 1.0):
        weights = dense @ fraction ** np.arange(1, dense.shape[1] + 1)
        for order in range(1, tableau.dense_order + 1):
            for tree in _trees(order):
                exact = fraction**order / _density(tree)
                assert weights @ _stage_weight(tree, a) == pytest.approx(exact, abs=1e-12), (fraction, tree)
    np.testing.assert_allclose(dense.sum(axis=1), tableau.b, atol=1e-12)

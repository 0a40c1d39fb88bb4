"""The coefficients of the implicit methods satisfy the equations that define them."""

from __future__ import annotations

import numpy as np
import pytest

from homojl.backends.pytorch.implicit import predictors
from tests.algorithms.test_tableaus import _density, _stage_weight, _trees
from tests.catalogue import IMPLICIT

TABLEAUS = {name: cls.tableau for name, cls in IMPLICIT.items()}
ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.b_error is not None]
L_STABLE = ["trbdf2", "kencarp4", "kvaerno5", "impliciteuler", "sdirk2", "fixedtrbdf2", "radauiia3", "radauiia5"]
each = pytest.mark.parametrize("name", TABLEAUS)
each_adaptive = pytest.mark.parametrize("name", ADAPTIVE)


def _defects(weights: np.ndarray, a: np.ndarray, order: int, fraction: float = 1.0) -> list[float]:
    return [abs(weights @ _stage_weight(t, a) - fraction**order / _density(t)) for t in _trees(order)]


def _stability(tableau, weights: np.ndarray, z: complex) -> complex:
    """y(t + h) over y(t) for y' = (z/h) y."""
    a = np.array(tableau.a)
    return 1 + z * weights @ np.linalg.solve(np.eye(len(a)) - z * a, np.ones(len(a)))


@each
def test_every_order_condition_up_to_the_stated_order_holds(name):
    tableau = TABLEAUS[name]
    for order in range(1, tableau.order + 1):
        assert max(_defects(np.array(tableau.b), np.array(tableau.a), order)) < 2e-15


@each
def test_the_stated_order_is_not_too_low(name):
    tableau = TABLEAUS[name]
    assert max(_defects(np.array(tableau.b), np.array(tableau.a), tableau.order + 1)) > 1e-5


@each
def test_stage_times_are_row_sums(name):
    tableau = TABLEAUS[name]
    np.testing.assert_allclose(np.array(tableau.a).sum(axis=1), tableau.c, atol=1e-15)


@each
def test_a_stability(name):
    """Stable along the imaginary axis, without poles to its left."""
    tableau = TABLEAUS[name]
    for y in np.logspace(-2, 5, 200):
        assert abs(_stability(tableau, np.array(tableau.b), 1j * y)) < 1 + 1e-9
    assert (np.linalg.eigvals(np.array(tableau.a)).real > -1e-12).all()


@each
def test_l_stability(name):
    tableau = TABLEAUS[name]
    at_infinity = abs(_stability(tableau, np.array(tableau.b), -1e8))
    assert (at_infinity < 1e-6) == (name in L_STABLE)


@pytest.mark.parametrize("name", ["implicitmidpoint", "gausslegendre4", "gausslegendre6"])
def test_the_symplectic_ones_are(name):
    a, b = np.array(TABLEAUS[name].a), np.array(TABLEAUS[name].b)
    np.testing.assert_allclose(b[:, None] * a + (b[:, None] * a).T, np.outer(b, b), atol=1e-16)


@each_adaptive
def test_the_error_estimate_falls_with_its_order(name):
    tableau = TABLEAUS[name]
    a, error = np.array(tableau.a), np.array(tableau.b_error)
    for order in range(1, tableau.error_order):
        assert max(abs(error @ _stage_weight(t, a)) for t in _trees(order)) < 2e-15
    assert max(abs(error @ _stage_weight(t, a)) for t in _trees(tableau.error_order)) > 1e-4


@each_adaptive
def test_the_error_estimate_of_a_stiff_component_is_bounded(name):
    tableau = TABLEAUS[name]
    for z in (-1e3, -1e6, -1e9):
        estimate = abs(_stability(tableau, np.array(tableau.b_error), z) - 1)
        if tableau.filtered:
            assert estimate > 0.1 * abs(z)
            estimate /= abs(1 - z * tableau.a[-1][-1])
        assert estimate < 2


def test_the_continuous_extension_of_trbdf2_has_its_order_and_is_bounded():
    tableau = TABLEAUS["trbdf2"]
    a, dense = np.array(tableau.a), np.array(tableau.dense)
    np.testing.assert_allclose(dense.sum(axis=1), tableau.b, atol=1e-15)
    for fraction in np.linspace(0.05, 1, 20):
        weights = dense @ fraction ** np.arange(1, dense.shape[1] + 1)
        for order in range(1, tableau.dense_order + 1):
            assert max(_defects(weights, a, order, fraction)) < 2e-15
        assert max(abs(_stability(tableau, weights, z)) for z in (-1e3, -1e6, -1e9)) <= 1


def test_stages_that_depend_on_each_other_are_solved_for_together():
    sizes = {name: [len(block) for block in tableau.blocks] for name, tableau in TABLEAUS.items()}
    assert sizes["kencarp4"] == [1] * 6
    assert sizes["sdirk2"] == [1, 1]
    assert sizes["radauiia5"] == sizes["gausslegendre6"] == [3]


@each_adaptive
def test_guesses_are_exact_for_derivatives_that_do_not_change(name):
    for row in predictors(TABLEAUS[name])[1:]:
        assert sum(row) == pytest.approx(1)

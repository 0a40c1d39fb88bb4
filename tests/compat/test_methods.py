"""Methods: values and gradients of torchdiffeq's and homojl's."""

from __future__ import annotations

import pytest
import torch

import homojl as hj
from homojl.compat.methods import METHODS
from tests.catalogue import EXACT_ODES
from tests.compat.programs import (
    ADAPTIVE,
    FIXED,
    LIBRARIES,
    TIGHT,
    Net,
    T,
    assert_same,
    assert_same_but_by_time,
    run,
    start,
)


class TestMethods:
    def test_no_method_of_torchdiffeq_is_missing(self):
        from torchdiffeq._impl.odeint import SOLVERS

        assert set(SOLVERS) <= set(METHODS)

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("t", [T, T.flip(0)], ids=["ahead", "back"])
    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_adaptive(self, method, t, call):
        # What torchdiffeq interpolates dopri8's states with is of order 4, and bosh3's of order 3.
        bound = {"dopri5": 1e-6, "dopri8": 1e-4, "bosh3": 2e-3}.get(method, 0.05)
        tolerance = {"fehlberg2": 1e-4, "adaptive_heun": 1e-4, "bosh3": 1e-6}.get(method, 1e-9)
        options = {"method": method, "rtol": tolerance, "atol": tolerance}
        assert_same_but_by_time([run(lib, call, t, **options) for lib in LIBRARIES], bound)

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("t", [T, T.flip(0)], ids=["ahead", "back"])
    def test_gradients_by_time(self, t, call):
        assert_same([run(lib, call, t, **TIGHT) for lib in LIBRARIES], 2e-5)

    @pytest.mark.parametrize("interp", ["linear", "cubic"])
    @pytest.mark.parametrize("back", [False, True], ids=["ahead", "back"])
    @pytest.mark.parametrize("method", FIXED)
    def test_fixed_grids_take_the_same_steps(self, method, back, interp):
        # Grids of equal steps: where one is shorter torchdiffeq's Adams methods still weigh it as if it were not.
        t = torch.linspace(0.0, 2.0, 12, dtype=torch.float64)
        options = {"step_size": 0.0625, "interp": interp}
        values = [
            lib.odeint(Net(), start(), t.flip(0) if back else t, method=method, options=options) for lib in LIBRARIES
        ]
        _assert_same_steps(method, values)

    @pytest.mark.parametrize("method", FIXED)
    def test_without_options_each_interval_is_one_step(self, method):
        t = torch.linspace(0.0, 2.0, 33, dtype=torch.float64)
        values = [lib.odeint(Net(), start(), t, method=method) for lib in LIBRARIES]
        _assert_same_steps(method, values)

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("method", ["rk4", "heun3", "implicit_adams"])
    def test_gradients_of_fixed_grids(self, method, call):
        t = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
        options = {"method": method, "options": {"step_size": 0.0625}}
        assert_same_but_by_time(
            [run(lib, call, t, **options) for lib in LIBRARIES], 1e-10 if call == "odeint" else 1e-4
        )

    def test_adams_methods_keep_their_order_on_unequal_steps(self):
        exact = hj.odeint(Net(), start(), T, **TIGHT)
        generator = torch.Generator().manual_seed(0)

        def error(n: int) -> float:
            steps = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
            inner = (0.3 + 1.7 * torch.cumsum(steps, 0) / steps.sum()).tolist()[:-1]
            grid = torch.tensor(sorted({*inner, *T.tolist()}), dtype=torch.float64)
            options = {"max_order": 5, "grid_constructor": lambda func, y0, t: grid}
            y = hj.odeint(Net(), start(), T, method="explicit_adams", options=options)
            return (y - exact).abs().max().item()

        assert error(160) < error(40) / 4**3

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    def test_float32(self, call):
        t = T.float()
        results = [run(lib, call, t, torch.float32, rtol=1e-5, atol=1e-5) for lib in LIBRARIES]
        assert all(r.dtype is torch.float32 for r in results[1])
        assert_same(results, 1e-3)

    @pytest.mark.parametrize("solver", ["RK45", "LSODA", "BDF"])
    def test_scipy(self, solver):
        options = {"method": "scipy_solver", "options": {"solver": solver}}
        values = [lib.odeint(Net(), start(), T, **options) for lib in LIBRARIES]
        torch.testing.assert_close(*values, rtol=1e-7, atol=1e-7)
        gradients = []
        for lib in LIBRARIES:
            y0 = start()
            lib.odeint_adjoint(Net(), y0, T, rtol=1e-6, atol=1e-6, **options)[-1].sum().backward()
            gradients.append(y0.grad)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)

    def test_tsit5_and_the_implicit_families_against_dopri5(self):
        ends = T[[0, -1]]
        exact = hj.odeint(Net(), start(), ends, **TIGHT)
        for method in set(METHODS) - set(ADAPTIVE) - set(FIXED) - {"scipy_solver"}:
            options = None if method == "tsit5" else {"step_size": 0.1, "max_iters": 20}
            values = hj.odeint(Net(), start(), ends, method=method, options=options)
            bound = {"implicit_euler": 0.15, "radauIIA5": 1e-6, "gl6": 1e-8, "tsit5": 1e-6, "gl4": 1e-5}.get(
                method, 5e-3
            )
            torch.testing.assert_close(values, exact, rtol=bound, atol=bound)

    @pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
    def test_exact_answers(self, problem):
        """Every method, in its own way of being exact, at times that the steps do not meet."""
        t = torch.tensor(
            [problem.t0 + x * (problem.t1 - problem.t0) for x in (0.0, 0.31, 0.77, 1.0)], dtype=torch.float64
        )
        exact = torch.stack([problem.exact(s) for s in t.tolist()])
        tolerance = {"fehlberg2": 1e-5, "adaptive_heun": 1e-5, "bosh3": 1e-7}
        bounds = {"euler": 0.1, "implicit_euler": 0.1, "explicit_adams": 1e-3, "dopri8": 1e-8, "scipy_solver": 1e-6}
        bounds |= {"tsit5": 1e-7, "dopri5": 1e-7, "bosh3": 1e-5, "fehlberg2": 5e-3, "adaptive_heun": 1e-3}
        for method in METHODS:
            asked = tolerance.get(method, 1e-9)
            fixed = {"step_size": abs(problem.t1 - problem.t0) / 100, "interp": "cubic"}
            options = {} if method in (*ADAPTIVE, "tsit5", "scipy_solver") else fixed
            if "adams" in method:
                options |= {"max_order": 5}
            values = hj.odeint(problem.f, problem.y0, t, rtol=asked, atol=asked, method=method, options=options)
            bound = bounds.get(method, 1e-3)
            torch.testing.assert_close(values, exact, rtol=bound, atol=bound, msg=lambda m, name=method: f"{name}: {m}")


def _assert_same_steps(method: str, values) -> None:
    bound = 1e-8 if method.endswith("adams") else 1e-12  # the large weights of high Adams orders amplify rounding
    torch.testing.assert_close(values[1], values[0], rtol=bound, atol=bound)

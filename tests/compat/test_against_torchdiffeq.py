"""The same programs through torchdiffeq and through homojl: values, gradients, calls and messages."""

from __future__ import annotations

import gc
import math
import warnings
import weakref

import pytest
import torch
import torchdiffeq

import homojl as hj
from homojl.compat.methods import METHODS
from tests.catalogue import EXACT_ODES

LIBRARIES = (torchdiffeq, hj)
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
T = torch.tensor([0.3, 0.7, 1.1, 1.15, 2.0], dtype=torch.float64)


class Net(torch.nn.Module):
    """A small field with a time input; records the times it is asked at."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype) * 0.7)
        self.b = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64).to(dtype) * 0.3)
        self.times: list[float] = []

    def forward(self, t, y):
        self.times.append(t.item())
        return torch.tanh(y @ self.w + self.b * torch.cos(2 * t)) - 0.2 * y


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3).requires_grad_()


def run(library, call: str = "odeint", t: torch.Tensor = T, dtype=torch.float64, **options):
    """States, and the gradients of a loss at every time by y0, t and the parameters."""
    field, y0, t = Net(dtype), start(dtype), t.clone().requires_grad_()
    ys = getattr(library, call)(field, y0, t, **options)
    weights = torch.linspace(0.5, 1.5, len(t), dtype=dtype).view(-1, 1, 1)
    gradients = torch.autograd.grad((weights * torch.sin(ys)).sum(), [y0, t, *field.parameters()])
    return ys.detach(), *gradients


def assert_same(results, bound: float) -> None:
    theirs, ours = results
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=bound, atol=bound)


def assert_same_but_by_time(results, bound: float) -> None:
    """torchdiffeq's direct gradient by time is that of what it interpolates with; test_times.py has the exact one."""
    assert_same([[r for i, r in enumerate(result) if i != 2] for result in results], bound)


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


class TestStates:
    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    def test_tuples(self, call):
        def program(library):
            field = Net()

            class Pair(torch.nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.net = field

                def forward(self, t, state):
                    y, s, _ = state
                    return self.net(t, y), s * torch.cos(t), torch.zeros(0, dtype=torch.float64)

            y0, s0 = start(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
            state = (y0, s0, torch.zeros(0, dtype=torch.float64))
            ys, ss, nothing = getattr(library, call)(Pair(), state, T, rtol=1e-9, atol=1e-9, options={"norm": _norm})
            assert ys.shape == (5, 2, 3)
            assert ss.shape == (5,)
            assert nothing.shape == (5, 0)
            loss = (ys**2).sum() + ss.sum()
            return ys.detach(), ss.detach(), *torch.autograd.grad(loss, [y0, s0, field.w])

        assert_same([program(lib) for lib in LIBRARIES], 1e-6)

    @pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    def test_complex(self, call, dtype):
        real = torch.float64 if dtype is torch.complex128 else torch.float32

        def program(library):
            z0 = torch.tensor([1.0 + 0.5j, -0.3j], dtype=dtype, requires_grad=True)
            w = torch.tensor([[0.2 + 1j, 0.1], [-0.4j, -0.3]], dtype=dtype, requires_grad=True)
            rate = torch.tensor(0.3, dtype=real, requires_grad=True)
            t = T.to(real).requires_grad_()

            def f(t, z):
                assert t.dtype is real
                return z @ w * torch.cos(rate * t)

            adjoint = {"adjoint_params": (w, rate)} if call == "odeint_adjoint" else {}
            zs = getattr(library, call)(f, z0, t, rtol=1e-6, atol=1e-7, **adjoint)
            loss = (zs.abs() ** 2).sum() + zs.real.sum()
            return zs.detach(), *torch.autograd.grad(loss, [z0, w, rate] + ([t] if call == "odeint" else []))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchdiffeq casts complex gradients to real ones
            ours = program(hj)
            if call == "odeint":
                assert_same([program(torchdiffeq), ours], 1e-3)
            else:  # torchdiffeq's adjoint of a complex state with real parameters does not run
                direct = program_gradients_by_direct(program)
                assert_same([direct, ours], 1e-3)

    def test_one_time_is_no_solve(self):
        for library in LIBRARIES:
            field = Net()
            assert torch.equal(library.odeint(field, start(), T[:1]), start()[None])
        assert field.times == []

    def test_a_field_may_return_what_broadcasts_to_the_state(self):
        for library in LIBRARIES:
            y = library.odeint(lambda t, y: torch.ones(()), torch.zeros(3), torch.tensor([0.0, 2.0]), method="euler")
            torch.testing.assert_close(y[-1], torch.full((3,), 2.0))


def program_gradients_by_direct(program):
    class Direct:
        @staticmethod
        def odeint_adjoint(f, z0, t, adjoint_params, **options):
            return hj.odeint(f, z0, t, **options)

    return program(Direct)


def _norm(state):
    y, s, _ = state
    return torch.max(y.abs().max(), s.abs())


class TestOptions:
    def test_first_step_safety_factors_and_largest_step(self):
        options = {"first_step": 0.05, "safety": 0.8, "ifactor": 3.0, "dfactor": 0.5, "max_step": 0.06}
        sizes = []
        for library in LIBRARIES:
            field = Net()
            field.callback_accept_step = lambda t, y, dt: sizes[-1].append(dt.item())
            sizes.append([])
            library.odeint(field, start(), T, rtol=1e-4, atol=1e-4, options=options)
        theirs, ours = sizes
        assert theirs[0] == ours[0] == pytest.approx(0.05)
        assert max(theirs) <= 0.06 * (1 + 1e-12)
        assert max(ours) <= 0.06 * (1 + 1e-12)

    def test_the_smallest_step_is_taken_whatever_its_error(self):
        counts = []
        for library in LIBRARIES:
            field = Net()
            library.odeint(field, start(), T, rtol=1e-10, atol=1e-12, options={"min_step": 0.2})
            counts.append(len(field.times))
        assert counts[1] <= counts[0] < 100

    def test_too_many_steps_are_an_assertion_error_there_and_here(self):
        for library in LIBRARIES:
            with pytest.raises(AssertionError, match=r"max_num_steps|largest number of steps"):
                library.odeint(Net(), start(), T, options={"max_num_steps": 2})
        with pytest.raises(hj.SolveError) as caught:
            hj.odeint(Net(), start(), T, options={"max_num_steps": 2})
        stats = caught.value.solution.stats
        assert stats.n_accepted + stats.n_rejected == 8  # 2 for each of 4 intervals

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("t", [(0.0, 1.0), (0.0, 0.5, 1.0), (1.0, 0.0)])
    def test_jumps(self, call, t):
        class Jump(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rate = torch.nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
                self.nfe = 0

            def forward(self, t, y):
                self.nfe += 1
                return self.rate * y if t < 0.5 else 0.3 * y**2

        counts, results = [], []
        ts = torch.tensor(t, dtype=torch.float64)
        for library, options in (
            (torchdiffeq, {"jump_t": torch.tensor([0.5])}),
            (hj, {"jump_t": torch.tensor([0.5])}),
            (hj, {"step_t": torch.tensor([0.5])}),
            (hj, None),
        ):
            field, y0 = Jump(), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
            ys = getattr(library, call)(field, y0, ts, rtol=1e-8, atol=1e-8, options=options)
            gradients = torch.autograd.grad(ys[-1].sum(), [y0, field.rate])
            results.append((ys.detach(), *gradients))
            counts.append(field.nfe)
        assert_same(results[:2], 1e-5)
        assert_same([results[1], results[2]], 1e-12)
        assert counts[1] <= 1.2 * counts[0]
        assert counts[1] < counts[3] / 2
        if t[0] > t[-1]:  # back from 1 to the jump, and from there to 0
            value, (by_y0, _) = results[1][0][-1], results[1][1:]
            middle = 1 / (1 / y0.detach() + 0.15)
            torch.testing.assert_close(value, middle * math.exp(0.25), rtol=1e-7, atol=0)
            torch.testing.assert_close(by_y0, (middle / y0.detach()) ** 2 * math.exp(0.25), rtol=1e-7, atol=0)

    def test_times_to_step_to(self):
        ends = []
        field = Net()
        field.callback_step = lambda t, y, dt: ends.append(t.item())
        hj.odeint(field, start(), T, rtol=1e-3, atol=1e-3, options={"step_t": torch.tensor([0.9, 0.5, 1.7])})
        for wanted in (0.5, 0.9, 1.7):
            assert min(abs(wanted - end) for end in ends) < 1e-6

    @pytest.mark.parametrize("method", ["euler", "rk4", "midpoint", "heun2", "implicit_adams"])
    def test_perturbed_grids_are_asked_strictly_inside_their_steps(self, method):
        for library in LIBRARIES:
            field = Net()
            library.odeint(
                field, start(), torch.tensor([0.0, 1.0]), method=method, options={"step_size": 0.5, "perturb": True}
            )
            assert not {0.0, 0.5, 1.0} & set(field.times)

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    def test_a_grid_of_ones_own(self, call):
        seen = []

        def grid_constructor(func, y0, t):
            seen.append(tuple(t.tolist()))
            return torch.linspace(t[0].item(), t[-1].item(), 11, dtype=t.dtype)

        y0 = torch.tensor(1.0, requires_grad=True)
        params = {"adjoint_params": ()} if call == "odeint_adjoint" else {}
        options = {"grid_constructor": grid_constructor}
        t = torch.tensor([0.0, 0.55, 1.0])
        ys = getattr(hj, call)(lambda t, y: y, y0, t, method="euler", options=options, **params)
        torch.testing.assert_close(ys[-1], torch.tensor(1.1**10))
        torch.testing.assert_close(ys[1], torch.tensor((1.1**5 + 1.1**6) / 2))
        ys[-1].backward()
        if call == "odeint":
            torch.testing.assert_close(y0.grad, torch.tensor(1.1**10))
        assert seen[0] == tuple(t.tolist())
        if call == "odeint_adjoint":
            assert seen[1:] == [(1.0, t[1].item()), (t[1].item(), 0.0)]

    def test_a_norm_of_ones_own(self):
        shapes = []

        def norm(state):
            shapes.append(state.shape)
            return state.abs().max()

        results = [run(lib, rtol=1e-8, atol=1e-8, options={"norm": norm}) for lib in LIBRARIES]
        assert set(shapes) == {(2, 3)}
        assert_same(results, 1e-5)

    def test_tolerances_by_element_and_by_part(self):
        tolerances = torch.tensor([1e-9, 1e-3, 1e-9], dtype=torch.float64).expand(2, 3)
        values = [lib.odeint(Net(), start(), T, rtol=tolerances, atol=tolerances).detach() for lib in LIBRARIES]
        torch.testing.assert_close(values[1], values[0], rtol=1e-3, atol=1e-3)

        def f(t, state):
            return -state[0], torch.sin(9 * t) * state[1]

        y0 = (torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
        counts = []
        for library in LIBRARIES:
            for rtol in ((1e-3, 1e-9), (1e-3, 1e-3)):
                calls = []
                library.odeint(lambda t, s, calls=calls: (calls.append(1), f(t, s))[1], y0, T, rtol=rtol, atol=1e-9)
                counts.append(len(calls))
        assert counts[2] > 1.5 * counts[3]
        assert counts[2] <= 1.3 * counts[0]

    def test_unknown_options_warn_as_they_do_there(self):
        for library in LIBRARIES:
            with pytest.warns(UserWarning, match=r"Unexpected arguments \{'step': 0.1\}"):
                library.odeint(Net(), start(), T, options={"step": 0.1})
            field = Net()
            field.callback_accept_step = lambda *_: None
            with pytest.warns(UserWarning, match="does not support callbacks"):
                library.odeint(field, start(), T, method="rk4")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"method": "rk5"}, "Invalid method"),
            ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": print}}, "mutually exclusive"),
            ({"method": "rk4", "options": {"step_size": 0.7, "interp": "quintic"}}, "Unknown interpolation"),
            ({"options": {"step_t": torch.ones(1), "jump_t": torch.ones(1)}}, "repeated elements"),
            ({"event_fn": lambda t, y: y.sum()}, r"len\(t\) == 2"),
        ],
    )
    def test_what_is_a_value_error_there_is_one_here(self, change, message):
        for library in LIBRARIES:
            with pytest.raises(ValueError, match=message):
                library.odeint(Net(), start(), T, **change)

    @pytest.mark.parametrize(
        ("y0", "t", "message"),
        [
            ([1.0], T, "y0 must be"),
            (torch.ones(2), [0.0, 1.0], "t must be a torch.Tensor"),
            (torch.ones(2), torch.tensor([0, 1]), "floating point"),
            (torch.ones(2), T[None], "one dimensional"),
            (torch.ones(2), torch.tensor([0.0, 1.0, 1.0]), "strictly increasing"),
        ],
    )
    def test_bad_input_is_refused(self, y0, t, message):
        with pytest.raises((AssertionError, TypeError)):
            torchdiffeq.odeint(torch.neg, y0, t)
        with pytest.raises(hj.ConfigError, match=message):
            hj.odeint(torch.neg, y0, t)


class TestAdjoint:
    def test_options_of_the_backward_solve(self):
        options = {"rtol": 1e-9, "atol": 1e-9, "adjoint_rtol": 1e-8, "adjoint_atol": 1e-8, "adjoint_method": "bosh3"}
        assert_same([run(lib, "odeint_adjoint", **options) for lib in LIBRARIES], 1e-4)

    def test_the_seminorm_saves_backward_evaluations(self):
        counts = []
        for norm in ({}, {"norm": "seminorm"}):
            field, y0 = Net(), start()
            ys = hj.odeint_adjoint(field, y0, T[[0, -1]], rtol=1e-5, atol=1e-5, adjoint_options=norm)
            field.times.clear()
            (1e3 * ys[-1]).sum().backward()
            counts.append(len(field.times))
        assert counts[1] < counts[0]

    @pytest.mark.parametrize("pair", [False, True])
    def test_a_norm_of_ones_own_is_given_torchdiffeqs_augmented_state(self, pair):
        seen = {}
        for library in LIBRARIES:
            shapes = seen.setdefault(library, set())

            def norm(state, shapes=shapes):
                shapes.add(tuple(tuple(part.shape) for part in state))
                return max(part.abs().max() for part in state)

            field, y0 = Net(), start()
            func = (lambda t, y, field=field: (field(t, y[0]), -y[1])) if pair else field
            state = (y0, torch.ones((), dtype=torch.float64)) if pair else y0
            ys = library.odeint_adjoint(
                func, state, T, adjoint_options={"norm": norm}, adjoint_params=tuple(field.parameters())
            )
            (ys[0] if pair else ys).sum().backward()
        assert seen[hj] == seen[torchdiffeq]

    def test_params_that_are_left_out_receive_nothing(self):
        gradients = []
        for library in LIBRARIES:
            field = Net()
            library.odeint_adjoint(field, start(), T, adjoint_params=(field.w,), **TIGHT).sum().backward()
            assert field.b.grad is None
            gradients.append(field.w.grad)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)

    def test_a_function_needs_its_params_named(self):
        for library in LIBRARIES:
            with pytest.raises(ValueError, match="adjoint_params"):
                library.odeint_adjoint(torch.neg, start(), T)

    def test_callbacks_forward_and_backward(self):
        for method, options in (("dopri5", {}), ("rk4", {"step_size": 0.1})):
            counts = []
            for library in LIBRARIES:
                field, seen = Net(), {}
                for suffix in ("", "_adjoint"):
                    for name in ("callback_step", "callback_accept_step", "callback_reject_step")[
                        : 3 if not options else 1
                    ]:

                        def note(t, y, dt, name=name + suffix, seen=seen):
                            assert dt > 0
                            shapes = tuple(p.shape for p in y) if isinstance(y, tuple) else y.shape
                            seen.setdefault(name, []).append(shapes)

                        setattr(field, name + suffix, note)
                ys = library.odeint_adjoint(
                    field, start(), torch.tensor([0.0, 1.0]), method=method, options=options or None
                )
                ys.sum().backward()
                counts.append(seen)
            theirs, ours = counts
            assert {name: calls[0] for name, calls in ours.items()} == {
                name: calls[0] for name, calls in theirs.items() if name in ours
            }
            for suffix in ("", "_adjoint"):
                tried = len(ours["callback_step" + suffix])
                if options:
                    assert tried == len(theirs["callback_step" + suffix]) == 10
                else:
                    accepted = len(ours["callback_accept_step" + suffix])
                    assert tried == accepted + len(ours.get("callback_reject_step" + suffix, []))

    def test_memory_does_not_grow_with_the_steps(self):
        """No state of the forward pass but the saved ones outlives it."""
        alive = []

        class Watched(Net):
            def forward(self, t, y):
                dy = super().forward(t, y)
                alive.append(weakref.ref(dy))
                return dy

        ys = hj.odeint_adjoint(Watched(), start(), T, rtol=1e-9, atol=1e-9)
        gc.collect()
        assert len(alive) > 50
        assert sum(ref() is not None for ref in alive) == 0
        assert ys.requires_grad


class TestEvents:
    def program(self, library, odeint_name: str, **options):
        """torchdiffeq's bouncing ball: times of two bounces, and their gradients."""
        position, log_radius = (
            torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (10.0, math.log(0.2))
        )
        t0 = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)

        class Ball(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gravity = torch.nn.Parameter(torch.tensor([9.8], dtype=torch.float64))

            def forward(self, t, state):
                _, velocity, radius = state
                return velocity, -self.gravity, torch.zeros_like(radius)

        ball = Ball()
        state, t, times = (position, torch.zeros(1, dtype=torch.float64), log_radius), t0, []
        for _ in range(2):
            t, solution = library.odeint_event(
                ball,
                state,
                t,
                event_fn=lambda t, s: s[0] - torch.exp(s[2]),
                odeint_interface=getattr(library, odeint_name),
                **{"rtol": 1e-9, "atol": 1e-10, **options},
            )
            times.append(t)
            assert solution[0].shape == (2, 1)
            position_hit, velocity, radius = (s[-1] for s in solution)
            state = (position_hit + 1e-7, -0.8 * velocity, radius)
        wrt = [position, log_radius, t0, ball.gravity]
        return torch.stack(times).detach(), *torch.autograd.grad(times[-1] + state[1].sum(), wrt)

    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    def test_the_bouncing_ball(self, interface):
        assert_same([self.program(lib, interface) for lib in LIBRARIES], 1e-5)

    def test_the_bouncing_ball_exactly(self):
        times, by_height, *_ = self.program(hj, "odeint")
        first = math.sqrt(2 * 9.8 / 9.8)
        torch.testing.assert_close(times[0].item(), 0.1 + first, rtol=1e-7, atol=0)
        # The second flight lasts 1.6 times the first; times rise as the square root of the height, speeds too.
        speed = math.sqrt(2 * 9.8 * 9.8)
        slope = 2.6 * first / (2 * 9.8) + 0.8 * 0.8 * speed / (2 * 9.8)
        assert by_height.item() == pytest.approx(slope, rel=1e-5)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_several_values_and_either_direction(self, reverse):
        def program(library):
            y0 = torch.tensor([0.2, 1.0], dtype=torch.float64, requires_grad=True)
            t0 = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

            def f(t, y):
                return torch.stack([y[1], -y[0]])

            def event_fn(t, y):
                return torch.stack([y[0] - 5.0, y[1] - 0.3 + 0.1 * t])

            t, ys = library.odeint_event(f, y0, t0, event_fn=event_fn, reverse_time=reverse, rtol=1e-10, atol=1e-11)
            return t.detach(), ys.detach(), *torch.autograd.grad(t + ys[-1].sum(), [y0, t0])

        assert_same([program(lib) for lib in LIBRARIES], 1e-6)

    @pytest.mark.parametrize("interp", ["linear", "cubic"])
    def test_fixed_steps_to_an_event(self, interp):
        def program(library):
            t, ys = library.odeint(
                lambda t, y: -y,
                torch.ones(2, dtype=torch.float64),
                T[:2],
                event_fn=lambda t, y: y[0] - 0.25,
                method="rk4",
                options={"step_size": 0.1, "interp": interp},
                atol=1e-12,
            )
            return t, ys

        assert_same([program(lib) for lib in LIBRARIES], 1e-9)

    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    def test_the_plain_call_holds_the_time_constant(self, call):
        results = []
        for library in LIBRARIES:
            y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
            params = {"adjoint_params": ()} if call == "odeint_adjoint" else {}
            t, ys = getattr(library, call)(lambda t, y: -y, y0, T[:2], event_fn=lambda t, y: y - 0.5, **params)
            (gradient,) = torch.autograd.grad(ys[-1].sum(), y0)
            results.append((t.detach(), ys.detach(), gradient))
            assert t.requires_grad is (call == "odeint_adjoint")
        assert_same(results, 1e-5)

    def test_an_event_at_the_start_ends_the_solve_there(self):
        for library in LIBRARIES:
            t, ys = library.odeint(torch.mul, start(), T[:2], event_fn=lambda t, y: t - T[0])
            assert t == T[0]
            assert torch.equal(ys, torch.stack([start(), start()]))

    def test_no_event_is_an_error(self):
        t, event = T[:2].float(), {"event_fn": lambda t, y: y + 1}
        with pytest.raises(hj.SolveError, match="no event took place"):
            hj.odeint(lambda t, y: 0 * y, torch.ones(1), t, **event)
        with pytest.raises(ValueError, match="step_size"):
            hj.odeint(lambda t, y: -y, torch.ones(1), t, method="euler", **event)


class TestDense:
    def test_at_any_time(self):
        results = []
        for library in LIBRARIES:
            field, y0 = Net(), start()
            f = library.odeint_dense(field, y0, T[0], T[-1], rtol=1e-9, atol=1e-9)
            ys = torch.stack([f(t) for t in T[1:-1]])
            results.append((ys.detach(), *torch.autograd.grad(ys.sum(), [y0, field.w])))
        assert_same(results, 1e-6)

    def test_many_times_at_once(self):
        f = hj.odeint_dense(Net(), start(), T[0], T[-1], method="tsit5")
        torch.testing.assert_close(f(T), torch.stack([f(t) for t in T]))
        with pytest.raises(hj.ConfigError, match="one tensor"):
            hj.odeint_dense(Net(), (start(),), T[0], T[-1])

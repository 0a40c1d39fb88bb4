"""States of every kind and every option, in torchdiffeq and in homojl."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torchdiffeq

import homojl as hj
from tests.compat.programs import LIBRARIES, Net, T, assert_same, run, start


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
            t = T.to(real, copy=True).requires_grad_()

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

    def test_a_function_that_writes_its_results_into_the_same_memory(self):
        buffer = torch.zeros(2, 3, dtype=torch.float64)
        for method in ("dopri5", "rk4", "explicit_adams"):
            ys = hj.odeint(lambda t, y: torch.mul(y, -t, out=buffer), start().detach(), T, method=method)
            assert torch.equal(ys, hj.odeint(lambda t, y: -t * y, start().detach(), T, method=method))

    def test_the_parts_of_a_solution_may_be_written_to(self):
        for library in LIBRARIES:
            y0 = start()
            a, b = library.odeint(lambda t, s: (s[1], -s[0]), (y0, 2 * y0), T, rtol=1e-6, atol=1e-6)
            exact = (torch.cos(T - T[0]) + 2 * torch.sin(T - T[0])).sum() + torch.cos(T - T[0]).sum() * 2
            exact -= torch.sin(T - T[0]).sum()
            a += 1
            (a.sum() + b.sum()).backward()
            torch.testing.assert_close(y0.grad, exact.expand(2, 3), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("call", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("pair", [False, True])
    def test_half_precision(self, pair, call, dtype):
        """The field sees its own type; the state is carried in float32, so that only the results are rounded."""
        y0, rate = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in ([1.0, 2.0], 0.5))
        t = torch.tensor([0.0, 0.5, 1.0])

        def decay(t, y):
            assert t.dtype is y.dtype is dtype
            return -rate * y

        adjoint = {"adjoint_params": (rate,)} if call == "odeint_adjoint" else {}
        func = (lambda t, s: tuple(decay(t, y) for y in s)) if pair else decay
        state = (y0[:1], y0[1:]) if pair else y0
        ys = getattr(hj, call)(func, state, t, rtol=1e-3, atol=1e-3, **adjoint)
        ys = torch.cat(ys, dim=1) if pair else ys
        assert ys.dtype is dtype
        exact = torch.exp(-0.5 * t)
        torch.testing.assert_close(ys.float(), exact[:, None] * torch.tensor([1.0, 2.0]), rtol=2e-2, atol=0)
        by_y0, by_rate = torch.autograd.grad(ys[-1].float().sum(), [y0, rate])
        assert by_y0.dtype is by_rate.dtype is dtype
        torch.testing.assert_close(by_y0.float(), exact[-1].expand(2), rtol=2e-2, atol=0)
        torch.testing.assert_close(by_rate.float(), -3 * exact[-1], rtol=2e-2, atol=0)

    def test_an_event_in_half_precision(self):
        y0 = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
        t, ys = hj.odeint_event(lambda t, y: -y, y0, torch.tensor(0.0), event_fn=lambda t, y: y[0] - 0.75, rtol=1e-3)
        assert ys.dtype is torch.bfloat16
        torch.testing.assert_close(t, torch.tensor(-math.log(0.75)), rtol=2e-2, atol=0)


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

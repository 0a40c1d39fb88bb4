"""The adjoint method, events and dense output, in torchdiffeq and in homojl."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
import torchdiffeq

import homojl as hj
from tests.compat.programs import LIBRARIES, TIGHT, Net, T, assert_same, run, start


class TestAdjoint:
    def test_options_of_the_backward_solve(self):
        options = {"rtol": 1e-9, "atol": 1e-9, "adjoint_rtol": 1e-8, "adjoint_atol": 1e-8, "adjoint_method": "bosh3"}
        assert_same([run(lib, "odeint_adjoint", **options) for lib in LIBRARIES], 1e-4)

    def test_tolerances_of_each_element_or_part_hold_for_their_adjoints(self):
        """torchdiffeq takes them forward, and refuses them in the backward pass."""
        by_element = torch.tensor([1e-9, 1e-8, 1e-9], dtype=torch.float64)
        direct = run(hj, rtol=1e-9, atol=1e-9)
        for tolerance in (by_element, by_element.expand(2, 3)):
            field = Net()
            with torch.no_grad():
                theirs, ours = (lib.odeint_adjoint(field, start(), T, rtol=tolerance, atol=1e-9) for lib in LIBRARIES)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
            assert_same([direct, run(hj, "odeint_adjoint", rtol=tolerance, atol=tolerance)], 1e-6)
        y0 = start()

        def func(t, s):
            return -s[0], s[1] * torch.cos(t)

        ys, _ = hj.odeint_adjoint(func, (y0, y0.detach()), T, rtol=(1e-9, 1e-3), atol=1e-9, adjoint_params=())
        (gradient,) = torch.autograd.grad(ys[-1].sum(), y0)
        torch.testing.assert_close(gradient, torch.full_like(y0, math.exp(T[0] - T[-1])), rtol=1e-7, atol=0)

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
        with pytest.raises(ValueError, match="scipy_solver finds no events"):
            hj.odeint(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", **event)


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

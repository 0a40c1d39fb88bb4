"""diffrax: one step size for the whole batch, compiled by XLA from JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import MAX_STEPS, AbstractSolver, Case, MakeSolve, Outcome, Solve

# Our name -> diffrax's, and its evaluations a step.
_METHODS = {
    "midpoint": ("Midpoint", 2),
    "bosh3": ("Bosh3", 3),
    "dopri5": ("Dopri5", 6),
    "tsit5": ("Tsit5", 6),
    "dopri8": ("Dopri8", 13),
    "kvaerno5": ("Kvaerno5", 0),  # as many as its Newton iterations take, which are not counted
}
_GRADIENT_STEPS = 4096  # reverse mode needs a bound; diffrax's own


class Diffrax(AbstractSolver):
    """`diffeqsolve` under `jax.jit`, with its recursive checkpoints for gradients.

    Evaluations are those of its steps, which it counts.
    """

    name = package = "diffrax"

    def variants(self, case: Case) -> Mapping[str, MakeSolve]:
        if case.problem.equilibrium or case.method not in _METHODS:
            return {}
        return {"": lambda: self._make(case)}

    def _make(self, case: Case) -> Solve:
        import diffrax
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)  # types are given everywhere; float64 would be refused otherwise
        problem = case.problem
        field, parameters = problem.jax_field()
        method, per_step = _METHODS[case.method]
        ts, weights = jnp.asarray(problem.ts), jnp.asarray(problem.cotangent)
        if case.steps is None:
            control = diffrax.PIDController(rtol=case.tolerance, atol=case.tolerance)
            dt0, most = None, _GRADIENT_STEPS if case.gradient else MAX_STEPS
        else:
            control, most = diffrax.ConstantStepSize(), case.steps + 1  # the last may be a remainder of rounding
            dt0 = (ts[-1] - ts[0]) / case.steps

        def integrate(y0: Any, parameters: Any) -> tuple[Any, Any]:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                getattr(diffrax, method)(),
                t0=ts[0],
                t1=ts[-1],
                dt0=dt0,
                y0=y0,
                args=parameters,
                saveat=diffrax.SaveAt(ts=ts),
                stepsize_controller=control,
                max_steps=most,
            )
            return solution.ys, solution.stats["num_steps"]

        def loss(inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
            ys, steps = integrate(*inputs)
            return (ys[-1] * weights).sum(), (ys, steps)

        y0 = jnp.asarray(problem.y0)
        work: Any
        given: tuple[Any, ...]
        if case.gradient:
            work, given = jax.value_and_grad(loss, has_aux=True), ((y0, parameters),)
        else:
            work, given = integrate, (y0, parameters)
        compiled = jax.jit(work).lower(*given).compile()

        def solve() -> Outcome:
            result = jax.block_until_ready(compiled(*given))
            gradient = None
            if case.gradient:
                (_, (ys, taken)), (gradient, _) = result
            else:
                ys, taken = result
            steps = int(taken)
            return Outcome(np.asarray(ys), steps * per_step, steps, gradient)

        return solve

"""How much a system itself magnifies errors, which no control of steps can know."""

from __future__ import annotations

import functools

import torch

import homojl as hj

from .problems import SYSTEMS, SystemField, system_problem

_CHANGE = 1e-6  # of an element, relative to 1 + |element|, for central differences


@functools.cache
def magnification(name: str, saves: int) -> float:
    """The largest factor by which an error at one save time has grown at a later one; at least 1.

    Of a system from its own start, to first order, both errors measured as the largest |error| / (1 + |y|) over the
    elements. A solver whose every step is exact to a tolerance has a global error of that size for each step.

    Args:
        name: of a system in `SYSTEMS`.
        saves: save times, equidistant, the first and the last included.
    """
    problem = system_problem(name, batch=1, saves=saves, dtype="float64")
    y = torch.from_numpy(problem.reference)[:, 0]  # (T, D)
    size = 1 + y.abs()
    (count, dimension), span = y.shape, float(problem.ts[1] - problem.ts[0])
    # Every element changed up and down at every save time but the last, all followed to the next one in one batch.
    changes = _CHANGE * size[:-1, None] * torch.eye(dimension, dtype=y.dtype)  # (T - 1, D, D)
    starts = torch.stack([y[:-1, None] + changes, y[:-1, None] - changes]).view(-1, dimension)
    t0 = torch.from_numpy(problem.ts[:-1]).repeat_interleave(dimension).repeat(2)
    field = SystemField(SYSTEMS[name].formula)
    shifted = hj.ODEProblem(lambda t, states: field(t0 + t, states), starts, (0.0, span))
    with torch.no_grad():
        ends = hj.solve(shifted, hj.Dopri8(rtol=1e-12, atol=1e-12, max_steps=10**6), backend="pytorch").value
    up, down = ends.view(2, count - 1, dimension, dimension)
    transitions = ((up - down) / (2 * _CHANGE) / size[1:, None]).mT  # of scaled errors, from each time to the next
    largest = 1.0
    for i in range(count - 1):
        carried = torch.eye(dimension, dtype=y.dtype)
        for transition in transitions[i:]:
            carried = transition @ carried
            largest = max(largest, torch.linalg.matrix_norm(carried, torch.inf).item())
    return largest

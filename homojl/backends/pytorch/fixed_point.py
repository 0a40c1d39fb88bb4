"""Fixed-point iterations in eager PyTorch, each sample on its own.

One loop serves all methods: it evaluates, fetches every sample's residual in the iteration's only host
synchronisation, lets go of the samples that are done and asks the method for the next iterates.

Where gradients are recorded the operations can be differentiated: methods then keep their history in new tensors
instead of writing to buffers. Which samples stop when is decided on values alone.
"""

from __future__ import annotations

from typing import Any

import torch

from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    Anderson,
    Broyden,
    Homotopy,
    NewtonKrylov,
    Picard,
    PseudoTransient,
    Relaxation,
)
from homojl.backends.base import FixedPoint, Map, MapJVP
from homojl.backends.pytorch.history import AbstractMethod, AndersonMethod, BroydenMethod, PicardMethod
from homojl.backends.pytorch.homotopy import HomotopyMethod
from homojl.backends.pytorch.newton import NewtonKrylovMethod, PseudoTransientMethod
from homojl.backends.pytorch.relaxation import RelaxationMethod
from homojl.backends.pytorch.samples import Progress, Samples
from homojl.solution import Status

Tensor = torch.Tensor

METHODS: dict[type[AbstractFixedPointAlgorithm], type[AbstractMethod[Any]]] = {
    Picard: PicardMethod,
    Anderson: AndersonMethod,
    Broyden: BroydenMethod,
    NewtonKrylov: NewtonKrylovMethod,
    PseudoTransient: PseudoTransientMethod,
    Relaxation: RelaxationMethod,
    Homotopy: HomotopyMethod,
}


def find_fixed_point(
    f: Map, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, *, jvp: MapJVP | None = None
) -> FixedPoint:
    """Solve z = f(z) for every row of z0; see `AbstractBackend.find_fixed_point`."""
    samples = Samples(f, z0, jvp)
    progress = Progress(algorithm, samples)
    method = METHODS[type(algorithm)](algorithm, samples)
    z = samples.layout.flatten(z0)
    fz = samples.evaluate(z)
    iteration = -1
    while True:
        iteration += 1
        r = fz - z
        norms = torch.linalg.vector_norm(r, dim=1), torch.linalg.vector_norm(fz, dim=1)
        observed = torch.stack([*norms, *method.observe(r, fz)], dim=1)
        host = observed.detach().to("cpu", torch.float64)
        residual, norm = host[:, 0].numpy(), host[:, 1].numpy()
        progress.update(iteration, z, residual, norm)
        if iteration == algorithm.max_steps:
            progress.stop(progress.active, Status.MAX_STEPS, iteration)
        if not progress.active.any():
            return progress.result()
        seen = (observed if observed.requires_grad else host)[:, 2:]
        compaction = progress.compaction()
        if compaction is not None:
            samples.keep(compaction)
            method.keep(compaction)
            z, fz, r = (compaction.take(x) for x in (z, fz, r))
            residual = residual[compaction.order]
            seen = seen[torch.from_numpy(compaction.order).to(seen.device)]
        advance = method.advance(z, fz, r, seen, residual, progress.active)
        for status, rows in advance.ended.items():
            progress.stop(rows, status, iteration)
        if not progress.active.any():
            return progress.result()
        z = advance.z
        fz = samples.evaluate(z) if advance.fz is None else advance.fz

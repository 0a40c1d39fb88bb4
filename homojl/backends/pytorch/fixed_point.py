"""Fixed-point iterations in eager PyTorch, each sample on its own.

One loop serves all methods: it evaluates, fetches every sample's residual in the iteration's only host
synchronisation, lets go of the samples that are done and asks the method for the next iterates.

Where gradients are recorded the operations can be differentiated: methods then keep their history in new tensors
instead of writing to buffers. Which samples stop when is decided on values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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
from homojl.backends.base import FixedPoint
from homojl.backends.pytorch.gmres import column_of
from homojl.backends.pytorch.history import AbstractMethod, AndersonMethod, BroydenMethod, PicardMethod
from homojl.backends.pytorch.homotopy import HomotopyMethod
from homojl.backends.pytorch.newton import NewtonKrylovMethod, PseudoTransientMethod
from homojl.backends.pytorch.relaxation import RelaxationMethod
from homojl.backends.pytorch.samples import Progress, Samples
from homojl.functions import AbstractMap, DerivedMap
from homojl.functions.products import Flattened
from homojl.functions.user import Mixes, warn_caller
from homojl.solution import Status

Tensor = torch.Tensor

Methods = Mapping[type[AbstractFixedPointAlgorithm], type[AbstractMethod[Any]]]
METHODS: Methods = {
    Picard: PicardMethod,
    Anderson: AndersonMethod,
    Broyden: BroydenMethod,
    NewtonKrylov: NewtonKrylovMethod,
    PseudoTransient: PseudoTransientMethod,
    Relaxation: RelaxationMethod,
    Homotopy: HomotopyMethod,
}


# One search for the equilibria of all rows, each to its own end.
Search = Callable[[AbstractMap, Tensor, AbstractFixedPointAlgorithm], FixedPoint]


def find_fixed_point(
    f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, search: Search | None = None
) -> FixedPoint:
    """Solve z = f(z) for every row of z0; see `AbstractBackend.find_fixed_point`.

    Args:
        f, z0, algorithm: as there.
        search: another than `each_sample`, as of another backend.
    """
    search = search or each_sample
    if len(z0) == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return FixedPoint(z0, none.double(), none, none.bool(), Status.SUCCESS, "", nfe=0, n_jvp=0)
    started = f.calls
    if not f.mixes:
        try:
            found = search(f, z0, algorithm)
            if found.status.ok or len(z0) == 1:
                return found
            # It may be that they depend on each other, of which nothing has shown.
            every = torch.arange(len(z0), device=z0.device)
            with torch.no_grad():
                f.separable((z0.detach(),), f(z0.detach()), every[: max(1, len(z0) // 2)])
            return found
        except Mixes as error:
            if str(error):
                warn_caller(f"{error}; the batch converges as a whole")
    return _together(f, z0, algorithm, started, search)


def _together(
    f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, started: int, search: Search
) -> FixedPoint:
    """The whole batch as one sample."""
    shape, count = z0.shape, len(z0)
    one_row = DerivedMap(
        lambda z, _: f(z.view(shape)).reshape(1, -1), lambda z, _: Flattened(f.linearised(z.view(shape)), shape)
    )
    found = search(one_row, z0.reshape(1, -1), algorithm)
    return replace(
        found,
        value=found.value.view(shape),
        residuals=found.residuals.expand(count).clone(),
        iterations=found.iterations.expand(count).clone(),
        converged=found.converged.expand(count).clone(),
        message=found.message.replace("1 of 1 samples; ", "the batch as a whole; ").replace(
            "sample 0 is the worst, ", ""
        ),
        nfe=f.calls - started,
    )


def each_sample(
    f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, methods: Methods = METHODS
) -> FixedPoint:
    """Row by row, by the method that there is for an algorithm's kind."""
    samples = Samples(f, z0, algorithm)
    progress = Progress(algorithm, samples)
    method = methods[type(algorithm)](algorithm, samples)
    z = samples.layout.flatten(z0)
    fz = samples.evaluate(z)
    iteration = -1
    while True:
        iteration += 1
        seen = method.measure(z, fz)
        progress.update(iteration, z, seen.residual, seen.norm)
        if progress.some_rest:
            samples.separable(z, fz, progress.active)
        if iteration == algorithm.max_steps:
            progress.stop(progress.active, Status.MAX_STEPS, iteration)
        if progress.ended:
            return progress.result()
        compaction = progress.compaction() if samples.alone else None
        if compaction is not None:
            samples.keep(compaction)
            method.keep(compaction)
            z, fz, seen = compaction.take(z), compaction.take(fz), seen.taken(compaction)
        active = progress.active
        advance = method.advance(z, fz, seen.r, seen.numbers, seen.residual, active)
        for status, rows in advance.ended.items():
            progress.stop(rows, status, iteration)
        if progress.ended:
            return progress.result()
        # Rows that are done rest where the others cannot go on without them.
        resting = progress.some_rest and not samples.alone
        ahead = torch.where(column_of(active, z), advance.z, z) if resting else advance.z
        given = advance.fz if not advance.joined or samples.separable(z, fz, active) else None
        z, fz = ahead, samples.evaluate(ahead) if given is None else given

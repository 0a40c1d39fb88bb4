"""Several processes that train one model, each on its part of every batch, and what they divide, add up and agree on.

Every process has the whole model and takes the same steps; the batch of the configuration is that of all together. A
step is that of one process with the whole batch, to rounding, because whatever looks at the batch as a whole looks at
all parts of it: the gradient, batch normalisation, the error that an ODE's common steps are chosen by. What is random
is drawn for the whole batch and cut. Only process 0 reads and writes the run's folder.

PyTorch's collectives do the work: those of gloo between main memories, those of NCCL between GPUs. Numbers that decide
what happens next always go by gloo, in float64, so that all processes decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from homojl.adjoints import BacksolveAdjoint
from homojl.algorithms import (
    AbstractAdaptive,
    AbstractErrorControlled,
    AbstractFixedPointAlgorithm,
    AbstractFixedStep,
    AbstractJacobianBased,
    AdamsMoulton,
    ErrorNorm,
    memory_of,
)
from homojl.errors import ConfigError
from homojl.models import AbstractImplicitModel, model_settings
from homojl.models.own import OwnModel
from homojl.nn.layer import AbstractLayer
from homojl.nn.parts import MovingPoint
from homojl.training.collectives import call, local_rank, replace_batch_norms
from homojl.training.config import ExperimentConfig, with_solver
from homojl.training.optimizers import AbstractOptimizer
from homojl.training.solver import SolverConfig

Tensor = torch.Tensor
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. With one process every method costs nothing and changes nothing.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that reads, writes and speaks."""
        return self.rank == 0

    # ---- what is divided

    def bounds(self, rows: int) -> tuple[int, int]:
        """First and last + 1 of the rows of a batch that are this process's; parts differ by one row at most."""
        return self.rank * rows // self.size, (self.rank + 1) * rows // self.size

    def part(self, batch: Tensor) -> Tensor:
        """The rows of a batch that are this process's."""
        first, last = self.bounds(len(batch))
        return batch[first:last]

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """Those of some items that this process works on; `collect` brings their results together."""
        return items[self.rank :: self.size]

    # ---- what is brought together

    def collect(self, mine: list[T]) -> list[T]:
        """What all processes made of what `deal` gave them, on each of them, in the order of the items."""
        if self.size == 1:
            return mine
        parts: list[list[T]] = [[] for _ in range(self.size)]
        call(dist.all_gather_object, parts, mine)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def from_main(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns on process 0, which alone calls it, on every process.

        Raises:
            ProcessError: on the others, if process 0 has ended; what the function raised is process 0's to say.
        """
        if self.size == 1:
            return function(*args, **kwargs)
        box: list[Any] = [function(*args, **kwargs) if self.is_main else None]
        call(dist.broadcast_object_list, box, src=0)
        return box[0]

    def largest(self, number: float) -> float:
        """The largest of the processes' numbers."""
        return number if self.size == 1 else max(self._gathered([number])[:, 0].tolist())

    def combine(self, numbers: Any, *, sums: Sequence[str]) -> None:
        """Put into a dataclass of numbers what all processes have in theirs: sums in those fields, else the largest."""
        if self.size == 1:
            return
        own = vars(numbers)
        gathered = self._gathered(list(own.values()))
        for column, (name, value) in enumerate(own.items()):
            found = gathered[:, column].sum() if name in sums else gathered[:, column].max()
            setattr(numbers, name, type(value)(found.item()))

    def sum_gradients(self, optimizer: AbstractOptimizer | None) -> None:
        """Add up the gradients of an optimiser's parameters over the processes, in one message."""
        if self.size == 1 or optimizer is None:
            return
        grads = [p.grad for p in optimizer.parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        call(dist.all_reduce, flat)
        for grad, total in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(total.view(grad.shape))

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of process 0."""
        if self.size > 1:
            for buffer in model.buffers():
                call(dist.broadcast, buffer, src=0)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        call(dist.all_reduce, x)
        return x

    def begin_step(self, model: AbstractImplicitModel) -> None:
        """Prepare a user's own network for a step, as DistributedDataParallel does.

        Buffers become those of process 0, and each process has random numbers of its own; homojl's models draw for the
        whole batch instead.
        """
        if self.size > 1 and isinstance(model, OwnModel):
            self.share_buffers(model)
            torch.manual_seed(torch.initial_seed() ^ (self.rank << 56))

    def rms(self, x: Tensor) -> float:
        """The root mean square over the parts of a tensor that the processes have."""
        square = float(torch.linalg.vector_norm(x)) ** 2
        squares, counts = self._gathered([square, x.numel()]).sum(dim=0).tolist()
        return math.sqrt(squares / counts)

    def _gathered(self, numbers: Sequence[float]) -> Tensor:
        """The numbers of every process, (size, n), float64, to the bit alike on all of them."""
        own = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        call(dist.all_gather, rows, own)
        return torch.stack(rows)

    # ---- the model

    def couple(self, model: AbstractImplicitModel, batch_size: int) -> None:
        """Have a model in training mode see the whole batch of which it is given this process's part.

        Weights and buffers become those of process 0. In evaluation mode the model works for itself.

        Args:
            model: on its device, before its optimisers are made.
            batch_size: of the whole batch.
        """
        if self.size == 1:
            return
        for parameter in model.parameters():
            call(dist.broadcast, parameter.data, src=0)
        self.share_buffers(model)
        replace_batch_norms(model)
        self.place(model, batch_size)
        for module in model.modules():
            if isinstance(module, MovingPoint):
                module.total = self.total
        for layer in model.layers:
            if layer.batch == "joint":
                self._couple_steps(layer)

    def place(self, model: AbstractImplicitModel, rows: int) -> None:
        """Tell a model where its part of a batch of so many rows lies."""
        if self.size > 1:
            model.part = (self.bounds(rows)[0], rows)

    def _couple_steps(self, layer: AbstractLayer) -> None:
        """Have all processes take the same common steps in training.

        Raises:
            ConfigError: the method decides by more than the error.
        """
        algorithm = layer.algorithm
        if not _divides(algorithm):
            raise ConfigError(
                f"with {self.size} processes {type(layer).__name__} cannot have {algorithm.name} with common steps, "
                'which decides by the whole batch: give it batch="per-sample", or an explicit method such as dopri5'
            )
        if isinstance(algorithm, AbstractErrorControlled):

            def norm(x: Tensor) -> float:
                return self.rms(x) if layer.training else float(torch.linalg.vector_norm(x)) / math.sqrt(x.numel())

            layer.algorithm = replace(algorithm, norm=ErrorNorm(function=norm))

    # ---- the configuration

    def fitted(self, config: ExperimentConfig) -> ExperimentConfig:
        """The configuration as these processes can follow it; "auto" becomes the PyTorch backend.

        Raises:
            ConfigError: for what would not give the steps of one process.
        """
        if self.size == 1:
            return config
        solver = config.solver
        several = f"with {self.size} processes"
        if solver.backend == "julia":
            raise ConfigError(f"{several} solver.backend must be pytorch, got 'julia'")
        if config.train.batch_size < self.size:
            raise ConfigError(
                f"train.batch_size is {config.train.batch_size}: {several} each needs an image of every batch"
            )
        self._check_device(config.train.device)
        if model_settings(config.model.name).own:
            return config  # what its layers cannot do together, `couple` refuses
        for how in (solver, config.training_solver):
            _check_divides(how, several)
        return with_solver(config, backend="pytorch")

    def _check_device(self, name: str) -> None:
        if name not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"with {self.size} processes train.device must be auto, cpu or cuda, got {name!r}")
        gpus = torch.cuda.device_count()
        if gpus and name != "cpu" and local_rank() >= gpus:
            raise ConfigError(
                f"process {self.rank} has no GPU of its own: there are {gpus}; start as many processes on each "
                "machine, or train with --device cpu"
            )


ALONE = Ranks()


def _divides(algorithm: object) -> bool:
    """Whether a method takes the same steps on a part of the batch as on the whole, given a common error norm."""
    if isinstance(algorithm, AbstractJacobianBased | AdamsMoulton):
        return False
    return isinstance(algorithm, AbstractAdaptive | AbstractFixedStep | AbstractFixedPointAlgorithm)


def _check_divides(solver: SolverConfig, several: str) -> None:
    """Refuse a solver that gives other results on a part of a batch than on the whole."""
    algorithm = solver.build_algorithm()
    if solver.batch == "per-sample":
        if memory_of(algorithm) is not None:
            raise ConfigError(
                f'{several} solver.first_step = "remember" needs solver.batch = "joint": what is remembered of '
                "samples' own steps is their median"
            )
    elif not _divides(algorithm):
        raise ConfigError(
            f"{several} solver.algorithm must be an explicit method such as dopri5 or rk4, or solver.batch "
            f"per-sample: {algorithm.name} decides by the whole batch how long to iterate"
        )
    elif isinstance(solver.build_adjoint(), BacksolveAdjoint) and isinstance(algorithm, AbstractErrorControlled):
        raise ConfigError(
            f"{several} solver.adjoint must be checkpoint, direct or gauss: backsolve chooses its steps by the "
            "gradients' errors too, of which each process has a part"
        )

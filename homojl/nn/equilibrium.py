"""A layer whose output is an equilibrium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from homojl.adjoints import AbstractFixedPointAdjoint, ImplicitAdjoint, jacobian_regularization
from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractSplitting, Anderson
from homojl.errors import ConfigError
from homojl.functions.products import transformed
from homojl.functions.states import Form
from homojl.nn.contraction import contract_, drawn
from homojl.nn.exported import find
from homojl.nn.layer import AbstractLayer, per_sample, unmarked
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution, Solution
from homojl.splitting import lower

Tensor = torch.Tensor
Start = Callable[..., Any] | tuple[int, ...] | None


class Equilibrium(AbstractLayer):
    """z* = block(z*, x).

    `layer(x)`, or `layer(x, *further)` for block(z, x, *further); `layer(x, start=z0)` gives a start for one call, such
    as the last equilibrium of similar inputs.

    What makes it trainable as it comes: in the first call in training mode the block is looked at, and one that does
    not contract, so that it may have no equilibrium, is made to, by shrinking those of its weights that leave x the
    most influence (`contract_`); several processes look at the same numbers, drawn for that. A block that contracts is
    left as it is. `init=None` leaves every block as it is.

    Args:
        block: `block(z, x, *further)` to what has the state's shape; a module or any function. It must be
            deterministic: dropout belongs outside, or its mask among the further arguments. With normalisation over
            the batch in it, the batch converges as a whole.
        algorithm: how, with its tolerances.
        backward: how the linear system of the gradient is solved; None: as the adjoint says, else by `algorithm`.
        adjoint: how to differentiate.
        start: the first guess: None: zeros of x's shape; a tuple of numbers: zeros of that shape for each sample; or
            `start(x)`, such as a module.
        jacobian_weight: of the estimate of norm(d block/dz)_F^2 at the equilibrium, divided by the number of its
            elements, in what `homojl.nn.regularization` adds to the loss; keeps the solves short.
        init: "contract", as above, or None.
        backend, precision, strict: as of `AbstractLayer`.

    Attributes:
        contracted: what the first call did to which weights, as {name: factor}; None before it.

    Shapes:
        x: (B, ...), or a tuple, list or dict of such tensors; the first dimension counts samples, or for a graph its
        nodes. The output has the form of the state, which is float32 or float64.

    Raises:
        SolveError: where a sample does not converge and `strict` is set.

    References: Bai, Kolter, Koltun (2019), arXiv 1909.01377; for the Jacobian's weight Bai, Koltun, Kolter (2021),
    arXiv 2106.14342.
    """

    algorithm: AbstractFixedPointAlgorithm
    kinds = (AbstractFixedPointAlgorithm, AbstractFixedPointAdjoint)
    what = "a fixed point"

    def __init__(
        self,
        block: Callable[..., Any],
        algorithm: AbstractFixedPointAlgorithm | None = None,
        *,
        backward: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        start: Start = None,
        jacobian_weight: float = 0.0,
        init: str | None = "contract",
        backend: str = "pytorch",
        precision: str = "full",
        strict: bool = False,
    ) -> None:
        adjoint = ImplicitAdjoint() if adjoint is None else adjoint
        if backward is not None:
            if not isinstance(adjoint, ImplicitAdjoint):
                raise ConfigError(f"backward is for an ImplicitAdjoint(), got {adjoint!r}")
            adjoint = replace(adjoint, algorithm=backward)
        if jacobian_weight < 0:
            raise ConfigError(f"jacobian_weight must not be negative, got {jacobian_weight}")
        if init not in ("contract", None):
            raise ConfigError(f"init must be 'contract' or None, got {init!r}")
        super().__init__(
            Anderson(rtol=1e-3) if algorithm is None else algorithm,
            adjoint,
            backend=backend,
            precision=precision,
            strict=strict,
        )
        self.block, self.start, self.jacobian_weight = block, start, jacobian_weight
        self.contracted: dict[str, float] | None = None
        self._open = init == "contract"
        if self._open:  # in the state, so that loaded weights are not looked at again
            self.register_buffer("begun", torch.tensor(False))

    def problem(self, x: Any, *further: Any, start: Any = None) -> FixedPointProblem:
        """The problem of `layer(x, *further)`; `start` replaces the layer's."""
        z0 = self._start(x) if start is None else start
        splits = isinstance(self.algorithm, AbstractSplitting)  # which hand the arguments on
        if not (splits or torch.compiler.is_exporting()):
            x = per_sample(x, len(pytree.tree_leaves(z0)[0]))
        return FixedPointProblem(self.block, z0, (x, *further))

    def _solve(self, problem: ODEProblem | FixedPointProblem) -> Solution | EquilibriumSolution:
        assert isinstance(problem, FixedPointProblem)
        try:
            if self.training and self._open:
                self._begin(problem)
            solution = super()._solve(problem)
        except (RuntimeError, ConfigError) as error:
            if self.start is None and self.last is None and isinstance(problem.z0, Tensor):
                error.add_note(
                    f"the state began as zeros of x's shape {tuple(problem.z0.shape)}; where the block's state has "
                    f"another shape, say which: {type(self).__name__}(block, start=(n, ...)), without the samples"
                )
            raise
        if self.training and self.jacobian_weight > 0 and torch.is_grad_enabled():
            norm = jacobian_norm(problem.f, solution.value, unmarked(problem.args), part=self.part)
            self._add_term(self.jacobian_weight * norm)
        return solution

    def _written_out(self, problem: FixedPointProblem) -> Any:
        algorithm = self._algorithm_now()
        assert isinstance(algorithm, AbstractFixedPointAlgorithm), algorithm
        if not isinstance(algorithm, AbstractSplitting):
            return find(problem.f, problem.z0, problem.args, algorithm)
        lowered = lower(problem, algorithm)
        return lowered.recover(find(lowered.problem.f, problem.z0, lowered.problem.args, algorithm.iteration()))

    def _start(self, x: Any) -> Any:
        if callable(self.start):
            return self.start(x)
        tensors = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
        leaves = [leaf for leaf in tensors if leaf.is_floating_point()]
        if self.start is not None and tensors:
            like = (leaves or [p for p in self.parameters() if p.is_floating_point()] or [torch.empty(0)])[0]
            return like.new_zeros((len(tensors[0]), *self.start)).to(tensors[0].device)
        if not leaves:
            raise ConfigError("x holds no floating-point tensor to make a start of: give start=(sizes of a sample,)")
        return pytree.tree_map(torch.zeros_like, x)

    def _begin(self, problem: FixedPointProblem) -> None:
        self._open = False
        begun = self.get_buffer("begun")
        if transformed():
            self._open = True  # weights are not looked at through what torch.func wraps
        elif not bool(begun):
            begun.fill_(True)
            z0, args = problem.z0, unmarked(problem.args)
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                z0, args = drawn(z0, args)
            self.contracted = contract_(self.block, z0, args)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._open = "begun" in self._buffers

    def extra_repr(self) -> str:
        weight = f", jacobian_weight={self.jacobian_weight}" if self.jacobian_weight else ""
        return super().extra_repr() + weight


def jacobian_norm(
    block: Callable[..., Any], z: Any, args: tuple[Any, ...], *, part: tuple[int, int] | None = None
) -> Tensor:
    """The estimate of norm(d block/dz)_F^2, divided by the number of a sample's elements, mean over the samples; 0-d.

    Args:
        block: `block(z, *args)`.
        z: (B, ...), or a tuple, list or dict of such tensors; taken as constants.
        args: further arguments.
        part: of which larger batch the samples are a part, as of `homojl.jacobian_regularization`.
    """
    form = Form(z, "z", batched=True)
    if form.plain:
        return jacobian_regularization(block, z, args, part=part).mean() / z[0].numel()
    flat = form.join(z)

    def joined(state: Tensor) -> Tensor:
        return form.join(block(form.split(state), *args))

    return jacobian_regularization(joined, flat, part=part).mean() / flat[0].numel()

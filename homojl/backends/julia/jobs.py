"""The parts of what Julia is told of a solve: functions, products, memory for the results, methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace as Job

import torch

from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractJacobianBased,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    Anderson,
    Picard,
    SciML,
)
from homojl.algorithms.control import PIDController
from homojl.backends.julia import methods, runtime
from homojl.backends.julia.field import BoundJuliaField, JuliaField
from homojl.backends.julia.tensors import Callback, StateForm
from homojl.errors import ConfigError
from homojl.functions import AbstractField, AbstractMap, UserFunction
from homojl.functions.products import Linearisation
from homojl.solution import StackedStates

Tensor = torch.Tensor
Algorithm = AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm


def device(form: StateForm) -> int | None:
    """The number of the CUDA device that a solve runs on; None: on the CPU.

    Raises:
        ConfigError: on a stream that is not PyTorch's default one, which Julia's kernels are queued on.
    """
    if form.device.type != "cuda":
        return None
    if torch.cuda.current_stream(form.device) != torch.cuda.default_stream(form.device):
        raise ConfigError("backend='julia' works on PyTorch's default stream: leave `torch.cuda.stream(...)` first")
    return torch.cuda.current_device() if form.device.index is None else form.device.index


def state_form(f: AbstractField | AbstractMap, y0: Tensor) -> StateForm:
    """The form of a function's states; one in Julia sees them as contiguous arrays."""
    return StateForm(y0.contiguous() if isinstance(f, UserFunction) and isinstance(f.f, JuliaField) else y0)


def native(f: AbstractField | AbstractMap, form: StateForm) -> BoundJuliaField | None:
    """The function as Julia's own where it is a `JuliaField`; None: it is called back."""
    if isinstance(f, UserFunction) and isinstance(f.f, JuliaField):
        return f.f.bind(f.args).for_state(torch.empty(form.shape, device="meta"))
    return None


def product(
    f: AbstractField | AbstractMap, form: StateForm, algorithm: Algorithm, *, timed: bool = False
) -> BoundJuliaField | Callback | None:
    """Products with a function's Jacobian where the algorithm asks for them, in Julia where the function is.

    None: it needs none, or is to take finite differences.
    """
    wanted = not isinstance(algorithm, AbstractODEAlgorithm) or isinstance(algorithm, AbstractJacobianBased | SciML)
    differences = isinstance(algorithm, SciML) and dict(algorithm.keywords).get("autodiff") is False
    if not wanted or differences or isinstance(algorithm, Picard | Anderson):
        return None
    if (held := native(f, form)) is not None:
        runtime.require(runtime.start(), "ForwardDiff")
        return held
    return Callback(Products(f.linearised), form, n_inputs=2, timed=timed)


class Products:
    """Jacobian-vector products (*time, state, v) -> (df/dy) v, many of them at one point.

    Points are compared by value, since a solver may write all of them into one buffer; the last one is kept.
    """

    def __init__(self, linearised: Callable[..., Linearisation]) -> None:
        self._linearised = linearised
        self._point: tuple[Tensor, ...] = ()
        self._found: Linearisation | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        *point, v = inputs
        if self._found is None or not all(map(torch.equal, point, self._point)):
            self._point = tuple(x.clone() for x in point)
            self._found = self._linearised(*self._point)
        return self._found.push(v)


def batch_form(f: AbstractField | AbstractMap, z0: Tensor) -> StateForm:
    """The form of a batch of samples, each of which must be a block of its own: the first dimension is the slowest."""
    form = state_form(f, z0)
    if form.n > len(z0) and form.strides[0] * len(z0) != form.n:
        form = StateForm(z0.contiguous())
    return form


def room_for_saves(form: StateForm, y0: Tensor, count: int) -> tuple[Tensor, Sequence[Tensor]]:
    """A flat tensor for `count` states, and y0 with those states after it."""
    if count == 1:  # the usual case; a tensor that is nobody's view serves autograd best
        state = form.empty()
        return form.flat(state), [y0, state]
    block = torch.empty((count + 1) * form.n, dtype=form.dtype, device=form.device)
    states = form.states(block, count + 1)
    states[0] = y0
    return block[form.n :], StackedStates(states)


def keeper(form: StateForm, states: list[Tensor]) -> Callable[[], int]:
    """A function for Julia that makes room for one more state in the list and returns its address."""

    def keep() -> int:
        state = form.empty()
        states.append(state)
        return state.data_ptr()

    return keep


def way(algorithm: AbstractODEAlgorithm, n: int) -> Job:
    """How a solve of a state of n elements is done, as Julia's objects."""
    method = methods.chosen(methods.spelled_out(algorithm))
    return Job(method=method, request=methods.requested(algorithm), dense=dense(algorithm, n))


def dense(algorithm: AbstractODEAlgorithm, n: int) -> bool:
    """Whether the linear systems of a state of n elements are solved by a factorisation."""
    if isinstance(algorithm, SciML):
        solver = dict(algorithm.keywords).get("linsolve")
        return n <= 64 if solver is None else not (isinstance(solver, SciML) and "Krylov" in solver.method)
    return isinstance(algorithm, AbstractJacobianBased) and algorithm.solves_densely(n)


@functools.lru_cache(maxsize=256)
def beyond_julia(algorithm: AbstractODEAlgorithm) -> str:
    """What the algorithm asks for that ZeroPaths does not have; empty: nothing."""
    asked = {
        "an observer": algorithm.observer is not None,
        "a grid": getattr(algorithm, "grid", None) is not None,
        "a floor of the step size": getattr(getattr(algorithm, "controller", None), "floor", 0.0) > 0,
        "PID control": isinstance(getattr(algorithm, "controller", None), PIDController),
        "a tolerance that is a tensor": any(isinstance(getattr(algorithm, n, 0.0), Tensor) for n in ("rtol", "atol")),
    }
    return next((what for what, given in asked.items() if given), "")

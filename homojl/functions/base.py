"""Fields and maps as solvers and adjoints see them, whoever made them."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch

from homojl.functions.products import Linearisation

Tensor = torch.Tensor


class AbstractField(abc.ABC):
    """The right-hand side of an ODE, (t, y) -> dy/dt, from a 0-d time and a state.

    Attributes:
        calls: evaluations so far.
    """

    calls: int

    @abc.abstractmethod
    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative, of y's shape."""

    @abc.abstractmethod
    def linearised(self, t: Tensor, y: Tensor) -> Linearisation:
        """Its products with vectors at a state; they are not counted among the evaluations."""

    def forget(self) -> None:  # noqa: B027 - most remember nothing
        """Let the next evaluation be a new one."""

    def finish(self) -> None:  # noqa: B027
        """Let go of what was remembered: the solve has ended."""

    def counted(self, value: Tensor) -> Tensor:
        """The value of a linearisation, counted where a gradient goes through it."""
        return value


class DerivedField(AbstractField):
    """A field that an adjoint makes; its own linearisation is that of its operations."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._function, self.calls = function, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self._function(t, y)

    def linearised(self, t: Tensor, y: Tensor) -> Linearisation:
        return Linearisation(lambda z: self._function(t, z), y)


class AbstractMap(abc.ABC):
    """A map of a batch, (z, rows) -> f(z), where z holds those rows of the batch; None: all of them.

    Attributes:
        calls: evaluations so far.
        mixes: whether samples are known to depend on each other.
    """

    calls: int
    mixes = False

    @abc.abstractmethod
    def __call__(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """The image, of z's shape."""

    @abc.abstractmethod
    def linearised(self, z: Tensor, rows: Tensor | None = None) -> Linearisation:
        """Its products with vectors at those rows."""

    def separable(self, inputs: tuple[Tensor, ...], value: Tensor, staying: Tensor) -> bool:
        """Whether some rows may be evaluated without the others; see `UserFunction.separable`."""
        return True


class DerivedMap(AbstractMap):
    """A map made of another one.

    Args:
        function: (z, rows) -> the image.
        linearise: (z, rows) -> its products; None: those of its operations.
        separates: whether rows may be evaluated without the others.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor | None], Tensor],
        linearise: Callable[[Tensor, Tensor | None], Linearisation] | None = None,
        *,
        separates: bool = True,
    ) -> None:
        self._function, self._linearise, self._separates, self.calls = function, linearise, separates, 0

    def __call__(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self._function(z, rows)

    def linearised(self, z: Tensor, rows: Tensor | None = None) -> Linearisation:
        if self._linearise is None:
            return Linearisation(lambda z: self._function(z, rows), z)
        return self._linearise(z, rows)

    def separable(self, inputs: tuple[Tensor, ...], value: Tensor, staying: Tensor) -> bool:
        return self._separates

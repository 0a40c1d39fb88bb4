"""SGD, Adam and AdamW by PyTorch's own updates, for a run's weights.

The updates are the functions that `torch.optim` computes with, so that the numbers are the same to the bit.
`torch.optim.Optimizer` itself is left out: the first one made in a process loads `torch._dynamo`, PyTorch's compiler,
which takes half as long as `import torch`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

Tensor = torch.Tensor


class AbstractOptimizer(abc.ABC):
    """Moves parameters along their gradients.

    Args:
        parameters: what is moved, of any shape, dtype and device.
        lr: learning rate.
        weight_decay: as of `torch.optim`'s optimiser of the same name.

    Attributes:
        keeps: names of what is kept for a parameter that was moved: "step", 0-d float32 on the CPU, and tensors like
            the parameter.
        parameters: in the order given.
        lr: may be changed before any step.
        state: what is kept, by the parameter's position and by name.
    """

    keeps: ClassVar[frozenset[str]]

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, *, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.lr, self.weight_decay = lr, weight_decay
        self.state: dict[int, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Drop the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        places = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        parameters: list[Tensor] = [self.parameters[place] for place in places]
        self._update(places, parameters, [p.grad for p in parameters if p.grad is not None])

    @abc.abstractmethod
    def _update(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move the parameters at these positions and renew what is kept of them."""


class SGD(AbstractOptimizer):
    """As `torch.optim.SGD`: stochastic gradient descent, with a momentum."""

    keeps = frozenset({"momentum_buffer"})

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr, weight_decay=weight_decay)
        self.momentum = momentum

    def _update(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        buffers = [self.state.get(place, {}).get("momentum_buffer") for place in places] if self.momentum else []
        sgd(
            parameters,
            gradients,
            buffers,
            has_sparse_grad=False,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for place, buffer in zip(places, buffers, strict=False):
            assert buffer is not None, place  # `sgd` has put the new ones into the list
            self.state[place] = {"momentum_buffer": buffer}


class Adam(AbstractOptimizer):
    """As `torch.optim.Adam`, with its default betas and eps."""

    keeps = frozenset({"step", "exp_avg", "exp_avg_sq"})
    _function: ClassVar[Callable[..., None]] = staticmethod(adam)

    def _update(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for place, parameter in zip(places, parameters, strict=True):
            if place not in self.state:
                self.state[place] = {
                    "step": torch.tensor(0.0, dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        state = [self.state[place] for place in places]
        self._function(
            parameters,
            gradients,
            [kept["exp_avg"] for kept in state],
            [kept["exp_avg_sq"] for kept in state],
            [],
            [kept["step"] for kept in state],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )


class AdamW(Adam):
    """As `torch.optim.AdamW`: Adam with decoupled weight decay."""

    _function = staticmethod(adamw)

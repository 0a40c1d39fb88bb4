"""A user's own network, with layers of `homojl.nn` or without, in the place of a model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils import _pytree as pytree

from homojl import own
from homojl.errors import ConfigError
from homojl.models.base import AbstractImplicitModel
from homojl.models.settings import GivenSettings
from homojl.solution import EquilibriumSolution, Samples, Solution, Stats, Status, TotalStats

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Answer:
    """The solution of a forward pass through no layer, or through several.

    Attributes:
        status: the first that is no success; `Status.SUCCESS` without layers.
        message: of that layer.
        stats: sums over the layers.
        samples: None; the layers' reports have it.
    """

    status: Status
    message: str
    stats: Stats | TotalStats
    samples: Samples | None = None


class OwnModel(AbstractImplicitModel):
    """Image -> network(image) = logits; the layers in the network solve as they were made to.

    Args:
        network: with parameters to train.
        name: of what made it.
        classifies: whether its outputs are to be logits.

    Raises:
        ConfigError: it has no parameters.
    """

    settings = GivenSettings

    def __init__(self, network: nn.Module, name: str, *, classifies: bool = True) -> None:
        super().__init__()
        if not list(network.parameters()):
            raise ConfigError(f"{name} has no parameters to train")
        self.name, self.classifies = name, classifies
        self.encoder, self.layer, self.decoder = nn.Identity(), network, nn.Identity()
        self.throw = True
        self._own_algorithms = [layer.algorithm for layer in self.layers]

    @staticmethod
    def of(name: str, *, input_shape: tuple[int, int, int], n_classes: int, **options: Any) -> OwnModel:
        """The model that a class or function makes.

        Args:
            name: of the class or function, see `homojl.own`. It is called with `input_shape` and `n_classes`, where it
                takes them, and with the settings of [model].
            input_shape: channels, height and width of one image.
            n_classes: number of classes.

        Raises:
            ConfigError: it makes no module.
        """
        make = own.load(name)
        given = {"input_shape": input_shape, "n_classes": n_classes}
        parameters = inspect.signature(make).parameters
        network = make(**{k: v for k, v in given.items() if k in parameters}, **options)
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{name} must make a torch.nn.Module, got {type(network).__name__}")
        return OwnModel(network, name)

    @property
    def network(self) -> nn.Module:
        """The user's network."""
        return self.layer

    def own_algorithms(self) -> list[Any]:
        """The algorithms that the layers were made with, also if they have others now."""
        return self._own_algorithms

    def forward(self, image: Any, *, return_solution: bool = False) -> Any:
        out = super().forward(image, return_solution=return_solution)
        logits = out[0] if return_solution else out
        if not self.classifies or torch.compiler.is_exporting():
            return out
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != _rows(image):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(f"{self.name} must return logits of shape ({_rows(image)}, classes), got {got}")
        return out

    def _combined(self, found: list[Solution | EquilibriumSolution]) -> Any:
        if len(found) == 1:
            return found[0]
        stats = TotalStats([s.stats for s in found]) if found else Stats(backend="pytorch")
        failed = next((s for s in found if not s.status.ok), None)
        if failed is None:
            return Answer(Status.SUCCESS, "", stats)
        return Answer(failed.status, failed.message, stats)

    def problem(self, h: Tensor) -> NoReturn:
        raise ConfigError(f"{self.name} is a network of your own, which states no problem of its own; its layers do")


def _rows(inputs: Any) -> int:
    """Samples in a batch of inputs."""
    return next((len(x) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim), 0)

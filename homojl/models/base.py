"""What every implicit model is: an encoder, a layer of `homojl.nn` and a decoder."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from homojl.adjoints import fixed_point_adjoint, ode_adjoint
from homojl.algorithms import AbstractODEAlgorithm
from homojl.errors import ConfigError
from homojl.models.blocks import MemoryFormat
from homojl.models.settings import AbstractModelSettings, NoLayer
from homojl.nn.layer import AbstractLayer, regularization, solutions, unmarked
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution, Solution

Tensor = torch.Tensor


def _of_layers(name: str, otherwise: str | None = None) -> Any:
    """An attribute of a model's layers: the first layer's; setting it sets it in all.

    Without layers it is the class's default, or `otherwise`.
    """

    def get(model: AbstractImplicitModel) -> Any:
        first = next(iter(model.layers), None)
        return getattr(model, f"default_{name}", otherwise) if first is None else getattr(first, name)

    def put(model: AbstractImplicitModel, value: Any) -> None:
        for layer in model.layers:
            setattr(layer, name, value)

    return property(get, put)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a model was made of, as `homojl.create_model` was told, and what its images were.

    Attributes:
        name, options, input_shape, n_classes: as of `homojl.create_model`.
        trained_on: `class_names`, and `mean` and `std` of each channel of pixels in [0, 1], by which its images were
            normalised; None: not known.
    """

    name: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int]
    n_classes: int
    trained_on: dict[str, Any] | None = None


class AbstractImplicitModel(nn.Module, abc.ABC):
    """decoder(layer(encoder(image))).

    Models differ in the layer. How it solves is configuration and may be changed on a trained model: the attributes
    below are those of its layers, and setting one sets it in all of them.

    Attributes:
        encoder: image (B, C, H, W) -> what the layer takes.
        layer: one of `homojl.nn`, or a module that has some in it.
        decoder: the layer's value -> logits (B, n_classes).
        settings: the model's own; they also say how it is solved by default, and so which kind of problem it states.
        default_algorithm, default_adjoint: of the class, from its settings.
        algorithm, adjoint, backend, batch, precision, part, remembered: as of `homojl.nn.AbstractLayer`.
        origin: what `homojl.create_model` was told, and what it was trained on; None where it was made otherwise.
        throw: the layers' `strict`: raise where a solve does not reach its end, or go on with its last state; the
            solution's status says which.
    """

    encoder: nn.Module
    layer: nn.Module
    decoder: nn.Module
    settings: ClassVar[type[AbstractModelSettings]]
    default_algorithm: ClassVar[Any]
    default_adjoint: ClassVar[Any]

    algorithm: Any = _of_layers("algorithm")
    adjoint: Any = _of_layers("adjoint")
    backend: Any = _of_layers("backend", "pytorch")
    batch: Any = _of_layers("batch", "joint")
    precision: Any = _of_layers("precision", "full")
    part: Any = _of_layers("part")
    remembered: Any = _of_layers("remembered")
    throw: Any = _of_layers("strict")

    def __init__(self) -> None:
        super().__init__()
        self.origin: Origin | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "settings" in vars(cls):
            named = ode_adjoint if cls.settings.states_ode() else fixed_point_adjoint
            cls.default_algorithm, cls.default_adjoint = cls.settings.algorithm, named(cls.settings.adjoint)

    @classmethod
    def states_ode(cls) -> bool:
        """Whether the model's problem is an ODE; else it is a fixed point."""
        return isinstance(cls.default_algorithm, AbstractODEAlgorithm)

    @property
    def layers(self) -> list[AbstractLayer]:
        """The layers of `homojl.nn` in the model, in the order in which images pass them."""
        return [module for module in self.layer.modules() if isinstance(module, AbstractLayer)]

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) -> what the layer takes."""
        return self.encoder(image)

    def problem(self, h: Tensor) -> ODEProblem | FixedPointProblem:
        """The problem that the first layer solves for its input h, its arguments as `f` takes them."""
        problem = self.layers[0].problem(h)
        return replace(problem, args=unmarked(problem.args))

    def decode(self, z: Any) -> Tensor:
        """The layer's value -> logits (B, n_classes)."""
        return self.decoder(z)

    def solve(self, image: Tensor, *, save_at: tuple[float, ...] | None = None) -> Solution | EquilibriumSolution:
        """Encode the images and solve; `save_at` replaces the save times of an ODE.

        Raises:
            ConfigError: for save times where there is no time.
        """
        if save_at is not None and not self.states_ode():
            raise ConfigError(f"{type(self).__name__} solves for an equilibrium: there are no states in between")
        options = {} if save_at is None else {"times": save_at}
        with solutions() as found:
            self.layer(self.encode(image), **options)
        return self._combined(found)

    def forward(
        self, image: Tensor, *, return_solution: bool = False
    ) -> Tensor | tuple[Tensor, Solution | EquilibriumSolution]:
        """Image (B, C, H, W), normalised, of the parameters' dtype -> logits (B, n_classes).

        Args:
            return_solution: also return the solution, with its status and statistics.

        Raises:
            SolveError: if the solve fails and `throw` is set.
        """
        if torch.compiler.is_exporting():
            return self.decode(self.layer(self.encode(image)))
        with solutions() as found:
            logits = self.decode(self.layer(self.encode(image)))
        return (logits, self._combined(found)) if return_solution else logits

    def _combined(self, found: list[Solution | EquilibriumSolution]) -> Any:
        """Of one or several layers."""
        if len(found) == 1:
            return found[0]
        return EquilibriumSolution.of_all([s for s in found if isinstance(s, EquilibriumSolution)])

    def begin_epoch(self, image: Tensor) -> None:
        """Called in training before the first batch of each epoch, with that batch, normalised."""

    def regularization(self) -> Tensor:
        """What the calls in training mode since the last time add to the loss, 0-d."""
        return regularization(self)

    def project_(self) -> None:
        """Put the parameters back where the model is well posed; called after each step of the optimiser."""
        for layer in self.layers:
            layer.project_()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the model into a folder, for `homojl.from_pretrained(folder)` in any other process.

        Raises:
            ConfigError: if `homojl.create_model` has not made it, or a method has parts that no file can hold.
            DataError: if the files cannot be written.
        """
        from homojl.models.saving import HOW, write_pretrained

        if self.origin is None:
            raise ConfigError(f"only what homojl.create_model has made can be saved, got a {type(self).__name__}")
        dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        own = isinstance(self.default_algorithm, NoLayer)
        solver = None if own else {key: getattr(self, key) for key in HOW}
        write_pretrained(Path(folder), {**vars(self.origin), "dtype": dtype}, solver, self.state_dict())

    def set_origin(self, **changes: Any) -> None:
        """Update `origin`, where there is one."""
        self.origin = None if self.origin is None else replace(self.origin, **changes)


class PublishedModel(AbstractImplicitModel):
    """A model that is built from its settings.

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        algorithm, adjoint, backend: how the layer solves; None: as the settings say.
        options: fields of `settings`.

    Raises:
        ConfigError: for options that no such model can have.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        algorithm: Any = None,
        adjoint: Any = None,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        how = {
            "algorithm": algorithm or self.default_algorithm,
            "adjoint": adjoint or self.default_adjoint,
            "backend": backend,
            "strict": True,
        }
        self.build(self.settings(**options), input_shape, n_classes, how)

    @abc.abstractmethod
    def build(self, settings: Any, input_shape: tuple[int, int, int], n_classes: int, how: Mapping[str, Any]) -> None:
        """Make `encoder`, `layer` and `decoder`.

        Args:
            settings: of the class `settings`.
            how: arguments of the layer.
        """


def lay_out(module: nn.Module, memory_format: torch.memory_format = torch.channels_last) -> None:
    """Put the parameters, and with them all states, into a layout; the default is the usual one of the models.

    In bfloat16 on a CPU, `torch.contiguous_format` is the faster one: PyTorch's group normalisation of channels last
    takes twice as long as the convolution before it (measured with 2.13), and a twentieth of that when contiguous.
    """
    convert: Any = module.to  # whose annotations leave this use out
    convert(memory_format=memory_format)
    for part in module.modules():
        if isinstance(part, MemoryFormat):
            part.memory_format = memory_format


def count_parameters(model: nn.Module) -> int:
    """Trained parameters; a shared initial point is a buffer, and the papers do not count it."""
    return sum(p.numel() for p in model.parameters())

"""What is known of each model before it is built: its name, its options with their defaults, and how it is solved.

The models' classes read their defaults here. So do configurations and the command line, which need not load PyTorch to
list the models or to refuse an option.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    Anderson,
    Dopri5,
    PeacemanRachford,
    Picard,
)
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.nn.choices import ACTIVATIONS, CONSTRAINTS, INITIAL_POINTS, groups_of
from homojl.own import MODEL_GROUP, is_given, is_own, load, options_of, registered

FORMS = {"linear": 1, "single": 1, "multi": 3}
"""Forms of a monDEQ's or a pcDEQ's layer, and how many widths each has."""


@dataclass(frozen=True, kw_only=True)
class NoLayer(AbstractFixedPointAlgorithm):
    """Stands for the algorithm of a network whose layers, if it has any, have their own."""


@dataclass(frozen=True, kw_only=True)
class AbstractModelSettings:
    """A model's own options; making one checks them.

    The fields of a subclass are the options of the model, with their defaults; their types are those that the settings
    in [model] are to have.

    Attributes:
        summary: one line: the equation that the model solves.
        implementation: module and name of the class.
        algorithm: how the model's problem is solved unless the configuration says otherwise; it also says which kind
            of problem the model states.
        adjoint: the name of how it is differentiated.
        own: whether its layers have solvers of their own, as a user's network: then no solver is configured.

    Raises:
        ConfigError: for a value that no model can have.
    """

    summary: ClassVar[str]
    implementation: ClassVar[tuple[str, str]]
    algorithm: ClassVar[AbstractODEAlgorithm | AbstractFixedPointAlgorithm]
    adjoint: ClassVar[str]
    own: ClassVar[bool] = False

    @classmethod
    def states_ode(cls) -> bool:
        """Whether the model's problem is an ODE; else it is a fixed point."""
        return isinstance(cls.algorithm, AbstractODEAlgorithm)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options and their defaults."""
        return asdict(cls())

    @classmethod
    def model(cls) -> type[Any]:
        """The model's class; loads PyTorch."""
        module, name = cls.implementation
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class ConditionedSettings(AbstractModelSettings):
    """Options that HomoODE and DEQ share; `homojl.nn.HomoODE` and `homojl.nn.DEQ`, their layers, say what they mean."""

    channels: int = 64
    dropout: float = 0.1
    init: str = "zero"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ConfigError(f"channels must be positive, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.init not in INITIAL_POINTS:
            raise ConfigError(f"init must be 'learned' or 'zero', got {self.init!r}")
        if not 0 < self.gain < math.inf:
            raise ConfigError(f"gain must be positive, got {self.gain}")
        groups_of(self.channels)


@dataclass(frozen=True, kw_only=True)
class HomoODESettings(ConditionedSettings):
    """Of `homojl.models.homoode.HomoODENet`."""

    summary = "dz/ds = F(z; x) for s in [0, 1] from z(0) = z0, x = features(image), logits = head(z(1))."
    implementation = ("homojl.models.homoode", "HomoODENet")
    algorithm: ClassVar[AbstractODEAlgorithm] = Dopri5(rtol=1e-3, atol=1e-3, max_steps=1000)
    adjoint = "checkpoint"

    init: str = "learned"


@dataclass(frozen=True, kw_only=True)
class DEQSettings(ConditionedSettings):
    """Of `homojl.models.homoode.DEQNet`."""

    summary = "z = F(z; x), x = features(image), logits = head(z), with HomoODE's F, features and head."
    implementation = ("homojl.models.homoode", "DEQNet")
    algorithm: ClassVar[AbstractFixedPointAlgorithm] = Anderson(rtol=1e-3, max_steps=50)
    adjoint = "implicit"

    gain: float = 0.1
    jacobian_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jacobian_weight < 0:
            raise ConfigError(f"jacobian_weight must not be negative, got {self.jacobian_weight}")


@dataclass(frozen=True, kw_only=True)
class MonDEQSettings(AbstractModelSettings):
    """Of `homojl.models.mondeq.MonDEQNet`."""

    summary = "z = relu(W z + U x + b), W = (1 - m) I - A^T A + B - B^T."
    implementation = ("homojl.models.mondeq", "MonDEQNet")
    algorithm: ClassVar[AbstractFixedPointAlgorithm] = PeacemanRachford(rtol=1e-2, max_steps=300)
    adjoint = "implicit"

    form: str = "single"
    channels: tuple[int, ...] = (56,)
    m: float = 1.0
    tune_alpha: bool = True

    def __post_init__(self) -> None:
        _check_widths(self.form, self.channels)
        if not self.m > 0:
            raise ConfigError(f"m must be positive, got {self.m}")


@dataclass(frozen=True, kw_only=True)
class ANODESettings(AbstractModelSettings):
    """Of `homojl.models.node.ANODE`."""

    summary = (
        "dz/dt = F(z, t) for t in [0, 1] from z(0) = the image with zero channels appended, logits = linear(z(1))."
    )
    implementation = ("homojl.models.node", "ANODE")
    algorithm: ClassVar[AbstractODEAlgorithm] = Dopri5(rtol=1e-3, atol=1e-3, max_steps=1000)
    adjoint = "checkpoint"

    filters: int = 64
    augment: int = 5
    time: bool = False

    def __post_init__(self) -> None:
        _check_filters(self.filters)
        if self.augment < 0:
            raise ConfigError(f"augment must not be negative, got {self.augment}")


@dataclass(frozen=True, kw_only=True)
class NeuralODESettings(AbstractModelSettings):
    """Of `homojl.models.node.NeuralODE`."""

    summary = "dz/dt = F(z, t) for t in [0, 1] from z(0) = the image, logits = linear(z(1))."
    implementation = ("homojl.models.node", "NeuralODE")
    algorithm: ClassVar[AbstractODEAlgorithm] = ANODESettings.algorithm
    adjoint = ANODESettings.adjoint

    filters: int = 92
    time: bool = False

    def __post_init__(self) -> None:
        _check_filters(self.filters)


@dataclass(frozen=True, kw_only=True)
class PcDEQSettings(AbstractModelSettings):
    """Of `homojl.models.pcdeq.PcDEQNet`."""

    summary = (
        "z = sigma(W z + x), W >= 0: pcDEQ-1 with tanh, softsign or relu6 and x > 0; pcDEQ-2 with sigmoid and x >= 0."
    )
    implementation = ("homojl.models.pcdeq", "PcDEQNet")
    algorithm: ClassVar[AbstractFixedPointAlgorithm] = Picard(rtol=1e-4, max_steps=200)
    adjoint = "implicit"

    form: str = "single"
    channels: tuple[int, ...] = (82,)
    activation: str = "tanh"
    constraint: str = "projection"

    def __post_init__(self) -> None:
        _check_widths(self.form, self.channels)
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {self.activation!r}; {did_you_mean(self.activation, ACTIVATIONS)}")
        if self.constraint not in CONSTRAINTS:
            raise ConfigError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {self.constraint!r}")


@dataclass(frozen=True, kw_only=True)
class GivenSettings(AbstractModelSettings):
    """Settings of a network that was given in Python, and the base of those of a user's other networks."""

    summary = "a network that was given in Python."
    implementation = ("homojl.models.own", "OwnModel")
    algorithm: ClassVar[AbstractFixedPointAlgorithm] = NoLayer()
    adjoint = "implicit"
    own = True


@dataclass(frozen=True, kw_only=True)
class CNNSettings(GivenSettings):
    """Of `homojl.models.cnn.CNN`."""

    summary = "logits = head(x + F(x)), x = features(image): a plain residual CNN of HomoODE's size, for comparison."
    implementation = ("homojl.models.cnn", "CNN")

    channels: int = 64
    blocks: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        ConditionedSettings(channels=self.channels, dropout=self.dropout)
        if self.blocks < 1:
            raise ConfigError(f"blocks must be positive, got {self.blocks}")


MODELS: dict[str, type[AbstractModelSettings]] = {
    "homoode": HomoODESettings,
    "deq": DEQSettings,
    "mondeq": MonDEQSettings,
    "node": NeuralODESettings,
    "anode": ANODESettings,
    "pcdeq": PcDEQSettings,
    "cnn": CNNSettings,
}

PRESET_PARAMETERS: dict[str, dict[str, int]] = {
    "anode": {"cifar10": 171_799, "cifar100": 1_369_969, "digits": 13_520, "mnist": 84_816, "svhn": 171_799},
    "cnn": {
        "cifar10": 132_938, "cifar100": 565_988, "digits": 34_154, "mnist": 34_154, "svhn": 132_938,
        "tiny-imagenet": 617_288,
    },
    "deq": {
        "cifar10": 132_938, "cifar100": 565_988, "digits": 34_154, "mnist": 34_154, "svhn": 132_938,
        "tiny-imagenet": 617_288,
    },
    "homoode": {
        "cifar10": 132_938, "cifar10-fast": 132_938, "cifar100": 565_988, "digits": 34_154, "digits-fast": 34_154,
        "mnist": 34_154, "mnist-fast": 34_154, "svhn": 132_938, "tiny-imagenet": 617_288,
    },
    "mondeq": {"cifar10": 172_218, "cifar100": 638_868, "digits": 20_044, "mnist": 84_460, "svhn": 172_218},
    "node": {"cifar10": 172_358, "cifar100": 448_928, "digits": 9_995, "mnist": 84_395, "svhn": 172_358},
    "pcdeq": {"cifar10": 164_760, "cifar100": 344_850, "digits": 10_026, "mnist": 69_136, "svhn": 164_760},
}  # fmt: skip
"""Trained parameters at the sizes of the presets `<model>-<dataset>`, as `count_parameters` counts them."""


def model_settings(name: str) -> type[AbstractModelSettings]:
    """The settings of a model's name.

    Raises:
        ConfigError: for an unknown name.
    """
    if is_given(name):
        return GivenSettings
    if is_own(name):
        return _own_settings(name)
    if name not in MODELS and name in registered(MODEL_GROUP):
        return _own_settings(name)
    if name not in MODELS:
        raise ConfigError(
            f"unknown model {name!r}; {did_you_mean(name, MODELS)}, or path/to/file.py:Class for your own"
        )
    return MODELS[name]


@functools.cache
def _own_settings(name: str) -> type[AbstractModelSettings]:
    """Of a network of a user's own or of a package, whose layers have the methods that they were made with.

    A package may also bring settings, which name a model that is solved as homojl's are.
    """
    found = load(name)
    if isinstance(found, type) and issubclass(found, AbstractModelSettings):
        return found

    options = options_of(name)

    class OwnSettings(GivenSettings):
        summary = f"{name}: a network of its own."

        def __init__(self, **values: Any) -> None:
            pass  # the network itself refuses what it cannot have

        @classmethod
        def defaults(cls) -> dict[str, Any]:
            return dict(options)

    return OwnSettings


def _check_widths(form: str, channels: tuple[int, ...]) -> None:
    """Refuse forms of a layer that there are not, and widths that do not fit."""
    if form not in FORMS:
        raise ConfigError(f"unknown form {form!r}; {did_you_mean(form, FORMS)}")
    if len(channels) != FORMS[form] or min(channels) < 1:
        number = "three positive numbers" if FORMS[form] == 3 else "one positive number"
        raise ConfigError(f"channels must be {number} for form {form!r}, got {list(channels)}")


def _check_filters(filters: int) -> None:
    if filters < 1:
        raise ConfigError(f"filters must be positive, got {filters}")

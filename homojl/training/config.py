"""The configuration of a run: frozen dataclasses, one default per setting, read from and written to TOML."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from homojl.algorithms import FIXED_POINT_ALGORITHMS, ODE_ALGORITHMS
from homojl.errors import ConfigError
from homojl.files import parse_toml, read_text
from homojl.models import MODELS, model_settings
from homojl.names import TRAINING_PRECISIONS, did_you_mean
from homojl.own import is_given, is_own, whole
from homojl.results.records import SELECTORS
from homojl.training.methods import HELP, option_names, owner_of
from homojl.training.solver import SolverConfig, nested, replaced, without_idle
from homojl.training.values import checked, converted, setting

LOSSES = ("cross_entropy", "mse", "l1")
"""Losses that have a name."""

PRESETS = Path(__file__).parent.parent / "presets"

CONFIG_END = "\n# end of the configuration\n"
"""The last line of a run's config.toml: what is left of a damaged one can still be valid TOML."""

SCHEMA = 2
"""Of a run's config.toml; in 1, which is in no file, the options of methods stand in [solver] itself."""

_MAX_TOML = 2**20  # bytes of a file of settings; a complete one has four thousand


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model; further keys are the model's own options, as in its class."""

    name: str = setting("homoode", "which model; `homojl models` lists them; or path/to/file.py:Class, your own")
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if is_own(self.name):
            object.__setattr__(self, "name", whole(self.name))
        settings = model_settings(self.name)
        known = settings.defaults()
        options = dict(known)
        for key, value in self.options.items():
            if key not in known:
                raise ConfigError(f"unknown key model.{key}; {did_you_mean(key, known)}")
            options[key] = _model_option(key, value, known[key])
        settings(**options)  # refuses values that no model can have
        object.__setattr__(self, "options", options)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images, their split and their augmentation."""

    dataset: str = setting(
        "digits", "a name that `homojl datasets` lists, or the path of an .npz file or a folder, or file.py:function"
    )
    root: str | None = setting(None, "folder of downloaded datasets; absent: $HOMOJL_DATA or the user's cache")
    val_fraction: float = setting(0.1, "fraction of the training images kept for model selection", low=0)
    pad: int = setting(
        0, "augmentation: zero pixels added on each side before a random crop of the old size", low=0, high=256
    )
    flip: bool = setting(False, "augmentation: mirror half of the images left to right")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser of everything but the shared initial point."""

    name: str = setting("adam", "optimiser", choices=("adam", "adamw", "sgd"))
    lr: float = setting(1e-3, "learning rate at the start", low=0)
    weight_decay: float = setting(0.0, "L2 penalty (adam, sgd) or decoupled decay (adamw)", low=0)
    momentum: float = setting(0.9, "momentum of sgd", low=0)
    schedule: str = setting(
        "cosine", "learning rate over the steps", choices=("cosine", "one-cycle", "step", "constant")
    )
    warmup: float = setting(
        0.25,
        "part of the steps in which the one-cycle schedule rises from lr / 25 to lr, to fall as cosine does",
        low=0,
        high=1,
    )
    min_lr: float = setting(1e-6, "where the cosine and the one-cycle schedule end", low=0)
    milestones: tuple[int, ...] = setting((), "epochs at which the step schedule multiplies the rate by gamma")
    gamma: float = setting(0.1, "factor of the step schedule", low=0)


@dataclass(frozen=True, kw_only=True)
class InitialPointConfig:
    """The shared initial point's moving mean, for models that learn one."""

    lr: float = setting(0.02, "how fast it moves: twice this of the way to the mean of the states at the end", low=0)
    every: int = setting(20, "training steps between two updates", low=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    epochs: int = setting(10, "passes over the training images", low=1)
    seconds: float | None = setting(
        None, "training time that ends the run, whatever epochs, which then scales the schedule; absent: none", low=1e-3
    )
    batch_size: int = setting(
        64, "images per training step, of all processes together; a last, smaller batch is left out", low=1
    )
    eval_batch_size: int = setting(250, "images per forward pass when evaluating", low=1)
    seed: int = setting(0, "seed of initial weights, split, order, augmentation and dropout", low=0)
    dtype: str = setting(
        "float32", "numbers of weights and states, forward and backward", choices=("float32", "float64")
    )
    precision: str = setting(
        "full",
        "numbers that training steps evaluate all but the solve in (solver.precision), beside weights of dtype",
        choices=TRAINING_PRECISIONS,
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto: a GPU where there is one")
    threads: int | None = setting(None, "CPU threads of PyTorch; absent: its own choice", low=1, high=1024)
    checkpoint_seconds: float = setting(60.0, "most seconds of work that a kill can cost", low=0)
    loss: str = setting("cross_entropy", "what is minimised: cross_entropy, mse, l1, or file.py:function, your own")
    metric: str = setting("accuracy", "measured beside the loss: accuracy, none, mse, l1, or file.py:function")
    select: str = setting(
        "highest accuracy", "which epoch on the validation split is the best", choices=tuple(SELECTORS)
    )
    patience: int | None = setting(
        None, "validations without a better one after which training ends; absent: the budget alone ends it", low=1
    )
    start: str | None = setting(None, "run whose best weights training started from; absent: drawn")

    def __post_init__(self) -> None:
        for key, known in (("loss", LOSSES), ("metric", (*LOSSES, "accuracy", "none"))):
            name = getattr(self, key)
            if is_own(name):
                object.__setattr__(self, key, whole(name))
            elif name not in known and not is_given(name):
                raise ConfigError(
                    f"unknown train.{key} {name!r}; {did_you_mean(name, known)}, or path/to/file.py:function, your own"
                )
        wanted = SELECTORS[self.select][0]
        if (wanted == "val_accuracy" and self.metric != "accuracy") or (
            wanted == "val_metric" and self.metric in ("accuracy", "none")
        ):
            raise ConfigError(f"train.select is {self.select!r}, but train.metric is {self.metric!r}")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A complete run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    initial_point: InitialPointConfig = field(default_factory=InitialPointConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", self.solver.resolved(self.model.name))
        for key, precision in (
            ("solver", self.solver.precision),
            ("solver.training", self.training_solver.precision),
            ("train", self.train.precision),
        ):
            if precision != "full" and self.train.dtype != "float32":
                raise ConfigError(f"{key}.precision must be 'full' for states in {self.train.dtype}")

    @property
    def training_solver(self) -> SolverConfig:
        """How training steps solve: [solver] with what [solver.training] has otherwise, complete."""
        return self.solver.in_training(self.model.name)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ExperimentConfig:
        """Read nested plain values; absent ones take their defaults.

        Raises:
            ConfigError: for an unknown section or key, naming the nearest one, or a value of the wrong type.
        """
        sections = {f.name: typing.get_type_hints(ExperimentConfig)[f.name] for f in fields(ExperimentConfig)}
        built = {}
        for name, content in values.items():
            if name not in sections:
                raise ConfigError(f"unknown section [{name}]; {did_you_mean(name, sections)}")
            if not isinstance(content, dict):
                raise ConfigError(f"[{name}] must be a section of settings, got {content!r}")
            built[name] = _section(sections[name], name, content)
        return ExperimentConfig(**built)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values, complete; what is None or empty is left out."""
        result = {}
        for f in fields(self):
            section = getattr(self, f.name)
            values = {g.name: getattr(section, g.name) for g in fields(section)}
            values.update(values.pop("options", {}))
            kept = {key: value for key, value in values.items() if value not in (None, {})}
            result[f.name] = {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
        return result

    def value(self, name: str) -> Any:
        """The value of a setting, as `--set` names it; None where it has none."""
        section, *path = name.split(".")
        if section == "solver" and len(path) == 1 and path[0] in option_names():
            path = [*owner_of(path[0], section, ())]
        found: Any = self.to_dict().get(section)
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def to_toml(self) -> str:
        """The complete configuration as TOML, each setting with its description."""
        import tomlkit

        def commented(values: dict[str, Any], helps: dict[str, str]) -> Any:
            table = tomlkit.table()
            for key, value in sorted(values.items(), key=lambda item: isinstance(item[1], dict)):  # tables come last
                inner = helps if key == "training" else HELP
                entry = commented(value, inner) if isinstance(value, dict) else tomlkit.item(value)
                if helps.get(key):
                    entry.comment(helps[key])
                table.add(key, entry)
            return table

        document = tomlkit.document()
        for name, values in self.to_dict().items():
            helps = {g.name: g.metadata.get("help", "") for g in fields(getattr(self, name))}
            document.add(name, commented(values, helps))
        return tomlkit.dumps(document)

    def file_text(self) -> str:
        """The configuration as a run's config.toml has it."""
        return f"schema = {SCHEMA}\n\n{self.to_toml()}{CONFIG_END}"


def _model_option(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        if type(value) is int:  # one width for a model that may have several
            value = (value,)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"model.{key} must be a list of whole numbers, got {value!r}")
        return tuple(converted(v, int, f"model.{key}") for v in value)
    return converted(value, type(default), f"model.{key}")


def _section(cls: type, name: str, content: dict[str, Any]) -> Any:
    if cls is ModelConfig:
        options = {k: v for k, v in content.items() if k != "name"}
        known = {"name": content["name"]} if "name" in content else {}
        return ModelConfig(**checked(cls, name, known), options=options)
    if cls is SolverConfig:
        return SolverConfig.from_dict(content)
    return cls(**checked(cls, name, content))


def is_whole(text: str) -> bool:
    """Whether a text is a run's config.toml to its last line."""
    return text.rstrip().endswith(CONFIG_END.strip())


def read_toml(path: Path) -> dict[str, Any]:
    """A file of settings as nested plain values; also a run's own config.toml, of this schema or an earlier one.

    Raises:
        ConfigError: if it cannot be read or is not TOML, or has a later schema.
    """
    try:
        text = read_text(path, limit=_MAX_TOML, pipe=True)
        values = parse_toml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    schema = values.pop("schema", 1)
    if schema not in (1, SCHEMA):
        raise ConfigError(f"{path} has configuration schema {schema!r}; this version of homojl reads 1 and {SCHEMA}")
    if schema == 1 and is_whole(text) and isinstance(values.get("solver"), dict):
        values["solver"] = without_idle(values["solver"])
    return values


def preset_names() -> list[str]:
    """Names of the presets that come with homojl, `<model>-<dataset>`."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset as nested plain values.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, preset_names())}")
    return tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested values where later layers win, setting by setting.

    A layer with another solver.algorithm or solver.adjoint also takes out what earlier layers say of the old one, and
    which the new one has not. What is returned has the section [solver] as `nested` gives it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for section, content in layer.items():
            if not isinstance(content, dict):
                raise ConfigError(f"[{section}] must be a section of settings, got {content!r}")
            known = merged.get(section, {})
            merged[section] = replaced(known, nested(content)) if section == "solver" else known | content
    return merged


def setting_names() -> list[str]:
    """All settings, as section.key; under [model] those of any of homojl's models, under [solver] of any method."""
    hints = typing.get_type_hints(ExperimentConfig)
    names = [f"{f.name}.{g.name}" for f in fields(ExperimentConfig) for g in fields(hints[f.name])]
    options = {f"model.{key}" for settings in MODELS.values() for key in settings.defaults()}
    options |= {f"solver.{key}" for key in option_names()}
    return [name for name in names if name != "model.options"] + sorted(options)


def assembled(*layers: dict[str, Any], preset: str | None = None, alone: bool = False) -> ExperimentConfig:
    """The configuration of layers of settings, later ones winning, over a preset.

    Args:
        preset: its name; None: `<model>-<dataset>`, where there is one.
        alone: whether there is no preset unless it is named.

    Raises:
        ConfigError: as `ExperimentConfig.from_dict`, or for an unknown preset.
    """
    wanted = merge(*layers)
    if preset is None and not alone:
        names = (wanted.get("model", {}).get("name", "homoode"), wanted.get("data", {}).get("dataset", "digits"))
        automatic = "-".join(map(str, names))
        preset = automatic if automatic in preset_names() else None
    return ExperimentConfig.from_dict(wanted if preset is None else merge(read_preset(preset), *layers))


def parse_assignment(text: str) -> dict[str, Any]:
    """`section.key=value` as nested values; the value is TOML, or else a plain string.

    Raises:
        ConfigError: if the text is not of that form.
    """
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if equals and len(path) == 1 and path[0]:
        whole = [full for full in setting_names() if full.partition(".")[2] == path[0]]
        near = f"did you mean {' or '.join(whole)}?" if whole else did_you_mean(path[0], setting_names())
        raise ConfigError(f"--set takes section.key=value, got {text!r}; {near}")
    if not (equals and all(path)):
        raise ConfigError(f"--set takes section.key=value, got {text!r}")
    try:
        parsed = parse_toml(f"value = {value.strip()}")["value"]
    except ValueError:
        parsed = value.strip()
    for name in reversed(path):
        parsed = {name: parsed}
    return dict(parsed)


def with_solver(config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    """The configuration with those solver settings replaced that are not None, checked like any other."""
    changes = nested({key: value for key, value in changes.items() if value is not None})
    return replace(config, solver=SolverConfig.from_dict(replaced(config.solver.to_dict(), changes)))


def check_algorithms(names: Iterable[str], ode: bool, where: Path | str) -> None:
    """Refuse methods that are not for a kind of problem.

    Args:
        names: of methods, in small letters.
        ode: whether they are to be for an ODE, else for a fixed point.
        where: the run, for the message.

    Raises:
        ConfigError: for the first that is not.
    """
    known = tuple(ODE_ALGORITHMS if ode else FIXED_POINT_ALGORITHMS)
    for name in names:
        if name not in known:
            kind = "an ODE" if ode else "a fixed point"
            raise ConfigError(f"{where} states {kind}, which {name!r} is not for; {did_you_mean(name, known)}")

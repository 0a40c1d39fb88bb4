"""Experiments, read from TOML: which variations of presets are trained, and how the trained models are measured."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homojl.data import dataset_names
from homojl.errors import ConfigError
from homojl.models.settings import MODELS, model_settings
from homojl.names import did_you_mean
from homojl.training.config import preset_names, read_toml
from homojl.training.values import MAX_WHOLE

EXPERIMENTS = Path(__file__).parent / "experiments"

OWN_DATA = "own"
"""What stands in a variation's `datasets` for a user's own file or folder."""


@dataclass(frozen=True)
class Variation:
    """Settings that replace those of a run's preset.

    Attributes:
        name: as it stands in tables; empty where there is only one.
        settings: sections of a configuration, as in a preset.
        models, datasets: where it applies; None: everywhere.
        preset: "": it varies the preset `<model>-<dataset>`; otherwise `<model>-<dataset>-<preset>`, and applies only
            where that exists.
        only: further sections, by the name of the preset that they are for.
    """

    name: str
    settings: dict[str, dict[str, Any]]
    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    preset: str = ""
    only: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def base(self, model: str, dataset: str) -> str:
        """The preset's name, whether there is one or not."""
        return f"{model}-{dataset}-{self.preset}" if self.preset else f"{model}-{dataset}"

    def applies(self, model: str, dataset: str) -> bool:
        """Whether there is such a run; dataset: whose presets are taken."""
        known = dataset if dataset in dataset_names() else OWN_DATA
        there = not self.preset or self.base(model, dataset) in preset_names()
        return (
            there
            and (self.models is None or model in self.models)
            and (self.datasets is None or known in self.datasets)
        )


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        name: of its file.
        title: one line.
        source: where it comes from.
        models: names of models.
        variations: each is a run for each model and seed that it applies to.
        measurements: settings with which every trained model is measured once more, by name: of [solver] and of
            train.eval_batch_size to answer test images, or of train.batch_size to take a training step. `start` moves
            the start of each solve by that part of the way to where it ends.
        images: how many test images are answered.
        x: the setting, as "section.key", that the figures have on their axis; None: none.
        rate: operations per second that the machine it is meant for does, for an estimate; None: none is made.
    """

    name: str
    title: str
    source: str
    models: tuple[str, ...]
    variations: tuple[Variation, ...]
    measurements: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: int = 512
    x: str | None = None
    rate: float | None = None


MODELS_ALONE = Experiment("models", "Models compared", "", tuple(MODELS), (Variation("", {}),))
"""What is compared where no experiment is named: the models, as their presets have them."""


def experiment_names() -> list[str]:
    """Names of the experiments that come with homojl."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


def read_experiment(name: str) -> Experiment:
    """An experiment by its name, or by the path of a .toml file.

    Raises:
        ConfigError: for an unknown name, or a file that is not in the form that docs/compare.md shows.
    """
    if name.endswith(".toml"):
        return _experiment(Path(name).stem, read_toml(Path(name)), name)
    if name not in experiment_names():
        raise ConfigError(f"unknown experiment {name!r}; {did_you_mean(name, experiment_names())}")
    text = (EXPERIMENTS / f"{name}.toml").read_text(encoding="utf-8")
    return _experiment(name, tomllib.loads(text), f"experiment {name}")


_KEYS = {
    **{"title": str, "source": str, "models": list, "images": int, "x": str, "rate": float},
    **{"variations": dict, "measurements": dict},
}
_SIZES = ("eval_batch_size", "batch_size")  # that a measurement may set, the one or the other


def _experiment(name: str, values: dict[str, Any], where: str) -> Experiment:
    for key, value in values.items():
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key}; {did_you_mean(key, _KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ConfigError(f"{where}: {key} must be a {_KEYS[key].__name__}, got {value!r}")
    variations = [_variation(key, v, where) for key, v in values.get("variations", {}).items()]
    measurements = values.get("measurements", {})
    for key, settings in measurements.items():
        _check_measurement(settings, f"{where}: measurements.{key}")
    if values.get("images", 1) < 1:
        raise ConfigError(f"{where}: images must be at least 1, got {values['images']}")
    return Experiment(
        name=name,
        title=values.get("title", name),
        source=values.get("source", ""),
        models=_names(values.get("models", list(MODELS)), f"{where}: models"),
        variations=tuple(variations) or MODELS_ALONE.variations,
        measurements=measurements,
        images=values.get("images", 512),
        x=values.get("x"),
        rate=values.get("rate"),
    )


def _check_measurement(settings: object, where: str) -> None:
    """Refuse what a trained model cannot be measured with."""
    start = settings.get("start", 0.0) if isinstance(settings, dict) else 0.0
    if type(start) not in (int, float) or not 0 <= start <= 1:
        raise ConfigError(f"{where}: start must be a number from 0 to 1, got {start!r}")
    sections = {k: v for k, v in settings.items() if k != "start"} if isinstance(settings, dict) else settings
    _check_sections(sections, where)
    assert isinstance(sections, dict), where
    sizes = sections.get("train", {})
    strange = {*sections} - {"solver", "train"} or {*sizes} - {*_SIZES}
    if strange or len(sizes) > 1:
        raise ConfigError(
            f"{where} changes {', '.join(sorted(strange or sizes))}; a trained model can be measured with other "
            "settings of solver, and of train.eval_batch_size or train.batch_size"
        )
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= MAX_WHOLE:
            raise ConfigError(f"{where}: train.{name} must be a whole number, got {size!r}")


def _variation(name: str, values: dict[str, Any], where: str) -> Variation:
    where = f"{where}: variations.{name}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a table of sections, got {values!r}")
    settings = {k: v for k, v in values.items() if k not in ("models", "datasets", "preset", "only")}
    _check_sections(settings, where)
    preset, only = values.get("preset", ""), values.get("only", {})
    if not isinstance(preset, str) or not isinstance(only, dict):
        raise ConfigError(f"{where}: preset must be a name, and only a table of models, got {preset!r} and {only!r}")
    for name_of_preset, sections in only.items():
        if name_of_preset not in preset_names():
            raise ConfigError(f"{where}.only: unknown preset; {did_you_mean(name_of_preset, preset_names())}")
        _check_sections(sections, f"{where}.only.{name_of_preset}")
    models, datasets = values.get("models"), values.get("datasets")
    if datasets is not None:
        known = [*dataset_names(), OWN_DATA]
        for dataset in _texts(datasets, f"{where}: datasets"):
            if dataset not in known:
                raise ConfigError(f"{where}: unknown dataset {dataset!r}; {did_you_mean(dataset, known)}")
    return Variation(
        name,
        settings,
        None if models is None else _names(models, f"{where}: models"),
        None if datasets is None else tuple(datasets),
        preset,
        only,
    )


def _check_sections(settings: object, where: str) -> None:
    if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
        raise ConfigError(f"{where} must be a table of sections such as [solver], got {settings!r}")


def _names(values: object, where: str) -> tuple[str, ...]:
    names = _texts(values, where)
    for name in names:
        model_settings(name)
    return names


def _texts(values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{where} must be a list of names, got {values!r}")
    return tuple(values)

"""Experiments: which variations of the presets are trained, and how what was trained is measured; read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homojl.data import dataset_names
from homojl.errors import ConfigError
from homojl.models.settings import MODELS, model_settings
from homojl.names import did_you_mean
from homojl.training.config import MAX_WHOLE, read_toml

EXPERIMENTS = Path(__file__).parent / "experiments"

OWN_DATA = "own"
"""What stands in a variation's `datasets` for a user's own file or folder."""


@dataclass(frozen=True)
class Variation:
    """Settings that a run has beside its preset's.

    Attributes:
        name: as it stands in tables; empty where there is only one.
        settings: sections of a configuration, as in a preset.
        models, datasets: where it applies; None: everywhere.
    """

    name: str
    settings: dict[str, dict[str, Any]]
    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None

    def applies(self, model: str, dataset: str) -> bool:
        known = dataset if dataset in dataset_names() else OWN_DATA
        return (self.models is None or model in self.models) and (self.datasets is None or known in self.datasets)


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        name: of its file.
        title: one line.
        source: where it comes from.
        models: names of models.
        variations: each is a run for each model and seed that it applies to.
        measurements: settings of [solver] and of train.eval_batch_size with which every trained model answers test
            images once more, by name.
        images: how many test images those answer.
        x: the setting, as "section.key", that the figures have on their axis; None: none.
    """

    name: str
    title: str
    source: str
    models: tuple[str, ...]
    variations: tuple[Variation, ...]
    measurements: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    images: int = 512
    x: str | None = None


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


_KEYS = {"title": str, "source": str, "models": list, "images": int, "x": str, "variations": dict, "measurements": dict}


def _experiment(name: str, values: dict[str, Any], where: str) -> Experiment:
    for key, value in values.items():
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key}; {did_you_mean(key, _KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ConfigError(f"{where}: {key} must be a {_KEYS[key].__name__}, got {value!r}")
    variations = [_variation(key, v, where) for key, v in values.get("variations", {}).items()]
    measurements = values.get("measurements", {})
    for key, settings in measurements.items():
        _check_sections(settings, f"{where}: measurements.{key}")
        strange = {*settings} - {"solver", "train"} or {*settings.get("train", {})} - {"eval_batch_size"}
        if strange:
            raise ConfigError(
                f"{where}: measurements.{key} changes {', '.join(sorted(strange))}; a trained model can be measured "
                "with other settings of solver, and of train.eval_batch_size"
            )
        size = settings.get("train", {}).get("eval_batch_size", 1)
        if type(size) is not int or not 1 <= size <= MAX_WHOLE:
            raise ConfigError(
                f"{where}: measurements.{key}: train.eval_batch_size must be a whole number, got {size!r}"
            )
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
    )


def _variation(name: str, values: dict[str, Any], where: str) -> Variation:
    where = f"{where}: variations.{name}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a table of sections, got {values!r}")
    settings = {k: v for k, v in values.items() if k not in ("models", "datasets")}
    _check_sections(settings, where)
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

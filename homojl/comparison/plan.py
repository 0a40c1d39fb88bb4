"""The runs of an experiment: one configuration for each model, variation and seed, all with one split and budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from homojl.comparison.experiment import Experiment
from homojl.data.registry import find_dataset
from homojl.errors import ConfigError
from homojl.models.settings import model_settings
from homojl.own import short
from homojl.results.wording import flat
from homojl.training.config import ExperimentConfig, merge, preset_names, read_preset, with_solver
from homojl.training.run import Run


@dataclass(frozen=True)
class PlannedRun:
    """One run.

    Attributes:
        label: its row in the tables.
        model, variation, seed: what makes it differ from the others; the variation is empty where there is one.
        config: resolved, complete.
    """

    label: str
    model: str
    variation: str
    seed: int
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{_slug(self.label)}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison on disk, finished or not.

    ```
    runs/NAME            the folder of each run          outcomes/NAME.json   how it ended, once it has
    logs/NAME.log        what its process said           comparison.h5  report.md  figures/
    ```
    """

    folder: Path
    experiment: Experiment
    dataset: str
    runs: tuple[PlannedRun, ...]

    def run_path(self, run: PlannedRun) -> Path:
        return self.folder / "runs" / run.name

    def outcome_path(self, run: PlannedRun) -> Path:
        return self.folder / "outcomes" / f"{run.name}.json"

    def log_path(self, run: PlannedRun) -> Path:
        return self.folder / "logs" / f"{run.name}.log"

    @property
    def labels(self) -> list[str]:
        """Of the rows, in order."""
        return list(dict.fromkeys(run.label for run in self.runs))

    def check(self) -> None:
        """Load the data and build every model once; hold what is on disk against the plan.

        Raises:
            ConfigError, DataError, BackendUnavailable: whatever would stop a run at its start, or a run on disk that
                has other settings.
        """
        from homojl.training.experiment import build_model, load_data, steps_per_epoch
        from homojl.training.form import ModelForm

        form = data = None
        for run in {run.label: run for run in self.runs}.values():
            data = load_data(run.config) if data is None else data
            form = ModelForm.of(data) if form is None else form
            build_model(run.config, form)
            steps_per_epoch(data, run.config)
            for settings in self.experiment.measurements.values():
                with_solver(run.config, **settings.get("solver", {}))
        for run in self.runs:
            if (self.run_path(run) / "config.toml").exists():
                _check_same(self.run_path(run), Run.open(self.run_path(run)).config, run.config)


def make_plan(
    experiment: Experiment,
    folder: Path,
    *,
    dataset: str,
    seeds: Sequence[int],
    models: Sequence[str] | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    settings: Sequence[dict[str, Any]] = (),
    threads: int | None = None,
    presets: str | None = None,
) -> Plan:
    """Every run of an experiment.

    Args:
        folder: of the comparison.
        dataset: name or path.
        seeds: each is also the seed of the split, which all models share.
        models: in the place of the experiment's.
        epochs, seconds: the budget of each run, one of the two.
        settings: for all runs, later ones winning; a variation wins over them.
        threads: of each run, where the settings do not say.
        presets: the dataset whose presets are taken; None: `dataset`.

    Raises:
        ConfigError: for unknown names or settings, or runs that would not share a split.
    """
    if (epochs is None) == (seconds is None):
        raise ConfigError("a comparison needs one budget: epochs, or seconds of training")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {', '.join(map(str, seeds)) or 'none'}")
    budget = {"train": {"epochs": epochs} if seconds is None else {"seconds": seconds}}
    find_dataset(dataset)
    presets = presets or dataset
    planned = []
    for model in dict.fromkeys(models or experiment.models):
        model_settings(model)
        for variation in experiment.variations:
            if not variation.applies(model, presets):
                continue
            preset = variation.base(model, presets)
            base = read_preset(preset) if preset in preset_names() else {"model": {"name": model}}
            values = merge(
                base,
                {"data": {"dataset": dataset}, "train": {} if threads is None else {"threads": threads}},
                budget,
                merge(*settings),
                variation.settings,
                variation.only.get(preset, {}),
            )
            planned.append((model, variation.name, _with_milestones(ExperimentConfig.from_dict(values), base)))
    if not planned:
        raise ConfigError(f"experiment {experiment.name!r} has no variation for these models on {dataset}")
    from homojl.training.experiment import resolved  # PyTorch says what there is to solve with

    runs = []
    for model, variation_name, wanted in planned:
        config = resolved(wanted)
        label = f"{short(model)}, {variation_name}" if variation_name else short(model)
        for seed in seeds:
            seeded = replace(config, train=replace(config.train, seed=seed))
            runs.append(PlannedRun(label, model, variation_name, seed, seeded))
    if experiment.x is not None:
        for run in runs:
            value = run.config.value(experiment.x)
            if type(value) not in (int, float):
                raise ConfigError(f"x of experiment {experiment.name!r} must be a number; {experiment.x} is {value!r}")
    split = {run.config.data.val_fraction for run in runs}
    if len(split) > 1:
        raise ConfigError(
            f"the runs would not share a split: data.val_fraction is {', '.join(map(str, sorted(split)))}; "
            "give one with --set data.val_fraction=..."
        )
    return Plan(folder, experiment, dataset, tuple(runs))


def _with_milestones(config: ExperimentConfig, preset: dict[str, Any]) -> ExperimentConfig:
    """With a preset's milestones at the same parts of a budget of other epochs."""
    written = preset.get("train", {}).get("epochs")
    if not written or config.optim.milestones != tuple(preset.get("optim", {}).get("milestones", ())):
        return config
    moved = tuple(max(1, round(m * config.train.epochs / written)) for m in config.optim.milestones)
    return replace(config, optim=replace(config.optim, milestones=moved))


def _check_same(path: Path, found: ExperimentConfig, planned: ExperimentConfig) -> None:
    old, new = dict(flat(found.to_dict())), dict(flat(planned.to_dict()))
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if was != now:
            raise ConfigError(
                f"{path} was made with {key} = {was}, now it is {now}; repeat the command as it was, or give another "
                "--out"
            )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")

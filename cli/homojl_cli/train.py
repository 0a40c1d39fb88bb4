"""homojl train"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homojl_cli.options import (
    backend_option,
    complete_dataset,
    complete_model,
    complete_preset,
    complete_setting,
)

if TYPE_CHECKING:
    from homojl.training.config import ExperimentConfig
    from homojl.training.ranks import Ranks
    from homojl.training.run import Run
    from homojl.training.solver import SolverConfig


@click.command("train")
@click.option(
    "--model",
    shell_complete=complete_model,
    help="Model by name, or path/to/file.py:Class, your own. [default: homoode]",
)
@click.option(
    "--dataset",
    shell_complete=complete_dataset,
    help="Name, path of an .npz file or a folder, or file.py:function. [default: digits]",
)
@click.option(
    "--preset",
    shell_complete=complete_preset,
    help="Settings that come with homojl. [default: <model>-<dataset> where there is one]",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    shell_complete=complete_setting,
    metavar="KEY=VALUE",
    help="One setting, e.g. optim.lr=3e-4.",
)
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--init", type=click.Choice(["learned", "zero"]), help="Shared initial point: learned, or kept at zero.")
@backend_option()
@click.option("--adjoint", help="How to differentiate, e.g. checkpoint or implicit.")
@click.option("--device", help="cpu, cuda, cuda:1 or auto.")
@click.option("--data-root", help="Folder of datasets. [default: $HOMOJL_DATA or the user's cache]")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. [default: runs/<model>-<dataset>-<time>]")
@click.option("--overwrite", is_flag=True, help="Replace the run that is in --out.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a stopped or killed run; with --epochs, for longer.",
)
@click.option(
    "--from", "start", type=click.Path(path_type=Path), metavar="RUN", help="Start from a run's best weights."
)
@click.option("--quiet", is_flag=True, help="Print nothing but the run folder.")
@click.option("--tensorboard", is_flag=True, help="Also write every step's numbers to RUN/tensorboard.")
def command(
    resume: Path | None, out: Path | None, overwrite: bool, quiet: bool, tensorboard: bool, **choices: Any
) -> None:
    """Train a model, evaluate it once on the test set, and leave a run folder.

    Settings come, later ones winning, from the defaults, a preset, --config, the options, and --set. Ctrl-C, SIGTERM
    and SIGUSR1 save and stop (exit code 130, 143, 138); --resume goes on as if nothing had happened.

    \b
    Examples:
      homojl train
      homojl train --model homoode --dataset svhn
      homojl train --dataset mnist --epochs 2 --set solver.adjoint=direct
      homojl train --dataset my-images.npz --set model.channels=64 --out runs/mine
      homojl train --model my_model.py:MyNet --dataset my_data.py:load
      homojl train --tensorboard --out runs/watched
      homojl train --resume runs/mine
      homojl train --resume runs/mine --epochs 50        go on for longer
      homojl train --from runs/mine --dataset other.npz  start from its weights
      torchrun --nproc-per-node 2 -m homojl_cli train    in two processes
    """
    from homojl.environment import process_count
    from homojl.errors import ConfigError
    from homojl.own import allow, is_own
    from homojl.training.loggers import check_tensorboard

    if tensorboard:
        check_tensorboard()
    for name in ("model", "dataset"):  # code that is named here may be run
        if is_own(choices[name]):
            choices[name] = allow(choices[name])
    for text in choices["assignments"]:
        if is_own(value := text.partition("=")[2].strip()):
            allow(value)
    if resume is not None:
        given = {name for name, value in choices.items() if value not in (None, ()) and not is_own(value)}
        if given - {"epochs"} or out or overwrite:
            raise ConfigError("--resume goes on with a run as it was configured; beside --epochs it takes no settings")
    # One process alone reads its settings before it loads PyTorch, and refuses at once what it would refuse later.
    # Several load it first: process 0 has to tell the others.
    wanted = _wanted(resume, choices) if process_count() == 1 else None

    from homojl.training.joining import joined

    with joined() as ranks:
        code = _train(ranks, lambda: wanted or _wanted(resume, choices), out, overwrite, quiet, tensorboard)
    sys.exit(code)


def _train(
    ranks: Ranks,
    wanted: Callable[[], Run | ExperimentConfig],
    out: Path | None,
    overwrite: bool,
    quiet: bool,
    tensorboard: bool,
) -> int:
    """What one of the processes does; returns its exit code. Process 0 alone touches the folder and prints."""
    from homojl.training.callbacks import Callback, TerminalProgress
    from homojl.training.experiment import resolved
    from homojl.training.loggers import TensorBoard
    from homojl.training.loop import train_run
    from homojl.training.outcome import evaluate_run, illustrate, sentence_on_test, store
    from homojl.training.run import Run, new_folder
    from homojl.training.start import check_start

    data = model = None

    def open_run() -> Run:
        nonlocal data, model
        run = wanted()
        if isinstance(run, Run):
            data, model = check_start(ranks.fitted(run.config))
        else:
            config = resolved(ranks.fitted(run))
            data, model = check_start(config)
            run = Run.create(out or new_folder(config), config, overwrite=overwrite)
            for name in run.started_from(model):
                show(f"{name} is not of {config.train.start}'s model: it starts as drawn")
        show(_headline(run, ranks))  # the configuration is read here, and goes to the other processes with the run
        return run

    def show(text: str) -> None:
        if not quiet and ranks.is_main:
            print(text, flush=True)

    run = ranks.from_main(open_run)
    callbacks: list[Callback] = [] if quiet else [TerminalProgress()]
    if tensorboard:
        callbacks.append(TensorBoard())
    with _signals() as stopped_by:
        complete = train_run(
            run, data=data, model=model, callbacks=callbacks, should_stop=lambda: bool(stopped_by), ranks=ranks
        )
    if not complete:
        if ranks.is_main:
            print(f"stopped and saved; go on with: homojl train --resume {run.path}")
        return 128 + (stopped_by[0] if stopped_by else signal.SIGTERM)

    # Several processes have changed their model for training together.
    loaded = run.load_model("best", into=model if ranks.size == 1 else None, ranks=ranks)
    evaluation = evaluate_run(run, data=data, loaded=loaded, ranks=ranks)
    if not ranks.is_main:
        return 0
    record = store(run, evaluation, loaded=loaded)
    show(sentence_on_test(evaluation))
    print(run.path, flush=True)
    illustrate(run, record)
    return 0


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask to stop, as they come; the second Ctrl-C ends at once."""
    stopped_by: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if number in stopped_by and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped_by.append(number)

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield stopped_by
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wanted(resume: Path | None, choices: dict[str, Any]) -> Run | ExperimentConfig:
    """The run to go on with, or the configuration of a new one."""
    if resume is not None:
        from homojl.training.run import Run

        run = Run.open(resume)
        if choices["epochs"] is not None:
            run.extend(choices["epochs"])
        return run
    config = _config(**choices)

    from homojl.data.registry import find_dataset

    find_dataset(config.data.dataset)
    return config


def _config(
    model: str | None,
    dataset: str | None,
    preset: str | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    epochs: int | None,
    seed: int | None,
    init: str | None,
    backend: str | None,
    adjoint: str | None,
    device: str | None,
    data_root: str | None,
    start: Path | None,
) -> ExperimentConfig:
    from homojl.training.config import assembled, merge, parse_assignment, read_toml

    settings: dict[str, dict[str, Any]] = {
        "model": {"name": model, "init": init},
        "solver": {"backend": backend, "adjoint": adjoint},
        "data": {"dataset": dataset, "root": data_root},
        "train": {
            "epochs": epochs,
            "seed": seed,
            "device": device,
            "start": None if start is None else str(start.absolute()),
        },
    }
    chosen = {s: {k: v for k, v in values.items() if v is not None} for s, values in settings.items()}
    layers = [merge(chosen, *(parse_assignment(text) for text in assignments))]  # all of them asked for by the user
    if config_file is not None:
        layers.insert(0, read_toml(config_file))
    if start is not None:
        layers.insert(0, _settings_of(start))
    return assembled(*layers, preset=preset, alone=config_file is not None or start is not None)


def _settings_of(start: Path) -> dict[str, Any]:
    """What a run that starts from another one's weights has from it: its model, how that is solved, and its data."""
    from homojl.training.config import read_toml
    from homojl.training.run import Run

    values = read_toml(Run.open(start).path / "config.toml")
    return {name: values[name] for name in ("model", "solver", "data") if name in values}


def _headline(run: Run, ranks: Ranks) -> str:
    from homojl.models.settings import model_settings
    from homojl.own import short

    config = run.config
    title = f"{short(config.model.name)} on {short(config.data.dataset)}"
    budget = f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}"
    if config.train.seconds is not None:
        budget = f"{config.train.seconds:g} s of training"
    if model_settings(config.model.name).own:
        return f"{title}: {budget}\n-> {run.path}"
    method = _method(config.solver)
    if config.solver.training is not None:
        method += f", in training {_method(config.training_solver)}"
    several = f" in {ranks.size} processes" if ranks.size > 1 else ""
    return (
        f"{title}: {method}, {config.training_solver.adjoint['name']} adjoint, "
        f"{config.solver.backend} backend{several}, {budget}\n-> {run.path}"
    )


def _method(solver: SolverConfig) -> str:
    """A method with its tolerance or its step."""
    algorithm = solver.build_algorithm()
    if hasattr(algorithm, "rtol"):
        return f"{algorithm.name} at {algorithm.rtol:g}"
    step = solver.algorithm.get("step_size")
    return algorithm.name if step is None else f"{algorithm.name} by {step:g}"

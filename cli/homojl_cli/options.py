"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from homojl.names import BACKENDS, TRAINING_PRECISIONS

Function = TypeVar("Function", bound=Callable[..., Any])
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def run_argument(function: Function) -> Function:
    """RUN, the folder of a run."""
    return click.argument("run", type=click.Path(path_type=str))(function)


def backend_option(note: str = "", **options: Any) -> Callable[[Function], Function]:
    """--backend, with further words of help and options of Click's."""
    what = "Where to solve; pytorch-compiled first compiles a small ODE's solve, for some seconds, once."
    return click.option("--backend", type=click.Choice(BACKENDS), help=f"{what} {note}".rstrip(), **options)


def _beginning(names: Callable[[], Iterable[str]]) -> Completer:
    """What a shell offers for an option: those names that begin as what is typed."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        first, comma, last = typed.rpartition(",")  # of several, the one being typed
        return [CompletionItem(f"{first}{comma}{name}") for name in names() if name.startswith(last)]

    return complete


@_beginning
def complete_model() -> Iterable[str]:
    """Models by name."""
    from homojl.models.settings import MODELS
    from homojl.own import MODEL_GROUP, registered

    return [*MODELS, *registered(MODEL_GROUP)]


@_beginning
def complete_dataset() -> Iterable[str]:
    """Datasets by name, and .npz files here."""
    from homojl.data import dataset_names
    from homojl.own import DATASET_GROUP, registered

    return [*dataset_names(), *registered(DATASET_GROUP), *sorted(path.name for path in Path().glob("*.npz"))]


@_beginning
def complete_preset() -> Iterable[str]:
    """Presets."""
    from homojl.training.config import preset_names

    return preset_names()


@_beginning
def complete_setting() -> Iterable[str]:
    """Settings of all models, as section.key=."""
    from homojl.training.config import setting_names

    return [f"{name}=" for name in setting_names()]


def solver_options(function: Function) -> Function:
    """--algorithm, --rtol, --atol, --step-size, --backend, --precision: how to solve, where not as configured."""
    options = [
        click.option("--algorithm", help="Method, e.g. dopri5 or anderson."),
        click.option("--rtol", type=float, help="Relative tolerance."),
        click.option("--atol", type=float, help="Absolute tolerance."),
        click.option("--step-size", type=float, help="Step of a method with equal ones. [default: one step, of 1]"),
        backend_option(),
        click.option("--precision", type=click.Choice(TRAINING_PRECISIONS), help="Of the field's evaluations."),
    ]
    for option in reversed(options):
        function = option(function)
    return function

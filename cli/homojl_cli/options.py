"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from homojl.choices import BACKENDS, TRAINING_PRECISIONS

Function = TypeVar("Function", bound=Callable[..., Any])


def run_argument(function: Function) -> Function:
    """RUN, the folder of a run."""
    return click.argument("run", type=click.Path(path_type=str))(function)


def backend_option(note: str = "", **options: Any) -> Callable[[Function], Function]:
    """--backend, with further words of help and options of Click's."""
    what = "Where to solve; pytorch-compiled first compiles an ODE's steps, for a minute or so."
    return click.option("--backend", type=click.Choice(BACKENDS), help=f"{what} {note}".rstrip(), **options)


def solver_options(function: Function) -> Function:
    """--algorithm, --rtol, --atol, --backend, --precision: how to solve, where not as configured."""
    options = [
        click.option("--algorithm", help="Method, e.g. dopri5 or anderson."),
        click.option("--rtol", type=float, help="Relative tolerance."),
        click.option("--atol", type=float, help="Absolute tolerance."),
        backend_option(),
        click.option("--precision", type=click.Choice(TRAINING_PRECISIONS), help="Of the field's evaluations."),
    ]
    for option in reversed(options):
        function = option(function)
    return function

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

BACKENDS = ("auto", "pytorch", "julia")


def run_argument(function: Function) -> Function:
    """RUN, the folder of a run."""
    return click.argument("run", type=click.Path(path_type=str))(function)


def solver_options(function: Function) -> Function:
    """--algorithm, --rtol, --atol, --backend: how to solve, where not as configured."""
    options = [
        click.option("--algorithm", help="Method, e.g. dopri5 or anderson."),
        click.option("--rtol", type=float, help="Relative tolerance."),
        click.option("--atol", type=float, help="Absolute tolerance."),
        click.option("--backend", type=click.Choice(BACKENDS), help="Where to solve."),
    ]
    for option in reversed(options):
        function = option(function)
    return function

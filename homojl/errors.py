"""Every error that homojl raises on purpose. The CLI prints one line for each and exits with 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homojl.solution import Solution


class HomoJLError(Exception):
    """Base class: catch this to catch everything that homojl raises on purpose."""


class ConfigError(HomoJLError, ValueError):
    """A setting, an argument or a name is not acceptable; nothing has been computed."""


class DataError(HomoJLError):
    """A dataset is missing, damaged or of the wrong form; the message says what to put where."""


class CheckpointError(HomoJLError):
    """A checkpoint or a run folder is damaged, of another schema, or belongs to another model."""


class BackendUnavailable(HomoJLError):
    """The backend that was asked for cannot be used here; the message names what to run."""


class SolveError(HomoJLError):
    """A solve did not reach its end: diverged, step too small, or too many steps.

    Attributes:
        solution: the partial `Solution` up to the failure (status, stats, last accepted state).
    """

    def __init__(self, message: str, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.solution = solution


class JuliaCodeError(HomoJLError):
    """Julia code threw an exception: a function in a `JuliaField`, most likely; the message is Julia's."""

"""Every error that homojl raises on purpose. The CLI prints one line for each and exits with 2."""

from __future__ import annotations

from typing import Any

MAX_MESSAGE = 4000
"""Characters; of a longer message the middle is left out."""


def one_line(text: str) -> str:
    """A text as one line that can be shown anywhere: no line breaks, nothing that steers a terminal, not too long."""
    if not text.isprintable():
        text = " ".join(text.split())
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 1000]} ... {text[-900:]}"
    return text


class HomoJLError(Exception):
    """Base class: catch this to catch everything that homojl raises on purpose.

    The message is one line, whatever names and values of a user's or a file's stand in it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class ConfigError(HomoJLError, ValueError):
    """A setting, an argument or a name is not acceptable; nothing has been computed."""


class DataError(HomoJLError):
    """A dataset is missing, damaged or of the wrong form; the message says what to put where."""


class CheckpointError(HomoJLError):
    """A checkpoint or a run folder is damaged, of another schema, or belongs to another model."""


class BackendUnavailable(HomoJLError):
    """The backend that was asked for cannot be used here; the message names what to run."""


class BusyError(HomoJLError):
    """Another process is at work in the folder; the message names it."""


class ProcessError(HomoJLError):
    """Another process of the same run has ended or cannot be reached."""


class SolveError(HomoJLError):
    """A solve did not reach its end: diverged, step too small, or too many steps.

    Attributes:
        solution: the partial `Solution`, `EquilibriumSolution` or `PathSolution` up to the failure (status, stats, last
            accepted state); None where there is none.
    """

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class JuliaCodeError(HomoJLError):
    """Julia code threw an exception: a function in a `JuliaField`, most likely.

    The message is Julia's, and may have several lines, since a parse error points at a place in the source.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__()
        # Spaces as they are: they stand before the caret.
        lines = [line if line.isprintable() else one_line(line) for line in message.splitlines()]
        self.args = ("\n".join(lines),)


class ConvergenceWarning(UserWarning):
    """Solves in a layer of `homojl.nn` did not reach their ends; it is shown once for each layer and mode."""

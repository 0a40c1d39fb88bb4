"""A gallery of root problems with known answers, for `HomotopyProblem`: to try algorithms on, to test, to show.

`get("arctan").problem()` is a problem to solve; `get("arctan").random_starts(100)` are places to start from.
"""

from __future__ import annotations

from homojl.errors import ConfigError
from homojl.gallery.example import SUMMARIES, Example
from homojl.names import did_you_mean

__all__ = ["SUMMARIES", "Example", "check", "get", "names"]


def names() -> list[str]:
    """What `get` takes."""
    return list(SUMMARIES)


def check(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in SUMMARIES:
        raise ConfigError(f"unknown problem {name!r}; {did_you_mean(name, SUMMARIES)}")


def get(name: str) -> Example:
    """The example of a name.

    Raises:
        ConfigError: for an unknown name.
    """
    check(name)
    from homojl.gallery.problems import build

    return build(name)

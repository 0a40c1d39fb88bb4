"""What can be measured and with what, by name."""

from __future__ import annotations

from collections.abc import Sequence

from homojl.errors import ConfigError
from homojl.names import did_you_mean

PROBLEMS = (
    "vanderpol", "lotka-volterra", "lorenz", "kaps", "layer", "equilibrium", "trajectory", "steps", "accuracy", "leak",
)  # fmt: skip
"""What `homojl bench --problem` takes."""

SOLVERS = (
    "homojl-pytorch", "homojl-compiled", "homojl-julia", "torchdiffeq", "torchode", "diffrax", "torchdeq",
)  # fmt: skip
"""What `homojl bench --solver` takes, in the order of the tables."""


def check_names(problems: Sequence[str], solvers: Sequence[str]) -> None:
    """Refuse names of problems and solvers that there are not.

    Raises:
        ConfigError: for the first of them.
    """
    for what, names, known in (("problem", problems, PROBLEMS), ("solver", solvers, SOLVERS)):
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")

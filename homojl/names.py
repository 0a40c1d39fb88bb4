"""The names that settings and options choose between, which load nothing, and what is said of an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from homojl.errors import ConfigError

BACKENDS = ("auto", "pytorch", "pytorch-compiled", "julia")
ODE_ADJOINT_NAMES = ("direct", "checkpoint", "backsolve", "gauss")
FIXED_POINT_ADJOINT_NAMES = ("implicit", "phantom", "one-step", "unrolled")
BATCHES = ("joint", "per-sample")
TRAINING_PRECISIONS = ("full", "bfloat16")
"""Of a configuration. float16 is not among them: its gradients want the loss scaled."""
FIGURE_FORMATS = ("png", "svg", "pdf")
BENCH_PROBLEMS = ("vanderpol", "kaps", "layer", "equilibrium")
BENCH_BACKENDS = tuple(name for name in BACKENDS if name != "auto")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error message for an unknown name: the nearest known one, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def check_known(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that are not known.

    Raises:
        ConfigError: for the first of them.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")

"""Comparisons: several models, seeds and variations of settings, trained on one dataset with one budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homojl.comparison.experiment import Experiment, experiment_names, read_experiment
from homojl.comparison.plan import Plan, make_plan

if TYPE_CHECKING:
    from homojl.comparison.record import Comparison, collect
    from homojl.comparison.runner import run_all

__all__ = [
    "Comparison",
    "Experiment",
    "Plan",
    "collect",
    "experiment_names",
    "make_plan",
    "read_experiment",
    "run_all",
]


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # These need torch; what is to be compared, and what is refused, does not.
        if name in ("Comparison", "collect"):
            from homojl.comparison import record

            return getattr(record, name)
        if name == "run_all":
            from homojl.comparison.runner import run_all

            return run_all
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

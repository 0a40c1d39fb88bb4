"""Comparisons: several models, seeds and variations of settings, trained on one dataset with one budget."""

from homojl.comparison.experiment import Experiment, experiment_names, read_experiment
from homojl.comparison.plan import Plan, make_plan
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

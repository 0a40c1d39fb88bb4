"""A run's position in its training, and what depends on it alone: lines, budgets, learning rates, seeds."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, fields
from typing import Any

from homojl.solution import EquilibriumSolution, Solution, Status
from homojl.training.config import OptimConfig, TrainConfig

POINTS = 12  # lines of metrics that a time budget yields, evenly over its seconds
PHASES = ("data_seconds", "forward_seconds", "solve_seconds", "backward_seconds", "optimizer_seconds")
VALIDATION_SHARE = 0.1  # of training time, that validation may cost beside a time budget before the last line
_SIGNED = ("loss", "metric", "best_score")  # may be negative


@dataclass
class Totals:
    """Sums over the steps since the last line of metrics, or the numbers of one step."""

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    metric: float = 0.0
    nfe: int = 0
    n_vjp: int = 0
    nfe_backward: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    point_loss: float = 0.0
    point_updates: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    forward_seconds: float = 0.0
    solve_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0

    def note(self, solution: Solution | EquilibriumSolution) -> None:
        """What the solve of one step cost, forward and backward."""
        self.nfe = solution.stats.nfe
        self.n_vjp = solution.stats.n_vjp
        self.nfe_backward = solution.stats.nfe_backward
        self.accepted = solution.stats.n_accepted
        self.rejected = solution.stats.n_rejected
        self.solve_seconds = solution.stats.seconds
        self.failed = (solution.status is not Status.SUCCESS) + (solution.stats.unconverged_backward > 0)

    def add(self, step: Totals) -> None:
        """Add the numbers of a step."""
        for name, value in vars(step).items():
            setattr(self, name, getattr(self, name) + value)

    def numbers(self, measures: str) -> dict[str, float]:
        """What follows from the sums, under the names of `homojl.results.records.METRICS`.

        Args:
            measures: "accuracy", "none", or the name of another metric.
        """
        accuracy = self.correct / self.images if measures == "accuracy" else math.nan
        return {
            "train_loss": self.loss / self.images,
            "train_accuracy": accuracy,
            "train_metric": self.metric / self.images if measures not in ("accuracy", "none") else math.nan,
            "nfe_forward": self.nfe / self.steps,
            "nfe_backward": self.n_vjp / self.steps,
            "nfe_recomputed": self.nfe_backward / self.steps,
            "accepted_steps": self.accepted / self.steps,
            "rejected_steps": self.rejected / self.steps,
            "failed_solves": self.failed,
            "images_per_second": self.images / self.seconds,
        }


@dataclass
class Position:
    """Where a run stands: what a checkpoint holds beside tensors."""

    step: int = 0  # completed steps in all
    lines: int = 0  # of metrics
    seconds: float = 0.0  # of training, validation and checkpoints not counted
    validations: int = 0
    validation_seconds: float = 0.0
    best_epoch: float = 0  # epochs completed at the best line; 0 before there is one
    best_score: float = 0.0  # there, of what `train.select` names, larger for better
    stale: int = 0  # validated lines since the score was last exceeded
    totals: Totals = field(default_factory=Totals)

    @staticmethod
    def stored(values: dict[str, Any]) -> Position:
        """From the plain values of a checkpoint's header.

        Raises:
            KeyError, TypeError, ValueError: they are not those of a position.
        """
        position = Position(**{**values, "totals": Totals(**values["totals"])})
        for part in (position, position.totals):
            for f in fields(part):
                value = getattr(part, f.name)
                lowest = -math.inf if f.name in _SIGNED else 0
                if f.name != "totals" and not (
                    type(value).__name__ in (f.type, "int") and lowest <= value < math.inf and value > -math.inf
                ):
                    raise ValueError(f"{f.name} is {value!r}")
        return position

    def judge(self, epoch: float, score: float | None, *, validates: bool) -> bool:
        """Take a line's score into account, and say whether it is the best so far.

        Of equal scores the later line is the best, as the longer trained; without a validation split the last is.

        Args:
            epoch: epochs completed.
            score: larger for better; None: the line was not validated.
            validates: whether there is a validation split.
        """
        if score is None:
            if not validates:
                self.best_epoch = epoch
            return not validates
        score = max(score, -1e300) if score == score else -1e300
        first = self.best_epoch == 0
        self.stale = 0 if first or score > self.best_score else self.stale + 1
        best = first or score >= self.best_score
        if best:
            self.best_epoch, self.best_score = epoch, score
        return best


def is_complete(position: Position, config: TrainConfig, batches: int) -> bool:
    """Whether the budget, of epochs or of seconds, is used up, or validation has not improved for long enough."""
    if config.patience is not None and position.stale >= config.patience:
        return True
    if config.seconds is not None:
        return position.seconds >= config.seconds
    return position.step >= config.epochs * batches


def line_is_due(position: Position, config: TrainConfig, batches: int) -> bool:
    """Whether the step just completed ends an epoch, or with a time budget one of its parts."""
    if config.seconds is None:
        return position.step % batches == 0
    part, before = config.seconds / POINTS, position.seconds - position.totals.seconds
    return is_complete(position, config, batches) or position.seconds // part > before // part


def validation_is_due(position: Position, config: TrainConfig, batches: int, samples: int) -> bool:
    """Whether the line that is due has a validation: each after an epoch, and the last of a time budget.

    Earlier ones of a time budget only where all validation together stays within its share. What the first will cost
    is guessed: half of what as many samples cost in training.
    """
    if config.seconds is None or is_complete(position, config, batches):
        return True
    if position.validations:
        cost = position.validation_seconds / position.validations
    else:
        cost = 0.5 * samples * position.seconds / (position.step * config.batch_size)
    return position.validation_seconds + cost <= VALIDATION_SHARE * position.seconds


def schedule_place(position: Position, config: TrainConfig, batches: int) -> tuple[float, int, int]:
    """The step that the schedule has come to, how many it has in all, and how many in an epoch."""
    total = config.epochs * batches
    step = position.step if config.seconds is None else position.seconds / config.seconds * total
    return step, total, batches


def learning_rate(config: OptimConfig, step: float, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate at a place in the schedule."""
    if config.schedule in ("cosine", "one-cycle"):
        rise = config.warmup * total_steps if config.schedule == "one-cycle" else 0.0
        if step < rise:
            return config.lr * (1 + 24 * step / rise) / 25
        floor = min(config.min_lr, config.lr)
        fallen = (step - rise) / max(total_steps - rise, 1)
        return floor + (config.lr - floor) * (1 + math.cos(math.pi * fallen)) / 2
    if config.schedule == "step":
        return config.lr * config.gamma ** bisect_right(config.milestones, step // steps_per_epoch)
    return config.lr


def torch_seed(seed: int, step: int) -> int:
    """What PyTorch's global generators are seeded with before a step, for dropout and the like."""
    return (seed << 32) + step


def augmentation_seed(seed: int, step: int) -> int:
    """What the generator of a step's augmentation is seeded with."""
    return (1 << 62) + (seed << 32) + step

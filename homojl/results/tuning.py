"""The results of `homojl tune`: its records, its HDF5 file (docs/hdf5.md has the schema) and its figure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.results.schema import Column, DatasetSpec, Records, Schema, count, text
from homojl.results.style import VERMILLION, legend_beside, log_axis, look, new_figure, write_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")


@dataclass(frozen=True)
class Trial:
    """A trained model solved in one way.

    Attributes:
        settings: of `SolverConfig` that were changed; none: as the run is configured.
        algorithm: the method.
        accuracy: fraction of the validation images classified correctly.
        agreement: fraction of them with the reference's prediction.
        logit_error: root mean square of the logits' difference from the reference's, over the reference's.
        evaluations: of the field, or of the map and its Jacobian's products, per forward pass of a batch.
        seconds: wall time per image.
        failed: solves that did not reach their end.
        message: why there are no numbers; empty if there are.
    """

    settings: Mapping[str, Any]
    algorithm: str
    accuracy: float = NAN
    agreement: float = NAN
    logit_error: float = NAN
    evaluations: float = NAN
    seconds: float = NAN
    failed: int = 0
    message: str = ""

    @property
    def label(self) -> str:
        """The settings in few words."""
        if not self.settings:
            return f"{self.algorithm}, as configured"
        if "step_size" in self.settings:
            return f"{self.algorithm}, steps of {self.settings['step_size']:g}"
        return f"{self.algorithm} at {self.settings['rtol']:g}"

    @property
    def assignments(self) -> str:
        """The settings as options of `homojl train`."""
        return " ".join(f"--set solver.{key}={value}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Tuning:
    """All that was tried on one run.

    Attributes:
        reference: the tight solve that the others are held against.
        configured: as the run is configured.
        trials: the others, in the order tried.
        within: how much less accuracy than the reference's is accepted, as a fraction.
        images, batch_size: of the validation split, and of a forward pass.
    """

    reference: Trial
    configured: Trial
    trials: tuple[Trial, ...]
    within: float
    images: int
    batch_size: int

    def accepts(self, trial: Trial) -> bool:
        """Whether it is as accurate as asked for, and every solve reached its end."""
        # Accuracies are fractions of whole images: a thousandth of an image is rounding.
        lowest = self.reference.accuracy - self.within - 1e-3 / self.images
        return not trial.message and trial.failed == 0 and trial.accuracy >= lowest

    @property
    def choice(self) -> Trial | None:
        """The accepted trial with the fewest evaluations, of equal ones the one that agrees most; None: none is."""
        accepted = [trial for trial in self.trials if self.accepts(trial)]
        return min(accepted, key=lambda t: (t.evaluations, -t.agreement), default=None)

    @property
    def gains(self) -> bool:
        """Whether the choice takes fewer evaluations than what is configured, or that is not accurate enough."""
        choice = self.choice
        return choice is not None and (
            choice.evaluations < self.configured.evaluations or not self.accepts(self.configured)
        )


def _setting(name: str) -> Callable[[Trial], float]:
    return lambda trial: float(trial.settings.get(name, NAN))


SCHEMA = Schema.of_records(
    "homojl-tune",
    1,
    "one trained model, solved in several ways; the first trial is the reference, the second as configured",
    {
        "/": Records(
            "trial",
            {
                "settings": text(
                    "options of homojl train that solve so; empty: as configured", lambda t: t.assignments
                ),
                "algorithm": text("the method"),
                "rtol": Column(
                    "1", "relative tolerance; NaN where it is the run's own or there is none", of=_setting("rtol")
                ),
                "step_size": Column(
                    "1", "step of a method with equal steps, in the unit of time; else NaN", of=_setting("step_size")
                ),
                "accuracy": Column("1", "fraction of the validation images classified correctly"),
                "agreement": Column("1", "fraction of them with the reference's prediction"),
                "logit_error": Column("1", "root mean square difference of the logits from the reference's, relative"),
                "evaluations": Column("evaluations", "of the field, or of the map and its Jacobian, per forward pass"),
                "seconds": Column("s", "wall time per image"),
                "failed": count("solves", "solves that did not reach their end"),
                "message": text("why there are no numbers; empty if there are"),
            },
        )
    },
    entries={
        "/chosen": DatasetSpec("int64", ("trial",), "1", "1: the accepted trial of the fewest evaluations, else 0")
    },
    attributes={
        "within": "how much less accuracy than the reference's is accepted, as a fraction",
        "images": "images of the validation split",
        "batch_size": "images per forward pass",
    },
)


def write_tuning(path: str | Path, tuning: Tuning) -> None:
    """Write what was found, whole or not at all; `SCHEMA.load` reads it.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    trials, choice = [tuning.reference, tuning.configured, *tuning.trials], tuning.choice
    attributes = {name: getattr(tuning, name) for name in SCHEMA.attributes["/"]}
    chosen = [int(trial is choice) for trial in trials]
    SCHEMA.save(path, {"/": trials}, parts={"/chosen": chosen}, attributes=attributes)


def draw_tuning(tuning: Tuning, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw `tune.png` and so on, as `write_figures`: accuracy, and agreement of the logits, against evaluations."""
    return write_figures({"tune": functools.partial(_draw, tuning)}, folder, formats)


def _draw(tuning: Tuning) -> Figure:
    with new_figure(f"Ways to solve the trained model, {tuning.images:,} validation images", (12.5, 5)) as figure:
        accuracy, error = figure.subplots(1, 2)
        tried = [t for t in (tuning.reference, *tuning.trials) if not t.message]
        for place, name in enumerate(dict.fromkeys(t.algorithm for t in tried)):
            trials = sorted((t for t in tried if t.algorithm == name), key=lambda t: t.evaluations)
            x = [t.evaluations for t in trials]
            accuracy.plot(x, [100 * t.accuracy for t in trials], **look(place), label=name)
            error.plot(x, [t.logit_error or NAN for t in trials], **look(place))
        lowest = 100 * (tuning.reference.accuracy - tuning.within)
        accuracy.axhline(lowest, color="#555555", linewidth=1, linestyle=":", label="lowest accepted")
        configured, chosen = tuning.configured, tuning.choice
        rings = [(configured, "black", "as configured")] + ([] if chosen is None else [(chosen, VERMILLION, "chosen")])
        for size, (trial, color, name) in zip((17, 13), rings, strict=False):
            ring = look(0, marker="o", markersize=size, fillstyle="none", linestyle="none", color=color)
            accuracy.plot([trial.evaluations], [100 * trial.accuracy], **ring, label=name)
            error.plot([trial.evaluations], [trial.logit_error or NAN], **ring)
        accuracy.set_ylabel("validation accuracy [%]")
        error.set_ylabel("error of the logits, relative")
        if any(t.logit_error > 0 for t in tried):
            error.set_yscale("log")
            log_axis(error.yaxis)
        for axes in (accuracy, error):
            axes.set_xscale("log")
            log_axis(axes.xaxis)
            axes.set_xlabel("evaluations per forward pass")
        legend_beside(figure, accuracy)
    return figure

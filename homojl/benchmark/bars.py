"""The figures that the project holds itself to, taken from what was measured."""

from __future__ import annotations

import math

from homojl.benchmark.experiments import ACCURACY_SAVES
from homojl.benchmark.magnification import magnification
from homojl.benchmark.problems import SYSTEMS
from homojl.benchmark.record import NAN, Bar, Measurement, Report

ALLOWED_ERROR = 10.0  # times the tolerance
ALLOWED_GROWTH = 2.0  # MiB: an object of 210 bytes for each of 10,000 solves would exceed it


def bars_of(report: Report) -> list[Bar]:
    """Every bar, also those that were not measured."""
    van_der_pol = "Van der Pol, batch 256, dopri5 at 1e-5, 200 save times, float32: time per step over torchdiffeq's"
    layer = "HomoODE's layer, 64 channels, 16 x 16, batch 64, 1e-3: forward and backward over torchdiffeq's odeint"
    exact = {name for name, system in SYSTEMS.items() if system.exact is not None}
    direct = _layer(report, "homojl-pytorch", "direct")
    return [
        Bar("step, eager", _step(report, "homojl-pytorch"), 0.25, van_der_pol),
        Bar("step, compiled", _step(report, "homojl-compiled"), 0.06, van_der_pol),
        Bar("step, field held in Julia", _step(report, "homojl-julia"), NAN, van_der_pol),
        Bar("step, diffrax", _step(report, "diffrax"), NAN, van_der_pol),
        Bar("layer", direct, 0.75, f"{layer}; DirectAdjoint"),
        Bar("layer, checkpoint", _layer(report, "homojl-pytorch", "checkpoint"), NAN, f"{layer}; CheckpointAdjoint"),
        _accuracy(report, "error, exact answers", exact, "systems with a formula for their solution"),
        _accuracy(report, "error, sensitive systems", set(SYSTEMS) - exact, "other systems", magnified=True),
        _leak(report),
    ]


def leak_growth(resident: list[float]) -> float:
    """MiB by which memory grew: the largest of the last tenth over the largest of the second tenth.

    The first tenth fills the allocator's and PyTorch's own caches.
    """
    tenth = max(1, len(resident) // 10)
    return max(resident[-tenth:]) - max(resident[tenth : 2 * tenth])


def _found(report: Report, **wanted: object) -> Measurement | None:
    for measurement in report.measurements:
        if all(getattr(measurement, key) == value for key, value in wanted.items()):
            return measurement
    return None


def _step(report: Report, solver: str) -> float:
    case = {"experiment": "batch", "problem": "vanderpol", "method": "dopri5", "batch": 256, "tolerance": 1e-5}
    ours, theirs = _found(report, solver=solver, **case), _found(report, solver="torchdiffeq", **case)
    return NAN if ours is None or theirs is None else ours.seconds_per_step / theirs.seconds_per_step


def _layer(report: Report, solver: str, variant: str) -> float:
    case = {"problem": "layer", "gradient": 1, "batch": 64}
    ours = _found(report, solver=solver, variant=variant, **case)
    theirs = _found(report, solver="torchdiffeq", variant="odeint", **case)
    return NAN if ours is None or theirs is None else ours.seconds / theirs.seconds


def _accuracy(report: Report, name: str, systems: set[str], what: str, *, magnified: bool = False) -> Bar:
    """The largest error of homojl-pytorch over the tolerance, and how often each solver stays within the limit.

    Where `magnified`, also over what the system itself makes of errors.
    """
    found = [
        m
        for m in report.measurements
        if m.experiment == "accuracy" and m.problem in systems and not math.isnan(m.error)
    ]

    def ratio(m: Measurement) -> float:
        return m.error_over_tolerance / (magnification(m.problem, ACCURACY_SAVES) if magnified else 1.0)

    ours = [m for m in found if m.solver == "homojl-pytorch"]
    over = "over the tolerance and the system's own magnification of errors" if magnified else "over the tolerance"
    what = f"largest error at any save time {over}, {what}, float64"
    if not ours:
        return Bar(name, NAN, ALLOWED_ERROR, what)
    worst = max(ours, key=ratio)
    counts = []
    for solver in dict.fromkeys(m.solver for m in found):
        ratios = [ratio(m) for m in found if m.solver == solver]
        counts.append(f"{solver} {sum(r <= ALLOWED_ERROR for r in ratios)} of {len(ratios)}")
    where = f"worst: {worst.problem}, {worst.method} at {worst.tolerance:g}"
    if magnified:
        where += f", {worst.error_over_tolerance:.3g} times the tolerance"
    return Bar(name, ratio(worst), ALLOWED_ERROR, f"{what}; {where}; within 10: {', '.join(counts)}")


def _leak(report: Report) -> Bar:
    what = "growth of resident memory in MiB over solves with gradient; what is allowed is the allocator's noise"
    if not report.leak:
        return Bar("memory growth", NAN, ALLOWED_GROWTH, what)
    return Bar("memory growth", leak_growth(report.leak), ALLOWED_GROWTH, f"{what}; {report.leak_solves:,} solves")

"""The figures that the project holds itself to, taken from what was measured."""

from __future__ import annotations

import math

from homojl.benchmark.record import NAN, Bar, Measurement, Report

ALLOWED_GROWTH = 2.0  # MiB: an object of 210 bytes for each of 10,000 solves would exceed it


def bars_of(report: Report) -> list[Bar]:
    """Every bar, also those that were not measured."""
    van_der_pol = "Van der Pol, batch 256, dopri5 at 1e-5, 200 save times, float32: time per step over torchdiffeq's"
    layer = "HomoODE's layer, 64 channels, 16 x 16, batch 64, 1e-3: forward and backward over torchdiffeq's odeint"
    direct = _layer(report, "homojl-pytorch", "direct")
    return [
        Bar("step, eager", _step(report, "homojl-pytorch"), 0.25, van_der_pol),
        Bar("step, compiled", _step(report, "homojl-compiled"), 0.06, van_der_pol),
        Bar("step, field held in Julia", _step(report, "homojl-julia"), NAN, van_der_pol),
        Bar("step, diffrax", _step(report, "diffrax"), NAN, van_der_pol),
        Bar("layer", direct, 0.75, f"{layer}; DirectAdjoint"),
        Bar("layer, checkpoint", _layer(report, "homojl-pytorch", "checkpoint"), NAN, f"{layer}; CheckpointAdjoint"),
        _accuracy(report),
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


def _accuracy(report: Report) -> Bar:
    what = "largest error at any save time over the tolerance, whole catalogue, homojl-pytorch, float64"
    found = [
        m
        for m in report.measurements
        if m.experiment == "accuracy" and m.solver == "homojl-pytorch" and not math.isnan(m.error)
    ]
    if not found:
        return Bar("error over tolerance", NAN, 10.0, what)
    worst = max(found, key=lambda m: m.error_over_tolerance)
    within = sum(m.error_over_tolerance <= 10 for m in found)
    where = f"{worst.problem}, {worst.method} at {worst.tolerance:g}; {within} of {len(found)} within 10"
    return Bar("error over tolerance", worst.error_over_tolerance, 10.0, f"{what}; worst: {where}")


def _leak(report: Report) -> Bar:
    what = "growth of resident memory in MiB over solves with gradient; what is allowed is the allocator's noise"
    if not report.leak:
        return Bar("memory growth", NAN, ALLOWED_GROWTH, what)
    return Bar("memory growth", leak_growth(report.leak), ALLOWED_GROWTH, f"{what}; {report.leak_solves:,} solves")

"""The figures that the project holds itself to, taken from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from homojl.results.measurements import NAN, Measurement

from .experiments import ACCURACY_SAVES
from .magnification import magnification
from .problems import SYSTEMS

ALLOWED_ERROR = 10.0  # times the tolerance
ALLOWED_GROWTH = 2.0  # MiB: an object of 210 bytes for each of 10,000 solves would exceed it


@dataclass(frozen=True)
class Bar:
    """One figure that the project holds itself to.

    Attributes:
        name: of the figure.
        value: as measured; NaN: not measured.
        limit: what it must not exceed; NaN: it stands beside others to compare them with.
        meaning: what was divided by what, or where the worst case is.
    """

    name: str
    value: float
    limit: float
    meaning: str

    @property
    def verdict(self) -> str:
        """ "met", "missed", "not measured", or nothing where there is no limit."""
        if math.isnan(self.value):
            return "not measured"
        if math.isnan(self.limit):
            return ""
        return "met" if self.value <= self.limit else "missed"


def bars_of(measurements: Sequence[Measurement], leak: Sequence[float] = ()) -> list[Bar]:
    """Every bar, also those that were not measured.

    Args:
        leak: resident memory in MiB after each fiftieth of the solves of `memory.leak`.
    """
    van_der_pol = "Van der Pol, batch 256, dopri5 at 1e-5, 200 save times, float32: time per step over torchdiffeq's"
    layer = "HomoODE's layer, 64 channels, 16 x 16, batch 64, 1e-3: forward and backward over torchdiffeq's odeint"
    exact = {name for name, system in SYSTEMS.items() if system.exact is not None}
    direct, checkpoint = (_layer(measurements, "homojl-pytorch", name) for name in ("direct", "checkpoint"))
    return [
        Bar("step, eager", _step(measurements, "homojl-pytorch"), 0.25, van_der_pol),
        Bar("step, compiled", _step(measurements, "homojl-compiled"), 0.06, van_der_pol),
        Bar("step, field held in Julia", _step(measurements, "homojl-julia"), NAN, van_der_pol),
        Bar("step, diffrax", _step(measurements, "diffrax"), NAN, van_der_pol),
        Bar("layer", direct, 0.75, f"{layer}; DirectAdjoint"),
        Bar("layer, checkpoint", checkpoint, NAN, f"{layer}; CheckpointAdjoint"),
        _accuracy(measurements, "error, exact answers", exact, "systems with a formula for their solution"),
        _accuracy(measurements, "error, sensitive systems", set(SYSTEMS) - exact, "other systems", magnified=True),
        _leak(leak),
    ]


def leak_growth(resident: Sequence[float]) -> float:
    """MiB by which memory grew: the largest of the last tenth over the largest of the second tenth.

    The first tenth fills the allocator's and PyTorch's own caches.
    """
    tenth = max(1, len(resident) // 10)
    return max(resident[-tenth:]) - max(resident[tenth : 2 * tenth])


def _found(measurements: Sequence[Measurement], **wanted: object) -> Measurement | None:
    for measurement in measurements:
        if all(getattr(measurement, key) == value for key, value in wanted.items()):
            return measurement
    return None


def _step(measurements: Sequence[Measurement], solver: str) -> float:
    case = {"experiment": "batch", "problem": "vanderpol", "method": "dopri5", "batch": 256, "tolerance": 1e-5}
    ours, theirs = _found(measurements, solver=solver, **case), _found(measurements, solver="torchdiffeq", **case)
    return NAN if ours is None or theirs is None else ours.seconds_per_step / theirs.seconds_per_step


def _layer(measurements: Sequence[Measurement], solver: str, variant: str) -> float:
    case = {"problem": "layer", "gradient": 1, "batch": 64}
    ours = _found(measurements, solver=solver, variant=variant, **case)
    theirs = _found(measurements, solver="torchdiffeq", variant="odeint", **case)
    return NAN if ours is None or theirs is None else ours.seconds / theirs.seconds


def _accuracy(
    measurements: Sequence[Measurement], name: str, systems: set[str], what: str, *, magnified: bool = False
) -> Bar:
    """The largest error of homojl-pytorch over the tolerance, and how often each solver stays within the limit.

    Where `magnified`, also over what the system itself makes of errors.
    """
    found = [m for m in measurements if m.experiment == "accuracy" and m.problem in systems and not math.isnan(m.error)]

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


def _leak(resident: Sequence[float]) -> Bar:
    what = "growth of resident memory in MiB over solves with gradient; what is allowed is the allocator's noise"
    return Bar("memory growth", leak_growth(resident) if resident else NAN, ALLOWED_GROWTH, what)

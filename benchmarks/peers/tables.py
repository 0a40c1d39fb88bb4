"""The tables of homojl beside its peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from homojl.results.measurements import Measurement, columns_of, three_digits
from homojl.results.tables import Table

from .bars import Bar

MEANING = """\
`time` is the median wall time of a solve, whose repetitions take turns with those of the other solvers; `/ peer` is
that over torchdiffeq's with the same method, tolerance and gradient (`odeint`; for equilibria torchdeq's). `first` is
compiling and the first solve, in no repetition. `error / tol` is the largest |y - reference| / (1 + |reference|) at any
save time over the tolerance, the reference SciPy's DOP853 at 1e-12; of an equilibrium the relative residual over it.
`dL/dy0` is the gradient's relative distance from a float64 solve at 1e-10, of the layer at 1e-8. Evaluations are of the
forward solve.
"""

PEERS = ("torchdiffeq", "torchdeq")


def bar_table(bars: Sequence[Bar]) -> Table:
    """Each figure with its limit and whether it is met."""
    rows = [
        (b.name, three_digits(b.value), "" if math.isnan(b.limit) else f"{b.limit:g}", b.verdict, b.meaning)
        for b in bars
    ]
    return Table(("bar", "measured", "at most", "", "meaning"), rows)


def group_table(group: Sequence[Measurement]) -> Table:
    """What was measured together, with ratios to the peer."""
    return columns_of(
        group,
        {
            "solver": lambda m: m.label,
            "method": lambda m: m.method,
            "tolerance": lambda m: three_digits(m.tolerance),
            "time [ms]": lambda m: three_digits(1e3 * m.seconds),
            "/ peer": lambda m: three_digits(ratio(m, group, lambda x: x.seconds)),
            "steps": lambda m: "" if math.isnan(m.steps) else f"{m.steps:,.0f}",
            "per step [us]": lambda m: three_digits(1e6 * m.seconds_per_step),
            "per step / peer": lambda m: three_digits(ratio(m, group, lambda x: x.seconds_per_step)),
            "evaluations": lambda m: "" if math.isnan(m.nfe) else f"{m.nfe:,.0f}",
            "error / tol": lambda m: three_digits(m.error_over_tolerance),
            "dL/dy0": lambda m: three_digits(m.gradient_error),
            "memory [MiB]": lambda m: three_digits(m.memory),
            "first [s]": lambda m: three_digits(m.first_seconds),
            "": lambda m: m.message,
        },
        words=2,
    )


def ratio(measurement: Measurement, group: Sequence[Measurement], value: Callable[[Measurement], float]) -> float:
    """A measurement's value over the peer's with the same method, tolerance and gradient; NaN without one."""

    def case(m: Measurement) -> tuple[str, str, float]:
        return m.method, str(m.tolerance), m.gradient

    for peer in group:
        if case(peer) == case(measurement) and peer.solver in PEERS and peer.variant in ("", "odeint", "implicit"):
            return value(measurement) / value(peer)
    return math.nan

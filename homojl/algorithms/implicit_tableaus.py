"""Implicit Runge-Kutta methods as data: coefficients and error estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from homojl.algorithms.tableaus import Row


@dataclass(frozen=True)
class ImplicitTableau:
    """Coefficients of an implicit Runge-Kutta method with `s` stages.

    Attributes:
        order: order of the solution that is carried on.
        a: `s` rows of `s` weights.
        b: `s` weights of the solution.
        c: `s` stage times as fractions of the step.
        b_error: `s` weights of the error estimate (solution minus embedded solution); None: no estimate.
        error_order: power of the step size with which the estimate falls.
        filtered: whether that estimate grows without bound in stiff components, so that it has to be multiplied
            with the inverse of I - h a_ss J.
        dense: as in `ButcherTableau`. It is for steps that another backend has found; in steps of our own the states
            to save are those at their ends, since a stiff component's steps may be long for what happens inside.
        dense_order: order of that extension's value.
    """

    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row
    b_error: Row | None = None
    error_order: int | None = None
    filtered: bool = False
    dense: tuple[Row, ...] | None = None
    dense_order: int | None = None

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def blocks(self) -> tuple[range, ...]:
        """The stages in the order in which they can be solved, those that depend on each other together."""
        blocks, start = [], 0
        while start < self.stages:
            stop = start + 1
            while any(self.a[i][j] != 0.0 for i in range(start, stop) for j in range(stop, self.stages)):
                stop += 1
            blocks.append(range(start, stop))
            start = stop
        return tuple(blocks)

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the solution is the last stage's state."""
        return self.b == self.a[-1]


def _diagonally_implicit(gamma: float, *rows: Row) -> tuple[Row, ...]:
    """An explicit first stage, then rows whose diagonal is gamma; the weights left of it are given."""
    stages = len(rows) + 1
    full = [(0.0,) * stages]
    full += [(*row, gamma, *(0.0,) * (stages - len(row) - 1)) for row in rows]
    return tuple(full)


def _difference(b: Row, embedded: Row) -> Row:
    return tuple(x - y for x, y in zip(b, embedded, strict=True))


_R2, _R3, _R6, _R15 = math.sqrt(2), math.sqrt(3), math.sqrt(6), math.sqrt(15)

# Bank et al. (1985) as one Runge-Kutta method, with the embedded one of order 3 and the filter of Hosea, Shampine
# (1996), Appl. Numer. Math. 20(1).
_TRBDF2_A = _diagonally_implicit(1 - _R2 / 2, (1 - _R2 / 2,), (_R2 / 4, _R2 / 4))
TRBDF2 = ImplicitTableau(
    order=2,
    a=_TRBDF2_A,
    b=_TRBDF2_A[-1],
    c=(0.0, 2 - _R2, 1.0),
    b_error=_difference(_TRBDF2_A[-1], ((1 - _R2 / 4) / 3, (1 + 3 * _R2 / 4) / 3, (1 - _R2 / 2) / 3)),
    error_order=3,
    filtered=True,
    # The parabola that stays bounded as a component's stiffness goes to infinity: its first two weights are equal.
    dense=((_R2 / 2, -_R2 / 4), (_R2 / 2, -_R2 / 4), (1 - _R2, _R2 / 2)),
    dense_order=2,
)

# ARK4(3)6L[2]SA, the implicit part: Kennedy, Carpenter (2003), Appl. Numer. Math. 44(1-2).
_KENCARP4_A = _diagonally_implicit(
    1 / 4,
    (1 / 4,),
    (8611 / 62500, -1743 / 31250),
    (5012029 / 34652500, -654441 / 2922500, 174375 / 388108),
    (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912),
    (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211),
)
KENCARP4 = ImplicitTableau(
    order=4,
    a=_KENCARP4_A,
    b=_KENCARP4_A[-1],
    c=(0.0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1.0),
    b_error=_difference(
        _KENCARP4_A[-1],
        (
            4586570599 / 29645900160, 0.0, 178811875 / 945068544, 814220225 / 1159782912, -3700637 / 11593932,
            61727 / 225920,
        ),
    ),
    error_order=4,
)  # fmt: skip

# ESDIRK5/4 with gamma = 0.26: Kvaerno (2004), BIT 44(3). The embedded solution is the last stage but one.
_KVAERNO5_A = _diagonally_implicit(
    0.26,
    (0.26,),
    (0.13, 0.84033320996790809),
    (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
    (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
    (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403, 0.06962479448202728),
)
KVAERNO5 = ImplicitTableau(
    order=5,
    a=_KVAERNO5_A,
    b=_KVAERNO5_A[-1],
    c=(0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0),
    b_error=_difference(_KVAERNO5_A[-1], _KVAERNO5_A[-2]),
    error_order=5,
)

# Hairer, Wanner (1996), IV.3, IV.5 and IV.6: the classical families, without error estimates.
IMPLICIT_EULER = ImplicitTableau(order=1, a=((1.0,),), b=(1.0,), c=(1.0,))

IMPLICIT_MIDPOINT = ImplicitTableau(order=2, a=((1 / 2,),), b=(1.0,), c=(1 / 2,))

TRAPEZOID = ImplicitTableau(order=2, a=((0.0, 0.0), (1 / 2, 1 / 2)), b=(1 / 2, 1 / 2), c=(0.0, 1.0))

SDIRK2 = ImplicitTableau(
    order=2, a=((1 - _R2 / 2, 0.0), (_R2 / 2, 1 - _R2 / 2)), b=(_R2 / 2, 1 - _R2 / 2), c=(1 - _R2 / 2, 1.0)
)

GAUSS_LEGENDRE_4 = ImplicitTableau(
    order=4,
    a=((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
    b=(1 / 2, 1 / 2),
    c=(1 / 2 - _R3 / 6, 1 / 2 + _R3 / 6),
)

GAUSS_LEGENDRE_6 = ImplicitTableau(
    order=6,
    a=(
        (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
        (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
        (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
    ),
    b=(5 / 18, 4 / 9, 5 / 18),
    c=(1 / 2 - _R15 / 10, 1 / 2, 1 / 2 + _R15 / 10),
)

RADAU_IIA_3 = ImplicitTableau(order=3, a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)), b=(3 / 4, 1 / 4), c=(1 / 3, 1.0))

_RADAU_IIA_5_B = (4 / 9 - _R6 / 36, 4 / 9 + _R6 / 36, 1 / 9)
RADAU_IIA_5 = ImplicitTableau(
    order=5,
    a=(
        (11 / 45 - 7 * _R6 / 360, 37 / 225 - 169 * _R6 / 1800, -2 / 225 + _R6 / 75),
        (37 / 225 + 169 * _R6 / 1800, 11 / 45 + 7 * _R6 / 360, -2 / 225 - _R6 / 75),
        _RADAU_IIA_5_B,
    ),
    b=_RADAU_IIA_5_B,
    c=(2 / 5 - _R6 / 10, 2 / 5 + _R6 / 10, 1.0),
)

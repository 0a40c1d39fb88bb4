"""Explicit Runge-Kutta methods as data: coefficients, error estimates and continuous extensions.

A method is nothing but its tableau; every solver, adjoint and test reads it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Row = tuple[float, ...]


@dataclass(frozen=True)
class ButcherTableau:
    """Coefficients of an explicit Runge-Kutta method with `s` stages.

    Attributes:
        order: order of the solution that is carried on.
        a: `s` rows, row i with the i weights of the earlier stages.
        b: `s` weights of the solution.
        c: `s` stage times as fractions of the step.
        b_error: `s` weights of the error estimate (solution minus embedded solution); None: no estimate.
        dense: `s` rows of polynomial coefficients; the state at the fraction th of a step of size h is
            y + h sum_j k_j sum_m dense[j][m] th**(m+1). None: there is none; steps then end on the save times.
        dense_order: order of that extension's value (its local error is one order higher).
    """

    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row
    b_error: Row | None = None
    dense: tuple[Row, ...] | None = None
    dense_order: int | None = None

    @property
    def stages(self) -> int:
        return len(self.b)

    @cached_property
    def dense_rows(self) -> np.ndarray:
        """`dense` with a row for each power of the fraction, (powers, s)."""
        import numpy as np

        return np.array(self.dense).T

    @cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is the derivative at the end of the step."""
        return self.stages > 1 and self.a[-1] == self.b[:-1] and self.c[-1] == 1.0 and self.b[-1] == 0.0


EULER = ButcherTableau(order=1, a=((),), b=(1.0,), c=(0.0,))

MIDPOINT = ButcherTableau(order=2, a=((), (1 / 2,)), b=(0.0, 1.0), c=(0.0, 1 / 2))

RK4 = ButcherTableau(
    order=4,
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
)

# Hairer, Norsett, Wanner (1993), II.1: Heun's methods of order 2 and 3, and Kutta's 3/8 rule.
HEUN2 = ButcherTableau(order=2, a=((), (1.0,)), b=(1 / 2, 1 / 2), c=(0.0, 1.0))

HEUN3 = ButcherTableau(order=3, a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(0.0, 1 / 3, 2 / 3))

RK38 = ButcherTableau(
    order=4,
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(0.0, 1 / 3, 2 / 3, 1.0),
)

# Heun's method with Euler's embedded. The extension is the parabola through both stages.
ADAPTIVE_HEUN = ButcherTableau(
    order=2,
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    c=(0.0, 1.0),
    b_error=(-1 / 2, 1 / 2),
    dense=((1.0, -1 / 2), (0.0, 1 / 2)),
    dense_order=2,
)

# Fehlberg (1969), NASA TR R-315: RK1(2), the solution of order 2 carried on.
FEHLBERG2 = ButcherTableau(
    order=2,
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    c=(0.0, 1 / 2, 1.0),
    b_error=(-1 / 512, 0.0, 1 / 512),
    dense=((1.0, -511 / 512), (0.0, 255 / 256), (0.0, 1 / 512)),
    dense_order=2,
)

# Bogacki, Shampine (1989), Appl. Math. Lett. 2(4). The extension is the cubic Hermite polynomial.
BOSH3 = ButcherTableau(
    order=3,
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    dense=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    dense_order=3,
)

# Dormand, Prince (1980), J. Comp. Appl. Math. 6. Extension: Hairer, Norsett, Wanner (1993), II.6.
DOPRI5 = ButcherTableau(
    order=5,
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    b_error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    dense_order=4,
)

# Tsitouras (2011), Comput. Math. Appl. 62(2).
TSIT5 = ButcherTableau(
    order=5,
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0.0,
    ),
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    b_error=(
        0.0017800110522257773,
        0.0008164344596567463,
        -0.007880878010261994,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918686,
        -1 / 66,
    ),
    dense=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
    dense_order=4,
)

_DOPRI8_B = (
    14005451 / 335480064, 0.0, 0.0, 0.0, 0.0, -59238493 / 1068277825, 181606767 / 758867731, 561292985 / 797845732,
    -1041891430 / 1371343529, 760417239 / 1151165299, 118820643 / 751138087, -528747749 / 2220607170, 1 / 4,
)  # fmt: skip
_DOPRI8_B_EMBEDDED = (
    13451932 / 455176623, 0.0, 0.0, 0.0, 0.0, -808719846 / 976000145, 1757004468 / 5645159321,
    656045339 / 265891186, -3867574721 / 1518517206, 465885868 / 322736535, 53011238 / 667516719, 2 / 45, 0.0,
)  # fmt: skip

# RK8(7)13M of Prince, Dormand (1981), J. Comp. Appl. Math. 7(1). The extension that other libraries pair with it
# has order 5 only, which would spoil what the method is used for, so it has none here.
DOPRI8 = ButcherTableau(
    order=8,
    a=(
        (),
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0.0, 3 / 32),
        (5 / 16, 0.0, -75 / 64, 75 / 64),
        (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
        (29443841 / 614563906, 0.0, 0.0, 77736538 / 692538347, -28693883 / 1125000000, 23124283 / 1800000000),
        (
            16016141 / 946692911, 0.0, 0.0, 61564180 / 158732637, 22789713 / 633445777, 545815736 / 2771057229,
            -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083, 0.0, 0.0, -433636366 / 683701615, -421739975 / 2616292301, 100302831 / 723423059,
            790204164 / 839813087, 800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787, 0.0, 0.0, -37695042795 / 15268766246, -309121744 / 1061227803,
            -12992083 / 490766935, 6005943493 / 2108947869, 393006217 / 1396673457, 123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014, 0.0, 0.0, 8478235783 / 508512852, 1311729495 / 1432422823,
            -10304129995 / 1701304382, -48777925059 / 3047939560, 15336726248 / 1032824649,
            -45442868181 / 3398467696, 3065993473 / 597172653,
        ),
        (
            185892177 / 718116043, 0.0, 0.0, -3185094517 / 667107341, -477755414 / 1098053517,
            -703635378 / 230739211, 5731566787 / 1027545527, 5232866602 / 850066563, -4093664535 / 808688257,
            3962137247 / 1805957418, 65686358 / 487910083,
        ),
        (
            403863854 / 491063109, 0.0, 0.0, -5068492393 / 434740067, -411421997 / 543043805,
            652783627 / 914296604, 11173962825 / 925320556, -13158990841 / 6184727034, 3936647629 / 1978049680,
            -160528059 / 685178525, 248638103 / 1413531060, 0.0,
        ),
    ),
    b=_DOPRI8_B,
    c=(
        0.0, 1 / 18, 1 / 12, 1 / 8, 5 / 16, 3 / 8, 59 / 400, 93 / 200, 5490023248 / 9719169821, 13 / 20,
        1201146811 / 1299019798, 1.0, 1.0,
    ),
    b_error=tuple(b - e for b, e in zip(_DOPRI8_B, _DOPRI8_B_EMBEDDED, strict=True)),
)  # fmt: skip

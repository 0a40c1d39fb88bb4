"""Cotangents of many save times, moved to a few of them.

A cotangent c at a time s contributes F(s) c to the gradients, where F comes from the adjoint equation and is as smooth
in s as the solution: F'(s) c = F(s) J^T c, with J the field's Jacobian at s, and the parameters' part likewise.
Hermite's interpolation between anchors s_m, F(s) c = sum_m H0_m(s) F(s_m) c + H1_m(s) F'(s_m) c, therefore moves c to
them, for one product at each anchor, however many cotangents there are.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

AROUND = 4  # anchors that a cotangent is moved to
SAFETY = 0.35  # of the distance between anchors that the tolerance allows


def choose(times: Sequence[float], starts: Sequence[float], sizes: Sequence[float], part: float) -> list[int]:
    """Positions of those save times that become anchors, from the last one back to the first.

    Args:
        times: of the start and the saves, monotone.
        starts, sizes: of the forward solve's steps.
        part: how far apart anchors may be, over the size of the forward step there.
    """
    way = 1.0 if times[-1] >= times[0] else -1.0
    begins = [way * t for t in starts]
    anchors = [len(times) - 1]
    while anchors[-1] > 0:
        here = way * times[anchors[-1]]
        size = abs(sizes[max(bisect.bisect_left(begins, here) - 1, 0)])
        reach = here - part * size * (1 + 1e-9)
        i = bisect.bisect_left(times, reach, key=lambda t: way * t)
        anchors.append(min(i, anchors[-1] - 1))
    return anchors


def around(anchors: Sequence[float], s: float) -> range:
    """Positions of the anchors next to s, which are monotone and have it between them."""
    way = 1.0 if anchors[-1] >= anchors[0] else -1.0
    count = min(AROUND, len(anchors))
    first = bisect.bisect_left(anchors, way * s, key=lambda t: way * t) - count // 2
    first = min(max(first, 0), len(anchors) - count)
    return range(first, first + count)


def hermite(nodes: Sequence[float], s: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of values and of derivatives at the nodes in the polynomial of least degree at s, (nodes,) each."""
    x = np.asarray(nodes)
    difference = x[:, None] - x[None, :]
    np.fill_diagonal(difference, 1.0)
    ratios = (s - x)[None, :] / difference
    np.fill_diagonal(ratios, 1.0)
    lagrange = ratios.prod(axis=1)
    np.fill_diagonal(difference, np.inf)
    slope = (1 / difference).sum(axis=1)
    return (1 - 2 * slope * (s - x)) * lagrange**2, (s - x) * lagrange**2


def farthest(rtol: float, count: int) -> float:
    """How far apart anchors may be, in units of 1 / norm(J), for the error of moving cotangents to `count` of them."""
    order = 2 * min(AROUND, count)
    return float(SAFETY * (rtol * math.factorial(order)) ** (1 / order))

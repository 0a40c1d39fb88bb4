"""How the examples of `homojl.gallery` are made."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import conv2d

from homojl.gallery.example import SUMMARIES, Example

Tensor = torch.Tensor

_STATIONARY = (  # of Himmelblau's function
    (3.0, 2.0),
    (-2.805118086952745, 3.131312518250573),
    (-3.779310253377747, -3.283185991286169),
    (3.5844283403304917, -1.8481265269644036),
    (-0.2708445906673476, -0.9230385564799813),
    (0.08667750455439634, 2.884254701174776),
    (-3.0730257507643897, -0.08135304428796751),
    (-0.12796134673068005, -1.9537149802445766),
    (3.385154183607021, 0.07385187983774928),
)


def build(name: str) -> Example:
    """The example of a name in `SUMMARIES`."""
    return _BUILDERS[name](name)


def _small(
    r: Callable[[Tensor], Tensor],
    start: tuple[float, ...],
    roots: tuple[tuple[float, ...], ...],
    low: float,
    high: float,
) -> Callable[[str], Example]:
    """A problem of one or two unknowns of which all roots are known."""

    def make(name: str) -> Example:
        z0, *found = (torch.tensor(point, dtype=torch.float64) for point in (start, *roots))
        return Example(name, SUMMARIES[name], r, z0, tuple(found), low, high)

    return make


def _cubic_root(c: float) -> float:
    """The real root of z^3 - 3 z + c for c > 2, by Cardano's formula."""
    u = (c / 2 + math.sqrt(c * c / 4 - 1)) ** (1 / 3)
    return -u - 1 / u


def _himmelblau(z: Tensor) -> Tensor:
    x, y = z
    a, b = x * x + y - 11, x + y * y - 7
    return torch.stack([4 * x * a + 2 * b, 2 * a + 4 * y * b])


def _rosenbrock(z: Tensor) -> Tensor:
    x, y = z
    return torch.stack([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)])


def _freudenstein_roth(z: Tensor) -> Tensor:
    x, y = z
    return torch.stack([x - 13 + ((5 - y) * y - 2) * y, x - 29 + ((y + 1) * y - 14) * y])


def _dense(weight: Tensor, z: Tensor) -> Tensor:
    return weight @ z


def _convolved(weight: Tensor, z: Tensor) -> Tensor:
    return conv2d(z, weight, padding=1)


def _layer(
    linear: Callable[[Tensor, Tensor], Tensor], weights: tuple[int, ...], state: tuple[int, ...], scale: float
) -> Callable[[str], Example]:
    """z = tanh(linear(weight, z) + bias), with random weights and a bias that gives it a random equilibrium."""

    def make(name: str) -> Example:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(weights, generator=generator, dtype=torch.float64) * scale
        root = torch.rand(state, generator=generator, dtype=torch.float64) * 1.6 - 0.8
        bias = torch.atanh(root) - linear(weight, root)

        def r(z: Tensor) -> Tensor:
            return z - torch.tanh(linear(weight.to(z.dtype), z) + bias.to(z.dtype))

        z0 = torch.zeros(state, dtype=torch.float64)
        return Example(name, SUMMARIES[name], r, z0, (root,), -2, 2, all_roots=False)

    return make


_BUILDERS: dict[str, Callable[[str], Example]] = {
    "arctan": _small(torch.atan, (3.0,), ((0.0,),), -10, 10),
    "cubic": _small(lambda z: z**3 - 2 * z + 2, (0.0,), ((-1.7692923542386314,),), -5, 5),
    # From 1.5 the path comes close to the minimum of r at 1, turns back in lambda, and turns again on its way down.
    "fold": _small(lambda z: z**3 - 3 * z + 2.1, (1.5,), ((_cubic_root(2.1),),), -5, 5),
    "several": _small(lambda z: (z - 1) * (z - 2) * (z - 4), (0.0,), ((1.0,), (2.0,), (4.0,)), -5, 10),
    # Its slope 1 + 4 cos(5 (z - 1)) lies between -3 and 5; no second root, since 4 < 4.6 = -1 / min(sin(x) / x).
    "ripples": _small(lambda z: z - 1 + 0.8 * torch.sin(5 * (z - 1)), (4.0,), ((1.0,),), -9, 11),
    "himmelblau": _small(_himmelblau, (-1.0, -0.5), _STATIONARY, -6, 6),
    "rosenbrock": _small(_rosenbrock, (-1.2, 1.0), ((1.0, 1.0),), -3, 3),
    "freudenstein-roth": _small(_freudenstein_roth, (15.0, -2.0), ((5.0, 4.0),), -20, 20),
    "tanh-layer": _layer(_dense, (50, 50), (50,), 1.2 / math.sqrt(50)),
    "conv-layer": _layer(_convolved, (6, 6, 3, 3), (1, 6, 8, 8), 0.8 / math.sqrt(54)),
}

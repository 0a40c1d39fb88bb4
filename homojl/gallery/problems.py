"""How the examples of `homojl.gallery` are made."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from homojl.gallery.example import SUMMARIES, Example

Tensor = torch.Tensor


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _arctan(name: str) -> Example:
    return Example(
        name,
        SUMMARIES[name],
        r=torch.atan,
        z0=_vector(3.0),
        roots=(_vector(0.0),),
        low=-10,
        high=10,
    )


def _cubic(name: str) -> Example:
    return Example(
        name,
        SUMMARIES[name],
        r=lambda z: z**3 - 2 * z + 2,
        z0=_vector(0.0),
        roots=(_vector(-1.7692923542386314),),
        low=-5,
        high=5,
    )


def _fold(name: str) -> Example:
    # From 1.5 the path comes close to the minimum of r at 1, turns back in lambda, and turns again on its way down.
    return Example(
        name,
        SUMMARIES[name],
        r=lambda z: z**3 - 3 * z + 2.1,
        z0=_vector(1.5),
        roots=(_vector(_cubic_root(2.1)),),
        low=-5,
        high=5,
    )


def _cubic_root(c: float) -> float:
    """The real root of z^3 - 3 z + c for c > 2, by Cardano's formula."""
    u = (c / 2 + math.sqrt(c * c / 4 - 1)) ** (1 / 3)
    return -u - 1 / u


def _several(name: str) -> Example:
    return Example(
        name,
        SUMMARIES[name],
        r=lambda z: (z - 1) * (z - 2) * (z - 4),
        z0=_vector(0.0),
        roots=(_vector(1.0), _vector(2.0), _vector(4.0)),
        low=-5,
        high=10,
    )


def _ripples(name: str) -> Example:
    # Its slope 1 + 4 cos(5 (z - 1)) lies between -3 and 5; no second root, since 4 < 4.6 = -1 / min(sin(x) / x).
    return Example(
        name,
        SUMMARIES[name],
        r=lambda z: z - 1 + 0.8 * torch.sin(5 * (z - 1)),
        z0=_vector(4.0),
        roots=(_vector(1.0),),
        low=-9,
        high=11,
    )


def _himmelblau(name: str) -> Example:
    def r(z: Tensor) -> Tensor:
        x, y = z
        a, b = x * x + y - 11, x + y * y - 7
        return torch.stack([4 * x * a + 2 * b, 2 * a + 4 * y * b])

    points = (
        (3.0, 2.0),
        (-2.805118086952745, 3.131312518250573),
        (-3.779310253377747, -3.283185991286169),
        (3.5844283403304917, -1.8481265269644036),
        (-0.2708445906673476, -0.9230385564799813),
        (0.08667750455539634, 2.884254701174776),
        (-3.0730257507643897, -0.08135304428796751),
        (-0.12796134673068005, -1.9537149802445766),
        (3.385154183607021, 0.07385187983774928),
    )
    return Example(
        name,
        SUMMARIES[name],
        r=r,
        z0=_vector(-1.0, -0.5),
        roots=tuple(_vector(*point) for point in points),
        low=-6,
        high=6,
    )


def _rosenbrock(name: str) -> Example:
    def r(z: Tensor) -> Tensor:
        x, y = z
        return torch.stack([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)])

    return Example(
        name,
        SUMMARIES[name],
        r=r,
        z0=_vector(-1.2, 1.0),
        roots=(_vector(1.0, 1.0),),
        low=-3,
        high=3,
    )


def _freudenstein_roth(name: str) -> Example:
    def r(z: Tensor) -> Tensor:
        x, y = z
        return torch.stack([x - 13 + ((5 - y) * y - 2) * y, x - 29 + ((y + 1) * y - 14) * y])

    return Example(
        name,
        SUMMARIES[name],
        r=r,
        z0=_vector(15.0, -2.0),
        roots=(_vector(5.0, 4.0),),
        low=-20,
        high=20,
    )


def _tanh_layer(name: str) -> Example:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 50, generator=generator, dtype=torch.float64) * (1.2 / math.sqrt(50))
    root = torch.rand(50, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    bias = torch.atanh(root) - weight @ root
    return Example(
        name,
        SUMMARIES[name],
        r=lambda z: z - torch.tanh(weight @ z + bias),
        z0=torch.zeros(50, dtype=torch.float64),
        roots=(root,),
        all_roots=False,
        low=-2,
        high=2,
    )


def _conv_layer(name: str) -> Example:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 6, 3, 3, generator=generator, dtype=torch.float64) * (0.8 / math.sqrt(54))
    root = torch.rand(1, 6, 8, 8, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    bias = torch.atanh(root) - torch.nn.functional.conv2d(root, weight, padding=1)
    return Example(
        name,
        SUMMARIES[name],
        r=lambda z: z - torch.tanh(torch.nn.functional.conv2d(z, weight.to(z.dtype), padding=1) + bias.to(z.dtype)),
        z0=torch.zeros(1, 6, 8, 8, dtype=torch.float64),
        roots=(root,),
        all_roots=False,
        low=-2,
        high=2,
    )


BUILDERS: dict[str, Callable[[str], Example]] = {
    "arctan": _arctan,
    "cubic": _cubic,
    "fold": _fold,
    "several": _several,
    "ripples": _ripples,
    "himmelblau": _himmelblau,
    "rosenbrock": _rosenbrock,
    "freudenstein-roth": _freudenstein_roth,
    "tanh-layer": _tanh_layer,
    "conv-layer": _conv_layer,
}

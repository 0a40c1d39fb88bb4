"""A trained neural ODE read as a zero path: the lambda(s) and v(s) of a trajectory, and how well they fit.

A trajectory dz/ds = g from z0 is the zero path of H(z, lambda) = z - z0 - lambda (f(z) - z0), the fixed-point homotopy
of the equilibrium z = f(z), where for some lambda(s) from 0 to 1

    norm(g)^2 + (dlambda/ds)^2 = v(s)^2                       (11)
    g - lambda J_f g = (f(z) - z0) dlambda/ds                 (12)

Along the trajectory J_f g is df/ds, so that (12) is the derivative of H = 0, and f = z0 + (z - z0) / lambda solves it.
Two readings follow, each sample by itself:

- Without f, any lambda that grows from 0 to 1 has a v(s) and an f on the trajectory that solve both equations. What is
  to be chosen is the time table: `velocity="natural"` takes lambda = s / S and finds v(s); `velocity="constant"` finds
  the one constant v with lambda(S) = 1, which exists where norm(g) does not vary too much. H is zero by construction.
- With f, H = 0 is n equations for the one number lambda(s), solved by least squares over the sample's elements, and
  (12) likewise for dlambda/ds. What is left, relative to norm(z - z0) and norm(g), says how far the trajectory is from
  a zero path of that f.

References: Ding, Cui, Wang, Shi (2023), arXiv 2310.09583, Section 4, (8) to (12), and Section 7 on ANODE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from homojl.algorithms import AbstractErrorControlled, AbstractODEAlgorithm, Dopri5
from homojl.errors import ConfigError
from homojl.functions.evaluated import check_form
from homojl.functions.products import Linearisation
from homojl.models.base import AbstractImplicitModel
from homojl.models.node import ANODE
from homojl.problems import ODEProblem
from homojl.solving import solve

Tensor = torch.Tensor

VELOCITIES = ("natural", "constant")


@dataclass(frozen=True, eq=False)
class Correspondence:
    """What `recover` found, each number for T points of B samples, float64.

    Attributes:
        s: positions of the points, (T,), from 0 to S.
        states: z there, (T, B, ...).
        lambdas: lambda(s), (T, B); NaN for samples that no constant velocity fits.
        slopes: dlambda/ds, (T, B).
        speeds: norm(g), Euclidean over a sample's elements, (T, B).
        velocities: v(s), (T, B).
        targets: f(z(s)), (T, B, ...): the given one's, or the one that H = 0 implies.
        residuals: norm(z - z0 - lambda (f - z0)) / norm(z - z0), (T, B), 0 at s = 0; without an f zero to rounding.
        tangent_residuals: what (12) is missed by over norm(g), (T, B). Without an f its df/ds is taken by differences
            along s, so that this measures the spacing of the points.
    """

    s: Tensor
    states: Tensor
    lambdas: Tensor
    slopes: Tensor
    speeds: Tensor
    velocities: Tensor
    targets: Tensor
    residuals: Tensor
    tangent_residuals: Tensor

    @property
    def fits(self) -> Tensor:
        """Which samples have a lambda(s), (B,), bool: all but those that no constant velocity fits."""
        return torch.isfinite(self.lambdas).all(dim=0)


def recover(
    s: Sequence[float] | Tensor,
    states: Tensor,
    field: Tensor,
    *,
    velocity: str = "natural",
    f: Callable[[Tensor], Tensor] | None = None,
) -> Correspondence:
    """lambda(s) and v(s) of a trajectory.

    Args:
        s: positions, at least 5, growing from 0, (T,).
        states: z(s) of B samples, (T, B, ...).
        field: g = dz/ds there, the same shape.
        velocity: "natural" or "constant"; of no influence where f is given.
        f: a map (B, ...) -> (B, ...) whose zero path the trajectory may be.

    Raises:
        ConfigError: for shapes, positions or a velocity that do not fit.
    """
    s = torch.as_tensor(s, dtype=torch.float64)
    if states.shape != field.shape or states.ndim < 3 or len(states) != len(s):
        raise ConfigError(
            "states and field must be (T, B, ...) with one T for each s, got "
            f"{tuple(states.shape)}, {tuple(field.shape)} and {len(s)} positions"
        )
    if len(s) < 5 or s[0] != 0 or not (s.diff() > 0).all():
        raise ConfigError("s must have at least 5 positions that grow from 0")
    if velocity not in VELOCITIES:
        raise ConfigError(f"velocity must be one of {VELOCITIES}, got {velocity!r}")
    z, g = states.detach().double(), field.detach().double()
    with torch.no_grad():
        moved, flat_g = (z - z[0]).flatten(2), g.flatten(2)
        speeds = torch.linalg.vector_norm(flat_g, dim=2)
        if f is None:
            lambdas, slopes = _time_table(s, speeds, velocity)
            offsets, target_slopes = _implied(s, moved, flat_g, lambdas, slopes)
            targets = z[0] + offsets.reshape(z.shape)
        else:
            images, products = zip(*(_mapped(f, a, b) for a, b in zip(states, field, strict=True)), strict=True)
            targets = torch.stack(images).double()
            offsets, target_slopes = (targets - z[0]).flatten(2), torch.stack(products).double().flatten(2)
            lambdas = _fitted(moved, offsets)
            slopes = _fitted(flat_g - lambdas[..., None] * target_slopes, offsets)
        missed = moved - lambdas[..., None] * offsets
        tangent_missed = flat_g - lambdas[..., None] * target_slopes - slopes[..., None] * offsets
    return Correspondence(
        s=s,
        states=z,
        lambdas=lambdas,
        slopes=slopes,
        speeds=speeds,
        velocities=torch.hypot(speeds, slopes),
        targets=targets,
        residuals=_relative(missed, moved),
        tangent_residuals=_relative(tangent_missed, flat_g),
    )


def recover_from_model(
    model: AbstractImplicitModel,
    image: Tensor,
    *,
    velocity: str = "natural",
    points: int = 51,
    augmented: bool = False,
    f: Callable[[Tensor], Tensor] | None = None,
) -> Correspondence:
    """`recover` for a HomoODE, a Neural ODE or an ANODE, from its own start to its output.

    The ODE is solved at a hundredth of the model's tolerances, so that its trajectory is read and not a solver's error.

    Args:
        model: a model that states an ODE, used in evaluation mode.
        image: its input (B, C, H, W).
        points: equidistant positions.
        augmented: of an ANODE its appended channels alone: they start from zero for every image, as HomoODE's state
            does from its shared initial point, and the image's own channels are the condition, one that moves. This is
            how an ANODE is a HomoODE (Section 7).
        velocity, f: as of `recover`; f is given what `augmented` leaves of the state.

    Raises:
        ConfigError: for a model without an ODE, or without channels to read.
        SolveError: if the ODE cannot be solved.
    """
    if not model.states_ode():
        raise ConfigError(
            f"{type(model).__name__} states an equilibrium: there is no trajectory; follow its path instead"
        )
    appended = model.augment if isinstance(model, ANODE) else 0
    if augmented and appended == 0:
        raise ConfigError("augmented=True reads the channels that an ANODE appends; this model has none")
    was_training = model.training
    model.eval()
    with torch.no_grad():
        problem, algorithm = model.problem(model.encode(image)), model.algorithm
        assert isinstance(problem, ODEProblem), model
        assert isinstance(algorithm, AbstractODEAlgorithm), model
        s = torch.linspace(0, 1, points, dtype=torch.float64)
        problem = ODEProblem(problem.f, problem.y0, s, problem.args, problem.params)
        solution = solve(problem, _tighter(algorithm), backend="pytorch")
        slopes = [problem.f(s[i].to(z), z, *problem.args) for i, z in enumerate(solution.states)]
    model.train(was_training)
    states, field = solution.ys, torch.stack(slopes)
    if augmented:
        states, field = states[:, :, -appended:], field[:, :, -appended:]
    return recover(s, states, field, velocity=velocity, f=f)


def _tighter(algorithm: AbstractODEAlgorithm) -> AbstractODEAlgorithm:
    if not isinstance(algorithm, AbstractErrorControlled):
        return Dopri5(rtol=1e-5, atol=1e-5)
    return replace(algorithm, rtol=algorithm.rtol / 100, atol=algorithm.atol / 100, max_steps=100_000)


def _time_table(s: Tensor, speeds: Tensor, velocity: str) -> tuple[Tensor, Tensor]:
    """lambda and dlambda/ds, each (T, B), for norms of g (T, B)."""
    end = s[-1].item()
    if velocity == "natural":
        return (s / end)[:, None].expand_as(speeds).clone(), torch.full_like(speeds, 1 / end)
    # lambda(S) grows with v; at the smallest v that (11) allows it may be too large already.
    low = speeds.amax(dim=0)
    none = _integral(s, (low**2 - speeds**2).clamp_min(0).sqrt())[-1] > 1
    high = torch.hypot(low, torch.full_like(low, 1 / end))
    for _ in range(60):
        middle = (low + high) / 2
        short = _integral(s, (middle**2 - speeds**2).clamp_min(0).sqrt())[-1] < 1
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    slopes = (high**2 - speeds**2).clamp_min(0).sqrt()
    lambdas = _integral(s, slopes)
    lambdas[:, none] = slopes[:, none] = math.nan
    return lambdas, slopes


def _integral(s: Tensor, values: Tensor) -> Tensor:
    """The integral of values (T, B) from s = 0 on, (T, B): trapezoids with their corrections at the ends, order 4."""
    h = s.diff()[:, None]
    rates = torch.gradient(values, spacing=(s,), dim=0, edge_order=2)[0]
    pieces = h / 2 * (values[1:] + values[:-1]) - h**2 / 12 * (rates[1:] - rates[:-1])
    return torch.cat([torch.zeros_like(values[:1]), pieces.cumsum(dim=0)])


def _implied(s: Tensor, moved: Tensor, g: Tensor, lambdas: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """f - z0 where H = 0, and df/ds by differences; at s = 0 the limit, g / (dlambda/ds)."""
    offsets = moved / lambdas[..., None]
    offsets[0] = g[0] / slopes[0, :, None]
    return offsets, torch.gradient(offsets, spacing=(s,), dim=0, edge_order=2)[0]


def _mapped(f: Callable[[Tensor], Tensor], z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    at = Linearisation(f, z)
    check_form("f", at.value, "the state", z)
    return at.value.detach(), at.push(g)


def _fitted(wanted: Tensor, by: Tensor) -> Tensor:
    """The numbers a that make a * by the nearest to what is wanted, (T, B) for two (T, B, n)."""
    return (wanted * by).sum(dim=2) / by.square().sum(dim=2)


def _relative(missed: Tensor, to: Tensor) -> Tensor:
    """norm(missed) / norm(to) over the last dimension, 0 where nothing is missed of nothing."""
    size = torch.linalg.vector_norm(missed, dim=2)
    return torch.where(size == 0, size, size / torch.linalg.vector_norm(to, dim=2))

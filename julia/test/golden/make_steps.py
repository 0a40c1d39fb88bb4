"""Writes steps.toml: the accepted steps of homojl's PyTorch backend, which ZeroPaths has to reproduce.

From the repository's root, in an environment with homojl: python julia/test/golden/make_steps.py
"""

from pathlib import Path

import torch

from homojl.algorithms import AbstractAdaptive, Bosh3, Dopri5, PredictiveController, Tsit5
from homojl.backends.base import ErrorNorm
from homojl.backends.pytorch.backend import TorchBackend

MU, U0 = 5.0, (2.0, 0.0)


def van_der_pol(t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return torch.stack([u[1], MU * (1 - u[0] * u[0]) * u[1] - u[0]])


def case(
    name: str, algorithm: AbstractAdaptive, ts: tuple[float, ...], parts: tuple[tuple[int, int], ...] | None
) -> str:
    u0 = torch.tensor(U0, dtype=torch.float64)
    result = TorchBackend().integrate(van_der_pol, u0, ts, algorithm, error_norm=ErrorNorm(parts))
    lines = [
        f"[{name}]",
        f'algorithm = "{algorithm.name}"',
        f"tolerance = {algorithm.rtol}",
        f"exponents = {list(algorithm.controller.exponents(algorithm.tableau.order))}",
        f"ts = {list(ts)}",
        f"parts = {[[start + 1, stop] for start, stop in parts or ()]}",
        f"n_rejected = {result.n_rejected}",
        f"nfe = {result.nfe}",
        f"sizes = {list(result.steps.sizes)}",
        f"save_steps = {[step + 1 for step, _ in result.steps.saves]}",
        f"save_fractions = {[fraction for _, fraction in result.steps.saves]}",
        f"last_state = {result.ys[-1].tolist()}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    forward, backward = (0.0, 1.0, 2.5, 6.0), (1.0, 0.3, 0.0)
    cases = [
        case("bosh3", Bosh3(rtol=1e-3, atol=1e-3), forward, None),
        case("dopri5", Dopri5(rtol=1e-3, atol=1e-3), forward, None),
        case("dopri5_backward", Dopri5(rtol=1e-6, atol=1e-6), backward, None),
        case("dopri5_parts", Dopri5(rtol=1e-4, atol=1e-4), forward, ((0, 1), (1, 2))),
        case("tsit5", Tsit5(rtol=1e-3, atol=1e-3), forward, None),
        case("tsit5_predictive", Tsit5(rtol=1e-5, atol=1e-5, controller=PredictiveController()), forward, None),
        case("tsit5_tight", Tsit5(rtol=1e-6, atol=1e-6), forward, ((0, 1),)),
    ]
    header = f"# Van der Pol's equation, mu = {MU}, u0 = {list(U0)}. Made by make_steps.py; positions count from 1.\n"
    Path(__file__).with_name("steps.toml").write_text("\n".join([header, *cases]))


main()

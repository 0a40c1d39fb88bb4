"""Bad input is refused before anything is computed, in one line that says what was got and expected."""

from __future__ import annotations

import math
import subprocess

import pytest
import torch

import homojl as hj
from homojl.algorithms import PIController, PredictiveController
from tests import warm

Y0 = torch.ones(2)


def field(t, y):
    return -y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hj.ODEProblem(3, Y0, (0, 1)), "f must be callable"),
        (
            lambda: hj.ODEProblem(field, [1.0], (0, 1)),
            "y0 must be a torch.Tensor, or a tuple, list or dict of them, got float",
        ),
        (lambda: hj.ODEProblem(field, torch.ones(2, dtype=torch.int64), (0, 1)), "float32 or float64"),
        (
            lambda: hj.ODEProblem(field, (torch.ones(1), torch.ones(1).double()), (0, 1)),
            "must have one dtype and device",
        ),
        (lambda: hj.ODEProblem(field, Y0, (0,)), "at least one more"),
        (lambda: hj.ODEProblem(field, Y0, (0, 1, 1)), "strictly increasing"),
        (lambda: hj.ODEProblem(field, Y0, (0, 1, 0.5)), "strictly increasing"),
        (lambda: hj.ODEProblem(field, Y0, (0, math.nan)), "not finite"),
        (lambda: hj.ODEProblem(field, Y0, "ab"), "sequence of numbers"),
        (lambda: hj.ODEProblem(field, Y0, (0, 1), args=Y0), r"args=\(x,\)"),
        (lambda: hj.Tsit5(rtol=-1), "rtol must be a finite number >= 0"),
        (lambda: hj.Tsit5(atol=math.nan), "atol must be"),
        (lambda: hj.Tsit5(rtol=0, atol=0), "not both be zero"),
        (lambda: hj.Tsit5(first_step=0), "first_step must be positive"),
        (lambda: hj.Tsit5(max_steps=0), "max_steps"),
        (lambda: hj.RK4(step_size=-0.1), "step_size must be positive"),
        (lambda: hj.RK4(step_size=0.1, grid=hj.Grid(points=tuple)), "step_size or grid, not both"),
        (lambda: hj.Grid(points=tuple, interpolation="spline"), "must be one of"),
        (lambda: hj.Tsit5(rtol=torch.tensor([1e-3, -1.0])), "rtol must be a finite number >= 0"),
        (lambda: hj.Tsit5(rtol=torch.tensor([1e-3, 0.0]), atol=0.0), "not both be zero"),
        (lambda: hj.AdamsMoulton(max_order=13), "max_order must lie in 1 .. 12"),
        (lambda: PIController(floor=-1), "floor must be >= 0"),
        (lambda: PIController(safety=0), "safety"),
        (lambda: PIController(max_factor=1), "max_factor"),
        (lambda: PredictiveController(prediction=1.5), "prediction must lie in"),
        (lambda: PredictiveController(beta1=0.2), "give prediction, or the exponents"),
        (lambda: hj.PIDController(beta1=0.2), "give gains, or the exponents"),
        (lambda: hj.PIDController(integral=0.0), "integral must be positive"),
        (lambda: hj.GaussAdjoint(nodes=0), "nodes"),
        (lambda: hj.ode_algorithm("dopri"), "did you mean 'dopri"),
        (lambda: hj.ode_algorithm("rk4", rtol=1e-3), "RK4 has no option 'rtol'"),
        (lambda: hj.solve(field, hj.Tsit5()), "must be one of ODEProblem"),
        (lambda: hj.solve(hj.ODEProblem(field, Y0, (0, 1)), "tsit5"), "Tsit5()"),
        (lambda: hj.solve(hj.ODEProblem(field, Y0, (0, 1)), hj.Tsit5(), adjoint="direct"), "adjoint must be"),
        (
            lambda: hj.solve(hj.ODEProblem(field, Y0, (0, 1)), hj.Tsit5(), backend="torch"),
            "unknown backend 'torch'",
        ),
        (lambda: hj.create_model("homode", input_shape=(1, 8, 8), n_classes=2), "did you mean 'homoode'"),
        (
            lambda: hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=2, chanels=4),
            "did you mean 'channels'",
        ),
        (
            lambda: hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=2, channels=40),
            "multiple of 32",
        ),
        (lambda: hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=2, dropout=1.0), "dropout"),
        (lambda: hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=2, init="one"), "learned"),
    ],
)
def test_refused(make, message):
    with pytest.raises(hj.ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda t, y: y[:1], r"got shape \(1,\)"),
        (lambda t, y: y.double(), "float64"),
        (lambda t, y: 1.0, "must return a torch.Tensor, got float"),
    ],
)
@pytest.mark.parametrize("adjoint", [hj.DirectAdjoint(), hj.CheckpointAdjoint()])
def test_a_field_of_the_wrong_form_is_refused(bad, message, adjoint):
    with pytest.raises(hj.ConfigError, match=message):
        hj.solve(hj.ODEProblem(bad, Y0, (0, 1)), hj.Tsit5(), adjoint=adjoint)


SOLVES = """
import logging, sys, torch, homojl as hj
logging.basicConfig(level="INFO", format="%(name)s: %(message)s")
for _ in range(3):
    try:
        hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(2), (0, 1)), hj.Tsit5(), backend=sys.argv[1])
    except hj.BackendUnavailable as error:
        sys.exit(f"refused: {error}")
"""


def test_julia_is_never_replaced_silently(no_julia):
    done = subprocess.run([warm.python(), "-c", SOLVES, "julia"], env=no_julia, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("refused: ")
    assert "backend='pytorch'" in done.stderr


def test_auto_says_once_which_backend_it_took(no_julia):
    done = subprocess.run([warm.python(), "-c", SOLVES, "auto"], env=no_julia, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "homojl: backend auto: solving with PyTorch\n"


def test_every_public_name_exists():
    for name in hj.__all__:
        assert getattr(hj, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hj.nothing


@pytest.mark.parametrize("algorithm", [hj.RK4(), hj.Tsit5(), hj.Anderson()])
def test_tensors_without_values_are_refused(algorithm):
    def problem(**where):
        y0 = torch.ones(2, 3, **where)
        if isinstance(algorithm, hj.Anderson):
            return hj.FixedPointProblem(lambda z: z / 2, y0)
        return hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0))

    with pytest.raises(hj.ConfigError, match="the state is on the meta device"):
        hj.solve(problem(device="meta"), algorithm)
    with torch.device("meta"), pytest.raises(hj.ConfigError, match="torch's default device is the meta device"):
        hj.solve(problem(device="cpu"), algorithm)

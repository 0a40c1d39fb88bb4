"""What Python shows of results is one short line each."""

from __future__ import annotations

import torch

import homojl as hj
from homojl.training import ExperimentConfig, Run


def line(thing: object) -> str:
    text = repr(thing)
    assert "\n" not in text
    assert len(text) <= 120, text
    return text


def test_solutions():
    y0 = torch.ones(3, 2)
    ode = hj.solve(hj.ODEProblem(lambda t, y: -y, y0, (0.0, 0.5, 1.0)), hj.Tsit5(rtol=1e-3, atol=1e-3))
    assert line(ode).startswith("<Solution by Tsit5: SUCCESS at t = 1, 3 states (3, 2) float32, ")
    pair = hj.solve(hj.ODEProblem(lambda t, y: (-y[0], y[1]), (y0, y0), (0.0, 1.0)), hj.RK4())
    assert "2 tensors" in line(pair)
    rest = hj.solve(hj.FixedPointProblem(lambda z: 1 + z / 2, y0), hj.Anderson(rtol=1e-3))
    assert "SUCCESS, 3 of 3 converged, residual " in line(rest)
    assert "float32" in line(hj.solve(hj.FixedPointProblem(lambda z: z / 2, y0[:0]), hj.Picard(rtol=1e-3)))
    path = hj.solve(hj.HomotopyProblem(lambda z: z - 2, torch.zeros(1, dtype=torch.float64)), hj.ArcLength())
    assert line(path).startswith("<PathSolution by ArcLength: SUCCESS at lambda = 1, ")


def test_datasets_and_runs(tmp_path):
    assert line(hj.load_dataset("digits")) == "<ImageDataset digits: 1,438 + 359 images 1 x 8 x 8, 10 classes>"
    run = Run.create(tmp_path / "r", ExperimentConfig())
    assert repr(run) == f"<Run {run.path}: no epoch yet>"
    assert line(Run("r")) == "<Run r: no epoch yet>"

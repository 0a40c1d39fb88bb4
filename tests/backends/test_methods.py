"""Algorithms by their names in Julia, without Julia: what is known of them, and how they compare."""

from __future__ import annotations

from dataclasses import replace

import pytest

import homojl as hj
from homojl.algorithms.sciml import homes, packages
from homojl.backends.julia import methods


def test_the_packages_are_known():
    assert homes()["RadauIIA5"] == "OrdinaryDiffEqFIRK"
    assert homes()["LevenbergMarquardt"] == "NonlinearSolveFirstOrder"
    assert packages()["OrdinaryDiffEqFIRK"].orders["RadauIIA5"] == 5
    assert sum(len(entry.orders) for entry in packages().values() if entry.kind == "ode") > 200


def test_tolerances_are_the_problems():
    ode, root = hj.SciML("RadauIIA5"), hj.SciML("LevenbergMarquardt")
    assert (ode.rtol, ode.atol, ode.max_steps) == (1e-3, 1e-6, 10_000)
    assert (root.rtol, root.atol, root.max_steps) == (1e-4, 1e-6, 100)
    assert hj.SciML("Vern9").order == 9


def test_equal_ones_are_equal_and_copies_keep_everything():
    inner = hj.SciML("Rosenbrock23")
    one = hj.SciML("AutoTsit5", inner, rtol=1e-5, nonstifftol=0.9)
    assert one == hj.SciML("AutoTsit5", hj.SciML("Rosenbrock23"), rtol=1e-5, nonstifftol=0.9)
    assert hash(one) == hash(replace(one))
    other = replace(one, rtol=1e-7)
    assert (other.values, other.keywords, other.rtol, other.method) == (
        (inner,),
        (("nonstifftol", 0.9),),
        1e-7,
        one.name,
    )
    assert other != one
    assert hj.SciML("X", a=1) != hj.SciML("X", a=True)
    assert repr(one) == "SciML('AutoTsit5', rtol=1e-05, atol=1e-06, " + repr(inner) + ", nonstifftol=0.9)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "method must be a name"),
        ((3,), "method must be a name"),
        (("Tsit5", [1.0]), "must be numbers, strings or SciML"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(hj.ConfigError, match=message):
        hj.SciML(*arguments)
    with pytest.raises(hj.ConfigError, match="step_size must be positive"):
        hj.SciML("Euler", step_size=0)
    with pytest.raises(hj.ConfigError, match="rtol must be"):
        hj.SciML("Tsit5", rtol=-1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RadauIIA5", r"RadauIIA5 is in the Julia package OrdinaryDiffEqFIRK.*`homojl julia add OrdinaryDiffEqFIRK`"),
        ("Radau5IIA", r"did you mean 'RadauIIA5' of OrdinaryDiffEqFIRK.*julia add OrdinaryDiffEqFIRK"),
        ("Mine.Method", r"Method is in the Julia package Mine.*`homojl julia add Mine`"),
        ("qqqqqq", r"has an algorithm 'qqqqqq'; docs/sciml.md lists"),
    ],
)
def test_what_is_said_of_a_name_that_is_not_there(name, message):
    import re

    assert re.search(message, methods.unknown(name))


def test_every_algorithm_of_homojl_is_a_known_one_in_julia():
    for cls, spelled in methods.SHORT.items():
        method = spelled(cls())
        assert method.method in homes() or method.method.startswith("ZeroPaths."), cls
        assert methods.in_julia(cls())
    assert not methods.in_julia(hj.Dopri8())
    assert methods.in_julia(hj.ArcLength(predictor=hj.Tsit5()))
    assert not methods.in_julia(hj.ArcLength(predictor=hj.Dopri8()))


def test_a_method_of_julias_without_julia_says_how_to_get_it(monkeypatch):
    import torch

    from homojl import backends

    monkeypatch.setattr(backends, "automatic_backend", backends.TorchBackend)
    for algorithm in (hj.Rodas5P(), hj.SciML("RadauIIA5")):
        with pytest.raises(hj.BackendUnavailable, match=r"backend='julia' and Julia, which `homojl julia install`"):
            hj.solve(hj.ODEProblem(torch.neg, torch.ones(1), (0.0, 1.0)), algorithm)

"""The tables on the page on migrating are complete."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import homojl as hj
from homojl.compat.methods import ADAPTIVE_OPTIONS, FIXED_OPTIONS, METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_methods_table_is_the_one_in_use():
    listed = {}
    for row in re.findall(r'^\| (`".*)$', TEXT, flags=re.MULTILINE):
        cells = row.split("|")
        names = re.findall(r'`"(\w+)"`', cells[0])
        classes = [c for c in re.findall(r"`(\w+)`", cells[1]) if hasattr(hj, c)]
        listed |= dict.fromkeys(names, classes)
    assert listed.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        assert cls.__name__ in listed[name], name


def test_every_option_is_on_the_page():
    for option in {*ADAPTIVE_OPTIONS, *FIXED_OPTIONS}:
        assert f"`{option}`" in TEXT, option


def test_the_table_of_calls_tells_the_truth():
    def func(t, y):
        return -y * torch.cos(t)

    y0, t = torch.ones(2, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
    solved = hj.solve(hj.ODEProblem(func, y0, t), hj.Dopri5(rtol=1e-7, atol=1e-9), backend="pytorch").ys
    assert torch.equal(hj.odeint(func, y0, t), solved)

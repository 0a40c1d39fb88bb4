"""What zero paths show: their distance from each other, and their figure."""

from __future__ import annotations

import warnings

import pytest
import torch

import homojl as hj
from homojl import gallery
from homojl.models.correspondence import recover
from homojl.results.paths import draw_correspondence, draw_paths, hausdorff_distance, points_of
from homojl.solution import PathSolution, Stats, Status


def _path(*points: tuple[float, float]) -> PathSolution:
    """A path of one element of z through points (z, lambda)."""
    z, lambdas = torch.tensor(points, dtype=torch.float64).T
    states = tuple(z[:, None])
    return PathSolution(
        s=torch.arange(len(points)).double(),
        lambdas=lambdas,
        states=states,
        residuals=torch.zeros(len(points)),
        value=states[-1],
        folds=0,
        status=Status.SUCCESS,
        stats=Stats(),
    )


def test_distance_is_between_lines_and_not_between_points():
    line = _path((0, 0), (0, 1))
    assert hausdorff_distance(line, line) == 0
    assert hausdorff_distance(line, _path((0, 0), (0, 0.3), (0, 1))) == 0
    assert hausdorff_distance(line, _path((0.5, 0), (0.5, 1))) == pytest.approx(0.5)
    # A spike of one path is far from the other, whichever comes first.
    spike = _path((0, 0), (2, 0.5), (0, 1))
    assert hausdorff_distance(line, spike) == hausdorff_distance(spike, line) == pytest.approx(2)


def test_points_are_flat_states_and_lambda():
    solution = hj.solve(gallery.get("conv-layer").problem(), hj.ArcLength(), backend="pytorch")
    points = points_of(solution)
    assert points.shape == (len(solution.s), 6 * 8 * 8 + 1)
    assert points[-1, -1] == 1


@pytest.mark.parametrize("name", ["fold", "himmelblau", "tanh-layer"])
def test_figures_of_small_and_large_states(name, tmp_path):
    problem = gallery.get(name).problem()
    paths = {f"v = {v}": hj.solve(problem, hj.ArcLength(velocity=v), backend="pytorch") for v in (1, 5)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = draw_paths(paths, tmp_path / "figures", title=name)
    assert [file.name for file in files] == ["path.png", "path.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    text = files[1].read_text()
    assert all(word in text for word in ("v = 1", "v = 5", "λ", name))


@pytest.mark.parametrize("given", [False, True])
def test_figures_of_trajectories(given, tmp_path):
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    z, g = torch.stack([s, s**2, 3 * s**3], dim=1)[:, :, None], torch.stack([s**0, 2 * s, 9 * s**2], dim=1)[:, :, None]
    z, g = torch.cat([z, z**2], dim=2), torch.cat([g, 2 * z * g], dim=2)
    # Of constant velocities only the first sample has one; the others leave gaps in the figure, and no warning.
    read = recover(s, z, g, velocity="constant", f=(lambda z: z + 1) if given else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = draw_correspondence(read, tmp_path, title="cubes", names=["one", "two", "three"])
    assert [file.name for file in files] == ["correspondence.png", "correspondence.svg"]
    text = files[1].read_text()
    assert all(word in text for word in ("cubes", "three", "λ(s)", "v(s)"))
    assert ("no λ removes" in text) == given


def test_a_missing_tree_of_folders_is_made(tmp_path):
    path = _path((0, 0), (1, 1))
    files = draw_paths({"only": path}, tmp_path / "a" / "b", title="t", formats=("svg",))
    assert files == [tmp_path / "a" / "b" / "path.svg"]

"""Figures: all that the data allows, in every format, with labelled axes, and nothing else changed."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from homojl.errors import ConfigError, DataError
from homojl.results import plots
from homojl.results.records import METRICS, RunRecord, Trajectories
from homojl.results.style import PALETTE, style

ALL = ["learning_curves", "solver_cost", "confusion_matrix", "trajectories", "initial_point"]
BOTH = ("png", "svg")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def drawn(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every figure of a complete record, by file name."""
    folder = tmp_path_factory.mktemp("run") / "figures"
    return {path.name: path for path in plots.draw_all(record, folder, formats=BOTH)}


def texts(path: Path) -> list[str]:
    """The texts of an SVG file."""
    return ["".join(element.itertext()) for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_every_figure_in_both_formats(drawn: dict[str, Path]):
    assert list(drawn) == [f"{stem}.{suffix}" for stem in ALL for suffix in BOTH]
    assert list(plots.FIGURES) == ALL
    folder = next(iter(drawn.values())).parent
    assert sorted(drawn) == sorted(path.name for path in folder.iterdir())  # no temporary file is left


def test_png_is_what_is_drawn_unless_more_is_wanted(drawn: dict[str, Path], record: RunRecord, tmp_path: Path):
    paths = plots.draw_all(record, tmp_path / "all")
    assert [path.name for path in paths] == [f"{stem}.png" for stem in ALL]
    (one,) = plots.draw_all(record, tmp_path / "one", stems=["solver_cost"])
    assert one.name == "solver_cost.png"
    assert one.read_bytes() == drawn["solver_cost.png"].read_bytes()


def test_what_is_written_is_what_matplotlib_would_write(drawn: dict[str, Path], record: RunRecord):
    figure, buffer = plots.confusion_matrix(record), io.BytesIO()
    with style():
        figure.savefig(buffer, format="png")
    buffer.seek(0)
    there = matplotlib_image.imread(drawn["confusion_matrix.png"])
    assert np.array_equal(matplotlib_image.imread(buffer), there)


@pytest.mark.parametrize("stem", ALL)
def test_png_is_a_picture(drawn: dict[str, Path], stem: str):
    pixels = matplotlib_image.imread(drawn[f"{stem}.png"])
    height, width = pixels.shape[:2]
    assert 1200 <= width <= 2600
    assert 500 <= height <= 1400
    assert 0.02 < np.mean(pixels[..., :3] < 0.9) < 0.9  # neither blank nor full


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("learning_curves", ["epoch", "mean cross-entropy [nat]", "accuracy [%]", "test (best, epoch 6)"]),
        ("solver_cost", ["epoch", "mean per pass [evaluations]", "mean per training forward pass [steps]"]),
        ("confusion_matrix", ["true class", "predicted class", "share of the true class [%]", "seven"]),
        ("trajectories", ["s", "distance from the straight line / ‖z(1) − z(0)‖", "true class"]),
        ("initial_point", ["channel", "initial point z(0)"]),
    ],
)
def test_svg_has_title_and_axis_labels(drawn: dict[str, Path], stem: str, expected: list[str]):
    found = texts(drawn[f"{stem}.svg"])
    assert set(expected) <= set(found)
    assert any(text.endswith(": homoode on svhn") for text in found)


def test_units_come_from_the_metrics(record: RunRecord, monkeypatch):
    monkeypatch.setitem(METRICS, "train_loss", dataclasses.replace(METRICS["train_loss"], unit="bit"))
    assert plots.learning_curves(record).axes[0].get_ylabel() == "mean cross-entropy [bit]"


def test_figures_are_the_same_bytes_each_time(drawn: dict[str, Path], record: RunRecord, tmp_path: Path):
    for path in plots.draw_all(record, tmp_path, formats=BOTH):
        assert path.read_bytes() == drawn[path.name].read_bytes()


def test_curves_show_the_numbers(record: RunRecord):
    loss, accuracy = plots.learning_curves(record).axes
    for axes, kind in ((loss, "loss"), (accuracy, "accuracy")):
        for line, split in zip(axes.lines[:2], ("train", "val"), strict=True):
            assert line.get_ydata().tolist() == [row[f"{split}_{kind}"] for row in record.metrics]
            assert line.get_xdata().tolist() == [row["epoch"] for row in record.metrics]
    work = plots.solver_cost(record).axes[0]
    assert [line.get_ydata()[-1] for line in work.lines] == [
        record.metrics[-1][name] for name in ("nfe_forward", "nfe_backward", "nfe_val")
    ]


def test_one_epoch_is_readable(make, tmp_path: Path):
    record = make(epochs=1)
    for figure in (plots.learning_curves(record), plots.solver_cost(record)):
        for axes in figure.axes:
            lines = [line for line in axes.lines if len(line.get_xdata()) == 1]
            assert len(lines) >= 2
            assert all(line.get_marker() not in ("", "None", None) for line in lines)
            assert axes.get_xticks().tolist() == [1]


def test_failed_solves_are_named(record: RunRecord):
    rows = [dict(row, failed_solves=2) for row in record.metrics]
    axes = plots.solver_cost(dataclasses.replace(record, metrics=rows)).axes[1]
    assert axes.get_title() == "12 training solves did not reach their end"


def test_a_missing_part_leaves_out_its_figure(record: RunRecord, bare: RunRecord, tmp_path: Path):
    without = {
        "confusion_matrix": {"evaluation": None},
        "trajectories": {"trajectories": None, "images": None},
        "initial_point": {"initial_point": None},
    }
    for stem, change in without.items():
        lacking = dataclasses.replace(record, **change)
        stems = {path.stem for path in plots.draw_all(lacking, tmp_path / stem, formats=["svg"])}
        assert stems == set(ALL) - {stem}
        with pytest.raises(ConfigError, match=stem):
            getattr(plots, stem)(lacking)
    assert plots.draw_all(dataclasses.replace(bare, metrics=[]), tmp_path / "nothing") == []


def test_a_run_without_validation_or_with_divergence(record: RunRecord, tmp_path: Path):
    nothing = {name: float("nan") for name in METRICS if name not in ("epoch", "failed_solves")}
    rows = [dict(row, val_loss=float("nan"), val_accuracy=float("nan")) for row in record.metrics]
    axes = plots.learning_curves(dataclasses.replace(record, metrics=rows)).axes[0]
    assert [line.get_label() for line in axes.lines] == ["training"]
    rows = [{**row, **nothing} for row in record.metrics]
    z = record.trajectories.z.copy()
    z[0, 5:] = np.inf
    diverged = dataclasses.replace(
        record, metrics=rows, trajectories=dataclasses.replace(record.trajectories, z=z), images=None
    )
    assert len(plots.draw_all(diverged, tmp_path, formats=["png"])) == len(ALL)
    z[...] = np.nan
    assert len(plots.draw_all(diverged, tmp_path, formats=["png"])) == len(ALL) - 1


def test_confusion_counts_and_worst_pairs(record: RunRecord):
    answers = record.evaluation
    counts = plots.confusion_counts(answers, 10)
    expected = np.zeros((10, 10), int)
    for true, taken in zip(answers.labels, answers.predictions, strict=True):
        expected[true, taken] += 1
    assert counts.tolist() == expected.tolist()
    pairs = plots.most_confused(counts, 7)
    mistakes = sorted((counts[i, j] for i in range(10) for j in range(10) if i != j), reverse=True)
    assert [n for *_, n in pairs] == mistakes[:7]
    assert all(counts[true, taken] == n and true != taken for true, taken, n in pairs)
    assert plots.most_confused(np.diag([5, 3]), 7) == []


def test_confusion_matrix_shows_counts_and_colours_shares_of_the_true_class(record: RunRecord):
    axes, bar = plots.confusion_matrix(record).axes
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares.sum(axis=1), 100)
    counts = plots.confusion_counts(record.evaluation, 10)
    assert [int(text.get_text()) for text in axes.texts] == counts[counts > 0].tolist()
    assert bar.get_ylabel() == "share of the true class [%]"


def test_a_hundred_classes_are_readable(make):
    names = tuple(f"class {number}" for number in range(100))
    record = make(class_names=names, images=5000)
    matrix, mistakes = plots.confusion_matrix(record).axes[:2]
    assert len(matrix.texts) == 0  # ten thousand numbers would not be
    labels = [text.get_text() for text in mistakes.get_yticklabels()]
    true, taken, _ = plots.most_confused(plots.confusion_counts(record.evaluation, 100), 1)[0]
    assert labels[-1] == f"{names[true]} → {names[taken]}"
    assert len(labels) == 15


def test_a_class_without_images(record: RunRecord):
    keep = record.evaluation.labels != 3
    answers = dataclasses.replace(
        record.evaluation,
        labels=record.evaluation.labels[keep],
        predictions=record.evaluation.predictions[keep],
    )
    shares = plots.confusion_matrix(dataclasses.replace(record, evaluation=answers)).axes[0].images[0].get_array()
    assert np.ma.getmaskarray(shares)[3].all() or np.isnan(np.asarray(shares)[3]).all()


def test_paths_keep_their_bends_and_distances(record: RunRecord):
    """Paths in a plane are drawn as they are, up to a rotation."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(12, 2)))[0].T
    flat = rng.normal(size=(3, 9, 2)).astype("float32")
    z = (flat @ plane.astype("float32")).reshape(3, 9, 3, 2, 2)
    paths = Trajectories(s=np.linspace(0, 1, 9), z=z, index=np.arange(3), labels=np.array([4, 4, 1]))
    moved, projected = plots.trajectories(dataclasses.replace(record, trajectories=paths, images=None)).axes
    for sample, line in zip(flat, moved.lines, strict=True):
        np.testing.assert_allclose(line.get_ydata(), plots.bend(sample.astype(float)), atol=1e-5)
    curves = [line.get_xydata() for line in projected.lines if len(line.get_xdata()) == 9]
    drawn, given = np.concatenate(curves), flat.reshape(-1, 2)
    np.testing.assert_allclose(
        np.linalg.norm(drawn[:, None] - drawn, axis=2),
        np.linalg.norm(given[:, None] - given, axis=2),
        atol=1e-5,
    )
    assert [text.get_text() for text in projected.get_legend().get_texts()] == ["one", "four"]
    shares = [float(axis.get_label_text().split("(")[1].split(" %")[0]) for axis in (projected.xaxis, projected.yaxis)]
    assert sum(shares) == pytest.approx(100, abs=1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5, 1), (3, 2, 4), (20, 4, 2, 2, 2)])
def test_trajectories_of_any_size(make, tmp_path: Path, shape: tuple[int, ...]):
    names = tuple(f"${number}$" for number in range(20))
    record = make(class_names=names)
    z = np.random.default_rng(1).normal(size=shape).astype("float32")
    samples, times = shape[:2]
    paths = Trajectories(s=np.linspace(0, 1, times), z=z, index=np.arange(samples), labels=np.arange(samples))
    colour = np.zeros((samples, 4, 4, 3), "uint8")
    changed = dataclasses.replace(record, trajectories=paths, images=colour)
    path = next(p for p in plots.draw_all(changed, tmp_path, formats=["svg"]) if p.stem == "trajectories")
    assert "$0$" in texts(path)
    assert ("and 6 more" in texts(path)) == (samples == 20)


def test_palette_is_safe_for_the_colour_blind():
    okabe_ito = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
    assert len(set(PALETTE)) == 7
    assert set(PALETTE) < okabe_ito


def test_nothing_outside_changes(record: RunRecord, tmp_path: Path):
    with matplotlib.rc_context({"font.size": 31, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        plots.draw_all(record, tmp_path, formats=["svg"])
        assert dict(matplotlib.rcParams) == before
        assert plots.initial_point(record).axes[0].xaxis.label.get_size() == 12  # not the user's 31


def test_neither_matplotlib_nor_pyplot_is_loaded_early():
    code = (
        "import sys, homojl.results.plots as p; assert 'matplotlib' not in sys.modules;"
        "from conftest import make_record; p.learning_curves(make_record());"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_without_matplotlib(record: RunRecord, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'homojl\[plots\]'"):
        plots.draw_all(record, tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'homojl\[plots\]'"):
        plots.learning_curves(record)


def test_what_cannot_be_written_is_one_line(record: RunRecord, tmp_path: Path):
    with pytest.raises(ConfigError, match="unknown figure format 'bmp'; known: png, svg, pdf"):
        plots.draw_all(record, tmp_path / "figures", formats=["png", "bmp"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the folder"):
        plots.draw_all(record, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert plots.draw_all(record, tmp_path, formats=["pdf"])[0].read_bytes().startswith(b"%PDF")


def test_a_log_axis_begins_at_a_tick():
    from homojl.results.style import log_axis, new_figure

    for values, low in (((0.031, 2.0), 0.02), ((0.03, 40.0), 0.01)):
        with new_figure("x", (4, 3)) as figure:
            axes = figure.subplots()
            axes.set_yscale("log")
            axes.plot(values)
            log_axis(axes.yaxis)
            assert axes.get_ylim()[0] == pytest.approx(low)
            assert min(abs(tick - low) for tick in axes.get_yticks()) < 1e-9


def test_the_bend_of_a_path():
    from homojl.results.plots import bend

    angle = np.linspace(0, np.pi, 101)
    half_circle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    assert bend(half_circle).max() == pytest.approx(0.5)
    assert bend(np.linspace(0, 1, 5)[:, None] * np.ones(3)).max() == pytest.approx(0, abs=1e-12)
    assert bend(np.ones((4, 2))).tolist() == [0] * 4

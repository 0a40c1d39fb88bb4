"""The HTML report: its numbers, names from outside, and whole or not at all."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from homojl.errors import DataError
from homojl.results.answers import class_table, confusion_counts, hardest, losses, samples
from homojl.results.facts import facts
from homojl.results.page import ReportedRun, page, write_page
from homojl.results.page.charts import Line, line_chart, log_ticks, tick_step, ticks
from homojl.results.page.content import (
    LEARNING,
    SOLVES,
    charts,
    confusion_picture,
    confusion_rows,
    phases,
    settings,
)
from homojl.results.records import METRICS, RunRecord

HOSTILE = (
    "<script>hacked = 1</script>", '"><img src=x onerror=hacked=1>', "</title><h1>", "{{ 7 * 7 }}", "a&amp;b",
    "\u202egnp.exe", "'", "</style>", "<!--", "\udc80",
)  # fmt: skip


def reported(name: str, record: RunRecord, count: int = 6) -> ReportedRun:
    """A run with `count` grey images; image n is all of grey n."""
    worst = hardest(record.evaluation, count)
    grey = np.arange(len(worst), dtype=np.uint8)[:, None, None]
    return ReportedRun(name, record, worst, np.broadcast_to(grey, (len(worst), 8, 6)), ("Worth knowing.",))


def test_the_figures_are_the_records(record: RunRecord):
    shown = {fact.label: fact for fact in facts(record)}
    assert shown["Test accuracy"].value == f"{100 * record.evaluation.accuracy:.2f} %"
    assert shown["Validation accuracy"].order == max(row["val_accuracy"] for row in record.metrics)
    assert shown["Training time"].order == sum(row["seconds"] for row in record.metrics)
    assert shown["Peak memory"].value == "812 MiB"
    assert shown["Peak memory"].detail.startswith("420 MiB")
    assert shown["Failed solves"].detail == "of 720 in training; 0 of 9 on the test set"
    assert [fact.label for fact in facts(dataclasses.replace(record, evaluation=None))] == list(shown)


def test_answers_on_the_validation_split_are_never_called_those_on_the_test_set(record: RunRecord):
    validated = dataclasses.replace(record, evaluation=dataclasses.replace(record.evaluation, split="val"))
    shown = {fact.label: fact for fact in facts(validated)}
    assert shown["Test accuracy"].value == "not evaluated"
    assert shown["Loss"].detail == "mean cross-entropy on the validation split"
    assert "test set" not in page([reported("r", validated)]).partition('id="meaning"')[0]


def test_losses_are_cross_entropies(record: RunRecord):
    evaluation = record.evaluation
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(evaluation.logits).double(), torch.from_numpy(evaluation.labels), reduction="none"
    )
    np.testing.assert_allclose(losses(evaluation), expected.numpy(), rtol=1e-12)
    worst = hardest(evaluation, 25)
    np.testing.assert_allclose(losses(evaluation)[worst], sorted(expected.tolist(), reverse=True)[:25], rtol=1e-12)
    assert len(hardest(evaluation, 10**6)) == len(evaluation.labels)


def test_images_without_a_finite_loss_come_first(record: RunRecord):
    logits = record.evaluation.logits.copy()
    logits[41], logits[7, 3] = np.nan, np.inf
    evaluation = dataclasses.replace(record.evaluation, logits=logits)
    worst = hardest(evaluation, 3)
    assert worst[:2].tolist() == [7, 41]
    shown = samples(evaluation, record.class_names, worst, np.zeros((3, 4, 4), np.uint8))
    assert [sample.loss == "not finite" for sample in shown] == [True, True, False]


def test_samples_show_their_images_and_classes(record: RunRecord):
    run, evaluation = reported("r", record), record.evaluation
    for number, sample in enumerate(samples(evaluation, record.class_names, run.worst, run.images)):
        assert sample.image.shape == (8, 6)
        assert np.unique(sample.image).tolist() == [number]
        position = run.worst[number]
        assert sample.position == evaluation.index[position]
        assert sample.true == record.class_names[evaluation.labels[position]]
        assert sample.predicted == record.class_names[evaluation.predictions[position]]
        assert sample.right == (sample.true == sample.predicted)
        assert float(sample.probability[:-2]) == pytest.approx(100 * math.exp(-float(sample.loss)), abs=0.1)


def test_images_are_in_the_page(record: RunRecord):
    uris = re.findall(r'<img src="data:image/png;base64,(.*?)" width="6" height="8"', page([reported("r", record)]))
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))) for uri in uris]
    assert [np.unique(picture).tolist() for picture in pictures] == [[number] for number in range(6)]


def test_the_confusion_matrix_counts_every_image(record: RunRecord):
    counts = confusion_counts(record.evaluation, 10)
    rows = confusion_rows(counts, record.class_names)
    assert sum(cell.count for _, cells, _ in rows for cell in cells) == 900
    for k, (name, cells, accuracy) in enumerate(rows):
        mine = record.evaluation.labels == k
        assert name == record.class_names[k]
        assert cells[k].count == np.sum(mine & _right(record))
        assert [cell.right for cell in cells] == [j == k for j in range(10)]
        assert accuracy == f"{100 * cells[k].count / mine.sum():.1f} %"


def test_many_classes_are_a_picture(make):
    record = make(class_names=tuple(f"class {number}" for number in range(100)), images=3000)
    counts = confusion_counts(record.evaluation, 100)
    picture = confusion_picture(counts)
    assert picture.shape == (100, 100, 4)
    pairs = np.zeros((100, 100), bool)
    pairs[record.evaluation.labels, record.evaluation.predictions] = True
    assert np.array_equal(picture[..., 3] > 0, pairs)
    shares = [int(row[2]) / int(row[1]) for row in class_table(counts, record.class_names).rows]
    assert shares == sorted(shares)
    assert len(shares) == 10
    assert confusion_rows(counts, record.class_names) == []
    assert 'class="confusion" src="data:image/png;base64,' in page([ReportedRun("r", record)])


def _right(record: RunRecord) -> np.ndarray:
    return record.evaluation.labels == record.evaluation.predictions


def test_phases_are_shares_of_the_time_and_older_runs_have_none(record: RunRecord):
    old = [{k: v for k, v in row.items() if not METRICS[k].optional} for row in record.metrics]
    table = phases([reported("new", record), reported("old", dataclasses.replace(record, metrics=old))])
    assert [bool(bar) for bar in table.bars] == [True, False]
    shares = [float(re.search(r"\(([\d.]+) %\)", new)[1]) for _, _, (new, _) in table.rows]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    seconds = sum(row["backward_seconds"] for row in record.metrics)
    whole = sum(row[f"{n}_seconds"] for row in record.metrics for n in
                ("data", "forward", "backward", "optimizer", "validation"))  # fmt: skip
    assert shares[3] == pytest.approx(100 * seconds / whole, abs=0.06)
    assert {old for _, _, (_, old) in table.rows} == {"not measured"}


def test_settings_say_where_runs_differ():
    sections = settings([{"seed": 1, "solver": {"rtol": 1e-3, "name": "a"}}, {"seed": 1, "solver": {"rtol": 1e-5}}])
    assert [(line.key, line.values, line.differs) for line in sections["solver"]] == [
        ("rtol", ("0.001", "1e-05"), True), ("name", ("a", "–"), True),
    ]  # fmt: skip
    assert [line.differs for line in sections[""]] == [False]


class TestCharts:
    @given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
    def test_ticks_are_few_round_and_within(self, low: float, span: float):
        high = low + span
        if high - low < 1e-9 * abs(low):
            return
        step = tick_step(low, high)
        assert f"{step:e}"[0] in "125"
        marks = ticks(low, high, step)
        assert 2 <= len(marks) <= 7
        assert low - 1e-6 * step <= marks[0] <= marks[-1] <= high + 1e-6 * step

    @given(st.floats(1e-9, 1e9), st.floats(50, 1e9))
    def test_logarithmic_ticks(self, low: float, ratio: float):
        marks = log_ticks(low, low * ratio)
        assert len(marks) >= 1
        assert all(low <= mark <= low * ratio for mark in marks)

    @pytest.mark.parametrize(
        "values",
        [[1.0], [0.0, 0.0], [2.5, 2.5, 2.5], [1e-9, 1e9], [math.nan, 3.0, math.inf], [-1.0, 1.0], [1e300, -1e300]],
    )
    @pytest.mark.parametrize("zero", [True, False])
    def test_all_points_lie_within_the_chart(self, values: list[float], zero: bool):
        line = Line("r", 0, False, list(range(1, len(values) + 1)), values)
        svg = line_chart([line], label="x", unit="", zero=zero)
        assert "nan" not in svg
        assert "inf" not in svg
        (path,) = re.findall(r'class="line" d="M(.*?)"', svg)
        for point in path.split("L"):
            x, y = map(float, point.split())
            assert 0 <= x <= 440
            assert 0 <= y <= 250

    def test_nothing_to_show(self, record: RunRecord):
        assert line_chart([Line("r", 0, False, [1], [math.nan])], label="", unit="", zero=True) == ""
        rows = [dict.fromkeys(METRICS, math.nan) | {"epoch": row["epoch"]} for row in record.metrics]
        assert charts(LEARNING, [reported("r", dataclasses.replace(record, metrics=rows))]) == []

    def test_failed_solves_are_drawn_where_there_are_any(self, record: RunRecord):
        assert "Failed solves" not in [chart.title for chart in charts(SOLVES, [reported("r", record)])]
        rows = [row | {"failed_solves": 2} for row in record.metrics]
        drawn = charts(SOLVES, [reported("r", dataclasses.replace(record, metrics=rows))])
        assert "Failed solves" in [chart.title for chart in drawn]


def test_a_diverged_or_young_run_is_reported(record: RunRecord, bare: RunRecord):
    rows = [dict.fromkeys(METRICS, math.nan) | {"epoch": row["epoch"], "step": 1} for row in record.metrics]
    for metrics in (rows, []):
        text = page([ReportedRun("r", dataclasses.replace(bare, metrics=metrics)), reported("s", record)])
        assert "not evaluated" in text


def test_names_stay_text(record: RunRecord):
    config = {"model": {"name": HOSTILE[0]}, "data": {"dataset": HOSTILE[1]}, HOSTILE[2]: {HOSTILE[3]: HOSTILE[0]}}
    record = dataclasses.replace(record, class_names=HOSTILE, config=config, environment={HOSTILE[0]: HOSTILE[1]})
    for runs in ([reported(HOSTILE[0], record)], [reported(HOSTILE[1], record), reported(HOSTILE[2], record)]):
        text = page(runs)
        tags = re.findall(r"<(/?[a-zA-Z!][\w-]*)", text)
        assert tags.count("script") == tags.count("h1") == tags.count("style") == 1
        assert "<img src=x" not in text
        assert "{{ 7 * 7 }}" in text


def test_nothing_outside_is_named(record: RunRecord):
    text = page([reported("a", record), reported("b", record)])
    assert set(re.findall(r'\b(?:src|href|srcset|action)="([^"]{0,5})', text)) <= {"data:", "data:,"} | {
        link[:5] for link in re.findall(r'href="(#\w+)"', text)
    }
    assert not re.search(r"url\(|@import|https?://", text)


def test_whole_or_not_at_all(record: RunRecord, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("what was there")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*report\.html: No space left on device"):
        write_page(path, [reported("r", record)])
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there"]

"""The report says what the record holds, and its links lead somewhere."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from homojl.errors import ConfigError, DataError
from homojl.results.plots import draw_all
from homojl.results.records import METRICS, RunRecord
from homojl.results.report import write_report


def report(record: RunRecord, folder: Path, figures: list[Path] | tuple = ()) -> str:
    write_report(folder / "report.md", record, figures)
    return (folder / "report.md").read_text("utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, its head left out; every line has as many as the head."""
    after = text.split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\|\n)+", after, re.M)[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    return cells[2:]


def summary(text: str) -> dict[str, str]:
    return dict(table(text, "# homoode on svhn"))


def test_the_summary_has_the_right_numbers(record: RunRecord, tmp_path: Path):
    text = report(record, tmp_path)
    rows, answers = summary(text), record.evaluation
    assert text.startswith("# homoode on svhn\n")
    right = np.sum(answers.labels == answers.predictions)
    assert rows["Test accuracy"].startswith(f"{100 * answers.accuracy:.2f} % ({right} of 900 right; 95 % interval ")
    assert rows["Loss"] == f"{answers.loss:.4g} nat (mean cross-entropy on the test set)"
    best = max(row["val_accuracy"] for row in record.metrics)
    assert rows["Validation accuracy"] == f"{100 * best:.2f} % (the highest, after epoch 6 of 6)"
    assert rows["Parameters"] == "132,874 (and 6 of the shared initial point)"
    assert rows["Checkpoint"] == "best, epoch 6"
    assert rows["Evaluations"].startswith(f"{answers.nfe.mean():.1f} (per forward pass on the test set, ")
    assert rows["Failed solves"] == "0 (of 720 in training; 0 of 9 on the test set)"
    assert rows["Time on the test set"] == "4.25 s, 4.72 ms an image"
    assert rows["Training time"] == "9 min 54 s (1 min 39 s an epoch, 6 in all)"
    assert rows["Peak memory"] == "812 MiB (420 MiB of it before the first step)"
    for setting in (
        "backend pytorch",
        "algorithm Dopri5",
        "rtol 0.001",
        "atol 0.001",
        "adjoint CheckpointAdjoint",
    ):
        assert setting in rows["Solver"]
    assert "auto" not in rows["Solver"]  # the backend that was used, not the one that was asked for


def test_the_interval_is_wilsons(record: RunRecord, tmp_path: Path):
    """The ends p of the interval are where |share - p| is 1.96 standard deviations of a share p."""
    found = re.search(r"interval ([\d.]+) to ([\d.]+) %", report(record, tmp_path))
    share, n = record.evaluation.accuracy, 900
    for end in found.groups():
        p = float(end) / 100
        assert abs(share - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n), abs=7e-4)


def test_the_last_epoch(record: RunRecord, tmp_path: Path):
    rows = {row[0].strip("`"): row[1:] for row in table(report(record, tmp_path), "## After the last epoch")}
    assert list(rows) == list(METRICS)
    assert rows["step"] == ["720", "", METRICS["step"].description]
    assert float(rows["val_loss"][0]) == pytest.approx(record.metrics[-1]["val_loss"], rel=1e-3)
    for name, (_, unit, description) in rows.items():
        assert unit == ("" if METRICS[name].unit == "1" else METRICS[name].unit)
        assert re.sub(r"\\(.)", r"\1", description) == METRICS[name].description


def test_classes_and_mistakes(record: RunRecord, tmp_path: Path):
    text, answers = report(record, tmp_path), record.evaluation
    rows = table(text, "## Accuracy of each class")
    assert [row[0] for row in rows] == list(record.class_names)
    for k, (_, images, right, accuracy) in enumerate(rows):
        mine = answers.labels == k
        hits = np.sum(answers.predictions[mine] == k)
        assert (int(images), int(right)) == (mine.sum(), hits)
        assert accuracy == f"{100 * hits / mine.sum():.2f} %"
    for true, taken, images, share in table(text, "## The most frequent mistakes"):
        i, j = record.class_names.index(true), record.class_names.index(taken)
        n = np.sum((answers.labels == i) & (answers.predictions == j))
        assert i != j
        assert int(images) == n
        assert share == f"{100 * n / np.sum(answers.labels == i):.2f} %"


def test_many_classes_show_the_worst(make, tmp_path: Path):
    record = make(class_names=tuple(f"class {number}" for number in range(100)), images=3000)
    text, answers = report(record, tmp_path), record.evaluation
    rows = table(text, "## The 10 classes of the lowest accuracy, of 100")
    hit = [np.mean(answers.predictions[answers.labels == k] == k) for k in range(100)]
    assert [row[3] for row in rows] == [f"{100 * share:.2f} %" for share in sorted(hit)[:10]]


def test_links_lead_to_files(record: RunRecord, tmp_path: Path):
    folder = tmp_path / "my run"
    figures = draw_all(record, folder / "the figures", formats=["png", "svg"])
    text = report(record, folder, figures)
    links = re.findall(r"\]\((.*?)\)", text)
    assert {(folder / unquote(link)).resolve() for link in links} == {path.resolve() for path in figures}
    assert all(" " not in link and not link.startswith("/") for link in links)
    shown = re.findall(r"!\[(.+?)\]\(.*?/(\w+)\.png\)", text)
    assert [stem for _, stem in shown] == list(dict.fromkeys(path.stem for path in figures))
    assert "## Figures" not in report(record, folder)


def test_before_an_evaluation(bare: RunRecord, tmp_path: Path):
    text = report(bare, tmp_path)
    rows = summary(text)
    assert rows["Test accuracy"].startswith("not evaluated")
    assert rows["Parameters"] == "132,874"
    assert rows["Solver"] == "algorithm dopri5, rtol 0.001, atol 0.001, adjoint checkpoint, backend auto"
    assert "Checkpoint" not in rows
    assert "Accuracy of each class" not in text
    untrained = report(dataclasses.replace(bare, metrics=[]), tmp_path)
    assert "No epoch has been completed yet." in untrained
    assert summary(untrained)["Validation accuracy"] == "not measured (no epoch completed yet)"


def test_without_a_validation_split(record: RunRecord, tmp_path: Path):
    rows = [dict(row, val_loss=math.nan, val_accuracy=math.nan) for row in record.metrics]
    text = report(dataclasses.replace(record, metrics=rows), tmp_path)
    assert summary(text)["Validation accuracy"] == "not measured (no validation split)"
    assert ["`val_loss`", "not measured", "nat", METRICS["val_loss"].description] in table(
        text, "## After the last epoch"
    )


def test_a_diverged_run_is_reported(record: RunRecord, tmp_path: Path):
    rows = [dict.fromkeys(METRICS, math.nan) | {"epoch": row["epoch"]} for row in record.metrics]
    text = report(dataclasses.replace(record, metrics=rows), tmp_path)
    assert summary(text)["Training time"] == "–"
    assert len(re.findall(r"^\| `\w+` \| not measured", text, re.M)) == len(METRICS) - 1


def test_the_configuration_can_be_used_again(record: RunRecord, tmp_path: Path):
    config = {"model": {"name": "homoode"}, "data": {"dataset": "svhn", "root": "```\n[a|b]"}}
    for record_ in (record, dataclasses.replace(record, config=config)):
        text = report(record_, tmp_path)
        fence, block = re.search(r"^(`+)toml\n(.*?)\n\1$", text, re.M | re.S).groups()
        assert tomllib.loads(block) == record_.config
        assert fence not in block
    assert "homojl train --config config.toml" in text


def test_environment(record: RunRecord, tmp_path: Path):
    rows = dict(table(report(record, tmp_path), "## Environment"))
    assert rows["`packages.torch`"] == "2.13.0"
    assert rows["`platform`"] == r"Linux-6.1-x86\_64"
    assert rows["`command`"] == "homojl train --preset homoode-svhn"
    assert rows["`commit`"] == "none"


def test_names_cannot_break_the_tables(record: RunRecord, tmp_path: Path):
    names = ("a|b", "*c*", "<i>d", "[e](f)", "`g`", "h\ni", "", "7", "8", "9")
    text = report(dataclasses.replace(record, class_names=names), tmp_path)
    shown = [re.sub(r"\\(.)", r"\1", row[0]) for row in table(text, "## Accuracy of each class")]
    assert shown == ["a|b", "*c*", "<i>d", "[e](f)", "`g`", "h i", "", "7", "8", "9"]


def test_whole_or_not_at_all(record: RunRecord, tmp_path: Path, monkeypatch):
    path = tmp_path / "report.md"
    path.write_text("what was there")
    with pytest.raises(ConfigError, match="TOML"):
        write_report(path, dataclasses.replace(record, config={"a": None}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*report\.md: No space left on device"):
        write_report(path, record)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there"]

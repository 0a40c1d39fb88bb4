"""Loggers get every step's and every line's numbers. Weights & Biases and trackio are the real ones, offline."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import homojl as hj
from homojl.training import Run, Trackio, WandB


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(*callbacks: hj.Callback) -> Run:
    x = torch.randn(8, 2)
    return hj.train(
        nn.Linear(2, 1), [(x, x[:, :1])] * 3, loss="mse", epochs=2, out="r", quiet=True, callbacks=callbacks
    )


@pytest.mark.slow
@pytest.mark.needs("wandb")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = trained(WandB("project", mode="offline", dir=str(tmp_path)))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert all(name in written for name in (b"step/train_loss", b"epoch/train_loss", b"epoch/lr"))
    assert len(run.metrics) == 2


@pytest.mark.slow
@pytest.mark.needs("trackio")
def test_trackio_on_this_machine(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trained(Trackio("project"))
    (file,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(file) as database:
        rows = [row[0] for row in database.execute("select metrics from metrics")]
    assert sum(b"step/train_loss" in bytes(row) for row in rows) == 6
    assert sum(b"epoch/train_loss" in bytes(row) for row in rows) == 2


def test_without_the_package_it_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(hj.ConfigError, match="pip install wandb"):
        WandB()

"""One plausible run, made up once: what a record looks like when training and evaluation went well."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from homojl.results.records import METRICS, Evaluation, RunRecord, Trajectories

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_record(
    *, class_names: tuple[str, ...] = DIGITS, epochs: int = 6, images: int = 900, seed: int = 0
) -> RunRecord:
    """A complete record: every optional part is there."""
    rng = np.random.default_rng(seed)
    n_classes = len(class_names)
    labels = rng.permutation(np.arange(images) % n_classes)
    logits = rng.normal(size=(images, n_classes)).astype("float32")
    logits[np.arange(images), labels] += 3
    logits[np.arange(images), (labels + 1) % n_classes] += 1  # one class is often taken for the next
    predictions = logits.argmax(1)
    logits64 = logits.astype("float64")
    loss = float(np.mean(np.log(np.exp(logits64).sum(1)) - logits64[np.arange(images), labels]))
    metrics = [_row(epoch, epochs, rng) for epoch in range(1, epochs + 1)]
    best = max(metrics, key=lambda row: row["val_accuracy"])
    evaluation = Evaluation(
        split="test",
        index=np.arange(images),
        labels=labels,
        predictions=predictions,
        logits=logits,
        loss=loss,
        accuracy=float(np.mean(labels == predictions)),
        nfe=np.repeat(rng.integers(20, 44, images // 100 + 1), 100)[:images],
        seconds=4.25,
        solver={
            "backend": "pytorch",
            "algorithm": "Dopri5",
            "rtol": 1e-3,
            "atol": 1e-3,
            "adjoint": "CheckpointAdjoint",
            "batch_size": 100,
        },
        checkpoint=f"best, epoch {best['epoch']}",
        status={"SUCCESS": 9, "MAX_STEPS": 0},
    )
    samples = 8
    s = np.linspace(0, 1, 17)
    speed = rng.normal(size=(samples, 1, 6, 4, 4)) + labels[:samples, None, None, None, None] % 4
    bend = rng.normal(size=(1, 1, 6, 4, 4))
    time = s[None, :, None, None, None]
    start = rng.normal(size=6).astype("float32")
    z = start[:, None, None] + speed * time + bend * np.sin(np.pi * time) * speed.mean()
    trajectories = Trajectories(s=s, z=z.astype("float32"), index=np.arange(samples), labels=labels[:samples])
    rows, columns = np.mgrid[:28, :28]
    pictures = [
        255 * np.exp(-((np.hypot(rows - 13.5, columns - 13.5) - 3 - label % 8) ** 2) / 4) for label in labels[:samples]
    ]
    return RunRecord(
        config={
            "model": {"name": "homoode", "channels": 6, "dropout": 0.1, "init": "learned"},
            "solver": {
                "algorithm": "dopri5",
                "rtol": 1e-3,
                "atol": 1e-3,
                "adjoint": "checkpoint",
                "backend": "auto",
            },
            "data": {"dataset": "svhn", "val_fraction": 0.1, "pad": 4, "flip": False},
            "optim": {"name": "adam", "lr": 5e-4, "milestones": []},
            "initial_point": {"lr": 0.02, "every": 20},
            "train": {"epochs": epochs, "batch_size": 64, "seed": 7},
        },
        environment={
            "homojl": "0.1.0",
            "commit": None,
            "platform": "Linux-6.1-x86_64",
            "packages": {"torch": "2.13.0", "h5py": "3.16.0"},
            "threads": 2,
            "command": ["homojl", "train", "--preset", "homoode-svhn"],
        },
        metrics=metrics,
        class_names=class_names,
        parameters=132_874,
        evaluation=evaluation,
        initial_point=start,
        trajectories=trajectories,
        images=np.stack(pictures).astype("uint8"),
    )


def _row(epoch: int, epochs: int, rng: np.random.Generator) -> dict:
    """The metrics of one epoch: losses fall, the field grows stiffer."""
    fall = np.exp(-epoch / 3)
    row = {
        "epoch": epoch,
        "step": 120 * epoch,
        "lr": 5e-4 * (1 + np.cos(np.pi * epoch / epochs)) / 2,
        "train_loss": 0.2 + 1.8 * fall,
        "train_accuracy": 0.97 - 0.6 * fall,
        "val_loss": 0.3 + 1.6 * fall + 0.02 * rng.normal(),
        "val_accuracy": 0.94 - 0.55 * fall + 0.005 * rng.normal(),
        "train_metric": 0.9 - 0.4 * fall,
        "val_metric": 0.85 - 0.4 * fall,
        "initial_point_loss": 0.8 * fall,
        "initial_point_norm": 1.5 - fall,
        "nfe_forward": 20.0 + 3 * epoch + rng.normal(),
        "nfe_backward": 18.0 + 3 * epoch,
        "nfe_recomputed": 18.0 + 3 * epoch,
        "nfe_val": 21.0 + 3 * epoch,
        "accepted_steps": 3.0 + 0.5 * epoch,
        "rejected_steps": 0.25 * epoch,
        "failed_solves": 0,
        "images_per_second": 650.0 - 12 * epoch,
        "seconds": 92.0 + 2 * epoch,
        "peak_memory": 812.5,
        "start_memory": 420.25,
        "data_seconds": 2.5,
        "forward_seconds": 41.0 + epoch,
        "solve_seconds": 33.0 + epoch,
        "backward_seconds": 38.0 + epoch,
        "optimizer_seconds": 4.0,
        "validation_seconds": 6.5,
    }
    assert row.keys() == METRICS.keys()
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}


@pytest.fixture(scope="session")
def record() -> RunRecord:
    """A complete record."""
    return make_record()


@pytest.fixture(scope="session")
def bare(record: RunRecord) -> RunRecord:
    """The same run before its evaluation, of a model without an initial point."""
    return dataclasses.replace(record, evaluation=None, initial_point=None, trajectories=None, images=None)


@pytest.fixture(scope="session")
def make():
    """`make_record`, for other sizes."""
    return make_record

"""A model's answers as reports show them: confusions of classes, frequent mistakes, the images of highest loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from homojl.results.records import Evaluation
from homojl.results.tables import Table
from homojl.results.wording import percent

ALL_CLASSES = 20  # up to so many, every class is shown
_WORST = 10


def confusion_counts(evaluation: Evaluation, n_classes: int) -> np.ndarray:
    """The confusion matrix: images by true class (rows) and predicted class (columns), (K, K), int64."""
    pairs = evaluation.labels * n_classes + evaluation.predictions
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def most_confused(counts: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: true class, predicted class, number of images; most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    cells = [divmod(int(cell), len(counts)) for cell in order]
    return [(true, taken, int(wrong[true, taken])) for true, taken in cells if wrong[true, taken] > 0]


def shown_classes(counts: np.ndarray) -> list[int]:
    """The classes to show: all, or of more than `ALL_CLASSES` those with the lowest accuracy, lowest first."""
    classes = range(len(counts))
    if len(counts) <= ALL_CLASSES:
        return list(classes)
    totals = counts.sum(axis=1)
    return sorted((k for k in classes if totals[k]), key=lambda k: counts[k, k] / totals[k])[:_WORST]


def class_table(counts: np.ndarray, names: tuple[str, ...]) -> Table:
    """Accuracy of each class that is shown."""
    totals = counts.sum(axis=1)
    rows = [
        (
            names[k],
            f"{totals[k]:,}",
            f"{counts[k, k]:,}",
            percent(counts[k, k] / totals[k]) if totals[k] else "no images",
        )
        for k in shown_classes(counts)
    ]
    return Table(("Class", "Images", "Right", "Accuracy"), rows)


def class_heading(counts: np.ndarray) -> str:
    """The heading of `class_table`."""
    if len(counts) <= ALL_CLASSES:
        return "Accuracy of each class"
    return f"The {len(shown_classes(counts))} classes of the lowest accuracy, of {len(counts)}"


def mistake_table(counts: np.ndarray, names: tuple[str, ...]) -> Table:
    """The most frequent mistakes; no row where there are none."""
    totals = counts.sum(axis=1)
    rows = [(names[i], names[j], f"{n:,}", percent(n / totals[i])) for i, j, n in most_confused(counts, _WORST)]
    return Table(("True class", "Taken for", "Images", "Share of the class"), rows, words=2)


def losses(evaluation: Evaluation) -> np.ndarray:
    """Cross-entropy of each image, (N,), float64, nat; NaN where the logits are not finite."""
    logits = evaluation.logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        logits -= logits.max(axis=1, keepdims=True)
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), evaluation.labels]


def hardest(evaluation: Evaluation, count: int) -> np.ndarray:
    """Which images have the highest loss, as positions among those evaluated, (count,), int64, highest first.

    Images without a finite loss come before all others; there are fewer than `count` if there are no more images.
    """
    by_loss = np.nan_to_num(losses(evaluation), nan=np.inf)
    return np.argsort(-by_loss, kind="stable")[:count]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with the model's answer.

    Attributes:
        image: (H, W) or (H, W, 3), uint8.
        position: in the dataset's array of the split.
        true, predicted: class names.
        right: whether they are the same.
        loss: in words, nat.
        probability: in words, that the model gave the true class.
    """

    image: np.ndarray
    position: int
    true: str
    predicted: str
    right: bool
    loss: str
    probability: str


def samples(
    evaluation: Evaluation, class_names: tuple[str, ...], positions: np.ndarray, images: np.ndarray
) -> tuple[Sample, ...]:
    """The images at `positions` among those evaluated.

    Args:
        positions: (n,), int64, as `hardest` returns them.
        images: (n, H, W) or (n, H, W, 3), uint8.
    """
    loss = losses(evaluation)
    shown = []
    for position, image in zip(positions.tolist(), images, strict=True):
        label, prediction = int(evaluation.labels[position]), int(evaluation.predictions[position])
        finite = bool(np.isfinite(loss[position]))
        shown.append(
            Sample(
                image=image,
                position=int(evaluation.index[position]),
                true=class_names[label],
                predicted=class_names[prediction],
                right=label == prediction,
                loss=f"{loss[position]:.2f}" if finite else "not finite",
                probability=_probability(np.exp(-loss[position]).item()) if finite else "not finite",
            )
        )
    return tuple(shown)


def _probability(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if value >= 5e-4 else f"{value:.0e}".replace("e-0", "e-")

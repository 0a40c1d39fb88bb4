"""A model's answers as a page shows them: the confusion matrix, the mistakes, the images of highest loss."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from homojl.results.plots import confusion_counts, most_confused
from homojl.results.records import Evaluation
from homojl.results.wording import percent

_ALL_CLASSES = 20  # up to so many, the confusion matrix is a table
_WORST = 10


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix.

    Attributes:
        count: images.
        right: whether it is of right answers.
        shade: how strong its colour is, 0 to 1: the root of its share of the true class, so that few show.
        tooltip: the cell in words.
    """

    count: int
    right: bool
    shade: float
    tooltip: str


@dataclass(frozen=True)
class ClassRow:
    """What became of the images of one class; no cells where there are too many classes."""

    name: str
    images: int
    right: int
    cells: tuple[Cell, ...]

    @property
    def accuracy(self) -> float:
        """NaN without images."""
        return self.right / self.images if self.images else float("nan")


@dataclass(frozen=True)
class Answers:
    """The answers of one run on one split.

    Attributes:
        classes: every class where the matrix is a table; otherwise those of the lowest accuracy.
        n_classes: of the dataset.
        matrix: the confusion matrix as the data URI of a picture, a pixel for each pair of classes; empty where it
            is a table.
        mistakes: true class, class it was taken for, images, share of the true class; most frequent first.
    """

    classes: tuple[ClassRow, ...]
    n_classes: int
    matrix: str
    mistakes: tuple[tuple[str, str, int, str], ...]


@dataclass(frozen=True)
class Sample:
    """One image with what the model made of it.

    Attributes:
        image: data URI.
        width, height: of the image, pixels.
        position: in the dataset's array of the split.
        true, predicted: class names.
        right: whether they are the same.
        loss: in words, nat.
        probability: in words, that the model gave the true class.
    """

    image: str
    width: int
    height: int
    position: int
    true: str
    predicted: str
    right: bool
    loss: str
    probability: str


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


def answers(evaluation: Evaluation, class_names: tuple[str, ...]) -> Answers:
    """What a page says of an evaluation."""
    counts = confusion_counts(evaluation, len(class_names))
    few = len(class_names) <= _ALL_CLASSES
    rows = [_class_row(k, counts, class_names, few) for k in range(len(class_names))]
    if not few:
        rows = sorted((row for row in rows if row.images), key=lambda row: row.accuracy)[:_WORST]
    totals = counts.sum(axis=1)
    return Answers(
        classes=tuple(rows),
        n_classes=len(class_names),
        matrix="" if few else data_uri(_picture(counts)),
        mistakes=tuple(
            (class_names[i], class_names[j], n, percent(n / totals[i])) for i, j, n in most_confused(counts, _WORST)
        ),
    )


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
                image=data_uri(image),
                width=image.shape[1],
                height=image.shape[0],
                position=int(evaluation.index[position]),
                true=class_names[label],
                predicted=class_names[prediction],
                right=label == prediction,
                loss=f"{loss[position]:.2f}" if finite else "not finite",
                probability=_probability(np.exp(-loss[position]).item()) if finite else "not finite",
            )
        )
    return tuple(shown)


def data_uri(image: np.ndarray) -> str:
    """A picture (H, W), (H, W, 3) or (H, W, 4), uint8, as a PNG inside a URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _class_row(k: int, counts: np.ndarray, names: tuple[str, ...], with_cells: bool) -> ClassRow:
    total = int(counts[k].sum())
    cells = [_cell(k, j, int(counts[k, j]), total, names) for j in range(len(names))] if with_cells else []
    return ClassRow(names[k], total, int(counts[k, k]), tuple(cells))


def _cell(i: int, j: int, count: int, total: int, names: tuple[str, ...]) -> Cell:
    share = count / total if total else 0.0
    return Cell(
        count,
        right=i == j,
        shade=round(float(np.sqrt(share)), 3),
        tooltip=f"{names[i]} taken for {names[j]}: {count:,} of {total:,} images ({100 * share:.1f} %)",
    )


def _picture(counts: np.ndarray) -> np.ndarray:
    """A confusion matrix (K, K) as a picture (K, K, 4): right answers blue, wrong ones orange, the rest clear.

    Its colours are seen on a light page and on a dark one.
    """
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    picture = np.empty((*counts.shape, 4), dtype=np.uint8)
    picture[..., :3] = (0xE0, 0x6C, 0x10)
    picture[np.arange(len(counts)), np.arange(len(counts)), :3] = (0x1F, 0x86, 0xC7)
    picture[..., 3] = np.where(counts > 0, np.round(70 + 185 * np.sqrt(share)), 0)
    return picture


def _probability(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if value >= 5e-4 else f"{value:.0e}".replace("e-0", "e-")

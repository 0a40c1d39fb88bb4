"""metrics.jsonl of a run: one line for each epoch or part of a time budget, which a kill may cut short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from homojl.errors import CheckpointError
from homojl.files import MAX_TEXT, atomic_write, parse_json, read_bytes
from homojl.results.records import METRICS, metrics_row


class MetricsFile:
    """The lines in a file.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def rows(self) -> list[dict[str, float]]:
        """What the complete lines say, with the keys of `METRICS`; what was not measured is NaN.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return [row for _, row in self._lines()]

    def append(self, values: dict[str, Any]) -> None:
        """Add one line and sync it.

        Raises:
            CheckpointError: if it cannot be written; `keep` drops what there is of it.
        """
        assert list(values) == list(METRICS)
        plain = {k: None if v != v else v for k, v in values.items()}  # NaN is not JSON
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from None

    def keep(self, count: int) -> None:
        """Drop what a killed run wrote after its last checkpoint, a half-written line included.

        Raises:
            CheckpointError: if lines are missing that the checkpoint says were written, or the file cannot be written.
        """
        lines = self._lines()
        if len(lines) < count:
            raise CheckpointError(
                f"{self.path} has {len(lines)} lines but the last checkpoint was written after {count}"
            )
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line, _ in lines[:count]), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from None

    def _lines(self) -> list[tuple[str, dict[str, float]]]:
        """The complete lines and what they say; one that a kill cut short, only the last can be, does not count."""
        try:
            text = read_bytes(self.path, limit=MAX_TEXT).decode("utf-8", errors="replace")
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from None
        lines = []
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                lines.append((line, metrics_row(parse_json(line))))
            except ValueError as error:
                raise CheckpointError(f"{self.path} is damaged in line {number}: {error}") from None
        return lines

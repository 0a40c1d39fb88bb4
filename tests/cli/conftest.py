"""The run that most tests of the command read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.command import SMALL, homojl
from tests.shared import made_once


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Its folder, which is to be left as it is, and what `homojl train` said."""

    def make(folder: Path) -> None:
        result = homojl("train", "--epochs", 2, "--out", folder / "run", *SMALL, figures=True)
        assert result.returncode == 0, result.stderr
        (folder / "said.json").write_text(json.dumps(vars(result)))

    folder = made_once(tmp_path_factory, "trained", make)
    return folder / "run", subprocess.CompletedProcess(**json.loads((folder / "said.json").read_text()))

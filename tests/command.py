"""The homojl command as tests run it: in this process, or in one of its own that starts with PyTorch loaded."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from unittest import mock

from homojl_cli.main import main
from tests import warm

# A run that is trained in two seconds.
SMALL = [
    "--set", "model.channels=4", "--set", "solver.algorithm=bosh3", "--set", "solver.rtol=1e-2",
    "--set", "solver.atol=1e-2", "--set", "train.batch_size=128", "--set", "optim.lr=0.01", "--set", "train.threads=1",
]  # fmt: skip


def without_figures() -> contextlib.AbstractContextManager[object]:
    """Leave out the figures of a run, which take longer than the run: here and in the warm Pythons that are started."""
    both = contextlib.ExitStack()
    both.enter_context(mock.patch("homojl.training.outcome.draw_all", return_value=[]))
    both.enter_context(mock.patch.dict(os.environ, WARM_WITHOUT_FIGURES="yes"))
    return both


def homojl(*args: object, cwd=None, figures: bool = False) -> subprocess.CompletedProcess[str]:
    """What the command's process would end with and say, from its entry on, but in this process.

    Warnings and what is logged go where a process has them, to stderr.

    Args:
        cwd: the folder to be in.
        figures: whether to draw the figures of runs that are trained or evaluated.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    command = ["homojl", *map(str, args)]
    code = 1
    with (
        contextlib.chdir(cwd or "."),
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _told_on(err),
        contextlib.nullcontext() if figures else without_figures(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(command, code, *texts)


@contextlib.contextmanager
def _told_on(stream: io.TextIOWrapper) -> Iterator[None]:
    """Send Python's warnings and the log's to a stream, as a process does of itself and pytest keeps them from."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", quiet)
        warnings.showwarning = lambda message, category, filename, line, *_: print(
            warnings.formatwarning(message, category, filename, line), end="", file=stream
        )
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)


def homojl_process(*args: object, env=None, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which draws no figures of runs."""
    command = [warm.python(), "-m", "homojl_cli", *map(str, args)]
    env = {**(os.environ if env is None else env), "WARM_WITHOUT_FIGURES": "yes"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, **options)


def assert_one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("homojl: error: ")
    for word in words:
        assert word in result.stderr

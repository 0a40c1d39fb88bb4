"""Training the runs of a comparison, each in its own process; a repeated call continues where the last one stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from homojl import own
from homojl.comparison.plan import Plan, PlannedRun
from homojl.comparison.worker import STOPPED
from homojl.files import locked, make_folder
from homojl.training.run import Run


def run_all(plan: Plan, *, jobs: int = 1, say: Callable[[str], None] = lambda _: None) -> bool:
    """Train and evaluate every run that has not ended yet.

    SIGINT and SIGTERM save the runs at work and stop; a second one kills them. To be called in the main thread.

    Args:
        jobs: how many at a time.
        say: receives lines of progress, in any thread, one at a time.

    Returns:
        Whether all runs have ended, well or not.

    Raises:
        BusyError: another process is at work on the comparison.
        DataError: its folder cannot be made or written to.
    """
    make_folder(plan.folder)
    with locked(plan.folder):
        return _Runner(plan, jobs, say).run()


class _Runner:
    def __init__(self, plan: Plan, jobs: int, say: Callable[[str], None]) -> None:
        self._plan, self._jobs, self._say = plan, jobs, say
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[str]] = set()
        self._signals = 0
        self._ended = 0
        self._seconds: list[float] = []  # that runs took here

    def run(self) -> bool:
        todo = [run for run in self._plan.runs if not self._plan.outcome_path(run).exists()]
        self._ended = len(self._plan.runs) - len(todo)
        if self._ended:
            self._tell(f"{self._ended} of {len(self._plan.runs)} runs have ended before and are kept")
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(self._jobs) as pool:
                for future in [pool.submit(self._one, run) for run in todo]:
                    future.result()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return not self._signals

    def _one(self, run: PlannedRun) -> None:
        who, path = f"{run.label}, seed {run.seed}", self._plan.run_path(run)
        if self._signals:
            return
        if not (path / "config.toml").exists():
            # A folder without a configuration was left by a kill.
            Run.create(path, run.config, overwrite=path.exists())
        started = time.monotonic()
        code = self._process(run, path, who)
        if self._signals:
            return
        if not self._plan.outcome_path(run).exists():
            self._tell(f"{who}: ended with code {code}: {last_line(self._plan, run)}")
        with self._lock:
            self._ended += 1
            self._seconds.append(time.monotonic() - started)
            left = len(self._plan.runs) - self._ended
            rest = left * sum(self._seconds) / len(self._seconds) / min(self._jobs, max(left, 1))
        self._tell(
            f"{self._ended} of {len(self._plan.runs)} runs have ended" + f", about {_minutes(rest)} left" * (left > 0)
        )

    def _process(self, run: PlannedRun, path: Path, who: str) -> int:
        experiment, log = self._plan.experiment, self._plan.log_path(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        wanted = json.dumps({"settings": experiment.measurements, "images": experiment.images})
        paths = str(path), str(self._plan.outcome_path(run))
        command = [sys.executable, "-m", "homojl.comparison.worker", *paths, wanted]
        threads = {"OMP_NUM_THREADS": str(run.config.train.threads)} if run.config.train.threads else {}
        with open(log, "a", encoding="utf-8") as errors:
            # A session of its own: Ctrl-C in the terminal reaches it through this process alone, once.
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | own.for_children() | threads,
                start_new_session=True,
            )
            with self._lock:
                self._processes.add(process)
                late = self._signals > 0
            if late:
                process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            alone = self._jobs == 1  # then its name stands once, above its lines, which keep within 80 columns
            if alone:
                self._tell(f"{who}:")
            for line in process.stdout:
                self._tell(line.rstrip() if alone else f"{who}: {line.rstrip()}")
            code = process.wait()
        with self._lock:
            self._processes.discard(process)
        if code == STOPPED:
            self._tell(f"{who}: stopped and saved")
        return code

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        for process in list(self._processes):
            if self._signals == 1:
                process.send_signal(signal.SIGINT)
            else:
                process.kill()

    def _tell(self, line: str) -> None:
        with self._lock:
            self._say(line)


def last_line(plan: Plan, run: PlannedRun) -> str:
    """The last line of the log of a run's process."""
    try:
        lines = plan.log_path(run).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

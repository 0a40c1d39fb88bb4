"""One run of a comparison, in its own process, so that its memory is measured alone and a crash ends no other run.

    python -m homojl.comparison.worker RUN OUTCOME MEASUREMENTS

trains the run in folder RUN from wherever it stands, has it answer the test set once, and writes OUTCOME, a JSON file
with how it ended. MEASUREMENTS, JSON, has the settings with which the trained model is measured once more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from homojl.comparison.measure import measure
from homojl.errors import HomoJLError, SolveError
from homojl.files import replace_file
from homojl.training.callbacks import LineProgress
from homojl.training.loop import train_run
from homojl.training.outcome import evaluate_run, publish
from homojl.training.run import Run

STOPPED = 130  # the exit code of a run that was asked to stop, and is saved


def main(run_path: str, outcome_path: str, measurements: str) -> int:
    """See above; returns the exit code."""
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    parent = os.getppid()
    run = Run.open(run_path)
    try:
        # Without its parent nobody waits for it, and the next one may start the same run again.
        if not train_run(run, callbacks=[LineProgress()], should_stop=lambda: bool(stopped) or os.getppid() != parent):
            return STOPPED
        # What follows is short and begins anew the next time.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        if stopped:
            return STOPPED
        evaluation = evaluate_run(run, throw=False)
        print(f"test accuracy {100 * evaluation.accuracy:.2f} % ({evaluation.checkpoint})", flush=True)
        publish(run, evaluation)
        wanted = json.loads(measurements)
        measured = [measure(run, name, settings, wanted["images"]) for name, settings in wanted["settings"].items()]
        outcome = {"status": "finished", "message": "", "measurements": measured}
    except KeyboardInterrupt:
        return STOPPED
    except SolveError as error:
        outcome = {"status": "failed", "message": " ".join(str(error).split()), "measurements": []}
        print(outcome["message"], flush=True)
    except HomoJLError as error:  # such as a full disk: the next attempt may go well
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    replace_file(outcome_path, json.dumps(outcome, indent=2).encode())
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
    sys.exit(main(*sys.argv[1:]))

"""Damaged and hostile files for every reader: does each end as a result or as one line?

    python benchmarks/fuzz.py --inputs 20000                 the figures of docs/robustness.md
    python benchmarks/fuzz.py --replay npz:17                one input again, with its traceback

Input n of a kind is made from n alone: the hostile files of tests/fuzzing/hostile.py first, then sound files damaged at
random. Each is read in a worker process, which is watched: an error that is no HomoJLError or not one line of printable
characters counts as a traceback; a canary file, a started program, an unpickled object or a file written outside the
input's folder as an execution; ten seconds without an answer, waiting for a CPU not counted, as a hang; growth by more
than a GiB as a memory explosion; a worker that dies as a crash. Linux only; needs the group `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, TextIO

from rows import head, row

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

HANG = 10.0  # seconds
PATIENCE = 120.0  # seconds until a worker is ended that does not answer
GROWTH = 2**30  # bytes of resident memory beyond what the worker had
ADDRESS_SPACE = 16 * 2**30  # bytes: the machine outlives what is found
OUTCOMES = ("accepted", "refused", "traceback", "executed", "hang", "memory", "crash")
BAD = OUTCOMES[2:]
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")


_SOUND: set[str] = set()
"""Kinds of which this process has read a sound file."""

# ---- one input, in a worker


class Watch:
    """What the interpreter reports of programs, pickles and files while an input is read."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in PROGRAMS:
            self.seen.append(f"{event} {args[:1]}")
        elif event == "open" and isinstance(args[0], str | bytes) and isinstance(args[2], int):
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not os.fsdecode(args[0]).startswith((self.folder, "/dev/")):
                self.seen.append(f"{event} {args[0]!r}")


def spoil(kind: str, number: int, path: Path, canary: Path) -> None:
    """Make input `number` of a kind out of the sound file at `path`."""
    from tests.fuzzing.hostile import HOSTILE
    from tests.fuzzing.mutate import spoil_at_random
    from tests.fuzzing.sound import KINDS

    cases = list(HOSTILE[kind].values())
    if number < len(cases):
        cases[number](path, canary)
        return
    others = []
    for other in ("npz", "idx", "svhn", kind):
        place = path.with_name("other")
        KINDS[other].write(place)
        others += [file.read_bytes() for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    spoil_at_random(kind, path, Random(f"{kind} {number}"), others)


def run_input(kind: str, number: int, folder: Path, watch: Watch) -> tuple[str, str, float]:
    """How reading an input ended, what was said, and how many seconds it took."""
    from homojl.errors import HomoJLError
    from tests.fuzzing.sound import KINDS

    path, canary = folder / KINDS[kind].name, folder / "canary"
    KINDS[kind].write(path)
    if kind not in _SOUND:  # whatever is imported on first use is not the input's time, nor are its files
        _SOUND.add(kind)
        KINDS[kind].read(path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        KINDS[kind].write(path)
    spoil(kind, number, path, canary)
    print(json.dumps(["started", ""]), flush=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
    before, started = memory("VmHWM"), seconds()
    watch.seen.clear()
    watch.folder = str(folder)
    try:
        KINDS[kind].read(path)
        outcome, said = "accepted", ""
    except HomoJLError as error:
        message = str(error)
        outcome, said = "refused" if message.isprintable() and len(message) < 5000 else "traceback", message
        if any(isinstance(cause, MemoryError) for cause in causes(error)):
            outcome = "memory"
    except BaseException:
        outcome, said = "traceback", traceback.format_exc()
    finally:
        watch.folder = None
    took = seconds() - started
    if canary.exists() or watch.seen:
        outcome, said = "executed", f"canary: {canary.exists()}; {watch.seen}; {said}"
    elif memory("VmHWM") - before > GROWTH:
        outcome, said = "memory", f"grew by {(memory('VmHWM') - before) / 2**20:.0f} MiB; {said}"
    elif took > HANG:
        outcome = "hang"
    return outcome, said, took


def seconds() -> float:
    """A clock that stands still while this process waits for a CPU."""
    waited = int(Path("/proc/self/schedstat").read_text().split()[1])
    return time.monotonic() - waited / 1e9


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def memory(name: str) -> int:
    """A number of bytes in /proc/self/status."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def work() -> None:
    """Read "kind number" lines, answer each with a line of JSON."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    import torch

    torch.set_num_threads(1)
    watch = Watch()
    for line in sys.stdin:
        kind, number = line.rstrip("\n").rsplit(":", 1)
        with tempfile.TemporaryDirectory(prefix="homojl-fuzz-") as folder:
            outcome = run_input(kind, int(number), Path(folder), watch)
            for inner in (Path(folder), *Path(folder).rglob("*")):
                if inner.is_dir() and not inner.is_symlink():
                    inner.chmod(0o700)
        print(json.dumps(outcome), flush=True)


# ---- many inputs, from the parent


class Worker:
    """A process that reads inputs, started again whenever it hangs or dies."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._process: subprocess.Popen[str] | None = None

    def ask(self, task: str) -> tuple[str, str, float]:
        """How an input ended, what was said, and how many seconds it took."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        print(task, file=process.stdin, flush=True)
        if self._answer(600.0) != ["started", ""]:  # the first may import a library and train a model
            raise RuntimeError(f"{task}: the worker does not start: {self._errors.read_text()[-2000:]}")
        answer = self._answer(PATIENCE)
        if answer is None:
            return self._end("hang", PATIENCE)
        outcome, said, took = answer
        return self._end(outcome, 0.0) if outcome == "crash" else (outcome, said, took)

    def _start(self) -> None:
        with open(self._errors, "a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self._process.stdout, self._lines), daemon=True).start()

    def _answer(self, patience: float) -> list[Any] | None:
        """The next answer; None where it does not come in time."""
        try:
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            return None
        return json.loads(line) if line else ["crash", "", 0.0]

    def _listen(self, stream: TextIO, lines: queue.Queue[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    def _end(self, outcome: str, took: float) -> tuple[str, str, float]:
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return outcome, f"the worker ended with code {code}", took

    def close(self) -> None:
        if self._process is not None:
            self._end("", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="how many in all, shared by the kinds")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--only", help="one kind, or several with commas")
    parser.add_argument("--replay", metavar="KIND:NUMBER", help="one input, in this process")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    from tests.fuzzing.hostile import HOSTILE
    from tests.fuzzing.sound import KINDS

    if options.replay:
        kind, number = options.replay.rsplit(":", 1)
        folder = Path(tempfile.mkdtemp(prefix="homojl-replay-"))
        print(*run_input(kind, int(number), folder, Watch()), folder, sep="\n")
        return
    kinds = list(KINDS) if options.only is None else options.only.split(",")
    with tempfile.TemporaryDirectory(prefix="homojl-fuzz-log-") as folder:
        counts, slowest, worst = campaign(kinds, -(-options.inputs // len(kinds)), options.first, Path(folder) / "log")
        noise = (Path(folder) / "log").read_text(errors="replace")
    head("kind", "hostile", *OUTCOMES, "slowest [s]")
    for kind in kinds:
        hostile = min(len(HOSTILE[kind]), max(0, sum(counts[kind].values())))
        row(kind, hostile, *(f"{counts[kind][name]:,}" for name in OUTCOMES), f"{slowest[kind]:.2f}")
    total = sum(counts.values(), Counter())
    row("all", "", *(f"{total[name]:,}" for name in OUTCOMES), f"{max(slowest.values()):.2f}")
    for line in worst:
        print(line)
    if noise:
        print(f"beside their answers the workers said:\n{noise[:3000]}")
    sys.exit(any(total[name] for name in BAD))


def campaign(
    kinds: list[str], each: int, first: int, log: Path
) -> tuple[dict[str, Counter[str]], dict[str, float], list[str]]:
    """Counts of the outcomes and the longest time by kind, and what was said of each that is bad."""
    counts: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    worst: list[str] = []
    worker = Worker(log)
    for kind in kinds:
        counts[kind], slowest[kind] = Counter(), 0.0
        for number in range(first, first + each):
            outcome, said, took = worker.ask(f"{kind}:{number}")
            counts[kind][outcome] += 1
            slowest[kind] = max(slowest[kind], took)
            if outcome in BAD:
                worst.append(f"--replay '{kind}:{number}': {outcome}: {said.strip()[-600:]}")
                print(worst[-1], file=sys.stderr, flush=True)
    worker.close()
    return counts, slowest, worst


if __name__ == "__main__":
    main()

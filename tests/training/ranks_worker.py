"""Train the runs whose folders are the arguments, one after the other, with all processes that were started."""

import atexit
import sys
from pathlib import Path

from homojl.training.joining import joined
from homojl.training.loop import train_run
from homojl.training.run import Run


def collective_threads() -> list[str]:
    """The threads of this process that do gloo's work; the interpreter's end may abort where it comes upon them."""
    names = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    # Called after all that come later, and in one piece, since other processes write there too.
    atexit.register(lambda: sys.stderr.write(f"left over: {collective_threads()}\n"))
    with joined() as ranks:
        assert collective_threads()
        for path in sys.argv[1:]:
            assert train_run(Run.open(path), ranks=ranks)

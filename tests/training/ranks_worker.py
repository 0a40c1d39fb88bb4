"""Train the runs whose folders are the arguments, one after the other, with all processes that were started."""

import sys
from pathlib import Path

from homojl.training.loop import train
from homojl.training.ranks import joined
from homojl.training.run import Run


def collective_threads() -> list[str]:
    """The threads of this process that do gloo's work."""
    names = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    with joined() as ranks:
        for path in sys.argv[1:]:
            assert train(Run.open(path), ranks=ranks)
        assert collective_threads()
    assert not collective_threads(), "the interpreter's end would come upon them, and abort"

"""Train the runs whose folders are the arguments, one after the other, with all processes that were started."""

import sys

from homojl.training.loop import train
from homojl.training.ranks import joined
from homojl.training.run import Run

if __name__ == "__main__":
    with joined() as ranks:
        for path in sys.argv[1:]:
            assert train(Run.open(path), ranks=ranks)

"""A Python that starts with PyTorch already loaded, for tests whose point is a process and not its start.

`python()` is the path of a program that takes `-c CODE`, `-m MODULE` or a script as Python does; `homojl` and torchrun
lie beside it. Behind them stands one process for each process of pytest (`server.py`), which has loaded PyTorch and
other libraries, but nothing of homojl, and forks for each start. The program (`program.py`) hands over its arguments,
folder, environment, standard streams and limits, passes signals on, and ends as the forked process does; killing it
kills that one. WARM_WITHOUT_FIGURES in the environment keeps runs from drawing their figures.

Where the start of an interpreter is what a test is about, it starts `sys.executable`.
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def python(*before: str) -> str:
    """The program's path; the first call starts the process behind it.

    Args:
        before: a command line to start the process under, as `setpriv` and its options.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE_"))}
    server = subprocess.Popen(
        [*before, sys.executable, HERE / "server.py", folder / "socket"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def stop() -> None:
        server.stdin.close()  # which it takes as its end, also if this process is killed
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    words = shlex.join([sys.executable, "-IS", str(HERE / "program.py"), str(folder / "socket")])
    programs = {  # the folder can go first in a PATH
        "python": f"exec {words}",
        "homojl": f"exec {words} -m homojl_cli",
        "torchrun": f"PYTHON_EXEC=${{PYTHON_EXEC:-{folder}/python}} exec {words} -m torch.distributed.run",
    }
    for name, command in programs.items():
        (folder / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
        (folder / name).chmod(0o755)
    return str(folder / "python")

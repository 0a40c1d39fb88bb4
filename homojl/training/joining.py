"""Joining the processes that torchrun or a scheduler has started, and leaving them again."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from homojl.environment import process_count
from homojl.errors import ProcessError
from homojl.training.collectives import first_line, local_rank, lost
from homojl.training.ranks import ALONE, Ranks

TIMEOUT = timedelta(minutes=30)  # how long a process waits for one that has neither come nor gone
GRACE = 25.0  # seconds that it still waits when torchrun has asked it to end, which kills it after 30


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun or a scheduler has started with this one; `ALONE` where there are none.

    Of errors that leave the body, the first in any process goes on; in the others, of which most have only lost their
    connection to that one, the program ends with exit code 2.

    Raises:
        ProcessError: if the others cannot be reached.
    """
    size = process_count()
    if size == 1:
        yield ALONE
        return
    # Its functions take the group that stands when it is imported as their default, and so keep it and its threads
    # alive into the interpreter's end, where they now and then abort the process. torch._dynamo would import it later.
    import torch.distributed.nn

    rank, backend = int(os.environ["RANK"]), "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    try:
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessError(f"process {rank} of {size} cannot join the others at {where}: {first_line(error)}") from None
    if backend == "gloo":  # NCCL would wait for processes that have ended
        atexit.register(_leave)
    try:
        with _watched(rank, size):
            yield Ranks(rank, size)
    except Exception:
        if not _first_to_tell(store):
            sys.exit(2)
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def _watched(rank: int, size: int) -> Iterator[None]:
    """Print a message if torchrun asks this process to end while it waits for one that has died.

    While a collective waits, Python's own signal handlers do not run, and torchrun kills the process soon after.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, (reader, writer) = threading.Event(), socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGTERM and not ended.wait(GRACE):
                print(f"homojl: {lost(rank, size)}", file=sys.stderr, flush=True)
                os._exit(2)

    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


def _leave() -> None:
    """Leave the group at exit, after an error: gloo's threads must end before Python does."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _first_to_tell(store: Any) -> bool:
    try:
        return bool(store.add("homojl/told", 1) == 1)
    except RuntimeError:  # the store has ended with the process that kept it
        return True

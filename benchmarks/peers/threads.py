"""The number of threads of every library."""

from __future__ import annotations

import os

import torch


def use_threads(threads: int) -> None:
    """Let every library compute with so many threads; to be called before JAX is imported."""
    torch.set_num_threads(threads)
    os.environ["NPROC"] = str(threads)  # the size of XLA's pool
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}")

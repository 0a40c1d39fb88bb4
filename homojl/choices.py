"""The names that settings and options choose between, known without loading what they name."""

from __future__ import annotations

BACKENDS = ("auto", "pytorch", "pytorch-compiled", "julia")
ODE_ADJOINT_NAMES = ("direct", "checkpoint", "backsolve", "gauss")
FIXED_POINT_ADJOINT_NAMES = ("implicit", "phantom", "one-step", "unrolled")
BATCHES = ("joint", "per-sample")
TRAINING_PRECISIONS = ("full", "bfloat16")
"""Of a configuration. float16 is not among them: its gradients want the loss scaled."""
FIGURE_FORMATS = ("png", "svg", "pdf")
BENCH_PROBLEMS = ("vanderpol", "kaps", "layer", "equilibrium")
BENCH_BACKENDS = tuple(name for name in BACKENDS if name != "auto")

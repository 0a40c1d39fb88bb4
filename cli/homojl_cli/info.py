"""homojl info"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from importlib.util import find_spec

import click

OPTIONAL = ("matplotlib", "scipy", "pandas", "tensorboard", "torchdiffeq", "torchode", "diffrax", "torchdeq")
VARIABLES = ("CUDA_VISIBLE", "HOMOJL_", "JULIA_", "MKL_", "OMP_", "PYTHON_JULIACALL_")  # that change what a solve does


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for bug reports.")
def command(as_json: bool) -> None:
    """Say what is installed here: versions, processor, threads, GPU, commit, Julia's packages."""
    from homojl.backends.julia import runtime
    from homojl.training.run import environment

    values = environment()
    values.pop("command")
    values["packages"] |= {name: version(name) for name in OPTIONAL if find_spec(name)}
    found = runtime.find()
    values["julia_packages"] = found.packages
    values["julia_problem"] = found.problem or None
    values["variables"] = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        for key, part in parts:
            print(f"{key:<24} {'none' if part is None else part}")

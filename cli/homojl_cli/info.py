"""homojl info"""

from __future__ import annotations

import json
import os

import click

OPTIONAL = ("matplotlib", "scipy", "pandas", "tensorboard", "torchdiffeq", "torchode", "diffrax", "torchdeq")
VARIABLES = ("CUDA_VISIBLE", "HOMOJL_", "JULIA_", "MKL_", "OMP_", "PYTHON_JULIACALL_")  # that change what a solve does


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for bug reports.")
def command(as_json: bool) -> None:
    """Say what is installed here: versions, processor, cores, GPU, commit, Julia's packages."""
    from homojl.environment import installed

    values = installed(OPTIONAL)
    values["variables"] = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        for key, part in parts:
            print(f"{key:<24} {'none' if part is None else part}")

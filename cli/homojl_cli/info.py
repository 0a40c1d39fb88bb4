"""homojl info"""

from __future__ import annotations

import json

import click


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for bug reports.")
def command(as_json: bool) -> None:
    """Say what is installed here: versions, processor, threads, GPU, commit."""
    from homojl.training.run import environment

    values = environment()
    values.pop("command")
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for name, value in {**values, **values.pop("packages")}.items():
        print(f"{name:<14} {'none' if value is None else value}")

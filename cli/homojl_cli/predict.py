"""homojl predict"""

from __future__ import annotations

import json

import click

from homojl_cli.options import run_argument


@click.command("predict")
@run_argument
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...", type=click.Path(path_type=str))
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to name for each picture.")
@click.option("--json", "as_json", is_flag=True, help="Every class's probability, as JSON.")
def command(run: str, pictures: tuple[str, ...], top: int, as_json: bool) -> None:
    """Say what the best epoch of a run takes pictures for, with probabilities.

    Pictures are turned grey or coloured and scaled as the run's images are. A run of your own network needs it named:
    HOMOJL_ALLOW=my_net.py:Net homojl predict ...

    \b
    Examples:
      homojl predict runs/NAME picture.png
      homojl predict runs/NAME *.png --top 1
    """
    from homojl.training.run import Run

    opened = Run.open(run)
    answers = opened.predict(list(pictures))
    names = answers.class_names
    if as_json:
        rows = answers.probabilities.tolist()
        found = [
            {"picture": p, "probabilities": dict(zip(names, row, strict=True))}
            for p, row in zip(pictures, rows, strict=True)
        ]
        print(json.dumps(found, indent=2))
        return
    width = max(map(len, pictures))
    for picture, best in zip(pictures, answers.top(top), strict=True):
        print(f"{picture:<{width}}  " + "  ".join(f"{name} {100 * share:.1f} %" for name, share in best))

"""homojl models"""

from __future__ import annotations

import inspect

import click


@click.command("models")
def command() -> None:
    """List the models, with their options and the parameters they have at their presets' sizes."""
    from homojl.data import dataset_info
    from homojl.models import MODELS, count_parameters, create_model
    from homojl.training.config import ModelConfig, preset_names, read_preset

    for name, cls in MODELS.items():
        print(f"{name}: {inspect.cleandoc(cls.__doc__ or '').splitlines()[0]}")
        options = ModelConfig(name=name).options
        print("  options: " + ", ".join(f"{key} = {value!r}" for key, value in options.items()))
        for preset in (p for p in preset_names() if p.startswith(f"{name}-")):
            values = read_preset(preset)
            info = dataset_info(values["data"]["dataset"])
            chosen = {k: v for k, v in values["model"].items() if k != "name"}
            model = create_model(name, input_shape=info.input_shape, n_classes=info.n_classes, **chosen)
            print(f"  preset {preset}: {count_parameters(model):,} parameters")

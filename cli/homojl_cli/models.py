"""homojl models"""

from __future__ import annotations

import click


@click.command("models")
def command() -> None:
    """List the models, with their options and the parameters they have at their presets' sizes."""
    from homojl.models.settings import MODELS, PRESET_PARAMETERS
    from homojl.own import MODEL_GROUP, registered
    from homojl.training.config import preset_names

    for name, settings in MODELS.items():
        print(f"{name}: {settings.summary}")
        print("  options: " + ", ".join(f"{key} = {value!r}" for key, value in settings.defaults().items()))
        for preset in (p for p in preset_names() if p.startswith(f"{name}-")):
            count = PRESET_PARAMETERS[name].get(preset.removeprefix(f"{name}-"))
            print(f"  preset {preset}" + (f": {count:,} parameters" if count else ""))
    for name, value in registered(MODEL_GROUP).items():
        print(f"{name}: of an installed package, {value}")

"""homojl models"""

from __future__ import annotations

import click


@click.command("models")
def command() -> None:
    """List the models, with their options and the parameters they have at their presets' sizes."""
    from homojl.models.settings import MODELS, PRESET_PARAMETERS
    from homojl.own import MODELS as OF_PACKAGES, registered
    from homojl.training.config import preset_names

    for name, settings in MODELS.items():
        print(f"{name}: {settings.summary}")
        print("  options: " + ", ".join(f"{key} = {value!r}" for key, value in settings.defaults().items()))
        for preset in (p for p in preset_names() if p.startswith(f"{name}-")):
            count = PRESET_PARAMETERS.get(preset)
            print(f"  preset {preset}" + (f": {count:,} parameters" if count else ""))
    for name, value in registered(OF_PACKAGES).items():
        print(f"{name}: of an installed package, {value}")

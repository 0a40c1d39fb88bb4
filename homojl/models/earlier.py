"""Names of a model's tensors in checkpoints of schema 1, before models were made of the layers of `homojl.nn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Tensor = torch.Tensor


def renamed(name: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors under the names that they have now.

    Args:
        name, options: of the model, as of `homojl.create_model`.
        tensors: by their names in schema 1.
    """
    prefixes = _prefixes(name, options.get("form", "single"))
    found = {}
    for old, tensor in tensors.items():
        before = next((prefix for prefix in prefixes if old.startswith(prefix)), "")
        found[prefixes.get(before, "") + old.removeprefix(before)] = tensor
    if name in ("homoode", "deq"):
        found["layer.initial_point._extra_state"] = torch.tensor(0)  # its moves were counted by the run's steps
    return found


def _prefixes(name: str, form: str) -> dict[str, str]:
    """What the names began with, and what they begin with now."""
    if name in ("homoode", "deq"):
        of_layer = {"field.": "layer.field." if name == "homoode" else "layer.block.field."}
        point = {"initial_point.": "layer.initial_point.", "remembered.": "layer.remembered."}
        return {**of_layer, **point, **{f"features.{i}.": f"encoder.{i + 1}." for i in range(5)}, "head.": "decoder."}
    if name in ("node", "anode"):
        return {"field.": "layer.field.", "remembered.": "layer.remembered.", "head.": "decoder.1."}
    if name == "mondeq":
        head = "decoder." if form == "linear" else "decoder.2."
        return {"operator.": "layer.operator.", "injection.": "encoder.", "head.": head, "alpha": "layer._extra_state"}
    if name == "pcdeq":
        return _of_pcdeq(form)
    return {"network.": "layer."}  # of a user's own


def _of_pcdeq(form: str) -> dict[str, str]:
    last = 2 if form == "multi" else 0
    prefixes = {
        "layers.0.injection.": "encoder." if form == "linear" else "encoder.1.",
        f"layers.{last}.after.": "decoder.0.",
        **({"head.": "decoder.1."} if form == "linear" else {"head.2.": "decoder.3."}),
        "layers.0.weight.": "layer.0.weight." if last else "layer.weight.",
    }
    for i in range(last):
        prefixes[f"layers.{i}.after."] = f"layer.{3 * i + 1}."
        prefixes[f"layers.{i + 1}.injection."] = f"layer.{3 * i + 2}."
        prefixes[f"layers.{i + 1}.weight."] = f"layer.{3 * i + 3}.weight."
    return prefixes

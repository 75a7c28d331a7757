"""A trained model's parameters as inference reads them: adapters merged, layers one by one where they are unrolled."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from fi_jax.config import LoraConfig, ModelConfig
from fi_jax.models.layer_stack import unstack_layers
from fi_jax.models.lora import merge_lora
from fi_jax.models.precision import KERNELS, Quantised, quantise_frozen, quantise_leaf
from fi_jax.weights.stream import Store

_PARTS = ("image_encoder", "segmentation_encoder", "llm")


def without_adapters(model: ModelConfig) -> ModelConfig:
    """The same model after its adapters were merged into their kernels."""
    parts = {name: replace(getattr(model, name), lora=LoraConfig()) for name in _PARTS}
    return replace(model, **parts)


def prepare_for_inference(leaves: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Parameters of `without_adapters(model)`, flat; the LLM's layers come apart if they are to be unrolled.

    `leaves` are flat and given up. Kernels are merged in float32, layer by layer, and keep their dtype; then those that
    `frozen_precision` names are rounded to 8 bits, so the adapters' sum is rounded once. What is in 8 bits already came
    through `merged_while_read`: its adapter is in it.
    """
    for path in [path for path, leaf in leaves.items() if isinstance(leaf, Quantised)]:
        for adapter in _adapters(path):
            leaves.pop(adapter, None)
    leaves = unstack_layers(leaves, model.scan_layers)
    for part in _PARTS:
        leaves = merge_lora(leaves, getattr(model, part).lora, f"{part}/")
    return quantise_frozen(leaves, model.frozen_precision, differentiated=False)


def merged_while_read(model: ModelConfig, trained: Mapping[str, Any]) -> Store:
    """What inference keeps of a layer of the LLM while its checkpoint is read: its adapter of `trained` merged, then rounded.

    So a model in 8 bits never has more than one layer's kernel in full precision on its device.
    """

    def store(path: str, layer: int, kernel: jax.Array) -> Any:
        if not KERNELS.fullmatch(path):
            return kernel
        parts = {path: kernel} | {name: trained[name][layer] for name in _adapters(path) if name in trained}
        return quantise_leaf(path, merge_lora(parts, model.llm.lora)[path], model.frozen_precision, False)

    return store


def _adapters(kernel: str) -> list[str]:
    return [f"{kernel.removesuffix('kernel')}{name}" for name in ("lora_a", "lora_b")]

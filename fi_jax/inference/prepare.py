"""A trained model's parameters as inference on an accelerator reads them: adapters merged, layers one by one."""

from dataclasses import replace
from typing import Any

from fi_jax.config import LoraConfig, ModelConfig
from fi_jax.models.layer_stack import unstack_layers
from fi_jax.models.lora import merge_lora
from fi_jax.models.precision import quantise_frozen

_PARTS = ("image_encoder", "segmentation_encoder", "llm")


def without_adapters(model: ModelConfig) -> ModelConfig:
    """The same model after its adapters were merged into their kernels."""
    parts = {name: replace(getattr(model, name), lora=LoraConfig()) for name in _PARTS}
    return replace(model, **parts)


def prepare_for_inference(leaves: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Parameters of `without_adapters(model)`, flat; the LLM's layers come apart if they are to be unrolled.

    `leaves` are flat and given up. Kernels are merged in float32, layer by layer, and keep their dtype; then those that
    `frozen_precision` names are rounded to 8 bits, so the adapters' sum is rounded once.
    """
    leaves = unstack_layers(leaves, model.scan_layers)
    for part in _PARTS:
        leaves = merge_lora(leaves, getattr(model, part).lora, f"{part}/")
    return quantise_frozen(leaves, model.frozen_precision, differentiated=False)

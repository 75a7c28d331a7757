"""A trained model's parameters as inference on an accelerator reads them: adapters merged, layers one by one."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax

from fi_jax.config import LoraConfig, ModelConfig
from fi_jax.models.llama import unstack_layers
from fi_jax.models.lora import merged_kernel

_PARTS = ("image_encoder", "segmentation_encoder", "llm")


def without_adapters(model: ModelConfig) -> ModelConfig:
    """The same model after its adapters were merged into their kernels."""
    parts = {name: replace(getattr(model, name), lora=LoraConfig()) for name in _PARTS}
    return replace(model, **parts)


def ready(leaves: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Parameters of `without_adapters(model)`, flat; the LLM's layers come apart if they are to be written out.

    `leaves` are flat and given up. Kernels are merged in float32, layer by layer, and keep their dtype.
    """
    if not model.scan_layers:
        leaves = unstack_layers(leaves)
    for path in [path for path in leaves if path.endswith("/lora_a")]:
        where = path.removesuffix("lora_a")
        merge = partial(_merge, getattr(model, where.split("/")[0]).lora)
        kernel, a, b = leaves.pop(f"{where}kernel"), leaves.pop(path), leaves.pop(f"{where}lora_b")
        one = not isinstance(kernel, tuple)
        leaves[f"{where}kernel"] = merge(kernel, a, b) if one else tuple(map(merge, kernel, a, b))
    return leaves


@partial(jax.jit, static_argnums=0)
def _merge(lora: LoraConfig, kernel, a, b):
    return merged_kernel(kernel, a, b, lora)

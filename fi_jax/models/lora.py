"""Linear layers with optional low-rank adapters (Hu et al. 2021, LoRA), and their merging."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fi_jax.config import LoraConfig

NO_LORA = LoraConfig()


class Linear(nn.Module):
    """`y = x W + b + (alpha / rank) (x A) B`; the adapter exists when this layer's name is a target of `lora`.

    Parameters: kernel `[in, out]`, bias `[out]`, lora_a `[in, rank]` (random), lora_b `[rank, out]` (zero, so
    that step 0 equals the base model). All arithmetic is in `dtype`, whatever the parameters' dtype.
    """

    features: int
    use_bias: bool = False
    lora: LoraConfig = NO_LORA
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """Maps the last axis; returns `dtype`."""
        size = x.shape[-1]
        x = x.astype(self.dtype)
        y = x @ self.param("kernel", self.kernel_init, (size, self.features)).astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if self.lora.rank and self.name in self.lora.targets:
            # The variance of peft's kaiming_uniform(a=sqrt(5)): 1 / (3 in).
            a = self.param(
                "lora_a", nn.initializers.variance_scaling(1 / 3, "fan_in", "normal"), (size, self.lora.rank)
            )
            b = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features))
            # Kept by `models.llama`'s remat "dots": narrow to store, and as slow to compute again as x is wide to read.
            low = checkpoint_name(x @ a.astype(self.dtype), "lora_low")
            y += low @ (lora_scale(self.lora) * b).astype(self.dtype)
        return y


def lora_scale(lora: LoraConfig) -> float:
    """Returns alpha / rank, the factor of an adapter's product A B."""
    return lora.alpha / lora.rank


def merge_lora(params: Mapping[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """Folds every adapter of a tree into its kernel: `W + (alpha / rank) A B`; removes lora_a and lora_b.

    Works on stacked layers (`[l, in, out]`) too. The sum is taken in float32 and returned in the kernel's dtype.
    `params` is one part of the model (say `params["llm"]`), `lora` that part's config.
    """
    merged: dict[str, Any] = {
        name: merge_lora(leaf, lora) if isinstance(leaf, Mapping) else leaf for name, leaf in params.items()
    }
    if "lora_a" in merged:
        kernel, a, b = merged["kernel"], merged.pop("lora_a"), merged.pop("lora_b")
        product = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        merged["kernel"] = (kernel.astype(jnp.float32) + lora_scale(lora) * product).astype(kernel.dtype)
    return merged

"""Linear layers with optional low-rank adapters (Hu et al. 2021, LoRA), and their merging."""

from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fi_jax.config import LoraConfig
from fi_jax.models.precision import Quantised

NO_LORA = LoraConfig()


# The side of each adapted layer that is cut over devices (logical axes of `parallel.rules`): of some their input.
_ROW_CUT = {"o_proj": "heads", "out_proj": "heads", "down_proj": "mlp", "fc2": "mlp"}
_CUT = _ROW_CUT | {
    "q_proj": "heads",
    "k_proj": "kv_heads",
    "v_proj": "kv_heads",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "fc1": "mlp",
}


class LinearParts(NamedTuple):
    """A linear layer's parameters as they enter the arithmetic: `b` holds the factor alpha / rank. None: it has none."""

    kernel: Float[Array, "i o"] | Quantised
    bias: Float[Array, "o"] | None
    a: Float[Array, "i r"] | None
    b: Float[Array, "r o"] | None


class Linear(nn.Module):
    """`y = x W + b + (alpha / rank) (x A) B`; the adapter exists when this layer's name is a target of `lora`.

    Parameters: kernel `[in, out]`, bias `[out]`, lora_a `[in, rank]` (random), lora_b `[rank, out]` (zero, so
    that step 0 equals the base model). All arithmetic is in `dtype`, whatever the parameters' dtype.

    Where an rng "dropout" is given, an adapter loses each of its inputs with the chance `lora.dropout`: rows of A, the
    same for all tokens of a step (Lin et al. 2024, LoRA Dropout), so that fused products stay as they are. peft drops
    inputs token by token.
    """

    features: int
    use_bias: bool = False
    lora: LoraConfig = NO_LORA
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """Maps the last axis; returns `dtype`."""
        kernel, bias, a, b = self.parts(x.shape[-1])
        x = x.astype(self.dtype)
        y = x @ cast(Array, kernel)
        if bias is not None:
            y += bias
        return y if a is None or b is None else y + (x @ a) @ b

    @nn.compact
    def parts(self, size: int) -> LinearParts:
        """Makes or fetches the parameters for inputs of `size`, in `dtype`."""
        bias = a = b = None
        kernel: Any = self.get_variable("params", "kernel")
        if not isinstance(kernel, Quantised):
            kernel = self.param("kernel", self.kernel_init, (size, self.features)).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if self.lora.rank and self.name in self.lora.targets:
            # The variance of peft's kaiming_uniform(a=sqrt(5)): 1 / (3 in).
            init = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")
            a = self.param("lora_a", init, (size, self.lora.rank)).astype(self.dtype)
            if self.lora.dropout and self.has_rng("dropout"):
                a = nn.Dropout(self.lora.dropout, broadcast_dims=(1,), deterministic=False)(a)
            b = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features))
            b = (lora_scale(self.lora) * b).astype(self.dtype)
            # Whole but for the kernel's own cut: left alone, XLA cuts `a` for its sum too, and swaps pieces for that.
            cut = _CUT.get(cast(str, self.name))
            rows, columns = (cut, None) if self.name in _ROW_CUT else (None, cut)
            a, b = nn.with_logical_constraint(a, (rows, None)), nn.with_logical_constraint(b, (None, columns))
        return LinearParts(kernel, bias, a, b)


def lora_scale(lora: LoraConfig) -> float:
    """Returns alpha / rank, the factor of an adapter's product A B."""
    return lora.alpha / lora.rank


def merge_lora(leaves: dict[str, Any], lora: LoraConfig, prefix: str = "") -> dict[str, Any]:
    """Folds every adapter below `prefix` into its kernel: `W + (alpha / rank) A B`; removes lora_a and lora_b.

    `leaves` are flat ("llm/layers/attn/q_proj/kernel") and given up: each kernel is dropped once it is merged. Stacked
    layers (`[l, in, out]`) and tuples of one array a layer work too. The sum is taken in float32 and returned in the
    kernel's dtype. `lora` is the config of the part of the model that `prefix` names.
    """
    for path in [path for path in leaves if path.startswith(prefix) and path.endswith("/lora_a")]:
        where = path.removesuffix("lora_a")
        parts = leaves.pop(f"{where}kernel"), leaves.pop(path), leaves.pop(f"{where}lora_b")
        merge = partial(_merged, lora_scale(lora))
        leaves[f"{where}kernel"] = tuple(map(merge, *parts)) if isinstance(parts[0], tuple) else merge(*parts)
    return leaves


@partial(jax.jit, static_argnums=0)
def _merged(
    scale: float, kernel: Float[Array, "*l i o"], a: Float[Array, "*l i r"], b: Float[Array, "*l r o"]
) -> Float[Array, "*l i o"]:
    product = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)

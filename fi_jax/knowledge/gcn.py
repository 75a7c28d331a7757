"""The graph network that refines label prompts with the co-occurrence graph (paper: the CCM's GCN)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fi_jax.config import KnowledgeConfig


class PromptGcn(nn.Module):
    """T_p^l = ρ(Ĉ T_p^{l-1} W^{l-1}) over label prompts, ρ = LeakyReLU(leaky_slope).

    The equation is the paper's, so ρ stands after every layer, the last included (ML-GCN's code leaves the
    last one linear). Ours: `depth` layers of `hidden_size`, the last of `align_size`; with `residual`, T_p^0 is
    added to the result, through `residual/kernel` where the widths differ. Row i of Ĉ mixes the neighbours j
    that are likely given i: no transpose.

    With `enabled` False ("without CCM") the graph is not used and there is no layer: the prompts are T_p^0
    itself, through `residual/kernel` where the widths differ, so that as many knowledge tokens of the same
    width reach the LLM.
    """

    config: KnowledgeConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, prompts: Float[Array, "n d0"], graph: Float[Array, "n n"]) -> Float[Array, "n e"]:
        """Returns the refined prompts T_p^L, one row a label, in the compute dtype."""
        config = self.config
        base = prompts.astype(self.dtype)
        if config.residual or not config.enabled:
            skip = base
            if prompts.shape[-1] != config.align_size:
                skip = nn.Dense(config.align_size, use_bias=False, dtype=self.dtype, name="residual")(base)
        if not config.enabled:
            return skip
        # The n x n product is small and its rows are averages of many prompts: keep it in float32.
        graph = graph.astype(jnp.float32)
        x = base
        for layer in range(config.depth):
            width = config.align_size if layer == config.depth - 1 else config.hidden_size
            projected = nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"layer_{layer}")(x)
            mixed = graph @ projected.astype(jnp.float32)
            x = nn.leaky_relu(mixed, config.leaky_slope).astype(self.dtype)
        return x + skip if config.residual else x

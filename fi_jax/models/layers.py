"""Small pieces that several networks share: activations, stochastic depth, rematerialisation."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def activation(name: str):
    """Returns the activation that Hugging Face calls `quick_gelu`, `gelu` (exact), `gelu_tanh` or `silu`."""
    return {
        "silu": jax.nn.silu,
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    }[name]


def drop_branch(x: Float[Array, "b ..."], rate: Float[Array, ""], key) -> Float[Array, "b ..."]:
    """Stochastic depth (Huang et al. 2016): drops the residual branch of whole samples with probability `rate`."""
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), 0)


def layer_norm(eps: float, name: str, dtype: jnp.dtype) -> nn.LayerNorm:
    """A layer norm with the two-pass variance (the one-pass form loses digits where the mean is large)."""
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


def rematerialise(layer: type[nn.Module], remat: str, loops: bool = True) -> type[nn.Module]:
    """Wraps a layer class of a scan so that the backward pass keeps what `ModelConfig.remat` says.

    `loops` says that a loop is left of the scan; without one only a barrier keeps XLA from merging what is computed
    again with its first time, which would keep everything.
    """
    if remat == "none":
        return layer
    policy = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}[remat]
    return nn.remat(layer, policy=policy, prevent_cse=not loops)

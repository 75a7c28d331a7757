"""The adapter that carries one modality's tokens into the width of the language model."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Connector(nn.Module):
    """fc1, exact GELU, fc2: LLaVA-1.5's projector (Liu et al. 2023). Both layers are `out_features` wide."""

    out_features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... out"]:
        x = nn.Dense(self.out_features, dtype=self.dtype, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        return nn.Dense(self.out_features, dtype=self.dtype, name="fc2")(x)

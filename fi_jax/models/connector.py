"""The adapter that carries one modality's tokens into the width of the language model."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Connector(nn.Module):
    """fc1, exact GELU, fc2: LLaVA-1.5's projector (Liu et al. 2023). Both layers are `out_features` wide.

    "linear" has the first layer alone (PaliGemma); `newline` adds a learnt token behind the others (LLaVA-NeXT).
    """

    out_features: int
    dtype: jnp.dtype = jnp.float32
    kind: Literal["mlp", "linear"] = "mlp"
    newline: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... i d"]) -> Float[Array, "... j out"]:
        x = nn.Dense(self.out_features, dtype=self.dtype, name="fc1")(x)
        if self.kind == "mlp":
            x = jax.nn.gelu(x, approximate=False)
            x = nn.Dense(self.out_features, dtype=self.dtype, name="fc2")(x)
        if not self.newline:
            return x
        end = self.param("newline", nn.initializers.normal(self.out_features**-0.5), (self.out_features,))
        end = jnp.broadcast_to(end.astype(x.dtype), (*x.shape[:-2], 1, self.out_features))
        return jnp.concatenate([x, end], axis=-2)

"""Masked pre-training of an encoder: which patches are hidden, the decoder that reconstructs them, and its targets.

After He et al. 2022 (a masked autoencoder): the encoder sees a few patches, a small decoder reconstructs the others, and what
is compared are patches normalised one by one. Ours is a stage before the paper's own, for encoders that start from
nothing: faces teach it without labels. The decoder is dropped afterwards.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import DecoderConfig, VitConfig
from fi_jax.models.layers import layer_norm
from fi_jax.models.lora import Linear
from fi_jax.models.vit import Layer, sines_and_cosines


def visible_patches(key: Array, batch: int, patches: int, mask_ratio: float) -> Int[Array, "b k"]:
    """Draws the patches that the encoder sees of each picture, without repeats: at least one, not all."""
    kept = min(max(1, round(patches * (1 - mask_ratio))), patches - 1)
    return jnp.argsort(jax.random.uniform(key, (batch, patches)), axis=1)[:, :kept]


def hidden_patches(keep: Int[Array, "b k"], patches: int) -> Bool[Array, "b i"]:
    """Which patches of each picture are not among `keep`."""
    return jnp.all(keep[:, None, :] != jnp.arange(patches)[None, :, None], axis=-1)


def patch_targets(pixels: Float[Array, "b y x 3"], patch_size: int) -> Float[Array, "b i c"]:
    """Cuts pictures into patches (c = 3 · patch_size²), each brought to mean 0 and variance 1."""
    p = patch_size
    patches = rearrange(pixels.astype(jnp.float32), "b (y p) (x q) c -> b (y x) (p q c)", p=p, q=p)
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)


class PatchDecoder(nn.Module):
    """Reconstructs every patch from the tokens of the visible ones; a learnt token stands for each of the others."""

    config: DecoderConfig
    encoder: VitConfig
    dtype: jnp.dtype
    flash: bool = False

    @nn.compact
    def __call__(self, tokens: Float[Array, "b k d"], keep: Int[Array, "b k"]) -> Float[Array, "b i c"]:
        """Returns patches `c = 3 · patch_size²`, in float32, as `patch_targets` has them."""
        cfg, d = self.config, self.config.hidden_size
        patches = self.encoder.grid**2
        b, k = keep.shape
        x = Linear(d, use_bias=True, dtype=self.dtype, name="embed")(tokens)
        blank = self.param("mask_token", nn.initializers.normal(0.02), (d,)).astype(self.dtype)
        # Place of each patch among the visible ones; the blank token stands behind them.
        place = jnp.full((b, patches), k).at[jnp.arange(b)[:, None], keep].set(jnp.arange(k)[None])
        x = jnp.concatenate([x, jnp.broadcast_to(blank, (b, 1, d))], axis=1)
        x = jnp.take_along_axis(x, place[..., None], axis=1)
        x = x + sines_and_cosines(None, (patches + 1, d))[1:].astype(self.dtype)
        shape = VitConfig(
            image_size=self.encoder.image_size,
            patch_size=self.encoder.patch_size,
            hidden_size=d,
            intermediate_size=4 * d,
            num_layers=cfg.num_layers,
            num_heads=cfg.num_heads,
            feature_layer=-1,
        )
        for number in range(cfg.num_layers):
            x = Layer(shape, self.dtype, flash=self.flash, name=f"layer_{number}")(x, jnp.zeros(()))
        x = layer_norm(shape.layer_norm_eps, "norm", self.dtype)(x)
        size = 3 * self.encoder.patch_size**2
        return Linear(size, use_bias=True, dtype=self.dtype, name="pixels")(x).astype(jnp.float32)

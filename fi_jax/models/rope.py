"""Rotary position embeddings (Su et al. 2021): the frequencies, their scalings, and the rotation."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fi_jax.config import RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Float[np.ndarray, "half"]:
    """Radians a position of each pair of dimensions, as Hugging Face's default, linear and llama3 RoPE."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.kind == "linear":
        frequencies /= scaling.factor
    elif scaling.kind == "llama3":
        turns = frequencies * scaling.original_max_position_embeddings / (2 * np.pi)
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / scaling.factor)
    return frequencies.astype(np.float32)


def rotate(
    x: Float[Array, "... t h d"], cos: Float[Array, "... t half"], sin: Float[Array, "... t half"]
) -> Float[Array, "... t h d"]:
    """Applies RoPE to both halves of the last axis (Hugging Face's half-split convention), in float32."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)

"""Rotary position embeddings (Su et al. 2021): the frequencies, their scalings, and the rotation."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fi_jax.config import LlmConfig, RopeScaling

# Base and scaling of one layer; None: it has no RoPE.
Rope = tuple[float, RopeScaling] | None


def rope_of_layer(config: LlmConfig, layer: int) -> Rope:
    """How one layer's queries and keys are turned."""
    if layer in config.no_rope_layers:
        return None
    if config.sliding_rope_theta and layer in config.sliding_layers:
        return config.sliding_rope_theta, RopeScaling()
    return config.rope_theta, config.rope_scaling


def rope_table(
    rope: Rope, size: int, positions: Float[Array, "*b"], length: int
) -> tuple[Float[Array, "*b half"], Float[Array, "*b half"]]:
    """Cosines and sines of positions in a sequence of `length` tokens; one and zero where there is no RoPE."""
    if rope is None:
        ones = jnp.ones((*positions.shape, size // 2))
        return ones, jnp.zeros_like(ones)
    angles = positions[..., None] * rope_frequencies(size, *rope, length)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    factor = rope[1].attention_factor
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def rope_frequencies(size: int, theta: float, scaling: RopeScaling, length: int = 0) -> Float[np.ndarray, "half"]:
    """Radians a position of each pair of `size` dimensions, as Hugging Face's default, linear, llama3 and longrope RoPE.

    `length` is that of the whole sequence, by which longrope picks its factors.
    """
    frequencies = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling.kind == "linear":
        frequencies /= scaling.factor
    elif scaling.kind == "llama3":
        turns = frequencies * scaling.original_max_position_embeddings / (2 * np.pi)
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / scaling.factor)
    elif scaling.kind == "longrope":
        long = length > scaling.original_max_position_embeddings
        frequencies /= np.array(scaling.long_factor if long else scaling.short_factor)
    return frequencies.astype(np.float32)


def rotate(
    x: Float[Array, "... t h d"], cos: Float[Array, "... t half"], sin: Float[Array, "... t half"]
) -> Float[Array, "... t h d"]:
    """Applies RoPE to the first `2 * half` dimensions (Hugging Face's half-split convention), in float32."""
    if (size := 2 * cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :size], cos, sin), x[..., size:]], axis=-1)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)

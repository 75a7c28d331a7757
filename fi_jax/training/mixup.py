"""Blends faces of a batch in pairs, pixels and labels alike: mixup, a regulariser for encoders trained from nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Both parameters of the Beta distribution of a blend's share.
ALPHA = 0.8


def mixup(
    key: Array,
    pixels: Float[Array, "b y x 3"],
    map_pixels: Float[Array, "b y2 x2 3"],
    labels: Float[Array, "b n"],
    known: Bool[Array, "b n"],
    rate: float,
) -> tuple[
    Float[Array, "b y x 3"], Float[Array, "b y2 x2 3"], Float[Array, "b n"], Float[Array, "b n"], Bool[Array, "b"]
]:
    """Blends a share `rate` of the faces with the face before them (Zhang et al. 2018).

    Bernoulli cross-entropy is linear in its target, so two faces with shares w and 1 - w are one target: where both
    know a label, its blend with weight 1; where one does, that one's with its share as weight.

    Returns pixels, map pixels, labels, the weight with which each label is known, and which faces were left whole
    (rules say nothing about a blend).
    """
    k_rate, k_share = jax.random.split(key)
    b = labels.shape[0]
    whole = ~jax.random.bernoulli(k_rate, rate, (b,))
    share = jax.random.beta(k_share, ALPHA, ALPHA, (b,))
    # A blend belongs to neither more than to the other: the larger share is the face's own.
    share = jnp.where(whole, 1.0, jnp.maximum(share, 1 - share))

    def blend(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        w = share.reshape(b, *(1,) * (x.ndim - 1))
        return w * x + (1 - w) * jnp.roll(x, 1, axis=0)

    weight = blend(known.astype(jnp.float32))
    blended = blend(labels * known) / jnp.maximum(weight, 1e-6)
    return blend(pixels), blend(map_pixels), blended, weight, whole

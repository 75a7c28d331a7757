"""Adapted linear layers of one input, computed together: fewer passes over memory, the same sums.

Ours. A frozen product is bound by arithmetic, everything that an adapter adds to it by memory; what is saved here is
passes over arrays as large as the activations. Each sum is written as `product + so_far`, in this order: XLA then lets
a GPU's matrix library add inside the product. JAX's own gradients would leave sums of finished products.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fi_jax.models.lora import Linear


def project(x: Float[Array, "... i"], layers: Sequence[Linear]) -> tuple[Float[Array, "... o"], ...]:
    """Returns what each layer makes of `x`.

    Adapters read `x` once for all; so do the gradients of their A, and one product takes all of them back to `x`.
    """
    parts = [layer.parts(x.shape[-1]) for layer in layers]
    x = x.astype(layers[0].dtype)
    adapted = [part for part in parts if part.a is not None]
    made = iter(_adapted(x, tuple((part.kernel, part.a, part.b) for part in adapted))) if adapted else iter(())
    products = [x @ part.kernel if part.a is None else next(made) for part in parts]
    return tuple(y if part.bias is None else y + part.bias for y, part in zip(products, parts, strict=True))


@jax.custom_vjp
def _adapted(x, weights):
    """`x W + (x A) B` for each (W, A, B) of `weights`."""
    return _forward(x, weights)[0]


def _forward(x, weights):
    low = x @ jnp.concatenate([a for _, a, _ in weights], axis=-1)
    # Kept by `models.llama`'s remat "dots": narrow to store, and as slow to compute again as x is wide to read.
    low = checkpoint_name(low, "lora_low")
    lows = _split(low, weights)
    return tuple(x @ kernel + own @ b for (kernel, _, b), own in zip(weights, lows, strict=True)), (x, low, weights)


def _backward(kept, cotangents):
    x, low, weights = kept
    lows = jnp.concatenate([dy @ b.T for dy, (_, _, b) in zip(cotangents, weights, strict=True)], axis=-1)
    dx = None
    for dy, (kernel, _, _) in zip(cotangents, weights, strict=True):
        dx = dy @ kernel.T if dx is None else dy @ kernel.T + dx
    dx = lows @ jnp.concatenate([a for _, a, _ in weights], axis=-1).T + dx
    da = _split(_rows(x).T @ _rows(lows), weights)
    dweights = tuple(
        # The gradient of a frozen kernel is dead code.
        (_rows(x).T @ _rows(dy), own_a, _rows(own_low).T @ _rows(dy))
        for dy, own_a, own_low in zip(cotangents, da, _split(low, weights), strict=True)
    )
    return dx, dweights


_adapted.defvjp(_forward, _backward)


def _rows(x: Float[Array, "*b i"]) -> Float[Array, "n i"]:
    return x.reshape(-1, x.shape[-1])


def _split(low, weights):
    ends, widths = 0, [a.shape[-1] for _, a, _ in weights]
    return [low[..., ends : (ends := ends + width)] for width in widths]

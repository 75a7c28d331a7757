"""Several linear layers of one input as one product; their parameters stay apart, under their own names."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fi_jax.models.lora import Linear

# What of the layers is joined: nothing, the adapters' A alone, or kernels and A.
Join = Literal["none", "adapters", "all"]


def project(x: Float[Array, "... i"], layers: Sequence[Linear], join: Join) -> tuple[Float[Array, "... o"], ...]:
    """Returns what each layer makes of `x`.

    "adapters" reads `x` once for all low activations, forward and for the gradients of A; "all" makes one product
    `x [W_1 | W_2 | A_1 | A_2]`, whose gradient of `x` is one product too, at the price of cutting its output up.
    """
    if join == "none":
        return tuple(layer(x) for layer in layers)
    parts = [layer.parts(x.shape[-1]) for layer in layers]
    x = x.astype(layers[0].dtype)
    kernels = tuple(part.kernel for part in parts)
    adapters = tuple(part.a for part in parts if part.a is not None)
    if join == "all":
        made = joint_product(x, kernels, adapters)
    else:
        made = (*(x @ kernel for kernel in kernels), *(joint_product(x, (), adapters) if adapters else ()))
    # One name for each, as `models.lora` gives it: kept by remat "dots".
    lows = iter([checkpoint_name(low, "lora_low") for low in made[len(kernels) :]])
    outputs = []
    for y, part in zip(made, parts, strict=False):
        if part.bias is not None:
            y += part.bias
        if part.b is not None:
            y += next(lows) @ part.b
        outputs.append(y)
    return tuple(outputs)


@jax.custom_vjp
def joint_product(
    x: Float[Array, "... i"], kernels: tuple[Float[Array, "i o"], ...], adapters: tuple[Float[Array, "i r"], ...]
) -> tuple[Float[Array, "... o"], ...]:
    """Returns `x W` of every kernel, then of every adapter, by one product.

    Its own gradient for two reasons: JAX would take that of one adapter as a slice of the whole `x^T y`, frozen kernels
    included, and it would keep the joined kernels beside the kernels.
    """
    return _split(x @ jnp.concatenate((*kernels, *adapters), axis=-1), (*kernels, *adapters))


def _split(y, weights):
    widths = [weight.shape[-1] for weight in weights]
    return tuple(jnp.split(y, [sum(widths[:i]) for i in range(1, len(widths))], axis=-1))


def _forward(x, kernels, adapters):
    return joint_product(x, kernels, adapters), (x, kernels, adapters)


def _backward(kept, cotangents):
    x, kernels, adapters = kept
    dx = jnp.concatenate(cotangents, axis=-1) @ jnp.concatenate((*kernels, *adapters), axis=-1).T

    def gradients(weights, cotangents):
        # Kernels and adapters apart: of those that are frozen the product is dead code.
        if not weights:
            return ()
        dy = jnp.concatenate(cotangents, axis=-1)
        return _split(x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1]), weights)

    n = len(kernels)
    return dx, gradients(kernels, cotangents[:n]), gradients(adapters, cotangents[n:])


joint_product.defvjp(_forward, _backward)

"""Layers stacked on one axis, or one array a layer: what the language model's programs read of either."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fi_jax.config import ModelConfig
from fi_jax.models.precision import Quantised, quantise_frozen


def unstack_layers(leaves: dict[str, Any], scan_layers: bool = False, prefix: str = "llm/") -> dict[str, Any]:
    """Cuts every stacked leaf of an LLM's layers into a tuple of one array a layer, unless the layers are scanned.

    `leaves` are flat and given up: each is taken out as it is cut, so that no more than one is held twice. `prefix` is
    where the LLM's paths begin. What is no leaf of a layer stays as it is.
    """
    if scan_layers:
        return leaves
    cut = {}
    for path in list(leaves):
        leaf = leaves.pop(path)
        if path.startswith(f"{prefix}layers/"):
            leaf = _unstack(leaf) if isinstance(leaf, Quantised) else tuple(leaf)
        cut[path] = leaf
    return cut


def prepare_frozen(leaves: dict[str, Any], model: ModelConfig, *, differentiated: bool = True) -> dict[str, Any]:
    """Frozen leaves as the model reads them: kernels in `frozen_precision`, layers apart where they are unrolled.

    `leaves` are flat and given up. `differentiated`: whether gradients go through the kernels to their inputs.
    """
    leaves = unstack_layers(leaves, model.scan_layers)
    return quantise_frozen(leaves, model.frozen_precision, differentiated)


def layer_params(layers: dict, num_layers: int) -> list[dict]:
    """Returns the parameters of every layer, whether `layers` holds stacks or tuples of one array a layer."""
    cut = jax.tree.map(lambda leaf: leaf if _is_unstacked(leaf) else _unstack(leaf), layers, is_leaf=_is_leaf)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], cut, is_leaf=_is_unstacked) for i in range(num_layers)]


def _is_unstacked(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, tuple | Quantised)


def _unstack(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Quantised):
        return tuple(jax.tree.map(lambda x, i=i: x[i], leaf) for i in range(leaf.scale.shape[0]))
    return _unstack_array(leaf)


@jax.custom_vjp
def _unstack_array(leaf: Float[Array, "l *rest"]) -> tuple[Float[Array, "*rest"], ...]:
    # JAX would sum as many gradients of the whole stack, each with one layer in it.
    return tuple(leaf[i] for i in range(leaf.shape[0]))


def _unstack_forward(leaf):
    return _unstack_array(leaf), None


def _unstack_backward(_, cotangents):
    return (jnp.stack(cotangents),)


_unstack_array.defvjp(_unstack_forward, _unstack_backward)

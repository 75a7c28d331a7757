"""Frozen kernels in 8 bits: how they are stored, and the products of activations with them.

`fp8`: kernel and activations are e4m3, one scale an output channel and one a token, forward and in the input gradient
alike. Both operands are contracted over their last axis, which XLA hands to cuBLASLt's FP8 product on Hopper; so a
kernel that is differentiated through is kept in both layouts. `int8`: the kernel alone, one scale an output channel; a
product reads it in the activations' type and runs anywhere. Where there is no GPU, `fp8` is emulated: the values are
those of 8 bits, the sums float32. Ours.
"""

import re
from functools import partial
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Precision = Literal["bf16", "fp8", "int8"]

# Linear layers of the LLM. Encoders, embeddings, the LM head, connectors and everything small stay as they are.
KERNELS = re.compile(r"llm/layers/(attn|mlp)/\w+_proj/kernel")
_STORED = {"fp8": jnp.float8_e4m3fn, "int8": jnp.int8}


class Quantised(flax.struct.PyTreeNode):
    """A frozen kernel `[i, o]` in 8 bits, in front of which may stand an axis of stacked layers.

    `forward` has what `x W` contracts last, `backward` (fp8 that is differentiated through) what `dy Wᵀ` contracts last.
    """

    # `Any`: JAX also builds such nodes of other things than arrays.
    forward: Any  # [*l o i], int8 or e4m3
    backward: Any  # [*l i o] or None
    scale: Any  # [*l o], float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel."""
        *stack, outputs, inputs = self.forward.shape
        return (*stack, inputs, outputs)

    @property
    def is_fp8(self) -> bool:
        """Whether activations are quantised too."""
        return self.forward.dtype == jnp.float8_e4m3fn


class Rows(flax.struct.PyTreeNode):
    """A cache's keys or values in 8 bits with one scale a token: `values * scale`."""

    values: Any  # [*b i], int8
    scale: Any  # [*b 1], float32


def quantise_tokens(x: Float[Array, "*b i"]) -> Rows:
    """Rounds keys or values to int8, one scale a token."""
    return Rows(*_scaled(x, jnp.int8))


def quantise_kernel(kernel: Float[Array, "*l i o"], precision: Precision, differentiated: bool = True) -> Quantised:
    """Rounds to 8 bits, one scale an output channel. `differentiated`: whether gradients go through to the input."""
    forward, scale = _scaled(kernel.swapaxes(-1, -2), _STORED[precision])
    both = differentiated and precision == "fp8"
    return Quantised(forward, forward.swapaxes(-1, -2) if both else None, scale[..., 0])


def _scaled(x, dtype):
    x = x.astype(jnp.float32)
    integer = jnp.issubdtype(dtype, jnp.integer)
    most = float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-12) / most
    x = x / scale
    return (jnp.round(x) if integer else x).astype(dtype), scale


def quantise_frozen(leaves: dict[str, Any], precision: Precision, differentiated: bool = True) -> dict[str, Any]:
    """Replaces the kernels of linear layers among frozen `leaves` by `Quantised` ones.

    `leaves` are flat and given up: each is dropped once it is quantised. Stacked layers and tuples of one array a layer
    both work; a stack is quantised layer by layer. What is in 8 bits already stays.
    """
    if precision == "bf16":
        return leaves
    return {path: quantise_leaf(path, leaves.pop(path), precision, differentiated) for path in list(leaves)}


def quantise_leaf(path: str, leaf: Any, precision: Precision, differentiated: bool = True) -> Any:
    """One frozen leaf as `quantise_frozen` keeps it: whole, a layer of it, or a tuple of its layers."""
    if precision == "bf16" or not KERNELS.fullmatch(path) or isinstance(leaf, Quantised):
        return leaf
    if isinstance(leaf, tuple):
        return tuple(quantise_leaf(path, one, precision, differentiated) for one in leaf)
    return _quantise(leaf, precision, differentiated)


@partial(jax.jit, static_argnames=("precision", "differentiated"))
def _quantise(kernel, precision, differentiated):
    one = partial(quantise_kernel, precision=precision, differentiated=differentiated)
    return jax.lax.map(one, kernel) if kernel.ndim == 3 else one(kernel)


def contract(a: Float[Array, "*b i"], kernel: Shaped[Array, "o i"]) -> Float[Array, "*b o"]:
    """The product over the last axes, in the type of `a`; of a kernel in 8 bits after widening it, which is exact."""
    return jax.lax.dot_general(a, kernel.astype(a.dtype), (((a.ndim - 1,), (1,)), ((), ())))


def contract_fp8(a: Float[Array, "*b i"], kernel: Float[Array, "o i"], dtype: Any) -> Float[Array, "*b o"]:
    """The product of two e4m3 arrays over their last axes: by cuBLASLt on a GPU, elsewhere in float32."""
    dims = (((a.ndim - 1,), (1,)), ((), ()))

    def emulated(a, kernel):
        product = jax.lax.dot_general(a.astype(jnp.float32), kernel.astype(jnp.float32), dims)
        return product.astype(dtype)

    def fp8(a, kernel):
        return jax.lax.dot_general(a, kernel, dims, preferred_element_type=jnp.bfloat16).astype(dtype)

    return jax.lax.platform_dependent(a, kernel, cuda=fp8, default=emulated)


def no_gradient(kernel: Any) -> Any:
    """The cotangent of a frozen kernel: zeros, which nothing reads."""

    def zeros(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return np.zeros(leaf.shape, jax.dtypes.float0)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(zeros, kernel)

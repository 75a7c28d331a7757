"""Linear layers of one input, computed together: fewer passes over memory, the same sums.

Ours. A frozen product is bound by arithmetic, everything that an adapter or rounding adds to it by memory; what is saved
here is passes over arrays as large as the activations. Each sum is written as `product + so_far`, in this order: XLA
then lets a GPU's matrix library add inside the product. JAX's own gradients would leave sums of finished products.
"""

import functools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fi_jax.models.few_rows import few_rows_products, has_few_rows
from fi_jax.models.lora import Linear
from fi_jax.models.precision import Quantised, contract, contract_fp8, no_gradient
from fi_jax.models.rounding import round_rows

# cuBLAS adds an adapter's product to a sum inside it. By default XLA tries its own Triton kernels first and then leaves
# the sums apart: a step of 7B is 2 % slower and compiles in 71 s, not 43. Nor may it join the products with a frozen
# kernel and with A, which would copy the kernel and cut up the result.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}


def project(
    x: Float[Array, "... i"], layers: Sequence[Linear], names: Sequence[str] = ()
) -> tuple[Float[Array, "... o"], ...]:
    """Returns what each layer makes of `x`.

    Adapters read `x` once for all; so do the gradients of their A, and one product takes all of them back to `x`. For
    kernels in FP8 (`models.precision`) `x` is rounded once for all as well. `names` are those under which a policy of
    rematerialisation may keep the results (before their biases).
    """
    parts = [layer.parts(x.shape[-1]) for layer in layers]
    x = x.astype(layers[0].dtype)
    weights = tuple((part.kernel, part.a, part.b) for part in parts)
    if all(part.a is None and not isinstance(part.kernel, Quantised) for part in parts):
        made = [_named(x @ cast(Array, part.kernel), names, i) for i, part in enumerate(parts)]
    else:
        made = _products(x, weights, tuple(names))
    return tuple(y if part.bias is None else y + part.bias for y, part in zip(made, parts, strict=True))


def _named(y, names, number):
    return checkpoint_name(y, names[number]) if names else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _products(x, weights, names):
    """`x W + (x A) B` for each (W, A, B) of `weights`; A and B may be None, W `Quantised`."""
    return _forward(x, weights, names)[0]


def _forward(x, weights, names):
    rounded = scale = low = None
    if any(_is_fp8(kernel) for kernel, _, _ in weights) and not has_few_rows(x):
        (rounded,), scale = round_rows([x])
        scale = checkpoint_name(scale, "row_scale")
    adapters = [a for _, a, _ in weights if a is not None]
    if adapters:
        low = x @ jnp.concatenate(adapters, axis=-1)
        # Kept by `models.llm`'s remat "dots": narrow to store, and as slow to compute again as x is wide to read.
        low = checkpoint_name(low, "lora_low")
    few = iter(_by_few_rows(x, [kernel for kernel, _, _ in weights if isinstance(kernel, Quantised)]))
    made = []
    for number, ((kernel, _, b), own) in enumerate(zip(weights, _split(low, weights), strict=True)):
        if rounded is None or not _is_fp8(kernel):
            y = next(few) if isinstance(kernel, Quantised) and has_few_rows(x) else _product(x, kernel)
            made.append(_named(y if b is None else y + own @ b, names, number))
            continue
        # The scales of rows and columns are left to what reads the sum, and divided out of what is added to it.
        y = contract_fp8(rounded, kernel.forward, x.dtype)
        if b is not None:
            y = y + (own / scale).astype(x.dtype) @ (b / kernel.scale).astype(x.dtype)
        y = _named(y, names, number).astype(jnp.float32)
        made.append((y * (scale * kernel.scale)).astype(x.dtype))
    return tuple(made), (x, low, weights)


def _by_few_rows(x, kernels):
    if not kernels or not has_few_rows(x):
        return ()
    return few_rows_products(x, [kernel.forward for kernel in kernels], [kernel.scale for kernel in kernels])


def _product(x, kernel):
    if not isinstance(kernel, Quantised):
        return x @ kernel
    return (contract(x, kernel.forward).astype(jnp.float32) * kernel.scale).astype(x.dtype)


def _is_fp8(kernel):
    return isinstance(kernel, Quantised) and kernel.is_fp8


def _backward(names, kept, cotangents):
    x, low, weights = kept
    fp8 = [(dy, kernel) for dy, (kernel, _, _) in zip(cotangents, weights, strict=True) if _is_fp8(kernel)]
    adapted = [(dy, a, b) for dy, (_, a, b) in zip(cotangents, weights, strict=True) if a is not None]
    lows = dx = None
    if adapted:
        lows = jnp.concatenate([dy @ b.T for dy, _, b in adapted], axis=-1)
        back = jnp.concatenate([a for _, a, _ in adapted], axis=-1).T
    if fp8:
        if any(kernel.backward is None for _, kernel in fp8):
            raise ValueError("a kernel that was quantised for inference alone is differentiated")
        rounded, scale = round_rows([dy for dy, _ in fp8], [kernel.scale for _, kernel in fp8])
        if lows is not None:
            dx = (lows / scale).astype(x.dtype) @ back
        for dy, (_, kernel) in zip(rounded, fp8, strict=True):
            own = contract_fp8(dy, kernel.backward, x.dtype)
            dx = own if dx is None else own + dx
        dx = (dx.astype(jnp.float32) * scale).astype(x.dtype)
    for dy, (kernel, _, _) in zip(cotangents, weights, strict=True):
        if not _is_fp8(kernel):
            own = _cotangent(dy, kernel)
            dx = own if dx is None else own + dx
    if not fp8 and lows is not None:
        dx = lows @ back + dx
    # The gradient of a frozen kernel is dead code.
    dkernels = [
        no_gradient(kernel) if isinstance(kernel, Quantised) else _rows(x).T @ _rows(dy)
        for dy, (kernel, _, _) in zip(cotangents, weights, strict=True)
    ]
    da = _split(None if lows is None else _rows(x).T @ _rows(lows), weights)
    dweights = (
        (dkernel, own_a, None if own_low is None else _rows(own_low).T @ _rows(dy))
        for dy, dkernel, own_a, own_low in zip(cotangents, dkernels, da, _split(low, weights), strict=True)
    )
    return dx, tuple(dweights)


def _cotangent(dy, kernel):
    if not isinstance(kernel, Quantised):
        return dy @ kernel.T
    scaled = (dy.astype(jnp.float32) * kernel.scale).astype(dy.dtype)
    return scaled @ kernel.forward.astype(dy.dtype)


_products.defvjp(_forward, _backward)


def _rows(x: Float[Array, "*b i"]) -> Float[Array, "n i"]:
    return x.reshape(-1, x.shape[-1])


def _split(low, weights):
    """The columns of each adapter, None where there is none."""
    ends = 0
    return [None if a is None else low[..., ends : (ends := ends + a.shape[-1])] for _, a, _ in weights]

"""Attention over a shared prefix and its segments in two pieces, merged by log-sum-exp with a gradient of its own.

`jax.nn.dot_product_attention(..., return_residual=True)` stops the gradient through the log-sum-exp, so a merge
of its results has wrong gradients of q and k. Here the whole merge is one function with its own VJP: a piece's
backward pass is run with the *merged* output and the *merged* log-sum-exp, which makes every piece's weights
those of the joint softmax (FlashAttention-2, Dao 2023, section 3.1; the split is ours). On a TPU no merge is needed:
one kernel takes the mask (`models.flash_tpu`).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fi_jax.models.flash_cudnn import cudnn_backward, cudnn_forward, even, private_module, require_cudnn
from fi_jax.models.flash_tpu import KEPT, full_attention_tpu, shared_prefix_tpu

Kernel = Literal["xla", "cudnn"]

# A segment attends to itself by plain matrix products below this many tokens; a kernel's tiles are larger.
SHORTEST_FLASH_SEGMENT = 128


def platform() -> str:
    """Where what is traced here will run: on the devices of the mesh in use (a plan's are not here), else on JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shared_prefix_flash(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    prefix: int,
    segment: int,
) -> Float[Array, "b t h d"]:
    """Causal attention within a prefix, and of each segment to that prefix and, causally, to itself; by fast kernels.

    `segment` counts the tokens of each of the segments that follow the prefix; 0 where none do.

    Raises `UserError` where the backend or the dtype has no such kernel.
    """
    if platform() == "tpu":
        return shared_prefix_tpu(q, k, v, prefix, segment)
    require_cudnn(q)
    fast: Kernel = "cudnn" if private_module() else "xla"
    return merged_attention(q, k, v, prefix, segment, fast, fast if segment >= SHORTEST_FLASH_SEGMENT else "xla")


def full_attention_flash(
    q: Float[Array, "b t h d"], k: Float[Array, "b t h d"], v: Float[Array, "b t h d"], causal: bool
) -> Float[Array, "b t h d"]:
    """Every token attends to every token (`causal`: to none behind it), by a fast kernel.

    cuDNN's is given an even number of tokens: a ViT has one class token more than patches, which are often even.

    Raises `UserError` where the backend or the dtype has no such kernel.
    """
    if platform() == "tpu":
        return full_attention_tpu(q, k, v, causal)
    require_cudnn(q)
    b, t = q.shape[:2]
    if t % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    lengths = jnp.full(b, t, jnp.int32)
    out = jax.nn.dot_product_attention(
        *(even(a) for a in (q, k, v)),
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :t]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def merged_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    prefix: int,
    segment: int,
    prefix_kernel: Kernel,
    own_kernel: Kernel,
) -> Float[Array, "b t h d"]:
    """`shared_prefix_flash` with the kernel of each piece named; "xla" runs anywhere and defines the result."""
    return _merged_forward(q, k, v, prefix, segment, prefix_kernel, own_kernel)[0]


def _merged_forward(q, k, v, prefix, segment, prefix_kernel, own_kernel):
    # Every token, a segment's too, against the prefix: causality and the prefix's length leave nothing else to see. So
    # the arrays go in whole; cutting them up and joining the results took longer than some of the attention.
    out, lse = piece_forward(q, k, v, _far_keys(prefix, segment), True, prefix_kernel)
    if segment:
        far_lse = lse[:, :, prefix:]
        rows = [_segments(a, prefix, segment) for a in (q, k, v)]
        near, near_lse = piece_forward(*rows, None, True, own_kernel)
        b, h, m = far_lse.shape
        near_lse = near_lse.reshape(b, m // segment, h, segment).swapaxes(1, 2).reshape(b, h, m)
        joint = jnp.logaddexp(far_lse, near_lse)
        both = out[:, prefix:] * _per_row(jnp.exp(far_lse - joint))
        both += near.reshape(both.shape) * _per_row(jnp.exp(near_lse - joint))
        out = out.at[:, prefix:].set(both.astype(out.dtype))
        lse = lse.at[:, :, prefix:].set(joint)
    out = checkpoint_name(out.astype(q.dtype), KEPT)
    lse = checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, out, lse)


def _merged_backward(prefix, segment, prefix_kernel, own_kernel, residuals, cotangent):
    q, k, v, out, lse = residuals
    cotangent = cotangent.astype(q.dtype)
    far = _far_keys(prefix, segment)
    dq, dk, dv = piece_backward(q, k, v, far, out, lse, cotangent, True, prefix_kernel)
    if segment:
        b, h, t = lse.shape
        own_lse = lse[:, :, prefix:].reshape(b, h, -1, segment).swapaxes(1, 2).reshape(-1, h, segment)
        rows = [_segments(a, prefix, segment) for a in (q, k, v, out, cotangent)]
        near = piece_backward(*rows[:3], None, rows[3], own_lse, rows[4], True, own_kernel)
        near_q, near_k, near_v = (a.reshape(b, t - prefix, *a.shape[2:]) for a in near)
        dq = dq.at[:, prefix:].add(near_q)
        # Nothing looks at a segment's keys from afar.
        dk, dv = dk.at[:, prefix:].set(near_k), dv.at[:, prefix:].set(near_v)
    return dq, dk, dv


merged_attention.defvjp(_merged_forward, _merged_backward)


def _far_keys(prefix, segment):
    # Without segments causality alone says what is seen.
    return prefix if segment else None


def _segments(x: Float[Array, "b t *rest"], prefix: int, segment: int) -> Float[Array, "bs n *rest"]:
    return x[:, prefix:].reshape(-1, segment, *x.shape[2:])


def _per_row(weights: Float[Array, "b h t"]) -> Float[Array, "b t h 1"]:
    return weights.swapaxes(1, 2)[..., None]


def piece_forward(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b u g d"],
    v: Float[Array, "b u g d"],
    num_keys: int | None,
    causal: bool,
    kernel: Kernel,
) -> tuple[Float[Array, "b t h d"], Float[Array, "b h t"]]:
    """One piece's attention over its first `num_keys` keys (None: all); returns its output and its log-sum-exp (float32)."""
    if kernel == "cudnn":
        return cudnn_forward(q, k, v, num_keys, causal)
    logits = _logits(q, k, num_keys, causal)
    lse = jax.nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - lse[..., None]).astype(q.dtype)
    out = jnp.einsum("bgrtu,bugd->btgrd", weights, v, preferred_element_type=jnp.float32).reshape(q.shape)
    return out, lse.reshape(lse.shape[0], -1, lse.shape[-1])


def piece_backward(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b u g d"],
    v: Float[Array, "b u g d"],
    num_keys: int | None,
    out: Float[Array, "b t h d"],
    lse: Float[Array, "b h t"],
    cotangent: Float[Array, "b t h d"],
    causal: bool,
    kernel: Kernel,
) -> tuple[Float[Array, "b t h d"], Float[Array, "b u g d"], Float[Array, "b u g d"]]:
    """Gradients of q, k and v through one piece, given the *merged* output and log-sum-exp."""
    if kernel == "cudnn":
        return cudnn_backward(q, k, v, num_keys, out, lse, cotangent, causal)
    (b, t, h, d), g = q.shape, k.shape[2]
    grouped = cotangent.reshape(b, t, g, h // g, d)
    weights = jnp.exp(_logits(q, k, num_keys, causal) - lse.reshape(b, g, h // g, t, 1))
    dv = jnp.einsum("bgrtu,btgrd->bugd", weights.astype(q.dtype), grouped)
    delta = jnp.einsum("bthd,bthd->bht", cotangent, out, preferred_element_type=jnp.float32)
    dweights = jnp.einsum("btgrd,bugd->bgrtu", grouped, v, preferred_element_type=jnp.float32)
    dlogits = (weights * (dweights - delta.reshape(b, g, h // g, t, 1)) * d**-0.5).astype(q.dtype)
    dq = jnp.einsum("bgrtu,bugd->btgrd", dlogits, k).reshape(q.shape)
    dk = jnp.einsum("bgrtu,btgrd->bugd", dlogits, q.reshape(b, t, g, h // g, d))
    return dq, dk, dv


def _logits(q, k, num_keys, causal):
    (b, t, h, d), (u, g) = q.shape, k.shape[1:3]
    logits = jnp.einsum("btgrd,bugd->bgrtu", q.reshape(b, t, g, h // g, d), k, preferred_element_type=jnp.float32)
    visible = np.arange(u) < (u if num_keys is None else num_keys)
    if causal:
        visible = visible & np.tri(t, u, dtype=bool)
    return jnp.where(visible, logits * d**-0.5, -jnp.inf)

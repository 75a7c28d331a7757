"""Attention over a shared prefix and its segments in two pieces, merged by log-sum-exp with a gradient of its own.

`jax.nn.dot_product_attention(..., return_residual=True)` stops the gradient through the log-sum-exp, so a merge
of its results has wrong gradients of q and k. Here the whole merge is one function with its own VJP: a piece's
backward pass is run with the *merged* output and the *merged* log-sum-exp, which makes every piece's weights
those of the joint softmax (FlashAttention-2, Dao 2023, section 3.1; the split is ours).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fi_jax.errors import UserError

Kernel = Literal["xla", "cudnn"]

# A segment attends to itself by plain matrix products below this many tokens; a kernel's tiles are larger.
SHORTEST_FLASH_SEGMENT = 128


def shared_prefix_flash(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    prefix: int,
    segment: int,
) -> Float[Array, "b t h d"]:
    """Causal attention within a prefix, and of each segment to that prefix and, causally, to itself; by cuDNN kernels.

    `segment` counts the tokens of each of the segments that follow the prefix; 0 where none do.

    Raises `UserError` where the backend or the dtype has no such kernel.
    """
    own: Kernel = "cudnn" if segment >= SHORTEST_FLASH_SEGMENT else "xla"
    return merged_attention(q, k, v, prefix, segment, "cudnn", own)


def full_attention_flash(
    q: Float[Array, "b t h d"], k: Float[Array, "b t h d"], v: Float[Array, "b t h d"], causal: bool
) -> Float[Array, "b t h d"]:
    """Every token attends to every token (`causal`: to none behind it), by cuDNN's kernel.

    An odd sequence is padded: a ViT has one class token more than patches, which are often an even number.

    Raises `UserError` where the backend or the dtype has no such kernel.
    """
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
    out = checkpoint_name(out.astype(q.dtype), "attention_out")
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
        return _cudnn_forward(q, k, v, num_keys, causal)
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
        return _cudnn_backward(q, k, v, num_keys, out, lse, cotangent, causal)
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


def require_cudnn(q: Float[Array, "b t h d"]):
    """Returns the cuDNN attention module of JAX, after checking that it can be used.

    It has no public backward pass that takes a merged log-sum-exp, so `flash` stands on a private one: tried with jax
    0.11.2 on H100 and H200. Where it is gone or has moved the error says so, and which option does without.
    """
    remedy = "use --model.attention xla"
    if jax.default_backend() != "gpu":
        raise UserError(
            f"attention 'flash' needs an NVIDIA GPU with cuDNN, this is '{jax.default_backend()}'; {remedy}"
        )
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8:
        raise UserError(
            f"attention 'flash' needs bfloat16 and a head size that is a multiple of 8, not {q.dtype} and {q.shape[-1]}; {remedy}"
        )
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        cudnn.check_cudnn_version()
        _ = (
            cudnn.dot_product_attention,
            cudnn.MaskType,
            cudnn.AttentionLayout,
            cudnn._dot_product_attention_bwd_p_wrapper,
        )
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"attention 'flash' does not work with jax {jax.__version__} here ({error}); {remedy}"
        ) from error
    return cudnn


def even(x: Float[Array, "b t *rest"]) -> Float[Array, "b t2 *rest"]:
    """Pads axis 1 to an even length with zeros: cuDNN's kernels refuse odd ones."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)))


def _cudnn_lengths(q, num_keys):
    return [jnp.full(q.shape[0], length, jnp.int32) for length in (q.shape[1], num_keys)]


def _cudnn_mask(cudnn, num_keys, causal):
    if num_keys is None:
        return cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK
    return cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING


def _cudnn_forward(q, k, v, num_keys, causal):
    cudnn = require_cudnn(q)
    q_lengths, kv_lengths = (None, None) if num_keys is None else _cudnn_lengths(q, num_keys)
    out, lse = cudnn.dot_product_attention(
        even(q), even(k), even(v), None, None, q_lengths, kv_lengths,
        scale=q.shape[-1] ** -0.5, mask_type=_cudnn_mask(cudnn, num_keys, causal), return_residual=True,
    )  # fmt: skip
    return out[:, : q.shape[1]], lse[..., : q.shape[1]]


def _cudnn_backward(q, k, v, num_keys, out, lse, cotangent, causal):
    cudnn = require_cudnn(q)
    unused = jnp.zeros(0, q.dtype)
    q_lengths, kv_lengths = (unused, unused) if num_keys is None else _cudnn_lengths(q, num_keys)
    # A row of padding has no cotangent, so it adds nothing to any gradient.
    padded_lse = jnp.pad(lse, ((0, 0), (0, 0), (0, q.shape[1] % 2)))
    dq, dk, dv = cudnn._dot_product_attention_bwd_p_wrapper.bind(
        even(q), even(k), even(v), unused, q_lengths, kv_lengths, unused, unused, unused, unused,
        padded_lse, even(out), even(cotangent),
        scale=q.shape[-1] ** -0.5, seed=42, dropout_rate=0.0, variadic_args=(False, False),
        mask_type=_cudnn_mask(cudnn, num_keys, causal), layout=cudnn.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )  # fmt: skip
    return dq[:, : q.shape[1]], dk[:, : k.shape[1]], dv[:, : v.shape[1]]

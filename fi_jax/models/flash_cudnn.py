"""cuDNN's attention for one piece of a merge: the one place that stands on what JAX does not publish.

JAX's public attention has no backward pass that takes a *merged* log-sum-exp, which a piece's gradient needs. The private
one was tried with jax 0.11.2 on H100 and H200. A JAX without it: `private_module` says so, and `models.flash` does the
same by matrix products.
"""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fi_jax.errors import UserError

log = logging.getLogger(__name__)


def require_cudnn(q: Float[Array, "b t h d"]) -> None:
    """Raises `UserError` unless this machine and the type of `q` have cuDNN's kernels."""
    remedy = "use --model.attention xla"
    if jax.default_backend() != "gpu":
        raise UserError(
            f"attention 'flash' needs an NVIDIA GPU with cuDNN or a TPU, this is '{jax.default_backend()}'; {remedy}"
        )
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8:
        raise UserError(
            f"attention 'flash' needs bfloat16 and a head size that is a multiple of 8, not {q.dtype} and {q.shape[-1]}; {remedy}"
        )


@functools.cache
def private_module() -> Any:
    """JAX's module of cuDNN attention, or None, once with a warning, where it is gone or has moved.

    Raises `UserError` where cuDNN itself is missing or too old.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        _ = (
            cudnn.dot_product_attention,
            cudnn.MaskType,
            cudnn.AttentionLayout,
            cudnn._dot_product_attention_bwd_p_wrapper,
        )
    except (ImportError, AttributeError) as error:
        log.warning("attention 'flash' falls back to matrix products (jax %s: %s)", jax.__version__, error)
        return None
    try:
        cudnn.check_cudnn_version()
    except RuntimeError as error:
        raise UserError(f"attention 'flash' does not work here ({error}); use --model.attention xla") from error
    return cudnn


def even(x: Float[Array, "b t *rest"]) -> Float[Array, "b t2 *rest"]:
    """Pads axis 1 to an even length with zeros: cuDNN's kernels refuse odd ones."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)))


def _lengths(q, num_keys):
    return [jnp.full(q.shape[0], length, jnp.int32) for length in (q.shape[1], num_keys)]


def _mask(cudnn, num_keys, causal):
    if num_keys is None:
        return cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK
    return cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING


def cudnn_forward(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b u g d"],
    v: Float[Array, "b u g d"],
    num_keys: int | None,
    causal: bool,
) -> tuple[Float[Array, "b t h d"], Float[Array, "b h t"]]:
    """`flash.piece_forward` by cuDNN."""
    cudnn = private_module()
    q_lengths, kv_lengths = (None, None) if num_keys is None else _lengths(q, num_keys)
    out, lse = cudnn.dot_product_attention(
        even(q), even(k), even(v), None, None, q_lengths, kv_lengths,
        scale=q.shape[-1] ** -0.5, mask_type=_mask(cudnn, num_keys, causal), return_residual=True,
    )  # fmt: skip
    return out[:, : q.shape[1]], lse[..., : q.shape[1]]


def cudnn_backward(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b u g d"],
    v: Float[Array, "b u g d"],
    num_keys: int | None,
    out: Float[Array, "b t h d"],
    lse: Float[Array, "b h t"],
    cotangent: Float[Array, "b t h d"],
    causal: bool,
) -> tuple[Float[Array, "b t h d"], Float[Array, "b u g d"], Float[Array, "b u g d"]]:
    """`flash.piece_backward` by cuDNN."""
    cudnn = private_module()
    unused = jnp.zeros(0, q.dtype)
    q_lengths, kv_lengths = (unused, unused) if num_keys is None else _lengths(q, num_keys)
    # A row of padding has no cotangent, so it adds nothing to any gradient.
    padded_lse = jnp.pad(lse, ((0, 0), (0, 0), (0, q.shape[1] % 2)))
    dq, dk, dv = cudnn._dot_product_attention_bwd_p_wrapper.bind(
        even(q), even(k), even(v), unused, q_lengths, kv_lengths, unused, unused, unused, unused,
        padded_lse, even(out), even(cotangent),
        scale=q.shape[-1] ** -0.5, seed=42, dropout_rate=0.0, variadic_args=(False, False),
        mask_type=_mask(cudnn, num_keys, causal), layout=cudnn.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )  # fmt: skip
    return dq[:, : q.shape[1]], dk[:, : k.shape[1]], dv[:, : v.shape[1]]

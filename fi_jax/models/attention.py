"""Attention over one shared prefix and many short segments, without a mask over the whole sequence."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fi_jax.errors import UserError
from fi_jax.models.flash import even, require_cudnn, segment_attention_flash

Implementation = Literal["xla", "flash"]

# Finite, so that a row without any visible key stays finite in values and gradients.
MASKED = -1e30


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """How one sequence of `prefix + segments * length` tokens is divided; static under `jit`.

    The prefix is causal within itself; each segment sees the prefix and, causally, itself.
    """

    prefix: int
    segments: int = 0
    length: int = 0

    def __post_init__(self):
        if min(self.prefix, self.segments, self.length) < 0 or bool(self.segments) != bool(self.length):
            raise UserError(
                f"{self} is no layout: sizes are not negative, and segments and length are both 0 or neither"
            )

    @property
    def total(self) -> int:
        """Tokens in all."""
        return self.prefix + self.segments * self.length


def split_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    layout: Layout,
    valid: Bool[Array, "b t"],
    implementation: Implementation = "xla",
) -> Float[Array, "b t h d"]:
    """Attends within `layout`; equals attention over each `prefix + segment` alone, to rounding.

    Query head `i` reads key/value head `i // (h / g)`. The scale is `d ** -0.5`, the softmax float32. Padding
    (`valid` false) is never seen, and its own rows come out as zero. "xla" takes padding anywhere and is
    differentiated by JAX; "flash" wants it on the right of the prefix and of each segment, and an NVIDIA GPU.
    """
    if q.shape[1] != layout.total:
        raise ValueError(f"{q.shape[1]} tokens for {layout}, which has {layout.total}")
    b, p, s, n = q.shape[0], layout.prefix, layout.segments, layout.length
    prefix = [a[:, :p] for a in (q, k, v, valid)]
    own = [a[:, p:].reshape(b, s, n, *a.shape[2:]) for a in (q, k, v, valid)]
    outputs = []
    if p:
        outputs.append(_causal(*prefix, implementation=implementation))
    if s and not p:
        alone = [a.reshape(b * s, n, *a.shape[3:]) for a in own]
        outputs.append(_causal(*alone, implementation=implementation).reshape(q.shape))
    elif s and implementation == "flash":
        lengths = valid[:, :p].sum(axis=1, dtype=jnp.int32)
        out = segment_attention_flash(own[0], own[1], own[2], prefix[1], prefix[2], lengths)
        outputs.append(out.reshape(b, s * n, *q.shape[2:]))
    elif s:
        outputs.append(_segments_xla(*own, *prefix[1:]).reshape(b, s * n, *q.shape[2:]))
    return jnp.where(valid[:, :, None, None], jnp.concatenate(outputs, axis=1), 0)


def causal_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    valid: Bool[Array, "b t"],
    implementation: Implementation = "xla",
) -> Float[Array, "b t h d"]:
    """Plain causal attention: `split_attention` of one prefix without segments."""
    return split_attention(q, k, v, Layout(q.shape[1]), valid, implementation)


def cached_attention(
    q: Float[Array, "b q s h d"],
    prefix_k: Float[Array, "b g p d"],
    prefix_v: Float[Array, "b g p d"],
    tail_k: Float[Array, "b q g m d"],
    tail_v: Float[Array, "b q g m d"],
    prefix_valid: Bool[Array, "b p"],
    tail_visible: Bool[Array, "b q s m"],
) -> Float[Array, "b q s h d"]:
    """Attends from `s` new tokens of each of `q` continuations to one shared prefix and to their own tails.

    The prefix's keys are read once for all `q` continuations. Caches are head-major so that batch and heads are
    one batch dimension of the matrix products. `tail_visible` says which tail slots a new token sees.
    """
    b, n, s, h, d = q.shape
    g = prefix_k.shape[1]
    grouped = (q * d**-0.5).reshape(b, n, s, g, h // g, d)
    far = jnp.einsum("bqsgrd,bgpd->bgqsrp", grouped, prefix_k, preferred_element_type=jnp.float32)
    near = jnp.einsum("bqsgrd,bqgmd->bgqsrm", grouped, tail_k, preferred_element_type=jnp.float32)
    far = jnp.where(prefix_valid[:, None, None, None, None, :], far, MASKED)
    near = jnp.where(tail_visible[:, None, :, :, None, :], near, MASKED)
    far, near = _joint_softmax(far, near, q.dtype)
    out = jnp.einsum("bgqsrp,bgpd->bqsgrd", far, prefix_v, preferred_element_type=jnp.float32)
    out += jnp.einsum("bgqsrm,bqgmd->bqsgrd", near, tail_v, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)


def _joint_softmax(far, near, dtype):
    # Not over a concatenation: that is written and read again, a third of a decoding step of 32 questions.
    top = jnp.maximum(far.max(-1, keepdims=True), near.max(-1, keepdims=True))
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    total = far.sum(-1, keepdims=True) + near.sum(-1, keepdims=True)
    return (far / total).astype(dtype), (near / total).astype(dtype)


def _causal(q, k, v, valid, *, implementation):
    if implementation == "flash":
        require_cudnn(q)
        # Padding stands on the right, so causality alone hides it from every valid row.
        out = jax.nn.dot_product_attention(even(q), even(k), even(v), is_causal=True, implementation="cudnn")
        return out[:, : q.shape[1]]
    b, t, h, d = q.shape
    g = k.shape[2]
    logits = jnp.einsum(
        "btgrd,bugd->bgrtu", (q * d**-0.5).reshape(b, t, g, h // g, d), k, preferred_element_type=jnp.float32
    )
    visible = jnp.tril(jnp.ones((t, t), bool)) & valid[:, None, :]
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], logits, MASKED), axis=-1).astype(q.dtype)
    return jnp.einsum("bgrtu,bugd->btgrd", weights, v).reshape(q.shape)


def _segments_xla(q, k, v, own_valid, prefix_k, prefix_v, prefix_valid):
    """Segments `b s n ...` against the prefix `b p g d` and themselves; the prefix part is one matrix product."""
    b, s, n, h, d = q.shape
    g = k.shape[3]
    grouped = (q * d**-0.5).reshape(b, s, n, g, h // g, d)
    far = jnp.einsum("bsngrd,bpgd->bgrsnp", grouped, prefix_k, preferred_element_type=jnp.float32)
    near = jnp.einsum("bsngrd,bsmgd->bgrsnm", grouped, k, preferred_element_type=jnp.float32)
    far = jnp.where(prefix_valid[:, None, None, None, None, :], far, MASKED)
    visible = jnp.tril(jnp.ones((n, n), bool)) & own_valid[:, :, None, :]
    near = jnp.where(visible[:, None, None], near, MASKED)
    far, near = _joint_softmax(far, near, q.dtype)
    out = jnp.einsum("bgrsnp,bpgd->bsngrd", far, prefix_v) + jnp.einsum("bgrsnm,bsmgd->bsngrd", near, v)
    return out.reshape(q.shape)

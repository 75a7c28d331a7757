"""Attention over one shared prefix and many short segments, without a mask over the whole sequence.

`window`: of how many tokens each sees the last, itself included (None: all before it), by positions, so that a segment
counts on from the prefix; in a scan over layers it is an array. `softcap`: scores s become c tanh(s / c) (0: they do not).
`full_prefix`: each token of the prefix sees all of the prefix, whatever the window (PaliGemma).
The kernels of "flash" know neither: what needs one of them is computed by plain matrix products, and said once.
"""

import functools
import logging
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fi_jax.errors import UserError
from fi_jax.models.flash import platform, shared_prefix_flash
from fi_jax.models.flash_decode import HEAD_SIZES, Partial, attend_chunks, merge
from fi_jax.models.precision import Rows

log = logging.getLogger(__name__)

Implementation = Literal["xla", "flash"]
Window = int | Int[Array, ""] | None

# Finite, so that a row without any visible key stays finite in values and gradients.
MASKED = -1e30


@jax.tree_util.register_static
@dataclass(frozen=True)
class PrefixLayout:
    """How one sequence of `prefix + segments * length` tokens is divided; static under `jit`.

    The prefix is causal within itself; each segment sees the prefix and, causally, itself. A segment's padding stands
    on its right, where causality hides it; a prefix has none.
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

    @property
    def positions(self) -> Int[np.ndarray, "t"]:
        """Position of every token: each segment goes on where the prefix ends."""
        own = np.tile(np.arange(self.prefix, self.prefix + self.length), self.segments)
        return np.concatenate([np.arange(self.prefix), own])


def split_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    layout: PrefixLayout,
    implementation: Implementation = "xla",
    *,
    window: Window = None,
    softcap: float = 0.0,
    full_prefix: bool = False,
) -> Float[Array, "b t h d"]:
    """Attends within `layout`; equals attention over each `prefix + segment` alone, to rounding.

    Query head `i` reads key/value head `i // (h / g)`. The scale is `d ** -0.5`, the softmax float32. "xla" is
    differentiated by JAX; "flash" needs an NVIDIA GPU or a TPU.
    """
    if q.shape[1] != layout.total:
        raise ValueError(f"{q.shape[1]} tokens for {layout}, which has {layout.total}")
    b, p, s, n = q.shape[0], layout.prefix, layout.segments, layout.length
    if s and not p:
        own_q, own_k, own_v = (a.reshape(b * s, n, *a.shape[2:]) for a in (q, k, v))
        out = split_attention(own_q, own_k, own_v, PrefixLayout(n), implementation, window=window, softcap=softcap)
        return out.reshape(q.shape)
    if implementation == "flash" and _kernel_knows(window, softcap, full_prefix):
        return shared_prefix_flash(q, k, v, p, n)
    prefix_q, prefix_k, prefix_v = (a[:, :p] for a in (q, k, v))
    visible = np.ones((p, p), bool) if full_prefix else _causal(p, window)
    out = _dense(prefix_q, prefix_k, prefix_v, visible[None], softcap)
    if not s:
        return out
    own_q, own_k, own_v = (a[:, p:].reshape(b, s, n, *a.shape[2:]) for a in (q, k, v))
    rest = _segments_xla(own_q, own_k, own_v, prefix_k, prefix_v, window, softcap)
    return jnp.concatenate([out, rest.reshape(b, s * n, *q.shape[2:])], axis=1)


def picked_attention(
    q: Float[Array, "b m h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    layout: PrefixLayout,
    at: Int[Array, "b m"],
    *,
    window: Window = None,
    softcap: float = 0.0,
    full_prefix: bool = False,
) -> Float[Array, "b m h d"]:
    """`split_attention` of few tokens alone: `q` are those of tokens `at`. By plain matrix products over all keys."""
    token = jnp.arange(layout.total)
    # Of which segment a token is; those of the prefix are seen from all.
    segment = (token - layout.prefix) // max(layout.length, 1)
    shared = token < layout.prefix
    visible = (token <= at[..., None]) & (shared | (segment == segment[at][..., None]))
    if window is not None:
        position = jnp.asarray(layout.positions)
        visible &= position[at][..., None] - position < window
    if full_prefix:
        visible |= shared[at][..., None] & shared
    return _dense(q, k, v, visible, softcap)


def cached_attention(
    q: Float[Array, "b q s h d"],
    prefix_k: Float[Array, "b g p d"] | Rows,
    prefix_v: Float[Array, "b g p d"] | Rows,
    tail_k: Float[Array, "b q g m d"],
    tail_v: Float[Array, "b q g m d"],
    tail_visible: Bool[Array, "b q s m"],
    implementation: Implementation = "xla",
    *,
    prefix_visible: Bool[Array, "b q s p"] | None = None,
    softcap: float = 0.0,
) -> Float[Array, "b q s h d"]:
    """Attends from `s` new tokens of each of `q` continuations to one shared prefix and to their own tails.

    The prefix's keys are read once for all `q` continuations. Caches are head-major so that batch and heads are
    one batch dimension of the matrix products. `tail_visible` says which tail slots a new token sees, `prefix_visible`
    which of the prefix (None: all). "flash" takes one new token on a GPU by a kernel of its own, where a head's size is
    one of the kernel's.
    """
    b, n, s, h, d = q.shape
    g = tail_k.shape[2]
    by_kernel = implementation == "flash" and s == 1 and d in HEAD_SIZES and platform() != "tpu"
    if by_kernel and _kernel_knows(prefix_visible, softcap):
        return _one_token(q[:, :, 0], prefix_k, prefix_v, tail_k, tail_v, tail_visible[:, :, 0])[:, :, None]
    prefix_k, prefix_v = (
        (a.values * a.scale).astype(q.dtype) if isinstance(a, Rows) else a for a in (prefix_k, prefix_v)
    )
    grouped = (q * d**-0.5).reshape(b, n, s, g, h // g, d)
    far = jnp.einsum("bqsgrd,bgpd->bgqsrp", grouped, prefix_k, preferred_element_type=jnp.float32)
    near = jnp.einsum("bqsgrd,bqgmd->bgqsrm", grouped, tail_k, preferred_element_type=jnp.float32)
    far, near = soft_cap(far, softcap), soft_cap(near, softcap)
    if prefix_visible is not None:
        far = jnp.where(prefix_visible[:, None, :, :, None, :], far, MASKED)
    near = jnp.where(tail_visible[:, None, :, :, None, :], near, MASKED)
    far, near = _joint_softmax(far, near, q.dtype)
    out = jnp.einsum("bgqsrp,bgpd->bqsgrd", far, prefix_v, preferred_element_type=jnp.float32)
    out += jnp.einsum("bgqsrm,bqgmd->bqsgrd", near, tail_v, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)


def _one_token(q, prefix_k, prefix_v, tail_k, tail_v, tail_visible, interpret=False):
    (b, n, h, d), g = q.shape, tail_k.shape[2]
    r = h // g
    grouped = q.reshape(b, n, g, r, d)

    def flat(a):
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[-2:]), a)

    far = attend_chunks(
        grouped.swapaxes(1, 2).reshape(b * g, n * r, d), flat(prefix_k), flat(prefix_v), None, interpret
    )
    own = attend_chunks(flat(grouped), flat(tail_k), flat(tail_v), tail_visible.reshape(b * n, -1), interpret)
    # From one row a continuation to one a face, as the prefix has them.
    out = own.out.reshape(b, n, g, -1, r, d).transpose(0, 2, 3, 1, 4, 5).reshape(b * g, -1, n * r, d)
    lse = own.lse.reshape(b, n, g, -1, r).transpose(0, 2, 3, 1, 4).reshape(b * g, -1, n * r)
    merged = merge([far, Partial(out, lse)]).reshape(b, g, n, r, d)
    return merged.swapaxes(1, 2).reshape(q.shape).astype(q.dtype)


def _joint_softmax(far, near, dtype):
    # Not over a concatenation: that is written and read again, a third of a decoding step of 32 questions.
    top = jnp.maximum(far.max(-1, keepdims=True), near.max(-1, keepdims=True))
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    total = far.sum(-1, keepdims=True) + near.sum(-1, keepdims=True)
    return (far / total).astype(dtype), (near / total).astype(dtype)


def soft_cap(scores: Float[Array, "*b"], cap: float) -> Float[Array, "*b"]:
    """`cap * tanh(scores / cap)`; the scores themselves where `cap` is 0."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def _kernel_knows(window, softcap: float, full_prefix: bool = False) -> bool:
    """Whether an attention of "flash" is what its kernels compute; what they cannot do is said once a program."""
    foreign = {
        "sliding windows": window is not None,
        "soft caps of attention scores": softcap > 0,
        "prefixes seen in both directions": full_prefix,
    }
    for name, used in foreign.items():
        if used:
            _say_plain(name)
    return not any(foreign.values())


@functools.cache
def _say_plain(name: str) -> None:
    log.info(f"attention 'flash' has no kernel for {name}: layers with them are computed by plain matrix products")


def _causal(n: int, window: Window) -> Bool[Array | np.ndarray, "n n"]:
    seen = np.tri(n, dtype=bool)
    return seen if window is None else seen & (np.subtract.outer(np.arange(n), np.arange(n)) < window)


def _dense(q, k, v, visible, softcap):
    """Queries `b t h d` against keys `b u g d`; `visible` (`b t u`) says which of them each sees."""
    b, t, h, d = q.shape
    g = k.shape[2]
    logits = jnp.einsum(
        "btgrd,bugd->bgrtu", (q * d**-0.5).reshape(b, t, g, h // g, d), k, preferred_element_type=jnp.float32
    )
    logits = jnp.where(visible[:, None, None], soft_cap(logits, softcap), MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bgrtu,bugd->btgrd", weights, v).reshape(q.shape)


def _segments_xla(q, k, v, prefix_k, prefix_v, window, softcap):
    """Segments `b s n ...` against the prefix `b p g d` and themselves; the prefix part is one matrix product."""
    b, s, n, h, d = q.shape
    p, g = prefix_k.shape[1], k.shape[3]
    grouped = (q * d**-0.5).reshape(b, s, n, g, h // g, d)
    far = jnp.einsum("bsngrd,bpgd->bgrsnp", grouped, prefix_k, preferred_element_type=jnp.float32)
    near = jnp.einsum("bsngrd,bsmgd->bgrsnm", grouped, k, preferred_element_type=jnp.float32)
    far, near = soft_cap(far, softcap), soft_cap(near, softcap)
    if window is not None:
        far = jnp.where(np.subtract.outer(p + np.arange(n), np.arange(p)) < window, far, MASKED)
    far, near = _joint_softmax(far, jnp.where(_causal(n, window), near, MASKED), q.dtype)
    out = jnp.einsum("bgrsnp,bpgd->bsngrd", far, prefix_v) + jnp.einsum("bgrsnm,bsmgd->bsngrd", near, v)
    return out.reshape(q.shape)

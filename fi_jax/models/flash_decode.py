"""Attention of one new token to a cache, in chunks of its length, by one GPU kernel (Pallas on Triton).

A step of decoding is bound by memory: each chunk of keys and values is read once and leaves its output and log-sum-exp,
to be merged with the others ("Flash-Decoding", Dao et al. 2023). XLA's own programs for one row of queries reached a
third of the memory's speed, with a dozen small kernels between them.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fi_jax.models.precision import Rows

# Sizes of a head that the kernel takes: powers of two, as all its shapes.
HEAD_SIZES = (16, 32, 64, 128)
# Tokens of the cache that one program reads.
CHUNK = 128
# Rows of queries that one program takes: the fewest that the matrix units want, the most that registers hold.
_ROWS = (16, 64)
# Finite, so that a chunk without any visible key weighs nothing and is no NaN.
_MASKED = -1e30


class Partial(NamedTuple):
    """What each chunk of a cache says: softmax-weighted values, and the logarithm of the softmax's sum."""

    out: Float[Array, "n c r d"]
    lse: Float[Array, "n c r"]


def attend_chunks(
    q: Float[Array, "n r d"],
    k: Float[Array, "n t d"] | Rows,
    v: Float[Array, "n t d"] | Rows,
    visible: Bool[Array, "n2 t"] | None,
    interpret: bool = False,
) -> Partial:
    """Attends from `r` queries to `t` keys, `n` times, in chunks of `CHUNK` keys; float32 comes back.

    Args:
      q: not scaled; the scale is `d ** -0.5`.
      k, v: as they are, or both in 8 bits with one scale a token.
      visible: of every key whether it is seen; row `i // (n / n2)` holds for `i`. None: all are.
      interpret: computes the same without a GPU, slowly (tests).
    """
    # Not every command decodes, and not every jaxlib has it.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    scales = []
    if isinstance(k, Rows) and isinstance(v, Rows):
        scales = [k.scale[..., 0], v.scale[..., 0]]
        k, v = k.values, v.values
    keys = cast(Array, k)
    (n, r, d), t = q.shape, keys.shape[1]
    chunks, rows = pl.cdiv(t, CHUNK), min(max(pl.next_power_of_2(r), _ROWS[0]), _ROWS[1])
    if visible is None:
        visible = jnp.ones((1, t), bool)
    repeat = n // visible.shape[0]
    return Partial(
        *pl.pallas_call(
            functools.partial(_kernel, rows=r, length=t, scale=d**-0.5),
            grid=(n, chunks, pl.cdiv(r, rows)),
            in_specs=[
                pl.BlockSpec((None, rows, d), lambda i, j, row: (i, row, 0)),
                pl.BlockSpec((None, t, d), lambda i, j, row: (i, 0, 0)),
                pl.BlockSpec((None, t, d), lambda i, j, row: (i, 0, 0)),
                pl.BlockSpec((None, t), lambda i, j, row: (i // repeat, 0)),
                *[pl.BlockSpec((None, t), lambda i, j, row: (i, 0))] * len(scales),
            ],
            out_specs=[
                pl.BlockSpec((None, None, rows, d), lambda i, j, row: (i, j, row, 0)),
                pl.BlockSpec((None, None, rows), lambda i, j, row: (i, j, row)),
            ],
            out_shape=[
                jax.ShapeDtypeStruct((n, chunks, r, d), jnp.float32),
                jax.ShapeDtypeStruct((n, chunks, r), jnp.float32),
            ],
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
            interpret=interpret,
            name="attend_chunks",
        )(q, k, v, visible.astype(jnp.int8), *scales)
    )


def _kernel(q_ref, k_ref, v_ref, visible_ref, *rest, rows, length, scale):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    *scale_refs, out_ref, lse_ref = rest
    chunk = pl.ds(pl.program_id(1) * CHUNK, CHUNK)
    inside = pl.program_id(1) * CHUNK + jnp.arange(CHUNK) < length
    own = pl.program_id(2) * q_ref.shape[0] + jnp.arange(q_ref.shape[0]) < rows
    q = triton.load(q_ref, mask=own[:, None], other=0)
    k_scale, v_scale = [triton.load(ref.at[chunk], mask=inside, other=0)[None] for ref in scale_refs] or (1.0, 1.0)
    k = triton.load(k_ref.at[chunk, :], mask=inside[:, None], other=0)
    logits = triton.dot(q, k.astype(q.dtype), trans_b=True) * (scale * k_scale)
    seen = triton.load(visible_ref.at[chunk], mask=inside, other=0) != 0
    logits = jnp.where(seen[None, :], logits, _MASKED)
    top = logits.max(axis=1)
    weights = jnp.exp(logits - top[:, None])
    total = weights.sum(axis=1)
    v = triton.load(v_ref.at[chunk, :], mask=inside[:, None], other=0)
    out = triton.dot((weights * v_scale).astype(q.dtype), v.astype(q.dtype)) / total[:, None]
    triton.store(out_ref, out, mask=own[:, None])
    triton.store(lse_ref, top + jnp.log(total), mask=own)


def merge(pieces: list[Partial]) -> Float[Array, "n r d"]:
    """The attention over all chunks of all pieces: their outputs weighted by the share of the joint softmax."""
    top = functools.reduce(jnp.maximum, [piece.lse.max(axis=1, keepdims=True) for piece in pieces])
    weights = [jnp.exp(piece.lse - top) for piece in pieces]
    total = functools.reduce(jnp.add, [one.sum(axis=1) for one in weights])
    out = [(piece.out * one[..., None]).sum(axis=1) for piece, one in zip(pieces, weights, strict=True)]
    return functools.reduce(jnp.add, out) / total[..., None]

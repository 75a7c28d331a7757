"""Attention on a TPU by JAX's own kernel (Pallas, "splash attention"), which skips blocks where nothing is seen.

One call for prefix and segments: its mask says that a segment sees the prefix and itself, so of the blocks between two
segments none is computed, and the kernel's own gradient is that of the joint softmax. The mask is ours.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# Tokens of a block, to choose from: multiples of a TPU's 128 lanes that fit into its memory.
_BLOCKS = (640, 512, 384, 256)
# Under what name a remat policy may keep the kernel's output and log-sum-exp.
KEPT = "attention_out"

# Which tokens (columns) each token (rows) sees.
Sees = Callable[[Int[np.ndarray, "t 1"], Int[np.ndarray, "1 t"]], Bool[np.ndarray, "t t"]]


def shared_prefix_tpu(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g d"],
    prefix: int,
    segment: int,
    *,
    interpret: bool = False,
) -> Float[Array, "b t h d"]:
    """`flash.shared_prefix_flash` on a TPU; lengths and head sizes are any. `interpret` computes the same anywhere."""

    return _attend(q, k, v, _within_prefix(prefix, segment), interpret)


def full_attention_tpu(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t h d"],
    v: Float[Array, "b t h d"],
    causal: bool,
    *,
    interpret: bool = False,
) -> Float[Array, "b t h d"]:
    """`flash.full_attention_flash` on a TPU."""
    tokens = q.shape[1]
    return _attend(
        q, k, v, lambda row, column: (column <= row) if causal else (column < tokens) & (row >= 0), interpret
    )


def block_size(tokens: int) -> int:
    """The size of blocks that pads `tokens` least; of equals the largest."""
    return 128 if tokens <= 128 else min(_BLOCKS, key=lambda size: (-(-tokens // size) * size, -size))


def _within_prefix(prefix: int, segment: int) -> Sees:
    def sees(row, column):
        start = prefix + (row - prefix) // max(segment, 1) * segment
        return (column <= row) & ((column < prefix) | (column >= start))

    return sees


def _attend(q, k, v, sees: Sees, interpret):
    (b, t, _, d), block = q.shape, block_size(q.shape[1])
    padded = -(-t // block) * block

    def run(q, k, v):
        return jax.vmap(_kernel(sees, q.shape[1], padded, block, interpret))(q, k, v)

    def heads_first(x):
        return jnp.pad(x, ((0, 0), (0, padded - t), (0, 0), (0, 0))).swapaxes(1, 2)

    out = _on_each_device(run, b)(*(heads_first(x) for x in (q * d**-0.5, k, v)))
    return out.swapaxes(1, 2)[:, :t]


def _kernel(sees: Sees, heads: int, tokens: int, block: int, interpret: bool = False) -> Callable:
    """JAX's kernel for one face, `h t d`."""
    # Not every command attends, and the kernels take a second to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    # A row of padding sees what its place says, which is never nothing; no real row sees a column of padding.
    mask = masks.NumpyMask(sees(np.arange(tokens)[:, None], np.arange(tokens)[None]))
    return splash.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**cast(dict[str, Any], dict.fromkeys(_SIZES, block))),
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )


_SIZES = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
)


def _on_each_device(run: Callable, batch: int) -> Callable:
    """`run` on each device's share of arrays `b h t d`: the partitioner does not know how to cut a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run
    faces, heads = cast(PartitionSpec, nn.logical_to_mesh_axes(("batch", "heads")))
    axes = (faces,) if isinstance(faces, str) else faces or ()
    if batch % np.prod([mesh.shape[axis] for axis in axes], dtype=int):
        faces = None
    spec = PartitionSpec(faces, heads)
    return jax.shard_map(run, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)

"""Attention by a TPU's kernel, interpreted on a CPU: values and gradients of the plain one, whole blocks left out."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from fi_jax.models.attention import PrefixLayout, split_attention
from fi_jax.models.flash_tpu import _kernel, _within_prefix, block_size, full_attention_tpu, shared_prefix_tpu
from fi_jax.parallel.rules import activation_scope


def _inputs(tokens, heads, kv_heads, size):
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (heads, kv_heads, kv_heads, heads)
    return [jax.random.normal(key, (2, tokens, n, size)) for key, n in zip(keys, counts, strict=True)]


def _value_and_grads(attend, q, k, v, probe):
    def both(q, k, v):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(probe)

    return jax.jit(both)(q, k, v)


def _assert_equal(got, want, inputs):
    for g, w in zip(_value_and_grads(got, *inputs), _value_and_grads(want, *inputs), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "heads", "kv_heads", "size"),
    [(PrefixLayout(301, 7, 24), 4, 2, 16), (PrefixLayout(100, 3, 50), 3, 1, 8), (PrefixLayout(129), 2, 2, 64)],
)
def test_equals_plain_attention_in_values_and_gradients(layout, heads, kv_heads, size):
    _assert_equal(
        lambda q, k, v: shared_prefix_tpu(q, k, v, layout.prefix, layout.length, interpret=True),
        lambda q, k, v: split_attention(q, k, v, layout),
        _inputs(layout.total, heads, kv_heads, size),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_full_attention_of_an_odd_length(causal):
    _assert_equal(
        lambda q, k, v: full_attention_tpu(q, k, v, causal, interpret=True),
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=causal),
        _inputs(131, 2, 2, 8),
    )


def test_each_device_attends_for_its_own_faces_and_heads():
    """Under a mesh the kernel runs on shares of the batch and of the heads, and nothing is sent."""
    mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:4])
    q, k, v, _ = _inputs(40, 4, 2, 8)
    run = jax.jit(lambda q, k, v: shared_prefix_tpu(q, k, v, 20, 10, interpret=True))
    with activation_scope(mesh):
        # A face cannot be cut: one alone is computed everywhere.
        one = run(*(a[:1] for a in (q, k, v)))
        text, both = run.lower(q, k, v).as_text(), run(q, k, v)
    want = split_attention(q, k, v, PrefixLayout(20, 2, 10))
    np.testing.assert_allclose(both, want, atol=1e-5)
    np.testing.assert_allclose(one, want[:1], atol=1e-5)
    assert "tensor<1x2x128x8xf32>" in text


def test_blocks_between_segments_are_left_out():
    """40 questions of 64 tokens behind 1,256, in rows of 640: each sees the prefix's two blocks, its own and the one before,
    into which its first question reaches back."""
    kernel = _kernel(_within_prefix(1256, 64), 2, 3840, block_size(1256 + 40 * 64))
    assert np.count_nonzero(kernel.fwd_mask_info.block_mask) == 1 + 2 + 3 + 4 + 4 + 4
    causal = _kernel(_within_prefix(3840, 0), 2, 3840, block_size(3840))
    assert np.count_nonzero(causal.fwd_mask_info.block_mask) == 21

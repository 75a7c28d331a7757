"""One token of decoding by the kernel over the cache, interpreted, against plain matrix products."""

import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.models.attention import _one_token, cached_attention
from fi_jax.models.flash_decode import CHUNK, attend_chunks


# Faces, continuations, heads, key/value heads, prefix, tail: one chunk and more, grouped heads, more rows than a program takes.
@pytest.mark.parametrize(
    ("b", "n", "h", "g", "p", "m"), [(1, 1, 4, 4, 2 * CHUNK + 5, 20), (2, 3, 6, 2, 77, CHUNK), (1, 70, 2, 2, CHUNK, 9)]
)
def test_kernel_equals_products(b, n, h, g, p, m):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(b, n, 1, h, 16)), jnp.float32)
    shapes = [(b, g, p, 16), (b, g, p, 16), (b, n, g, m, 16), (b, n, g, m, 16)]
    cache = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    prefix_valid, visible = jnp.asarray(rng.random((b, p)) < 0.7), rng.random((b, n, 1, m)) < 0.7
    # Nothing of one continuation's tail is seen; of one face's prefix only what fits into a chunk.
    visible[0, 0] = False
    prefix_valid = prefix_valid.at[0, CHUNK:].set(False)
    want = cached_attention(q, *cache, prefix_valid, visible)
    got = _one_token(q[:, :, 0], *cache, prefix_valid, jnp.asarray(visible[:, :, 0]), interpret=True)
    np.testing.assert_allclose(got[:, :, None], want, atol=2e-6)


def test_a_chunk_without_any_visible_key_weighs_nothing():
    q, k = jnp.ones((1, 2, 16)), jnp.ones((1, 2 * CHUNK, 16))
    visible = jnp.arange(2 * CHUNK)[None] < CHUNK
    piece = attend_chunks(q, k, k, visible, interpret=True)
    assert np.isfinite(piece.out).all() and (piece.lse[:, 1] < -1e29).all()
    np.testing.assert_allclose(piece.lse[:, 0], 4 + np.log(CHUNK), rtol=1e-6)

"""One token of decoding by the kernel over the cache, interpreted, against plain matrix products."""

import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.models.attention import _one_token, cached_attention
from fi_jax.models.flash_decode import CHUNK, attend_chunks, merge
from fi_jax.models.precision import quantise_tokens


# Faces, continuations, heads, key/value heads, prefix, tail: two chunks and grouped heads; more rows than a program takes.
@pytest.mark.parametrize(("b", "n", "h", "g", "p", "m"), [(2, 2, 4, 2, CHUNK + 5, 9), (1, 70, 1, 1, 20, 9)])
def test_kernel_equals_products(b, n, h, g, p, m):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(b, n, 1, h, 16)), jnp.float32)
    shapes = [(b, g, p, 16), (b, g, p, 16), (b, n, g, m, 16), (b, n, g, m, 16)]
    cache = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    visible = rng.random((b, n, 1, m)) < 0.7
    # Nothing of one continuation's tail is seen.
    visible[0, 0] = False
    want = cached_attention(q, *cache, visible)
    got = _one_token(q[:, :, 0], *cache, jnp.asarray(visible[:, :, 0]), interpret=True)
    np.testing.assert_allclose(got[:, :, None], want, atol=2e-6)


def test_kernel_reads_a_cache_in_8_bits():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 2, 16), (3, 140, 16), (3, 140, 16)))
    rows = [quantise_tokens(a) for a in (k, v)]
    want = merge([attend_chunks(q, *(r.values * r.scale for r in rows), None, interpret=True)])
    np.testing.assert_allclose(merge([attend_chunks(q, *rows, None, interpret=True)]), want, atol=2e-6)

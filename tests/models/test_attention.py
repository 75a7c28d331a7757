import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads

from fi_jax.errors import UserError
from fi_jax.models.attention import Layout, cached_attention, split_attention
from fi_jax.models.flash import merged_attention

HEADS, KV_HEADS, SIZE = 4, 2, 6
# Few padded shapes, so that programs are shared; what is valid inside varies freely.
SHAPES = [Layout(5, 3, 4), Layout(4, 1, 3), Layout(1, 2, 1), Layout(6), Layout(0, 2, 3)]


def dense_attention(q, k, v, layout, valid):
    """The definition: one softmax under a dense mask, in float32."""
    b, t, h, d = q.shape
    segment = np.where(np.arange(t) < layout.prefix, -1, (np.arange(t) - layout.prefix) // max(layout.length, 1))
    visible = np.tril(np.ones((t, t), bool)) & ((segment[None] == -1) | (segment[None] == segment[:, None]))
    k, v = (jnp.repeat(a, h // k.shape[2], axis=2) for a in (k, v))
    logits = jnp.einsum("bthd,buhd->bhtu", q, k) * d**-0.5
    weights = jax.nn.softmax(jnp.where(visible & valid[:, None, None, :], logits, -1e9), axis=-1)
    return jnp.where(valid[:, :, None, None], jnp.einsum("bhtu,buhd->bthd", weights, v), 0)


def _inputs(layout, seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [2 * jax.random.normal(key, (2, layout.total, n, SIZE)) for key, n in zip(keys, heads, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_grads(attend, layout, q, k, v, valid, probe):
    def loss(q, k, v):
        out = attend(q, k, v, layout, valid)
        return jnp.sum(out * probe), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


def merged_split_attention(q, k, v, layout, valid):
    """`split_attention` by the merge of `models.flash`, both pieces by plain XLA."""
    p, n = layout.prefix, layout.length
    out = merged_attention(q, k, v, valid[:, :p].sum(1, dtype=jnp.int32), p, n, "xla", "xla")
    return jnp.where(valid[..., None, None], out, 0)


@st.composite
def padded(draw, shapes=SHAPES, right=False):
    """A layout and which of its tokens are valid: anywhere, or on the left of each part (`right` padding)."""
    layout = draw(st.sampled_from(shapes))
    if not right:
        bits = draw(st.lists(st.booleans(), min_size=2 * layout.total, max_size=2 * layout.total))
        return layout, np.array(bits).reshape(2, layout.total)
    valid = np.zeros((2, layout.total), bool)
    for row in valid:
        row[: draw(st.integers(0, layout.prefix))] = True
        for j in range(layout.segments):
            start = layout.prefix + j * layout.length
            row[start : start + draw(st.integers(0, layout.length))] = True
    return layout, valid


def _assert_close(got, want, tolerance=1e-4):
    for g, w in zip(got, want, strict=True):
        assert np.isfinite(g).all()
        np.testing.assert_allclose(g, w, atol=tolerance)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(padded(), st.integers(0, 50))
def test_equals_dense_attention_in_values_and_gradients(drawn, seed):
    layout, valid = drawn
    # A valid row that sees no valid key has no meaning; dense and split may differ there.
    q, k, v, probe = _inputs(layout, seed)
    starts = [0] if layout.prefix else [j * layout.length for j in range(layout.segments)]
    valid[:, starts] = True
    arguments = (layout, q, k, v, valid, probe)
    _assert_close(_value_and_grads(split_attention, *arguments), _value_and_grads(dense_attention, *arguments))


@settings(max_examples=60, deadline=None)
@given(padded(SHAPES[:4], right=True), st.integers(0, 50))
def test_merge_has_exact_values_and_gradients(drawn, seed):
    layout, valid = drawn
    arguments = (layout, *_inputs(layout, seed)[:3], valid, _inputs(layout, seed)[3])
    _assert_close(_value_and_grads(merged_split_attention, *arguments), _value_and_grads(dense_attention, *arguments))


def test_rows_without_any_key_are_zero_and_pass_no_gradient():
    layout = SHAPES[0]
    q, k, v, probe = _inputs(layout, 0)
    for attend in (split_attention, merged_split_attention):
        results = _value_and_grads(attend, layout, q, k, v, np.zeros((2, layout.total), bool), probe)
        assert all(np.all(a == 0) for a in results)


@pytest.mark.parametrize("attend", [split_attention, merged_split_attention])
def test_gradient_matches_finite_differences(attend):
    layout = SHAPES[1]
    valid = np.ones((2, layout.total), bool)
    run = jax.jit(lambda *qkv: attend(*qkv, layout, valid))
    check_grads(run, tuple(_inputs(layout, 3)[:3]), 1, ["rev"], atol=2e-2, rtol=2e-2)


def test_no_array_is_as_large_as_a_dense_mask():
    layout = Layout(16, 40, 8)
    q, k, v, _ = _inputs(layout, 0)
    valid = np.ones((2, layout.total), bool)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    program = jax.make_jaxpr(lambda *qkv: split_attention(*qkv, layout, valid))(q, k, v)
    assert max(sizes(program.jaxpr)) < 2 * HEADS * layout.total**2 / 4


@pytest.mark.parametrize("continuations", [1, 3])
def test_cached_attention_equals_split_attention(continuations):
    layout = Layout(5, continuations, 4)
    q, k, v, _ = _inputs(layout, 1)
    valid = np.ones((2, layout.total), bool)
    valid[0, 3:5] = valid[1, -1] = False
    want = jax.jit(split_attention, static_argnums=3)(q, k, v, layout, valid)[:, 5:]
    own = [a[:, 5:].reshape(2, continuations, 4, *a.shape[2:]) for a in (q, k, v)]
    visible = np.tril(np.ones((4, 4), bool)) & valid[:, 5:].reshape(2, continuations, 1, 4)
    got = jax.jit(cached_attention)(
        *(own[0], k[:, :5].swapaxes(1, 2), v[:, :5].swapaxes(1, 2)),
        *(own[1].swapaxes(2, 3), own[2].swapaxes(2, 3), valid[:, :5], visible),
    )
    mask = valid[:, 5:]
    np.testing.assert_allclose(np.asarray(got).reshape(want.shape)[mask], want[mask], atol=1e-5)


def test_flash_without_its_hardware_is_a_user_error():
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has the hardware")
    layout = SHAPES[0]
    q, k, v, _ = _inputs(layout, 0)
    for shape in (layout, Layout(layout.total)):
        with pytest.raises(UserError, match="needs an NVIDIA GPU.*attention xla"):
            split_attention(q, k, v, shape, jnp.ones((2, layout.total), bool), "flash")


def test_impossible_layouts_are_refused():
    for sizes in ((-1, 0, 0), (4, 2, 0), (4, 0, 2)):
        with pytest.raises(UserError):
            Layout(*sizes)
    with pytest.raises(ValueError, match="12 tokens"):
        q = jnp.zeros((1, 12, 2, 4))
        split_attention(q, q, q, Layout(11), jnp.ones((1, 12), bool))

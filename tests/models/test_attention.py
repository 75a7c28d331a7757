import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads

from fi_jax.errors import UserError
from fi_jax.models import attention
from fi_jax.models.attention import PrefixLayout, cached_attention, picked_attention, split_attention
from fi_jax.models.flash import merged_attention, shared_prefix_flash
from fi_jax.models.flash_cudnn import private_module

HEADS, KV_HEADS, SIZE = 4, 2, 6
SHAPES = [
    PrefixLayout(5, 3, 4),
    PrefixLayout(4, 1, 3),
    PrefixLayout(1, 2, 1),
    PrefixLayout(6),
    PrefixLayout(0, 2, 3),
]


def dense_attention(q, k, v, layout, window=None, softcap=0.0):
    """The definition: one softmax under a dense mask, in float32."""
    b, t, h, d = q.shape
    segment = np.where(np.arange(t) < layout.prefix, -1, (np.arange(t) - layout.prefix) // max(layout.length, 1))
    visible = np.tril(np.ones((t, t), bool)) & ((segment[None] == -1) | (segment[None] == segment[:, None]))
    if window is not None:
        visible &= layout.positions[:, None] - layout.positions < window
    k, v = (jnp.repeat(a, h // k.shape[2], axis=2) for a in (k, v))
    logits = jnp.einsum("bthd,buhd->bhtu", q, k) * d**-0.5
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    weights = jax.nn.softmax(jnp.where(visible, logits, -1e9), axis=-1)
    return jnp.einsum("bhtu,buhd->bthd", weights, v)


def _inputs(layout, seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [2 * jax.random.normal(key, (2, layout.total, n, SIZE)) for key, n in zip(keys, heads, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_grads(attend, layout, q, k, v, probe):
    def loss(q, k, v):
        out = attend(q, k, v, layout)
        return jnp.sum(out * probe), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


def merged_split_attention(q, k, v, layout):
    """`split_attention` by the merge of `models.flash`, both pieces by plain XLA."""
    return merged_attention(q, k, v, layout.prefix, layout.length, "xla", "xla")


def _assert_close(got, want, tolerance=1e-4):
    for g, w in zip(got, want, strict=True):
        assert np.isfinite(g).all()
        np.testing.assert_allclose(g, w, atol=tolerance)


@pytest.mark.parametrize(
    ("attend", "layout"),
    [*((split_attention, shape) for shape in SHAPES), *((merged_split_attention, s) for s in SHAPES[:4])],
)
def test_equals_dense_attention_in_values_and_gradients(attend, layout):
    for seed in range(3):
        inputs = _inputs(layout, seed)
        _assert_close(_value_and_grads(attend, layout, *inputs), _value_and_grads(dense_attention, layout, *inputs))


# Windows that end in the segment, in the prefix, and one that hides nothing.
@pytest.mark.parametrize("window", [2, 6, 9])
def test_windows_and_soft_caps_hold_over_prefix_and_segments(window):
    layout = SHAPES[0]
    options = {"window": window, "softcap": 1.5}
    inputs = _inputs(layout, 0)
    want = _value_and_grads(functools.partial(dense_attention, **options), layout, *inputs)
    # In a scan over layers the window is an array.
    traced = functools.partial(split_attention, window=jnp.int32(window), softcap=1.5)
    _assert_close(_value_and_grads(traced, layout, *inputs), want)
    at = jnp.array([[3, 9, 12], [0, 16, 5]])
    q, k, v, _ = inputs
    picked = picked_attention(jnp.take_along_axis(q, at[..., None, None], 1), k, v, layout, at, **options)
    _assert_close([picked], [jnp.take_along_axis(want[0], at[..., None, None], 1)])


def test_flash_leaves_windows_and_soft_caps_to_plain_products_and_says_so_once(caplog):
    layout = SHAPES[0]
    q, k, v, _ = _inputs(layout, 0)
    attention._say_plain.cache_clear()
    with caplog.at_level("INFO"):
        for options in ({"window": 3}, {"softcap": 2.0}, {"window": 3}):
            want = split_attention(q, k, v, layout, **options)
            np.testing.assert_array_equal(split_attention(q, k, v, layout, "flash", **options), want)
    said = [record.message for record in caplog.records]
    assert [message.split("kernel for ")[1].split(":")[0] for message in said] == [
        "sliding windows",
        "soft caps of attention scores",
    ]


@pytest.mark.parametrize("attend", [split_attention, merged_split_attention])
def test_gradient_matches_finite_differences(attend):
    layout = SHAPES[1]
    run = jax.jit(lambda *qkv: attend(*qkv, layout))
    check_grads(run, tuple(_inputs(layout, 3)[:3]), 1, ["rev"], atol=2e-2, rtol=2e-2)


def test_no_array_is_as_large_as_a_dense_mask():
    layout = PrefixLayout(16, 40, 8)
    q, k, v, _ = _inputs(layout, 0)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    program = jax.make_jaxpr(lambda *qkv: split_attention(*qkv, layout))(q, k, v)
    assert max(sizes(program.jaxpr)) < 2 * HEADS * layout.total**2 / 4


@pytest.mark.parametrize("continuations", [1, 3])
def test_cached_attention_equals_split_attention(continuations):
    layout = PrefixLayout(5, continuations, 4)
    q, k, v, _ = _inputs(layout, 1)
    valid = np.ones((2, layout.total), bool)
    valid[1, -1] = False
    want = jax.jit(split_attention, static_argnums=3)(q, k, v, layout)[:, 5:]
    own = [a[:, 5:].reshape(2, continuations, 4, *a.shape[2:]) for a in (q, k, v)]
    visible = np.tril(np.ones((4, 4), bool)) & valid[:, 5:].reshape(2, continuations, 1, 4)
    got = jax.jit(cached_attention)(
        *(own[0], k[:, :5].swapaxes(1, 2), v[:, :5].swapaxes(1, 2)),
        *(own[1].swapaxes(2, 3), own[2].swapaxes(2, 3), visible),
    )
    mask = valid[:, 5:]
    np.testing.assert_allclose(np.asarray(got).reshape(want.shape)[mask], want[mask], atol=1e-5)


def test_flash_without_its_hardware_is_a_user_error():
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has the hardware")
    layout = SHAPES[0]
    q, k, v, _ = _inputs(layout, 0)
    for shape in (layout, PrefixLayout(layout.total)):
        with pytest.raises(UserError, match="needs an NVIDIA GPU.*or a TPU.*attention xla"):
            split_attention(q, k, v, shape, "flash")


def test_flash_does_without_what_jax_does_not_publish(monkeypatch, caplog):
    monkeypatch.delattr("jax._src.cudnn.fused_attention_stablehlo._dot_product_attention_bwd_p_wrapper")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    private_module.cache_clear()
    layout = SHAPES[0]
    wide = [jnp.concatenate([a] * 2, -1)[..., :8].astype(jnp.bfloat16) for a in _inputs(layout, 0)]
    with caplog.at_level(logging.WARNING):
        got = shared_prefix_flash(*wide[:3], layout.prefix, layout.length)
    private_module.cache_clear()
    assert "falls back to matrix products" in caplog.text and jax.__version__ in caplog.text
    np.testing.assert_array_equal(got, merged_attention(*wide[:3], layout.prefix, layout.length, "xla", "xla"))


def test_impossible_layouts_are_refused():
    for sizes in ((-1, 0, 0), (4, 2, 0), (4, 0, 2)):
        with pytest.raises(UserError):
            PrefixLayout(*sizes)
    with pytest.raises(ValueError, match="12 tokens"):
        q = jnp.zeros((1, 12, 2, 4))
        split_attention(q, q, q, PrefixLayout(11))

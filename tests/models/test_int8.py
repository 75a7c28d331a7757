import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import LlamaConfig, LoraConfig
from fi_jax.errors import UserError
from fi_jax.models.attention import Layout
from fi_jax.models.int8 import quantize_llm
from fi_jax.models.llama import Llama, unstack_layers
from fi_jax.models.lora import NO_LORA, is_int8, merge_lora, times_kernel
from fi_jax.training.optimizer import flatten, unflatten

qwix = pytest.importorskip("qwix")

LORA = LoraConfig(2, alpha=6.0)
SIZES = (31, 32, 48, 2, 4, 2, 8)
TOKENS = jnp.arange(9)[None]


def _run(model, tokens):
    return model.logits(model(model.embed(tokens), tokens, Layout(9), tokens >= 0))


def _logits(model, params):
    return jax.jit(functools.partial(model.apply, method=_run))({"params": params}, TOKENS)


def _dequantized(params):
    return jax.tree.map(lambda leaf: qwix.dequantize(leaf) if is_int8(leaf) else leaf, params, is_leaf=is_int8)


@pytest.fixture(scope="module")
def params():
    """A model with adapters and biases, every leaf random."""
    model = Llama(LlamaConfig(*SIZES, attention_bias=True, lora=LORA))
    params = jax.jit(functools.partial(model.init, method=_run))(jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(1), leaf.shape), params)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_logits_equal_those_of_the_dequantised_kernels(params, scan_layers):
    model = Llama(LlamaConfig(*SIZES, attention_bias=True), scan_layers=scan_layers)
    # Quantising before or after the layers are written out is the same.
    quantized = quantize_llm(params, LORA) if scan_layers else quantize_llm(unstack_layers(params), LORA)
    if not scan_layers:
        jax.tree.map(np.testing.assert_array_equal, quantized, unstack_layers(quantize_llm(params, LORA)))
    got, want = _logits(model, quantized), _logits(model, _dequantized(quantized))
    # Logits are of the order of 10.
    np.testing.assert_allclose(got, want, atol=2e-4)
    # And the quantisation itself is seen, but small.
    merged = merge_lora(params, LORA)
    whole = _logits(model, merged if scan_layers else unstack_layers(merged))
    assert 1e-3 < np.abs(got - whole).max() < 0.05 * np.abs(whole).max()


@pytest.mark.parametrize("join", ["adapters", "all"])
@pytest.mark.parametrize("adapters", [False, True])
def test_joined_projections_of_int8_kernels_equal_plain_ones(params, join, adapters):
    lora = LORA if adapters else NO_LORA
    config = LlamaConfig(*SIZES, attention_bias=True, lora=lora)
    quantized = quantize_llm(params, LORA)
    if adapters:
        # Any do; these are folded in too.
        quantized = unflatten({**flatten(params), **flatten(quantized)})
    want = _logits(Llama(config), quantized)
    np.testing.assert_allclose(_logits(Llama(config, join=join), quantized), want, rtol=0, atol=2e-5)


def test_every_kernel_of_the_layers_is_within_half_a_step_and_nothing_else_changes(params):
    quantized, merged = quantize_llm(params, LORA), merge_lora(params, LORA)
    seen = set()
    for path, leaf in jax.tree.leaves_with_path(quantized, is_leaf=is_int8):
        names = tuple(key.key for key in path)
        want = functools.reduce(lambda tree, name: tree[name], names, merged)
        if not is_int8(leaf):
            np.testing.assert_array_equal(leaf, want)
            continue
        seen.add(names[-2])
        assert leaf.qvalue.dtype == jnp.int8 and leaf.scale.dtype == jnp.float32
        assert leaf.scale.shape == (2, 1, want.shape[2])
        # Half a step, and each channel uses the whole range.
        assert (np.abs(qwix.dequantize(leaf) - want) <= leaf.scale * 0.501).all()
        assert (np.abs(leaf.qvalue.astype(jnp.int32)).max(axis=1) >= 127).all()
    assert seen == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def test_bfloat16_activations_are_rounded_once():
    """The scale comes after the float32 sum: the result is the exact one, rounded to bfloat16."""
    x = jax.random.normal(jax.random.key(0), (3, 64), jnp.bfloat16)
    kernel = quantize_llm({"layers": {"kernel": jax.random.normal(jax.random.key(1), (64, 16))}}, NO_LORA)
    kernel = kernel["layers"]["kernel"]
    got = times_kernel(x, kernel)
    exact = np.asarray(x, np.float64) @ (np.asarray(kernel.qvalue, np.float64) * np.asarray(kernel.scale, np.float64))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8, atol=1e-4)


def test_bfloat16_kernels_are_scaled_in_float32():
    """A scale or a quotient in bfloat16 would move values by up to a whole step."""
    kernel = jax.random.normal(jax.random.key(0), (64, 16), jnp.bfloat16)
    made = quantize_llm({"layers": {"kernel": kernel}}, NO_LORA)["layers"]["kernel"]
    error = np.abs(qwix.dequantize(made) - np.asarray(kernel, np.float32))
    assert (error <= made.scale * 0.501).all()


def test_without_qwix_one_line_names_the_remedy(params, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"pip install 'fi_jax\[int8\]'"):
        quantize_llm(params, LORA)


def test_interception_would_pass_over_our_products(params):
    """Why `Linear` multiplies by itself; when this fails, qwix has learnt to see `x @ W`."""
    model = Llama(LlamaConfig(*SIZES, attention_bias=True))
    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8)]
    intercepted = qwix.quantize_model(model, qwix.PtqProvider(rules))
    made = jax.eval_shape(lambda: intercepted.init(jax.random.key(0), TOKENS, method=_run))["params"]
    assert not any("int8" in str(leaf.dtype) for leaf in jax.tree.leaves(made["layers"]))

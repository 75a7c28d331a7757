"""Unrolled layers compute what a loop over them does: logits and every gradient."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import LlamaConfig, LoraConfig
from fi_jax.models.attention import Layout
from fi_jax.models.llama import Llama, unstack_layers

LAYOUT = Layout(6, 2, 3)
PLAIN = LlamaConfig(37, 24, 40, 4, 4, 4, 6)
CONFIG = replace(PLAIN, attention_bias=True, mlp_bias=True, num_kv_heads=1, lora=LoraConfig(rank=3))


def _logits(model, tokens, positions, valid):
    return model.logits(model(model.embed(tokens), positions, LAYOUT, valid))


def _inputs():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 37, (2, LAYOUT.total)))
    positions = jnp.broadcast_to(jnp.arange(LAYOUT.total), tokens.shape)
    # The second face's prefix ends in padding.
    valid = (positions != 5) | (jnp.arange(2)[:, None] == 0)
    return (tokens, positions, valid), jnp.asarray(rng.normal(size=(2, LAYOUT.total, 37)), jnp.float32)


def _params(config):
    inputs, _ = _inputs()
    params = Llama(config).init(jax.random.key(0), *inputs, method=_logits)["params"]
    # Every leaf is random, B and biases included, so that nothing cancels.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


# Compiling is what takes the time here; what is compared does not depend on how well it runs.
@functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)
def _run(model, params):
    """Logits, and the gradients of every parameter, kernels included."""
    inputs, probe = _inputs()

    def loss(params):
        logits = model.apply({"params": params}, *inputs, method=_logits)
        return (logits * probe).sum(), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradients


def assert_near(got, want, relative):
    """Every leaf within `relative` of its largest entry."""
    for (path, w), g in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True):
        scale = float(jnp.abs(w).max())
        np.testing.assert_allclose(g, w, rtol=0, atol=relative * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("unroll", [1, 2, 4])
def test_remat_and_unrolling_change_nothing(remat, unroll):
    params = _params(CONFIG)
    want = _run(Llama(CONFIG), params)
    assert_near(_run(Llama(CONFIG, remat=remat, unroll=unroll), params), want, 1e-5)


@pytest.mark.parametrize(("remat", "unroll"), [("none", 2), ("dots", 4)])
def test_unrolling_changes_nothing(remat, unroll):
    params = _params(CONFIG)
    assert_near(_run(Llama(CONFIG, remat=remat, unroll=unroll), params), _run(Llama(CONFIG), params), 1e-5)


@pytest.mark.parametrize("unroll", [2, 4])
def test_a_cache_goes_on_from_an_unrolled_prefill(unroll):
    inputs, _ = _inputs()

    def run(model):
        tokens, positions, _ = inputs
        x = model.embed(tokens)
        hidden, cache = model.prefill(x[:, :6], positions[:, :6], positions[:, :6] >= 0, 4)
        return hidden, model.extend(x[:, None, 6:8], positions[:, None, 6:8], positions[:, None, 6:8] >= 0, cache)

    params = _params(CONFIG)
    want = Llama(CONFIG).apply({"params": params}, method=run)
    assert_near(Llama(CONFIG, unroll=unroll).apply({"params": params}, method=run), want, 1e-5)
    written = Llama(CONFIG, scan_layers=False).apply({"params": unstack_layers(params)}, method=run)
    assert_near(written[0], want[0], 1e-5)

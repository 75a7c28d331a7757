"""Layers that are written out compute what a loop over them does: logits and every gradient."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.layer_stack import unstack_layers
from fi_jax.models.llm import Llm

LAYOUT = PrefixLayout(6, 2, 3)
PLAIN = LlmConfig(37, 24, 40, 4, 4, 4, 6)
CONFIG = replace(PLAIN, attention_bias=True, mlp_bias=True, num_kv_heads=1, lora=LoraConfig(rank=3))


def _logits(model, tokens):
    return model.logits(model(model.embed(tokens), LAYOUT))


def _inputs():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 37, (2, LAYOUT.total)))
    return tokens, jnp.asarray(rng.normal(size=(2, LAYOUT.total, 37)), jnp.float32)


@functools.cache
def _params(config):
    params = Llm(config).init(jax.random.key(0), _inputs()[0], method=_logits)["params"]
    # Every leaf is random, B and biases included, so that nothing cancels.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


def written(params):
    """The parameters with one array a layer."""
    return unflatten_dict(unstack_layers(flatten_dict(params, sep="/"), prefix=""), sep="/")


def stacked(tree):
    """The inverse, for gradients."""
    return jax.tree.map(lambda x: jnp.stack(x) if isinstance(x, tuple) else x, tree, is_leaf=_is_layers)


def _is_layers(x):
    return isinstance(x, tuple) and len(x) == CONFIG.num_layers


@functools.partial(jax.jit, static_argnums=0)
def _run(model, params):
    """Logits, and the gradients of every parameter, kernels included."""
    tokens, probe = _inputs()

    def loss(params):
        logits = model.apply({"params": params}, tokens, method=_logits)
        return (logits * probe).sum(), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradients


def assert_near(got, want, relative):
    """Every leaf within `relative` of its largest entry."""
    for (path, w), g in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True):
        scale = float(jnp.abs(w).max())
        np.testing.assert_allclose(g, w, rtol=0, atol=relative * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("remat", "cut"), [("none", False), ("dots", True), ("full", False)])
def test_remat_and_unrolled_layers_change_nothing(remat, cut):
    params = _params(CONFIG)
    want = _run(Llm(CONFIG), params)
    assert_near(_run(Llm(CONFIG, remat=remat), params), want, 1e-5)
    got = _run(Llm(CONFIG, remat=remat, scan_layers=False), written(params) if cut else params)
    assert_near(stacked(got), want, 1e-5)


@pytest.mark.parametrize(
    ("remat", "layout"),
    [("none", LAYOUT), ("dots", LAYOUT), ("none", PrefixLayout(12)), ("none", PrefixLayout(0, 4, 3))],
)
def test_the_last_layer_computes_only_the_tokens_that_are_asked_for(remat, layout):
    params = _params(CONFIG)
    tokens, probe = _inputs()
    # One token twice, one of the prefix.
    at = jnp.array([[7, 7, 2, 11], [0, 5, 9, 6]])

    def run(model, params, at):
        def loss(params):
            hidden = model.apply(
                {"params": params},
                method=lambda m: m.logits(m(m.embed(tokens), layout, at)),
            )
            return (hidden * probe[:, :4]).sum(), hidden

        gradients, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradients

    want = jax.jit(run, static_argnums=0)(Llm(CONFIG), params, at)
    got = jax.jit(run, static_argnums=0)(Llm(CONFIG, remat=remat, scan_layers=False), params, at)
    assert_near(got, want, 1e-5)


def test_a_cache_goes_on_from_a_unrolled_prefill():
    tokens, _ = _inputs()
    positions = jnp.broadcast_to(jnp.arange(6, 8), (2, 1, 2))

    def run(model):
        x = model.embed(tokens)
        hidden, cache = model.prefill(x[:, :6], 4)
        return hidden, model.extend(x[:, None, 6:8], positions, positions >= 0, cache)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def made(model, params):
        return model.apply({"params": params}, method=run)

    params = _params(CONFIG)
    want = made(Llm(CONFIG), params)
    for own in (params, written(params)):
        assert_near(made(Llm(CONFIG, scan_layers=False), own), want, 1e-5)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm
from fi_jax.models.lora import Linear, merge_lora


class _Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(5, 7)

    def forward(self, x):
        return self.q_proj(x)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 16.0), (3, 2.0)])
def test_equals_peft(rank, alpha):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5)).astype(np.float32)
    linear = Linear(7, use_bias=True, lora=LoraConfig(rank, alpha), name="q_proj")
    params = linear.init(jax.random.key(0), x)["params"]
    params["lora_b"] = jnp.asarray(rng.normal(size=(rank, 7)), jnp.float32)
    params["bias"] = jnp.asarray(rng.normal(size=7), jnp.float32)
    theirs = peft.get_peft_model(_Named(), peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj"]))
    layer = theirs.base_model.model.q_proj
    for target, name in (
        (layer.base_layer.weight, "kernel"),
        (layer.base_layer.bias, "bias"),
        (layer.lora_A["default"].weight, "lora_a"),
        (layer.lora_B["default"].weight, "lora_b"),
    ):
        target.data = torch.tensor(np.asarray(params[name]).T.copy())
    want = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(linear.apply({"params": params}, x), want, atol=1e-5)
    leaves = merge_lora(flatten_dict({"q_proj": params}, sep="/"), LoraConfig(rank, alpha))
    merged = unflatten_dict(leaves, sep="/")["q_proj"]
    assert set(merged) == {"kernel", "bias"}
    np.testing.assert_allclose(Linear(7, use_bias=True).apply({"params": merged}, x), want, atol=1e-5)


def test_dropout_takes_inputs_from_the_adapter_alone_and_only_in_training():
    x = jnp.eye(64)
    linear = Linear(3, lora=LoraConfig(2, dropout=0.25), name="q_proj")
    params = linear.init(jax.random.key(0), x)["params"]
    params["lora_b"] = jnp.ones((2, 3))
    plain, base = linear.apply({"params": params}, x), x @ params["kernel"]
    dropped = linear.apply({"params": params}, x, rngs={"dropout": jax.random.key(1)}) - base
    lost = np.abs(dropped).max(1) < 1e-6
    assert 0.1 < lost.mean() < 0.45
    np.testing.assert_allclose(dropped[~lost], (plain - base)[~lost] / 0.75, atol=1e-5)
    # Without an rng, as in evaluation, nothing is random.
    np.testing.assert_array_equal(linear.apply({"params": params}, x), plain)


def test_starts_as_the_base_and_only_named_layers_adapt():
    x = jnp.ones((2, 5))
    lora = LoraConfig(2, targets=("q_proj",))
    adapted = Linear(3, lora=lora, name="q_proj")
    params = adapted.init(jax.random.key(0), x)["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {"kernel": (5, 3), "lora_a": (5, 2), "lora_b": (2, 3)}
    assert np.abs(params["lora_a"]).min() > 0
    np.testing.assert_array_equal(
        adapted.apply({"params": params}, x), Linear(3).apply({"params": {"kernel": params["kernel"]}}, x)
    )
    assert set(Linear(3, lora=lora, name="k_proj").init(jax.random.key(0), x)["params"]) == {"kernel"}


def test_merges_stacked_layers_and_keeps_dtypes():
    lora = LoraConfig(2, alpha=6.0)
    config = LlmConfig(31, 16, 24, 2, 2, 1, 8, lora=lora)
    tokens = jnp.arange(9)[None]

    def run(model, tokens):
        return model.logits(model(model.embed(tokens), PrefixLayout(9)))

    def logits(model, params):
        return jax.jit(functools.partial(model.apply, method=run))({"params": params}, tokens)

    model = Llm(config)
    params = jax.jit(functools.partial(model.init, method=run))(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    merged = unflatten_dict(merge_lora(flatten_dict(params, sep="/"), lora), sep="/")
    assert "lora_a" not in merged["layers"]["attn"]["q_proj"] and "lora_a" in params["layers"]["attn"]["q_proj"]
    plain = Llm(LlmConfig(31, 16, 24, 2, 2, 1, 8))
    np.testing.assert_allclose(logits(plain, merged), logits(model, params), rtol=1e-4, atol=1e-4)
    half = merge_lora(flatten_dict(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), sep="/"), lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}

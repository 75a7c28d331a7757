import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.config import LlmConfig, LoraConfig, RopeScaling
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm

TINY = LlmConfig(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    lora=LoraConfig(rank=2),
)


def _all_logits(model, tokens, layout):
    return model.logits(model(model.embed(tokens), layout))


def _init(model: Llm, seed: int = 0):
    ones = jnp.ones((1, 4), jnp.int32)
    params = model.init(jax.random.key(seed), ones, PrefixLayout(4), method=_all_logits)["params"]
    # Every leaf is random, LoRA B and norms included, so that nothing cancels.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def _from_torch(hf, config: LlmConfig):
    state = {name: value.detach().numpy() for name, value in hf.state_dict().items()}
    params = {"embed": {"embedding": state["model.embed_tokens.weight"]}, "norm": {"scale": state["model.norm.weight"]}}
    if not config.tie_embeddings:
        params["lm_head"] = {"kernel": state["lm_head.weight"].T}
    layers = {"attn": {}, "mlp": {}}

    def stack(name):
        return np.stack([state[f"model.layers.{i}.{name}"] for i in range(config.num_layers)])

    layers["input_norm"] = {"scale": stack("input_layernorm.weight")}
    layers["post_attention_norm"] = {"scale": stack("post_attention_layernorm.weight")}
    for ours, theirs, names, biased in (
        ("attn", "self_attn", "qkvo", config.attention_bias),
        ("mlp", "mlp", ("gate", "up", "down"), config.mlp_bias),
    ):
        for name in names:
            layers[ours][f"{name}_proj"] = {"kernel": stack(f"{theirs}.{name}_proj.weight").swapaxes(1, 2)}
            if biased:
                layers[ours][f"{name}_proj"]["bias"] = stack(f"{theirs}.{name}_proj.bias")
    return params | {"layers": layers}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, {"rope_type": "default"}),
        ({"num_key_value_heads": 4, "head_dim": 6}, {"rope_type": "default"}),
        ({"num_key_value_heads": 1, "tie_word_embeddings": True}, {"rope_type": "linear", "factor": 4.0}),
        ({"attention_bias": True, "mlp_bias": True}, LLAMA3 | {"original_max_position_embeddings": 64}),
    ],
)
def test_logits_equal_those_of_transformers(changes, rope):
    settings_ = {
        "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-5, "max_position_embeddings": 600,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "initializer_range": 0.3,
        "rope_parameters": rope | {"rope_theta": 10000.0},
    } | changes  # fmt: skip
    torch.manual_seed(0)
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings_)).eval()
    for name, value in hf.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(value, std=0.3)
    config = LlmConfig(
        97, 24, 40, 3, 4, settings_["num_key_value_heads"], settings_["head_dim"],
        rope_scaling=RopeScaling(
            rope["rope_type"], rope.get("factor", 1.0), 1.0, 4.0, rope.get("original_max_position_embeddings", 8192)
        ),
        tie_embeddings=settings_["tie_word_embeddings"],
        attention_bias=settings_["attention_bias"],
        mlp_bias=settings_["mlp_bias"],
    )  # fmt: skip
    # Long, because short prompts hide mistakes in RoPE.
    tokens = np.random.default_rng(0).integers(0, 97, (2, 500))
    with torch.no_grad():
        expected = hf(torch.from_numpy(tokens)).logits.numpy()
    model = Llm(config)
    got = model.apply({"params": _from_torch(hf, config)}, tokens, PrefixLayout(500), method=_all_logits)
    # float32 on both sides; logits are of the order of 1 to 10.
    np.testing.assert_allclose(got, expected, atol=2e-4)


# Padded sizes are few so that programs are shared between examples; what is valid inside varies freely.
SHAPES = [PrefixLayout(6, 3, 4), PrefixLayout(5, 1, 3), PrefixLayout(1, 2, 1), PrefixLayout(7)]


@st.composite
def layouts(draw):
    """A layout, and for each of two faces the tokens of every segment that are no padding."""
    layout = draw(st.sampled_from(SHAPES))
    return layout, [[draw(st.integers(1, layout.length)) for _ in range(layout.segments)] for _ in range(2)]


def pack(layout: PrefixLayout, faces, rng):
    """Returns tokens and which are no padding, `2 t`, and the separate sequences with where their tokens lie."""
    tokens = rng.integers(0, 97, (2, layout.total))
    valid = np.zeros((2, layout.total), bool)
    separate = []
    where = np.arange(layout.prefix)
    for i, lengths in enumerate(faces):
        valid[i, where] = True
        for j, length in enumerate(lengths):
            own = layout.prefix + j * layout.length + np.arange(length)
            valid[i, own] = True
            separate.append((i, np.concatenate([where, own])))
        if not lengths:
            separate.append((i, where))
    return tokens, valid, separate


MODEL = Llm(TINY)
PARAMS = _init(MODEL)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _probed(model, layout, params, batch, probe):
    """Logits of the tokens that `batch["row"], batch["place"]` point at, and gradients of their product with `probe`."""

    def loss(params):
        logits = model.apply({"params": params}, batch["tokens"], layout, method=_all_logits)
        logits = logits[batch["row"], batch["place"]]
        return jnp.sum(jnp.where(batch["real"][..., None], logits * probe, 0)), logits

    return jax.grad(loss, has_aux=True)(params)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 100))
def test_segments_equal_separate_sequences_in_logits_and_gradients(drawn, seed):
    layout, faces = drawn
    tokens, _, separate = pack(layout, faces, np.random.default_rng(seed))
    shape = (len(separate), layout.prefix + layout.length)
    alone, place, real = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
    row = np.broadcast_to(np.array([i for i, _ in separate])[:, None], shape)
    for j, (i, where) in enumerate(separate):
        alone[j, : len(where)], place[j, : len(where)], real[j, : len(where)] = tokens[i, where], where, True
    order = np.indices(shape)
    probe = np.random.default_rng(seed + 1).normal(size=(*shape, 97)).astype(np.float32)
    joint = {"tokens": tokens, "row": row, "place": place, "real": real}
    apart = {"tokens": alone, "row": order[0], "place": order[1], "real": real}
    got_grads, got = _probed(MODEL, layout, PARAMS, joint, probe)
    want_grads, want = _probed(MODEL, PrefixLayout(shape[1]), PARAMS, apart, probe)
    np.testing.assert_allclose(got[real], want[real], atol=1e-4)
    for g, w in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        # Gradients are sums over up to 100 rows: 1e-4 of the leaf's largest entry.
        np.testing.assert_allclose(g, w, atol=1e-4 * max(1.0, float(jnp.abs(w).max())))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(layouts(), st.integers(0, 100))
def test_cache_equals_one_pass(drawn, seed):
    layout, faces = drawn
    tokens, valid, _ = pack(layout, faces, np.random.default_rng(seed))
    want = _one_pass(layout, tokens)
    got = _through_cache(layout, tokens, valid)
    np.testing.assert_allclose(got[valid], want[valid], atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def _one_pass(layout, tokens):
    return MODEL.apply({"params": PARAMS}, tokens, layout, method=_all_logits)


@functools.partial(jax.jit, static_argnums=0)
def _through_cache(layout, tokens, valid):
    def cached(model, tokens, valid):
        p, s, n = layout.prefix, layout.segments, layout.length
        embedded, positions = model.embed(tokens), np.broadcast_to(layout.positions, tokens.shape)
        hidden, cache = model.prefill(embedded[:, :p], n, s)
        outputs = [hidden]
        if s:
            own = [a[:, p:].reshape(2, s, n, *a.shape[2:]) for a in (embedded, positions, valid)]
            # All but the last token at once, then the last as a decoding step.
            first, cache = model.extend(*(a[:, :, : n - 1] for a in own), cache) if n > 1 else (own[0][:, :, :0], cache)
            last, cache = model.extend(*(a[:, :, n - 1 :] for a in own), cache)
            outputs.append(jnp.concatenate([first, last], axis=2).reshape(2, s * n, -1))
        return model.logits(jnp.concatenate(outputs, axis=1))

    return MODEL.apply({"params": PARAMS}, tokens, valid, method=cached)


def test_parameters_lie_where_the_architecture_says():
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(PARAMS)
    }
    assert shapes["embed/embedding"] == (97, 24)
    assert shapes["lm_head/kernel"] == (24, 97)
    assert shapes["norm/scale"] == (24,)
    assert shapes["layers/attn/k_proj/kernel"] == (2, 24, 20)
    assert shapes["layers/mlp/down_proj/lora_a"] == (2, 40, 2)
    assert shapes["layers/mlp/down_proj/lora_b"] == (2, 2, 24)
    assert shapes["layers/input_norm/scale"] == shapes["layers/post_attention_norm/scale"] == (2, 24)


def test_dots_policy_recomputes_fewer_products_than_full():
    tokens = jnp.zeros((1, 8), jnp.int32)

    def products(remat):
        model = Llm(TINY, remat=remat)

        def loss(params):
            return model.apply({"params": params}, tokens, PrefixLayout(8), method=_all_logits).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss))(PARAMS)
        return str(jaxpr).count("dot_general")

    assert products("none") <= products("dots") < products("full")


def test_bfloat16_compute_keeps_float32_logits():
    tokens = jnp.arange(12)[None]

    def run(dtype):
        model = Llm(TINY, dtype=dtype)
        apply = functools.partial(model.apply, method=_all_logits)
        return jax.jit(lambda params: apply({"params": params}, tokens, PrefixLayout(12)))(PARAMS)

    got, want = run(jnp.bfloat16), run(jnp.float32)
    assert got.dtype == jnp.float32
    assert np.abs(got - want).mean() < 0.05 * np.abs(want).mean()

"""The ViT against transformers' vision towers, at the hidden state, picture size and activation asked for."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fi_jax.config import LoraConfig, VitConfig
from fi_jax.errors import UserError
from fi_jax.models import vit
from fi_jax.models.pixels import to_pixels
from fi_jax.models.vit import Vit, drop_branch, resize_position_embedding
from fi_jax.weights.huggingface import load_vision

# What is compared bit for bit is compiled as it is for people (conftest.py).
FUSED = {"xla_cpu_use_fusion_emitters": True}


def _tower(folder, kind="CLIPVision", **sizes):
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 24, "patch_size": 4}
    if "Vision" in kind:
        shape["intermediate_size"] = 40
    config = getattr(transformers, f"{kind}Config")(**{**shape, **sizes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def _pixels(size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def _theirs(model, pixels, **kwargs):
    with torch.no_grad():
        return model(torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True, **kwargs)


@pytest.mark.parametrize(
    ("hidden_act", "feature_layer"),
    [("quick_gelu", -2), ("gelu", -1), ("gelu_pytorch_tanh", 0), ("gelu_pytorch_tanh", 2), ("gelu", -2)],
)
def test_equals_clip(tmp_path, hidden_act, feature_layer):
    model = _tower(tmp_path, hidden_act=hidden_act)
    config, params, _ = load_vision(tmp_path)
    pixels = _pixels(24)
    ours = jax.jit(Vit(replace(config, feature_layer=feature_layer)).apply)({"params": params}, pixels)
    theirs = _theirs(model, pixels)
    np.testing.assert_allclose(ours.tokens, theirs.hidden_states[feature_layer][:, 1:].numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.pooled, theirs.pooler_output.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "sizes", "extra"),
    [
        ("SiglipVision", {"image_size": 26}, 0),
        ("SiglipVision", {"vision_use_head": False, "hidden_act": "gelu"}, 0),
        ("Dinov2", {"mlp_ratio": 2}, 1),
        ("Dinov2WithRegisters", {"num_register_tokens": 3}, 4),
        ("ViT", {"intermediate_size": 40}, 1),
        ("IJepa", {"intermediate_size": 40}, 0),
    ],
)
def test_other_families_equal_transformers_at_every_layer_and_at_other_sizes(tmp_path, kind, sizes, extra):
    model = _tower(tmp_path, kind, **sizes)
    config, params, report = load_vision(tmp_path)
    assert all(re.search("head|mask_token|pooler", key) for key in report.unused)
    pixels = _pixels(config.image_size)
    theirs = _theirs(model, pixels)
    for layer in (-2, 0):
        ours = jax.jit(Vit(replace(config, feature_layer=layer)).apply)({"params": params}, pixels)
        np.testing.assert_allclose(ours.tokens, theirs.hidden_states[layer][:, extra:].numpy(), atol=1e-4)
    ours = jax.jit(Vit(replace(config, feature_layer=-1, norm_tokens=True)).apply)({"params": params}, pixels)
    np.testing.assert_allclose(ours.tokens, theirs.last_hidden_state[:, extra:].numpy(), atol=1e-4)
    if extra:
        np.testing.assert_allclose(ours.pooled, theirs.last_hidden_state[:, 0].numpy(), atol=1e-4)
    else:
        mean = theirs.hidden_states[-1].mean(1)
        norm = model.layernorm if kind == "IJepa" else model.post_layernorm
        np.testing.assert_allclose(ours.pooled, norm(mean).detach().numpy(), atol=1e-4)
    # DINOv2 interpolates without being asked; with registers anti-aliased, which shows where the grid shrinks.
    asked = {} if "Dinov2" in kind else {"interpolate_pos_encoding": True}
    for size in (16, 40):
        config, params, _ = load_vision(tmp_path, image_size=size)
        ours = jax.jit(Vit(config).apply)({"params": params}, _pixels(size))
        theirs = _theirs(model, _pixels(size), **asked)
        np.testing.assert_allclose(ours.tokens, theirs.hidden_states[-2][:, extra:].numpy(), atol=1e-4)


def _as_openai(key: str) -> str:
    for theirs, ours in (
        ("embeddings.class_embedding", "class_embedding"), ("embeddings.position_embedding.weight", "positional_embedding"),
        ("embeddings.patch_embedding", "conv1"), ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
        ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("self_attn", "attn"), ("fc1", "c_fc"),
        ("fc2", "c_proj"),
    ):  # fmt: skip
        key = key.replace(theirs, ours)
    return f"visual.{key}"


def test_the_file_of_farl_is_a_clip_tower(tmp_path):
    """As its authors publish it: OpenAI's names, q, k and v in one, half precision, beside a text tower."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    model = _tower(tmp_path, **sizes)
    state = {key: value for key, value in model.state_dict().items() if "position_ids" not in key}
    parts = {
        key: value
        for key, value in state.items()
        if ".q_proj." not in key and "k_proj" not in key and "v_proj" not in key
    }
    for key in state:
        if ".q_proj." in key:
            joined = torch.cat([state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            parts[key.replace("q_proj.", "in_proj_")] = joined
    stored = {_as_openai(key): value.half() for key, value in parts.items()}
    stored |= {"visual.proj": torch.zeros(128, 8), "logit_scale": torch.zeros(()), "ln_final.weight": torch.ones(4)}
    torch.save({"state_dict": stored}, tmp_path / "farl.pth")
    config, params, report = load_vision(tmp_path / "farl.pth")
    assert (config.image_size, config.num_heads, config.num_layers) == (24, 2, 2) and "logit_scale" in report.unused
    ours = Vit(config).apply({"params": params}, _pixels(24))
    theirs = _theirs(model.half().float(), _pixels(24))
    np.testing.assert_allclose(ours.tokens, theirs.hidden_states[-2][:, 1:].numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.pooled, theirs.pooler_output.numpy(), atol=1e-4)
    (tmp_path / "odd.pth").write_bytes(b"no pickle")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    for name, says in (
        ("odd.pth", "no PyTorch file of plain tensors"),
        ("other.pth", "holds no vision tower of CLIP's"),
    ):
        with pytest.raises(UserError, match=says):
            load_vision(tmp_path / name)


def test_a_processor_says_how_pixels_are_normalised(tmp_path):
    _tower(tmp_path, "Dinov2")
    assert load_vision(tmp_path)[0].pixel_std == (0.229, 0.224, 0.225)
    transformers.SiglipImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[1.0, 0.5, 0.25]).save_pretrained(tmp_path)
    config, _, _ = load_vision(tmp_path)
    assert config.pixel_mean == (0.4, 0.5, 0.6) and config.pixel_std == (1.0, 0.5, 0.25)
    picture = np.full((1, 24, 24, 3), 255, np.uint8)
    np.testing.assert_allclose(to_pixels(picture, config)[0, 0, 0], [0.6, 1.0, 1.6], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "sizes", "says"),
    [
        ("Dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn is True; only False is supported"),
        ("Dinov2", {"qkv_bias": False}, "qkv_bias is False"),
    ],
)
def test_what_a_tower_computes_otherwise_is_refused_by_its_field(tmp_path, kind, sizes, says):
    _tower(tmp_path, kind, **sizes)
    with pytest.raises(UserError, match=says):
        load_vision(tmp_path)


def test_merge_concatenates_squares_of_neighbours(tmp_path):
    _tower(tmp_path)
    config, params, _ = load_vision(tmp_path)
    plain = Vit(config).apply({"params": params}, _pixels(24)).tokens
    merged = Vit(replace(config, merge=2)).apply({"params": params}, _pixels(24)).tokens
    assert merged.shape == (2, 9, 96)
    # Token (1, 2) of the 3x3 grid joins patches (2, 4), (2, 5), (3, 4), (3, 5) of the 6x6 grid.
    expected = np.concatenate([plain[:, 6 * y + x] for y, x in ((2, 4), (2, 5), (3, 4), (3, 5))], axis=-1)
    np.testing.assert_array_equal(merged[:, 1 * 3 + 2], expected)


@pytest.mark.parametrize("size", [16, 40])
def test_other_picture_sizes_equal_transformers_interpolation(tmp_path, size):
    model = _tower(tmp_path)
    config, params, _ = load_vision(tmp_path, image_size=size)
    assert config.image_size == size
    ours = Vit(config).apply({"params": params}, _pixels(size))
    theirs = _theirs(model, _pixels(size), interpolate_pos_encoding=True)
    np.testing.assert_allclose(ours.tokens, theirs.hidden_states[-2][:, 1:].numpy(), atol=1e-4)


def test_resize_needs_a_square_grid():
    config = VitConfig(24, 8, 8, 16, 2, 2)
    assert resize_position_embedding(np.ones((10, 2), np.float32), config).shape == (10, 2)
    with pytest.raises(ValueError, match="square"):
        resize_position_embedding(np.ones((9, 2), np.float32), config)


def test_wrong_picture_size_is_refused():
    config = VitConfig(24, 4, 8, 16, 2, 2)
    with pytest.raises(ValueError, match="image_size 24"):
        Vit(config).init(jax.random.key(0), jnp.zeros((1, 20, 24, 3)))


def test_remat_changes_nothing():
    config = VitConfig(16, 8, 8, 16, 2, 2)
    pixels = _pixels(16)
    params = jax.jit(Vit(config).init)(jax.random.key(0, impl="rbg"), pixels)

    def gradient(remat):
        def loss(params):
            return (Vit(config, remat=remat).apply(params, pixels).tokens ** 2).sum()

        return jax.jit(jax.grad(loss), compiler_options=FUSED)(params)

    plain = gradient("none")
    for remat in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(remat), plain)


def _gradient_of_a_small_tower(remat="none", train=True, drop_path=0.5):
    """Parameters, and the compiled gradient of their loss."""
    config = VitConfig(16, 8, 8, 16, 2, 2, feature_layer=-1, drop_path=drop_path)
    pixels = _pixels(16, 8)
    params = jax.jit(Vit(config).init)(jax.random.key(0, impl="rbg"), pixels)

    def loss(params):
        out = Vit(config, remat=remat).apply(params, pixels, train=train, rngs={"dropout": jax.random.key(1)})
        return (out.tokens**2).mean()

    return params, jax.jit(jax.grad(loss)).lower(params).compile()


def test_a_small_tower_has_no_loop(monkeypatch):
    products = {}
    for remat in ("none", "full"):
        # Without dropping: its generator is a loop of its own on a CPU.
        text = _gradient_of_a_small_tower(remat, drop_path=0.0)[1].as_text()
        assert " while(" not in text
        products[remat] = text.count(" dot(")
    # What is computed again is not merged with its first time (all of it: that is up to the backend).
    assert products["full"] > products["none"]
    # Asking keeps it, and so does a tall tower.
    assert " while(" in _gradient_of_a_small_tower(train=False, drop_path=0.0)[1].as_text()
    monkeypatch.setattr(vit, "UNROLLED_LAYERS", 1)
    assert " while(" in _gradient_of_a_small_tower(drop_path=0.0)[1].as_text()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_without_a_loop_the_same_is_computed_and_the_same_branches_drop(remat, monkeypatch):
    params, straight = _gradient_of_a_small_tower(remat)
    monkeypatch.setattr(vit, "UNROLLED_LAYERS", 1)
    _, looping = _gradient_of_a_small_tower(remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), straight(params), looping(params))


def test_the_layer_after_the_features_gets_no_gradient_from_tokens():
    config = VitConfig(16, 4, 12, 24, 3, 2, feature_layer=-2)
    params = jax.jit(Vit(config).init)(jax.random.key(0, impl="rbg"), _pixels(16))
    grads = jax.grad(lambda p: (Vit(config).apply(p, _pixels(16)).tokens ** 2).sum())(params)
    kernel = grads["params"]["layers"]["mlp"]["fc1"]["kernel"]
    assert np.abs(kernel[:2]).max() > 0 and not np.abs(kernel[2]).any()


def test_lora_sits_on_its_targets_and_starts_at_the_base():
    config = VitConfig(16, 4, 12, 24, 2, 2, lora=LoraConfig(2, 8.0, ("q_proj", "out_proj", "fc1")))
    variables = jax.jit(Vit(config).init)(jax.random.key(0, impl="rbg"), _pixels(16))
    layers = variables["params"]["layers"]
    assert layers["attn"]["q_proj"]["lora_a"].shape == (2, 12, 2)
    assert "lora_a" in layers["attn"]["out_proj"] and "lora_a" in layers["mlp"]["fc1"]
    assert "lora_a" not in layers["attn"]["k_proj"] and "lora_a" not in layers["mlp"]["fc2"]
    bare = jax.tree.map(lambda x: x, variables)
    for module in (
        bare["params"]["layers"][part][name]
        for part, name in (("attn", "q_proj"), ("attn", "out_proj"), ("mlp", "fc1"))
    ):
        del module["lora_a"], module["lora_b"]
    with_lora = Vit(config).apply(variables, _pixels(16)).tokens
    without = Vit(replace(config, lora=LoraConfig())).apply(bare, _pixels(16)).tokens
    np.testing.assert_array_equal(with_lora, without)


def test_drop_branch_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 3, 2))
    y = drop_branch(x, jnp.float32(0.25), jax.random.key(0))
    assert set(np.unique(y).round(4)) == {0.0, np.float32(4 / 3).round(4)}
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(y.mean(), 1.0, atol=0.05)


def test_drop_path_acts_in_training_alone():
    config = VitConfig(16, 4, 12, 24, 3, 2, drop_path=0.5)
    params = jax.jit(Vit(config).init)(jax.random.key(0, impl="rbg"), _pixels(16))

    def pooled(config, train):
        run = partial(Vit(config).apply, train=train)
        return jax.jit(lambda params, pixels: run(params, pixels).pooled, compiler_options=FUSED)(params, _pixels(16))

    plain, undropped = pooled(config, False), pooled(replace(config, drop_path=0.0), True)
    np.testing.assert_array_equal(plain, undropped)
    runs = [
        Vit(config).apply(params, _pixels(16), train=True, rngs={"dropout": jax.random.key(i)}).pooled for i in range(4)
    ]
    assert any(not np.allclose(plain, run) for run in runs)


def test_bfloat16_stays_close_to_float32(tmp_path):
    _tower(tmp_path)
    config, params, _ = load_vision(tmp_path)
    exact = Vit(config).apply({"params": params}, _pixels(24)).tokens
    rough = Vit(config, dtype=jnp.bfloat16).apply({"params": params}, _pixels(24)).tokens
    assert rough.dtype == jnp.bfloat16
    assert np.abs(rough.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()

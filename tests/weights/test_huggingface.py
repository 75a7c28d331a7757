"""Loading Hugging Face checkpoints: parity with transformers, both key generations, placement, and clear errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fi_jax.config import LlmConfig, VitConfig
from fi_jax.errors import UserError
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.connector import Connector
from fi_jax.models.llm import Llm
from fi_jax.models.vit import Vit
from fi_jax.weights import huggingface, leaf_table
from fi_jax.weights.hub import resolve_folder
from fi_jax.weights.huggingface import load_llava, load_llm, load_vision
from fi_jax.weights.matching import grouped
from fi_jax.weights.stream import checkpoint_hash

LLAMA = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def _randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _llama(folder, max_shard_size="1GB", **changes):
    torch.manual_seed(1)
    model = _randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes})))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def _llava(folder, **changes):
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**{**LLAMA, "num_key_value_heads": 2, **changes}),
        image_token_id=95,
    )
    model = _randomised(transformers.LlavaForConditionalGeneration(config))
    model.save_pretrained(folder)
    return model


@jax.jit
def _embed(embedding, tokens):
    return jnp.take(embedding, tokens, axis=0)


def _logits(config: LlmConfig, params, x):
    model = Llm(config)

    def run(params, x):
        hidden = model.apply({"params": params}, x, PrefixLayout(x.shape[1]))
        return model.apply({"params": params}, hidden, method="logits")

    return np.asarray(jax.jit(run)(params, x))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True},
        {
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-5,
            "rope_parameters": LLAMA3,
        },
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ],
    ids=["plain", "gqa_head_dim_tied", "bias_llama3", "linear"],
)
def test_llama_equals_transformers_over_500_tokens(tmp_path, changes):
    model = _llama(tmp_path, max_position_embeddings=600, **changes)
    config, params, report = load_llm(tmp_path, dtype="float32")
    tokens = np.random.default_rng(0).integers(0, 96, (1, 500))
    ours = _logits(config, params, _embed(params["embed"]["embedding"], tokens))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert not report.unused


def test_shards_of_any_size_load_alike_and_change_the_hash_only(tmp_path):
    _llama(tmp_path / "whole")
    _llama(tmp_path / "cut", max_shard_size="20KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 2
    _, whole, report = load_llm(tmp_path / "whole", dtype="float32")
    _, cut, report_cut = load_llm(tmp_path / "cut", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    assert len(report.hash) == 64 and report.hash != report_cut.hash


def test_dtype_is_cast_and_may_depend_on_the_path(tmp_path):
    model = _llama(tmp_path)
    model.half().save_pretrained(tmp_path)
    _, params, _ = load_llm(tmp_path, dtype=lambda path: "float32" if path.startswith("layers") else "bfloat16")
    assert params["layers"]["attn"]["q_proj"]["kernel"].dtype == jnp.float32
    assert params["embed"]["embedding"].dtype == jnp.bfloat16
    stored = model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(params["layers"]["attn"]["q_proj"]["kernel"][1], stored)


def _renamed(folder, target, rename):
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    save_file({rename(key): value for key, value in tensors.items()}, target / "model.safetensors", {"format": "pt"})


def _old_generation(key):
    """Keys as llava-hf released them: `language_model.model.…`, `vision_tower.vision_model.…`."""
    bare = key.removeprefix("model.")
    if "lm_head" in key:
        return "language_model.lm_head.weight"
    if bare.startswith("language_model."):
        return "language_model.model." + bare.removeprefix("language_model.").removeprefix("model.")
    if bare.startswith("vision_tower."):
        return "vision_tower.vision_model." + bare.removeprefix("vision_tower.").removeprefix("vision_model.")
    return bare


def _new_generation(key):
    old = _old_generation(key)
    if "lm_head" in key:
        return "lm_head.weight"
    return "model." + old.replace("language_model.model.", "language_model.").replace(
        "vision_tower.vision_model.", "vision_tower."
    )


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava") / "saved"
    model = _llava(folder)
    _renamed(folder, folder.parent / "old", _old_generation)
    _renamed(folder, folder.parent / "new", _new_generation)
    return folder.parent, model


@pytest.mark.parametrize("generation", ["saved", "old", "new"])
def test_llava_equals_transformers_with_a_picture(llava, generation):
    folder, model = llava
    config, params, report = load_llava(folder / generation, dtype="float32")
    assert config.image_encoder.feature_layer == -2
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(0, 95, (1, 40))
    tokens[0, 7:23] = 95
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens), pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2))
        ).logits.numpy()
    image = Vit(config.image_encoder).apply({"params": params["image_encoder"]}, pixels).tokens
    image = Connector(32).apply({"params": params["image_connector"]}, image)
    x = _embed(params["llm"]["embed"]["embedding"], tokens).at[:, 7:23].set(image)
    np.testing.assert_allclose(_logits(config.llm, params["llm"], x), theirs, atol=1e-3)
    assert report.unused == ()


def test_the_vision_tower_alone_comes_out_of_a_llava(llava):
    folder, _ = llava
    config, params, report = load_vision(folder / "old")
    _, whole, _ = load_llava(folder / "old", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, params, whole["image_encoder"])
    assert config.num_layers == 3 and any("lm_head" in key for key in report.unused)


def test_both_towers_come_out_of_a_clip(tmp_path):
    text = {
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=10)
    model = _randomised(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    vit, vision, report = load_vision(tmp_path)
    assert {"logit_scale", "visual_projection.weight", "text_projection.weight"} <= set(report.unused)
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        pooled = model.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2))).pooler_output.numpy()
    np.testing.assert_allclose(Vit(vit).apply({"params": vision}, pixels).pooled, pooled, atol=1e-4)
    text_config, params, report = huggingface.load_clip_text(tmp_path)
    assert text_config.projection_size == 10 and params["text_projection"]["kernel"].shape == (24, 10)
    assert "visual_projection.weight" in report.unused


def test_texts_are_encoded_as_transformers_does(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    text = {
        "vocab_size": 10,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    ids = {"bos_token_id": 8, "eos_token_id": 9, "pad_token_id": 9}
    config = transformers.CLIPConfig(text_config={**text, **ids}, vision_config=VISION, projection_dim=10)
    model = _randomised(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    tokenizer = Tokenizer(
        models.WordLevel({"a": 0, "smiling": 1, "young": 2, "face": 3, "<": 8, ">": 9}, unk_token="a")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="< $A >", special_tokens=[("<", 8), (">", 9)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = huggingface.encode_clip_texts(tmp_path, ["a smiling face", "young"])
    with torch.no_grad():
        long, short = (
            model.get_text_features(torch.tensor([row])).pooler_output for row in ([8, 0, 1, 3, 9], [8, 2, 9])
        )
    np.testing.assert_allclose(ours, np.concatenate([long.numpy(), short.numpy()]), atol=1e-4)


def test_old_config_files_get_transformers_defaults(tmp_path):
    """The Hub's own llava-1.5 config: most fields are left out."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064}
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    }  # fmt: skip
    config = {"model_type": "llava", "image_token_index": 32000, "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = huggingface.hf_config.read_llava_config(tmp_path)
    assert read.llm == LlmConfig() and read.image_encoder == VitConfig()


def test_pre_v5_rope_scaling_is_read(tmp_path):
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    config = {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": scaling, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = huggingface.hf_config.read_llm_config(tmp_path)
    assert read.rope_theta == 500000.0 and read.rope_scaling.kind == "llama3" and read.rope_scaling.factor == 8.0
    assert read.head_dim == 64
    config["rope_scaling"] = {"type": "yarn", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="scales RoPE by 'yarn'"):
        huggingface.hf_config.read_llm_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": None}, "config.json has no model_type"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number of at least 1"),
        ({"hidden_size": "large"}, "hidden_size is 'large'; it must be a whole number"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size 100 is not a multiple of num_attention_heads 3"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"num_local_experts": 8}, "num_local_experts is set, which a 'llama' does not have here"),
        ({"sliding_window": 4096}, "sliding_window is set"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is set"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is set"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type scales RoPE by 'yarn'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling has no short_factor"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "model_type is 'qwen3_moe' with num_experts, a mixture"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias is set, which a 'mistral' does not have"),
        ({"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation 'relu' is unknown"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"]}, "layer_types 'chunked_attention' is unknown"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention is set"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers must be a list of 0 and 1, one a layer"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling has no factor"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is unknown"),
    ],
)
def test_what_is_not_computed_or_of_another_type_is_refused_by_its_field(tmp_path, fields, says):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | fields))
    with pytest.raises(UserError, match=says):
        huggingface.hf_config.read_llm_config(tmp_path)
    vision = {"model_type": "clip_vision_model", "image_size": [224, 224]}
    (tmp_path / "config.json").write_text(json.dumps(vision))
    with pytest.raises(UserError, match=r"image_size is \[224, 224\]; it must be a whole number"):
        huggingface.hf_config.read_vit_config(tmp_path)


def test_a_name_on_the_hub_may_carry_a_revision(monkeypatch, tmp_path):
    from huggingface_hub.errors import RevisionNotFoundError

    calls = []

    def fetch(name, revision=None, **_):
        calls.append((name, revision))
        if revision == "gone":
            raise RevisionNotFoundError("404", response=type("R", (), {"headers": {}, "request": None})())
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve_folder("somebody/model@abc123") == resolve_folder("somebody/model") == tmp_path
    assert calls == [("somebody/model", "abc123"), ("somebody/model", None)]
    with pytest.raises(UserError, match="'somebody/model' has no revision 'gone' on the Hugging Face Hub"):
        resolve_folder("somebody/model@gone")


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    _llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del (
        tensors["model.norm.weight"],
        tensors["model.layers.0.mlp.up_proj.weight"],
        tensors["model.layers.1.mlp.up_proj.weight"],
    )
    tensors["model.layers.0.extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["lm_head.weight"] = np.zeros((97, 32), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_llm(tmp_path)
    message = str(caught.value)
    assert "missing: model.layers.{0-1}.mlp.up_proj.weight [48, 32], model.norm.weight [32]" in message
    assert "unexpected: model.layers.0.extra.weight [2, 3]" in message
    assert "of another shape: lm_head.weight [97, 32] instead of [96, 32]" in message
    assert "\n" not in message


def test_known_buffers_are_listed_as_unused(tmp_path):
    _llama(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    _, params, report = load_llm(tmp_path)
    assert set(report.unused) == {"model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"}
    assert "lm_head" not in params


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _garble(folder):
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")


def _pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _missing_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _bad_index(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


def _no_config(folder):
    (folder / "config.json").unlink()


def _bad_config(folder):
    (folder / "config.json").write_text("{")


def _other_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def _quantised(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "model.safetensors is damaged or truncated"),
        (_garble, "model.safetensors is damaged or truncated"),
        (_pickle_only, "PyTorch pickles only; convert them"),
        (_no_weights, "holds no .safetensors file"),
        (_missing_shard, "lacks model-00001-of-00002.safetensors"),
        (_bad_index, "not a valid index"),
        (_no_config, "no config.json: not a Hugging Face checkpoint"),
        (_bad_config, "is damaged: it is not JSON"),
        (_other_architecture, "model_type is 'bert' which cannot be read"),
        (_quantised, r"is quantised: lm_head.weight \(I8\)"),
    ],
)
def test_a_bad_checkpoint_is_one_clear_message(tmp_path, damage, said):
    _llama(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        load_llm(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_or_repository_that_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no checkpoint folder"):
        load_llm(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name the checkpoint's folder"):
        load_llm(tmp_path / "file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be fetched .*hf download nobody/nothing-1b"):
        load_llm("nobody/nothing-1b")


def test_the_hash_of_a_hub_file_is_its_blobs_name(tmp_path):
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"x")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert checkpoint_hash([link]) == "ab" * 32
    assert checkpoint_hash([blob]) != "ab" * 32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=12, unique=True))
def test_grouped_layers_can_be_read_back(numbers):
    (said,) = grouped(f"layers.{i}.norm [8]" for i in numbers)
    runs = said.removeprefix("layers.{").removesuffix("}.norm [8]").split(",")
    ends = [tuple(map(int, run.split("-"))) for run in runs]
    assert sorted(numbers) == [i for end in ends for i in range(end[0], end[-1] + 1)]


def test_every_leaf_of_the_models_is_mapped_and_no_other():
    """The mapping's paths and shapes are those that `init` makes."""
    vit = VitConfig(32, 8, 24, 40, 3, 3)
    made = jax.eval_shape(Vit(vit).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert _flat(made) == {leaf.path: leaf.shape for leaf in leaf_table.vit_leaves(vit)}
    for tie in (True, False):
        llama = LlmConfig(96, 32, 48, 2, 4, 2, 10, tie_embeddings=tie, attention_bias=True, mlp_bias=True)

        def init(key, llama=llama):
            def touch(model, tokens):
                return model.logits(model(model.embed(tokens), PrefixLayout(4)))

            return Llm(llama).init(key, jnp.zeros((1, 4), jnp.int32), method=touch)

        made = jax.eval_shape(init, jax.random.key(0))["params"]
        assert _flat(made) == {leaf.path: leaf.shape for leaf in leaf_table.llm_leaves(llama)}


def _flat(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}


_ON_A_MESH = """
import sys, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from fi_jax.weights.huggingface import load_llm
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
def placement(path, shape):
    if path.endswith("kernel") and path.startswith("layers"):
        return NamedSharding(mesh, P(None, "fsdp", "tensor"))
    return NamedSharding(mesh, P("tensor") if path == "embed/embedding" else P())
_, cut, _ = load_llm(sys.argv[1], dtype="float32", placement=placement)
_, whole, _ = load_llm(sys.argv[1], dtype="float32")
kernel = cut["layers"]["mlp"]["down_proj"]["kernel"]
assert kernel.sharding == NamedSharding(mesh, P(None, "fsdp", "tensor")), kernel.sharding
assert kernel.addressable_shards[0].data.shape == (2, 24, 16)
jax.tree.map(np.testing.assert_array_equal, cut, whole)
print("same")
"""


def test_leaves_are_placed_on_a_mesh(tmp_path):
    _llama(tmp_path)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _ON_A_MESH, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "same", done.stderr[-2000:]

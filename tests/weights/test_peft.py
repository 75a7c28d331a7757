"""Adapters out to and in from the real `peft` on the real transformers models."""

import json
from dataclasses import replace

import jax
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.errors import UserError
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm
from fi_jax.weights.hf_config import read_llm_config
from fi_jax.weights.huggingface import load_llava, load_llm
from fi_jax.weights.peft import export_peft, import_peft

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
ODD = {"num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 600}
TOKENS = np.random.default_rng(0).integers(0, 96, (1, 500))


def _base(folder, **changes):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **ODD, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def _ours(config, params, tokens=TOKENS):
    model = Llm(config)

    def run(params):
        x = model.apply({"params": params}, tokens, method="embed")
        hidden = model.apply({"params": params}, x, PrefixLayout(tokens.shape[1]))
        return model.apply({"params": params}, hidden, method="logits")

    return np.asarray(jax.jit(run)(params))


def _theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def _adapter(config, lora, layers=None, seed=1):
    """Random A and B for every target, on `layers` alone when given."""
    sizes = {
        "q_proj": ("attn", 32, 40),
        "o_proj": ("attn", 40, 32),
        "v_proj": ("attn", 32, 20),
        "down_proj": ("mlp", 48, 32),
    }
    rng = np.random.default_rng(seed)
    leaves = {}
    for name in lora.targets:
        part, size_in, size_out = sizes[name]
        a = rng.normal(size=(config.num_layers, size_in, lora.rank)).astype(np.float32) * 0.3
        b = rng.normal(size=(config.num_layers, lora.rank, size_out)).astype(np.float32) * 0.3
        for layer in range(config.num_layers):
            if layers is not None and layer not in layers:
                a[layer] = b[layer] = 0
        leaves[f"layers/{part}/{name}/lora_a"], leaves[f"layers/{part}/{name}/lora_b"] = a, b
    return leaves


def _with(params, leaves):
    return unflatten_dict({**flatten_dict(params, sep="/"), **leaves}, sep="/")


LORA = LoraConfig(rank=4, alpha=10.0, targets=("q_proj", "o_proj", "v_proj", "down_proj"))


@pytest.mark.parametrize("layers", [None, (0, 2)], ids=["all_layers", "some_layers"])
def test_export_answers_the_same_in_real_peft(tmp_path, layers):
    _base(tmp_path / "base")
    config, params, report = load_llm(tmp_path / "base", dtype="float32")
    leaves = _adapter(config, LORA, layers)
    export_peft(
        leaves,
        replace(config, lora=LORA),
        tmp_path / "adapter",
        base_name=str(tmp_path / "base"),
        base_hash=report.hash,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = _theirs(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    # Every tensor of the file sits in the model, and the model asks for no other.
    assert set(peft.get_peft_model_state_dict(model)) == set(
        load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    )
    ours = _ours(replace(config, lora=LORA), _with(params, leaves))
    np.testing.assert_allclose(ours, _theirs(model), atol=1e-3)
    assert np.abs(before - ours).max() > 0.1
    again = import_peft(tmp_path / "adapter", config)
    assert set(again.lora.targets) == set(LORA.targets) and (again.lora.rank, again.lora.alpha) == (4, 10.0)
    assert set(again.leaves) == set(leaves)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(again.leaves[path], leaf)


def test_export_onto_a_llava_leaves_its_vision_tower_alone(tmp_path):
    vision = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 16,
        "patch_size": 8,
    }
    llava = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**{**SHAPE, **ODD}),
        image_token_id=95,
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(llava).save_pretrained(tmp_path / "base")
    config, params, report = load_llava(tmp_path / "base", dtype="float32")
    leaves = _adapter(config.llm, LORA)
    export_peft(
        leaves,
        replace(config.llm, lora=LORA),
        tmp_path / "adapter",
        base_name=str(tmp_path / "base"),
        base_hash=report.hash,
        in_llava=True,
    )
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    state = peft.get_peft_model_state_dict(model)
    assert set(state) == set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    tokens = np.where(TOKENS == 95, 0, TOKENS)  # 95 stands for a picture
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(tokens)).logits.numpy()
    ours = _ours(replace(config.llm, lora=LORA), _with(params["llm"], leaves), tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert import_peft(tmp_path / "adapter", config.llm).leaves.keys() == leaves.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "down_proj"]},
        {"r": 3, "lora_alpha": 16, "target_modules": ["v_proj"], "layers_to_transform": [1]},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"o_proj": 2},
            "alpha_pattern": {"o_proj": 6},
        },
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"model.layers.1.self_attn.o_proj": 2},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 64, r"layers\.[12]\.self_attn\.q_proj": 16},
        },
    ],
    ids=["plain", "one_layer", "patterns", "rslora", "full_paths"],
)
def test_import_of_an_adapter_peft_made(tmp_path, settings):
    base = _base(tmp_path / "base")
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "adapter")
    config, params, _ = load_llm(tmp_path / "base", dtype="float32")
    adapter = import_peft(tmp_path / "adapter", config)
    ours = _ours(replace(config, lora=adapter.lora), _with(params, adapter.leaves))
    np.testing.assert_allclose(ours, _theirs(model), atol=1e-3)


def test_an_adapter_in_half_precision_is_read(tmp_path):
    config, folder = _saved(tmp_path)
    tensors = {
        key: torch.randn(value.shape).bfloat16()
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    leaves = import_peft(folder, config).leaves
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(leaves["layers/attn/q_proj/lora_a"][1], tensors[key].float().numpy().T)


def _saved(tmp_path):
    """A config and an adapter of such a model; no weights are read."""
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **ODD))
    base.config.save_pretrained(tmp_path / "base")
    config = read_llm_config(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return config, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "asks for use_dora"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"bias": "all"}, "bias all"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the base"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path, change, said):
    config, folder = _saved(tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=said):
        import_peft(folder, config)


def test_full_paths_of_a_llava_are_honoured(tmp_path):
    """The module's name within the LLaVA, as PEFT matches it: alpha 64, not 8."""
    config, folder = _saved(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = {key: np.ones_like(value) for key, value in load_file(file).items()}
    for inside in ("model.language_model.layers.", "language_model.model.layers."):
        save_file({key.replace("model.model.layers.", f"model.{inside}"): v for key, v in tensors.items()}, file)
        settings = json.loads((folder / "adapter_config.json").read_text())
        settings["alpha_pattern"] = {f"{inside}{i}.self_attn.q_proj": 64 for i in range(config.num_layers)}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        assert import_peft(folder, config).lora.alpha == 64
    settings["alpha_pattern"]["model.layers.7.self_attn.q_proj"] = 2
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="'model.layers.7.self_attn.q_proj' matches no module of the adapter"):
        import_peft(folder, config)


def test_sides_of_unequal_rank_are_refused(tmp_path):
    config, folder = _saved(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors[key] = tensors[key][:, :1].copy()
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="layers.1.self_attn.q_proj has rank 2 in A and 1 in B"):
        import_peft(folder, config)


def test_all_foreign_keys_are_named(tmp_path):
    config, folder = _saved(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = np.zeros((2, 32), np.float32)
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((2, 32), np.float32)
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError) as caught:
        import_peft(folder, config)
    for part in (
        "layers.9.self_attn.q_proj.lora_A.weight [2, 32]",
        "lm_head.lora_A.weight [2, 32]",
        "layers.0.self_attn.q_proj has one side",
    ):
        assert part in str(caught.value)


def test_a_truncated_or_missing_file_is_one_message(tmp_path):
    config, folder = _saved(tmp_path)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        import_peft(folder, config)
    file.unlink()
    with pytest.raises(UserError, match="has no adapter_model.safetensors"):
        import_peft(folder, config)


def test_a_model_without_adapter_has_nothing_to_export(tmp_path):
    with pytest.raises(UserError, match="no LoRA adapter to export"):
        export_peft({}, LlmConfig(), tmp_path / "adapter", base_name="b", base_hash="")
    assert not (tmp_path / "adapter").exists()

"""Damaged files of every format that is read: 200 seeded mutations each end well or in a `UserError` of one line."""

import json
import random
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from fuzz import MUTATIONS, bounded_memory

from fi_jax.cli.configs import load_config
from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.errors import UserError
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights import hf_config, leaf_table
from fi_jax.weights.bundle import TrainedModel, load_model, save_model
from fi_jax.weights.gguf import read_params
from fi_jax.weights.gguf import read_tokenizer as read_gguf_tokenizer
from fi_jax.weights.hf_write import export_llm, export_segformer
from fi_jax.weights.huggingface import load_llm
from fi_jax.weights.leaves import load_leaves
from fi_jax.weights.peft import export_peft, import_peft
from fi_jax.weights.tokenizers import byte_tokenizer, read_tokenizer

LLM = LlmConfig(
    32, 16, 24, 2, 2, 1, 8, tie_embeddings=True, max_position_embeddings=64, lora=LoraConfig(2, 4.0, ("q_proj",))
)
JUNK = (
    None,
    0,
    -1,
    1,
    2.5,
    1e308,
    float("nan"),
    10**12,
    10**400,
    True,
    "",
    "x",
    "q" * 300,
    [],
    [0],
    {},
    {"a": 1},
    [[1]],
)


def mutated_bytes(rng: random.Random, data: bytes, end: int) -> bytes:
    """Flips bits, overwrites, cuts or repeats some of the first `end` bytes."""
    data = bytearray(data)
    at = rng.randrange(end)
    kind = rng.choice(("bits", "bits", "bytes", "number", "cut", "drop", "repeat"))
    if kind == "bits":
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        data[at : at + 8] = rng.randbytes(8)
    elif kind == "number":
        data[at : at + 8] = rng.choice((0, 1, 2**31, 2**62, 2**64 - 1)).to_bytes(8, "little")
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + rng.randrange(1, 40)]
    else:
        data[at:at] = data[at : at + rng.randrange(1, 40)]
    return bytes(data)


def mutated_json(rng: random.Random, value):
    """Replaces, removes, renames or doubles one entry at any depth."""
    places: list[tuple] = []

    def visit(node):
        for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(inner, dict | list):
                visit(inner)

    value = json.loads(json.dumps(value))
    visit(value)
    node, key = rng.choice(places)
    kind = rng.choice(("junk", "junk", "junk", "remove", "rename"))
    if kind == "junk":
        node[key] = rng.choice(JUNK)
    elif kind == "remove":
        del node[key]
    elif isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    else:
        node.append(node[key])
    return value


def mutations(path: Path, binary_end: int = 0):
    """Yields as a file is mutated in place; it is whole again at the end."""
    whole = path.read_bytes()
    for seed in range(MUTATIONS):
        rng = random.Random(f"{path.name} {seed}")
        if binary_end or seed % 4 == 0:
            path.write_bytes(mutated_bytes(rng, whole, binary_end or len(whole)))
        else:
            path.write_text(json.dumps(mutated_json(rng, json.loads(whole))))
        yield seed
    path.write_bytes(whole)


def ends_well(read, path: Path, binary_end: int = 0) -> None:
    read()
    refused = 0
    for seed in mutations(path, binary_end):
        try:
            with bounded_memory():
                read()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 5000, (seed, error)
        except BaseException as error:
            pytest.fail(f"mutation {seed} of {path.name} ends in {type(error).__name__}: {error}")
    assert refused > MUTATIONS / 10
    read()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    rng = np.random.default_rng(0)
    leaves = {leaf.path: rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaf_table.llm_leaves(LLM)}
    bare = {path: leaf for path, leaf in leaves.items() if "lora" not in path}
    export_llm(bare, replace(LLM, lora=LoraConfig()), folder)
    export_peft(leaves, LLM, folder / "adapter", base_name="b", base_hash="")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def header_end(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_safetensors(llama, tmp_path):
    file = llama / "model.safetensors"
    ends_well(lambda: load_llm(llama, dtype="float32"), file, header_end(file))
    ends_well(lambda: load_leaves(file), file, header_end(file))


def test_safetensors_of_an_adapter(llama):
    file = llama / "adapter" / "adapter_model.safetensors"
    ends_well(lambda: import_peft(llama / "adapter", LLM), file, header_end(file))


def test_adapter_config(llama):
    file = llama / "adapter" / "adapter_config.json"
    described = json.loads(file.read_text())
    described |= {"alpha_pattern": {"layers.0.self_attn.q_proj": 6}, "rank_pattern": {}, "use_rslora": False}
    file.write_text(json.dumps(described))
    ends_well(lambda: import_peft(llama / "adapter", LLM), file)


@pytest.mark.parametrize("kind", ["llama", "clip", "llava", "segformer"])
def test_config_of_a_checkpoint(kind, tmp_path):
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    text = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_parameters": rope | {"original_max_position_embeddings": 128}, "tie_word_embeddings": False,
        "max_position_embeddings": 64,
    }  # fmt: skip
    file = tmp_path / "config.json"
    if kind == "segformer":
        names = ("skin", "hair")
        config = SegformerConfig(2, (1, 1), (8, 12), (1, 3), (4, 2), (5, 3), (2, 2), (2, 3), 10)
        leaves = leaf_table.segformer_leaves(config, (0, 1))
        export_segformer({leaf.path: np.zeros(leaf.shape) for leaf in leaves}, config, tmp_path, names)

        def read():
            leaf_table.segformer_leaves(*hf_config.read_segformer_config(tmp_path, names))
    elif kind == "llama":
        file.write_text(json.dumps(text))

        def read():
            hf_config.read_llm_config(tmp_path)
    elif kind == "clip":
        words = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 60}
        file.write_text(
            json.dumps({"model_type": "clip", "text_config": words, "vision_config": vision, "projection_dim": 9})
        )

        def read():
            hf_config.read_vit_config(tmp_path)
            hf_config.read_clip_text_config(tmp_path)
    else:
        config = {"model_type": "llava", "text_config": text, "vision_config": vision, "vision_feature_layer": -2}
        file.write_text(json.dumps(config | {"image_token_id": 95}))

        def read():
            hf_config.read_llava_config(tmp_path)
            hf_config.read_vit_config(tmp_path)

    ends_well(read, file)


def test_tokenizer(llama):
    ends_well(lambda: read_tokenizer(llama / "tokenizer.json"), llama / "tokenizer.json")


def _write_gguf(path: Path, change=lambda tokens, types, merges: None) -> None:
    tokenizer = byte_tokenizer()
    tokens = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "es"]
    config = replace(LLM, vocab_size=len(tokens), lora=LoraConfig())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    types, merges = [1] * (len(tokens) - 1) + [3], ["Y es", "N o"]
    change(tokens, types, merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for leaf in leaf_table.llm_leaves(config):
        for i in range(leaf.layers or 1):
            writer.add_tensor(leaf.gguf.format(i), np.ones(leaf.source_shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tmp_path):
    file = tmp_path / "tiny.gguf"
    _write_gguf(file)
    end = len(file.read_bytes()) - 2 * 4 * (32 + 280) * 16

    def read():
        read_params(file)
        read_gguf_tokenizer(file)

    ends_well(read, file, end)


@pytest.mark.parametrize("name", ["config.json", "model.json"])
def test_bundle(name, tmp_path):
    info = {
        "labels": ["Male"],
        "base": {"llm": {"name": "b", "hash": "c"}},
        "temperatures": {"age": 1.5},
        "sources": [],
    }
    model = TrainedModel(load_config("tiny", []), {"head/bias": np.ones(())}, np.ones((1, 3)), np.eye(1), info)
    save_model(tmp_path, model)
    ends_well(lambda: load_model(tmp_path), tmp_path / name)


def rewrite_gguf_field(path: Path, name: str, value: int) -> None:
    """Puts another number into a field of type uint32."""
    reader = gguf.GGUFReader(path, "r+")
    reader.get_field(name).parts[-1][0] = value
    reader.data.flush()


def test_a_header_that_claims_more_than_the_file_has_is_refused_at_once(tmp_path):
    file = tmp_path / "tiny.gguf"
    _write_gguf(file)
    rewrite_gguf_field(file, "llama.block_count", 5_000_000)
    with pytest.raises(UserError, match="says that it has 5000000 layers but holds 20 tensors"):
        read_params(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tokens, types, merges: tokens.pop(), "its tokenizer is damaged"),
        (lambda tokens, types, merges: types.pop(), "its tokenizer is damaged"),
        (lambda tokens, types, merges: tokens.__setitem__(3, tokens[4]), "its tokenizer is damaged"),
        (lambda tokens, types, merges: merges.append("unknown words"), "holds no valid tokenizer .*unknown"),
    ],
)
def test_a_tokenizer_in_gguf_that_is_cut_or_has_unknown_words(tmp_path, change, says):
    file = tmp_path / "tiny.gguf"
    _write_gguf(file, change)
    with pytest.raises(UserError, match=says):
        read_gguf_tokenizer(file)

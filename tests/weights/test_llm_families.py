"""Every family of language models against transformers: logits, greedy text, files both ways."""

import functools
import math
from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from llm_cases import CASES, make
from safetensors.numpy import load_file

from fi_jax.config import LoraConfig
from fi_jax.errors import UserError
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm
from fi_jax.trees import flatten
from fi_jax.weights import leaf_table
from fi_jax.weights.gguf import read_config as read_gguf_config
from fi_jax.weights.gguf import read_params
from fi_jax.weights.hf_config import read_llm_config
from fi_jax.weights.hf_write import export_llm
from fi_jax.weights.huggingface import load_llm
from fi_jax.weights.peft import export_peft, import_peft

# One prefix and two segments a row: as two texts of 700 tokens, long enough that errors of RoPE and of windows show.
LAYOUT = PrefixLayout(640, 2, 60)
TOKENS = np.random.default_rng(0).integers(0, 97, (1, LAYOUT.total))
NEW = 3
TEXTS = np.stack([np.concatenate([TOKENS[0, :640], TOKENS[0, 640 + 60 * i : 700 + 60 * i]]) for i in range(2)])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Case -> its model of transformers, its folder, and what we read of that."""

    @functools.cache
    def load(case):
        model, folder = make(case), tmp_path_factory.mktemp(case)
        model.save_pretrained(folder)
        return model, folder, *load_llm(folder, dtype="float32")[:2]

    return load


@functools.partial(jax.jit, static_argnums=0)
def _answers(model, params, tokens):
    """Logits of a pass over the layout, and greedy text after each segment by way of the cache."""

    def run(model, tokens):
        x, (p, q, s) = model.embed(tokens), (LAYOUT.prefix, LAYOUT.segments, LAYOUT.length)
        logits = model.logits(model(x, LAYOUT))
        cache = model.prefill(x[:, :p], s + NEW, q)[1]
        positions = jnp.broadcast_to(p + jnp.arange(s), (1, q, s))
        own = x[:, p:].reshape(1, q, s, -1)
        hidden, cache = model.extend(own, positions, jnp.ones((1, q, s), bool), cache)
        text = [model.logits(hidden[:, :, -1]).argmax(-1)]
        for i in range(NEW - 1):
            at, seen = jnp.full((1, q, 1), p + s + i), jnp.ones((1, q, 1), bool)
            hidden, cache = model.extend(model.embed(text[-1])[:, :, None], at, seen, cache)
            text.append(model.logits(hidden[:, :, -1]).argmax(-1))
        return logits, jnp.stack(text, axis=-1)

    return model.apply({"params": params}, tokens, method=run)


# Those that differ in what they compute; Llama is in tests/models/test_llm.py.
COMPUTED = [case for case in CASES if case not in ("llama", "qwen2-tied", "smollm3-every", "phi3")]


@pytest.mark.parametrize("case", COMPUTED)
def test_logits_and_greedy_text_equal_those_of_transformers(case, loaded):
    theirs, _, config, params = loaded(case)
    with torch.no_grad():
        want = theirs(torch.tensor(TEXTS)).logits.numpy()
    # Where layers differ, once one by one; else in a scan.
    logits, text = _answers(Llm(config, scan_layers=case != "gemma3_text"), params, TOKENS)
    got = np.asarray(logits[0])
    np.testing.assert_allclose(got[:640], want[0, :640], atol=1e-4)
    np.testing.assert_allclose(got[640:].reshape(2, 60, -1), want[:, 640:], atol=1e-4)
    told = theirs.generate(torch.tensor(TEXTS), max_new_tokens=NEW, do_sample=False, use_cache=False)
    np.testing.assert_array_equal(text[0], told.numpy()[:, 700:])


@pytest.mark.parametrize("case", CASES)
def test_files_come_back_as_they_were_and_transformers_reads_them(case, loaded, tmp_path):
    theirs, folder, config, params = loaded(case)
    export_llm(flatten(params), config, tmp_path, extra=dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")))
    assert read_llm_config(tmp_path) == config
    source, written = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert source.keys() == written.keys()
    for key, value in source.items():
        np.testing.assert_array_equal(written[key], value)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is type(theirs)
    told, said = (model.config.to_dict() for model in (theirs, read))
    for name in ("layer_types", "no_rope_layers", "sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping"):
        assert said.get(name) == told.get(name), name
    if case.startswith("gemma3"):
        assert said["rope_parameters"] == told["rope_parameters"]


def test_the_language_model_inside_a_model_of_pictures_is_read_alone(loaded, tmp_path):
    text = loaded("gemma3_text")[0].config
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    whole = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=1, tie_word_embeddings=False
        )
    )
    whole.save_pretrained(tmp_path)
    config, params, report = load_llm(tmp_path, dtype="float32")
    assert config == loaded("gemma3_text")[2]
    assert report.unused and all("vision_tower" in key or "multi_modal" in key for key in report.unused)
    want = whole.model.language_model.layers[2].self_attn.k_norm.weight.detach().numpy()
    np.testing.assert_array_equal(params["layers"]["attn"]["k_norm"]["scale"][2], want)


def test_what_a_family_cannot_say_is_refused(loaded, tmp_path):
    _, _, config, params = loaded("qwen3")
    with pytest.raises(UserError, match="model.llm.qk_norm is True, which a 'llama' of transformers cannot say"):
        export_llm(flatten(params), replace(config, family="llama"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unrolled_layers_of_several_kinds_answer_the_tokens_asked_for(loaded):
    """Windows, two bases of RoPE and soft caps, in a layer that computes few of its tokens."""
    _, _, config, params = loaded("gemma3_text")
    config = replace(config, attention_softcap=3.0, sliding_window=5)
    layout, at = PrefixLayout(9, 2, 4), jnp.array([[3, 16, 12]])

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, params):
        return model.apply({"params": params}, TOKENS[:, :17], method=lambda m, t: m(m.embed(t), layout, at))

    want = run(Llm(config), params)
    np.testing.assert_allclose(run(Llm(config, scan_layers=False), params), want, atol=1e-5)


ADAPTED = ("qwen3", "gemma2", "phi3-short")


@pytest.mark.parametrize("case", ADAPTED)
def test_adapters_go_to_peft_and_come_back(case, loaded, tmp_path):
    theirs, folder, config, params = loaded(case)
    lora = LoraConfig(2, 6.0, ("q_proj", "v_proj", "up_proj", "o_proj"))
    config = replace(config, lora=lora)
    rng = np.random.default_rng(0)
    rows = leaf_table.adapters(leaf_table.llm_leaves(config))
    leaves = {leaf.path: rng.normal(size=leaf.shape).astype(np.float32) * 0.2 for leaf in rows}
    export_peft(leaves, config, tmp_path / "adapter", base_name="base", base_hash="0")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    export_llm(flatten(params) | leaves, config, tmp_path / "merged")
    for key, value in load_file(tmp_path / "merged" / "model.safetensors").items():
        np.testing.assert_allclose(value, merged[key].numpy(), atol=1e-5, err_msg=key)
    back = import_peft(tmp_path / "adapter", config)
    assert (back.lora.rank, back.lora.alpha, set(back.lora.targets)) == (2, 6.0, set(lora.targets))
    assert back.leaves.keys() == leaves.keys()
    for path, value in leaves.items():
        np.testing.assert_array_equal(back.leaves[path], value)


@pytest.mark.parametrize("case", ADAPTED)
def test_adapters_that_peft_made_are_read(case, loaded, tmp_path):
    _, folder, config, params = loaded(case)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    made = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(tmp_path / "adapter")
    read = import_peft(tmp_path / "adapter", config)
    export_llm(flatten(params) | read.leaves, replace(config, lora=read.lora), tmp_path / "merged")
    merged = made.merge_and_unload().state_dict()
    for key, value in load_file(tmp_path / "merged" / "model.safetensors").items():
        np.testing.assert_allclose(value, merged[key].numpy(), atol=1e-5, err_msg=key)


# The tables of the `gguf` package name the tensors; what its converter does to some of them is written here.
ARCHITECTURES = {
    "qwen2-tied": "qwen2", "qwen3": "qwen3", "smollm3-every": "smollm3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3", "phi3-short": "phi3",
}  # fmt: skip


def _write_gguf(path, model, architecture):
    c = model.config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_key_length(head_dim)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if getattr(c, "sliding_window", None):
        writer.add_sliding_window(c.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(c.max_position_embeddings / original) / math.log(original))
        )
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], c.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        value = tensor.numpy()
        if key == "lm_head.weight" and c.tie_word_embeddings:
            continue
        if architecture.startswith("gemma") and key.endswith("norm.weight"):
            value = value + 1
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(key.split(".")[-2])
        if architecture == "smollm3" and heads:
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_gguf_says_the_same_as_safetensors(case, loaded, tmp_path):
    model, _, config, params = loaded(case)
    _write_gguf(tmp_path / "model.gguf", model, ARCHITECTURES[case])
    read = read_gguf_config(tmp_path / "model.gguf")
    if case.startswith("gemma"):
        # llama.cpp knows by their depth which models divide by another size than a head's, and where windows are.
        pattern = {"gemma2": (0, 2), "gemma3_text": (0, 1, 2)}.get(case, ())
        config = replace(config, query_pre_attn_scalar=read.query_pre_attn_scalar, sliding_layers=pattern)
        assert read.query_pre_attn_scalar == (0 if case == "gemma" else config.head_dim)
    rounded = replace(read.rope_scaling, attention_factor=config.rope_scaling.attention_factor)
    np.testing.assert_allclose(read.rope_scaling.attention_factor, rounded.attention_factor, rtol=1e-6)
    wanted = (config.rope_scaling.short_factor, config.rope_scaling.long_factor)
    np.testing.assert_allclose((rounded.short_factor, rounded.long_factor), wanted, rtol=1e-6)
    assert replace(read, rope_scaling=config.rope_scaling) == config
    ours, theirs = flatten(read_params(tmp_path / "model.gguf")), flatten(params)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, atol=1e-6, err_msg=path)

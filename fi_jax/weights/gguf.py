"""Reads a language model out of a GGUF file: its config, its parameters by the leaf table, and its tokenizer."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlmConfig, RopeScaling
from fi_jax.errors import UserError
from fi_jax.models.rope import rope_frequencies
from fi_jax.trees import unflatten
from fi_jax.weights import layouts, leaf_table
from fi_jax.weights.json_fields import Fields
from fi_jax.weights.leaf import by_source
from fi_jax.weights.llm_families import FAMILIES, Family
from fi_jax.weights.matching import match
from fi_jax.weights.tokenizers import named_damage

# GGUF's name of an architecture -> transformers' (a Mistral is a 'llama' there).
_FAMILIES = {family.gguf: kind for kind, family in FAMILIES.items() if family.gguf}
_ROPE_FACTORS = "rope_freqs.weight"
_LONG_FACTORS, _SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
# Entries of the longest list of a header that is believed (the largest vocabularies have 300,000 words).
_LONGEST_LIST = 2**21


def read_config(path: Path | str) -> LlmConfig:
    """Returns the architecture of a GGUF model; an unknown architecture is a `UserError`."""
    return _config(_open(path), path)


def read_params(path: Path | str, dtype: Any = np.float32) -> dict[str, Any]:
    """Returns the dequantised parameters (numpy, `dtype`), layers stacked on axis 0.

    Q and K rows are un-permuted from GGUF's interleaved RoPE to half-split RoPE where they are interleaved; of norms that
    multiply by 1 + scale, GGUF's 1 is taken off. Tensors that are missing, left
    over or of another shape are all named in one `UserError`.
    """
    import gguf

    reader = _open(path)
    config = _config(reader, path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
    leaves = [replace(leaf, key=leaf.gguf) for leaf in leaf_table.without_adapters(leaf_table.llm_leaves(config))]
    match(str(path), leaves, shapes, layouts.GGUF)

    flat = {leaf.path: np.empty(leaf.shape, dtype) for leaf in leaves}
    for name, parts in by_source(leaves).items():
        try:
            value = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"{path}: {name} ({tensors[name].tensor_type.name}) cannot be read: {error}") from None
        for leaf, i in parts:
            own = leaf.from_source(_unpermute(value, leaf.heads) if leaf.heads else value)
            if config.unit_offset_norms and leaf.path.endswith("norm/scale"):
                own = own - 1
            flat[leaf.path][i if leaf.layers else ...] = own
    return unflatten(flat)


def read_tokenizer(path: Path | str):
    """Returns the byte-level BPE tokenizer (`tokenizers.Tokenizer`) that a GGUF file carries.

    Only GPT-2 style vocabularies with SmolLM's pre-tokenisation (single digits) are known; others are a `UserError`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = _open(path)
    fields = _fields(reader, path, "tokenizer.")
    kind = (fields.text("tokenizer.ggml.model", ""), fields.text("tokenizer.ggml.pre", ""))
    if kind != ("gpt2", "smollm"):
        raise UserError(
            f"{path}: its tokenizer {kind} cannot be read (known: gpt2 with smollm); set weights.tokenizer to a folder "
            "with the model's tokenizer.json"
        )
    tokens, types, merges = (fields.get(f"tokenizer.ggml.{name}", []) for name in ("tokens", "token_type", "merges"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (rows,) = [_shape(tensor)[0] for tensor in reader.tensors if tensor.name == "token_embd.weight"] or [len(tokens)]
    if not len(vocabulary) == len(tokens) == len(types) == rows:
        raise UserError(
            f"{path}: its tokenizer is damaged: {len(tokens)} tokens, {len(vocabulary)} of them different, "
            f"{len(types)} types, {rows} embeddings"
        )
    with named_damage(str(path)):
        tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's token type of <|im_start|> and the like
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


@cache
def _reader_type():
    import gguf

    class Reader(gguf.GGUFReader):
        """The library's reader, which takes what lies behind the end of a file for empty, and any length for true."""

        def _get(self, offset, dtype, count=1, override_order=None):
            # A header is 150,000 slices, which of a memory map itself cost three times as much as of a view of it.
            self.data = np.asarray(self.data)
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends before what its header describes")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type == gguf.GGUFValueType.ARRAY and self._get(orig_offs + 4, np.uint64)[0] > _LONGEST_LIST:
                raise ValueError(f"its header has a list of more than {_LONGEST_LIST} entries")
            return super()._get_field_parts(orig_offs, raw_type)

    return Reader


def _open(path):
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file")
    try:
        return _reader_type()(path)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not a readable GGUF file: {error}") from error


def _fields(reader, path, prefix: str) -> Fields:
    try:
        values = {name: field.contents() for name, field in reader.fields.items() if name.startswith(prefix)}
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path} is not a readable GGUF file: a field under {prefix} is damaged ({error})") from None
    return Fields(values, str(path))


def _shape(tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _config(reader, path) -> LlmConfig:
    architecture = _fields(reader, path, "general.architecture").text("general.architecture", "")
    if architecture not in _FAMILIES:
        raise UserError(f"{path} holds a '{architecture}' model; known: {', '.join(_FAMILIES)}")
    kind = _FAMILIES[architecture]
    family = FAMILIES[kind]
    raw = _fields(reader, path, f"{architecture}.")
    fields = Fields({name.removeprefix(f"{architecture}."): value for name, value in raw.values.items()}, raw.where)
    if fields.get("expert_count"):
        raise UserError(f"{path}: expert_count is set; a mixture of experts cannot be read")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if len(getattr(tensors.get("token_embd.weight"), "shape", ())) != 2:
        raise UserError(f"{path} has no tensor token_embd.weight of two axes")
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    layers = fields.integer("block_count")
    head_dim = fields.integer("attention.key_length", max(hidden // heads, 1))
    rotated = fields.integer("rope.dimension_count", head_dim)
    if rotated != head_dim and not family.partial_rope:
        raise UserError(f"{path} rotates {rotated} of {head_dim} dimensions a head; '{architecture}' rotates all")
    theta = fields.number("rope.freq_base", family.rope_theta)
    longest = fields.integer("context_length")
    window, sliding = _windows(fields, family, layers)
    interval = family.no_rope_interval
    # The largest Gemma 2 and 3 divide by another size than a head's, which llama.cpp too knows by their depth.
    scale = hidden / heads if (kind, layers) in (("gemma2", 46), ("gemma3_text", 62)) else float(head_dim)
    return LlmConfig(
        vocab_size=_shape(tensors["token_embd.weight"])[0],
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=_scaling(fields, tensors, rotated, theta, path),
        # Stored as float32; 1e-5 is meant, not 9.999999747378752e-06.
        rms_norm_eps=float(str(np.float32(fields.number("attention.layer_norm_rms_epsilon")))),
        tie_embeddings="output.weight" not in tensors,
        # Qwen2 has those of q, k and v alone.
        attention_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        max_position_embeddings=longest,
        family=kind,
        hidden_act="gelu_tanh" if family.fixed.get("scale_embeddings") else "silu",
        query_pre_attn_scalar=scale if "query_pre_attn_scalar" in family.defaults else 0.0,
        attention_softcap=_softcap(fields, "attn_logit_softcapping", family.defaults.get("attention_softcap", 0.0)),
        logit_softcap=_softcap(fields, "final_logit_softcapping", family.defaults.get("logit_softcap", 0.0)),
        partial_rotary_factor=rotated / head_dim,
        no_rope_layers=tuple(range(interval - 1, layers, interval)) if interval else (),
        sliding_window=window,
        sliding_layers=sliding,
        sliding_rope_theta=fields.number("rope.freq_base_swa", family.sliding_rope_theta)
        if sliding and family.sliding_rope_theta
        else 0.0,
        **family.fixed,
    )


def _softcap(fields: Fields, name: str, default: float) -> float:
    return fields.number(name, default) if default else 0.0


def _windows(fields: Fields, family: Family, num_layers: int) -> tuple[int, tuple[int, ...]]:
    window = fields.integer("attention.sliding_window", 0, least=0)
    # Files of Qwen carry no flag that says the window is used; llama.cpp does not use it.
    if not window or family.slides is None or family.window_flag:
        return 0, ()
    return window, tuple(i for i in range(num_layers) if family.slides(fields, i))


def _scaling(fields: Fields, tensors, rotated: int, theta: float, path) -> RopeScaling:
    if _ROPE_FACTORS in tensors:
        return _llama3_scaling(np.asarray(tensors[_ROPE_FACTORS].data), rotated, theta, path)
    if _LONG_FACTORS in tensors and _SHORT_FACTORS in tensors:
        longest = fields.integer("context_length")
        original = fields.integer("rope.scaling.original_context_length", longest)
        long, short = (tuple(map(float, tensors[name].data)) for name in (_LONG_FACTORS, _SHORT_FACTORS))
        if not len(long) == len(short) == rotated // 2:
            raise UserError(
                f"{path}: {_LONG_FACTORS} and {_SHORT_FACTORS} are not one factor a pair of {rotated} dimensions"
            )
        attention = fields.number("rope.scaling.attn_factor", 1.0)
        return RopeScaling("longrope", longest / original, 1.0, 4.0, original, short, long, attention)
    kind = fields.text("rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", fields.number("rope.scaling.factor"))
    if kind != "none":
        raise UserError(f"{path} uses RoPE scaling '{kind}'; known: none, linear, llama3, longrope")
    return RopeScaling()


def _llama3_scaling(factors: np.ndarray, head_dim: int, theta: float, path) -> RopeScaling:
    """GGUF stores llama3 scaling as divisors of the frequencies; finds the parameters and proves them."""
    base = rope_frequencies(head_dim, theta, RopeScaling())
    if factors.shape == base.shape and np.issubdtype(factors.dtype, np.floating) and (factors > 0).all():
        scaling = RopeScaling("llama3", float(factors.max()), 1.0, 4.0, 8192)
        if np.allclose(base / factors, rope_frequencies(head_dim, theta, scaling), rtol=1e-5):
            return scaling
    raise UserError(f"{path}: {_ROPE_FACTORS} is not Llama 3's scaling (low 1, high 4, original length 8192)")


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Interleaved RoPE order (x0 y0 x1 y1 ...) of each head's rows to half-split order (x0 x1 ... y0 y1 ...)."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)

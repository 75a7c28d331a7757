"""Reads a Llama out of a GGUF file: its config, and its parameters as the tree of `models.llama`."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlamaConfig, RopeScaling
from fi_jax.errors import UserError
from fi_jax.models.llama import rope_frequencies

# GGUF name of a layer's tensor -> path below `layers`; kernels are stored [out, in].
_LAYER_MODULES = {
    "attn_norm": "input_norm",
    "ffn_norm": "post_attention_norm",
    "attn_q": "attn/q_proj",
    "attn_k": "attn/k_proj",
    "attn_v": "attn/v_proj",
    "attn_output": "attn/o_proj",
    "ffn_gate": "mlp/gate_proj",
    "ffn_up": "mlp/up_proj",
    "ffn_down": "mlp/down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"


def read_config(path: Path | str) -> LlamaConfig:
    """Returns the architecture of a GGUF Llama; another architecture is a `UserError`."""
    return _config(_open(path), path)


def read_params(path: Path | str, dtype: Any = np.float32) -> dict[str, Any]:
    """Returns the dequantised parameters (numpy, `dtype`), layers stacked on axis 0.

    Q and K rows are un-permuted from GGUF's interleaved RoPE to half-split RoPE. Tensors that are missing, left
    over or of another shape are all named in one `UserError`.
    """
    import gguf

    reader = _open(path)
    config = _config(reader, path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        return gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)

    expected = _expected_shapes(config)
    found = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is not a Llama's" for name in sorted(found.keys() - expected.keys() - {_ROPE_FACTORS})]
    problems += [
        f"{n} has shape {found[n]}, not {expected[n]}"
        for n in sorted(expected.keys() & found.keys())
        if found[n] != expected[n]
    ]
    if problems:
        raise UserError(f"{path}: the tensors do not make the Llama its header describes: {'; '.join(problems)}")
    return _assemble(config, expected, read, np.dtype(dtype))


def read_tokenizer(path: Path | str):
    """Returns the byte-level BPE tokenizer (`tokenizers.Tokenizer`) that a GGUF file carries.

    Only GPT-2 style vocabularies with SmolLM's pre-tokenisation (single digits) are known; others are a `UserError`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = _open(path)
    kind = (_field(reader, "tokenizer.ggml.model", ""), _field(reader, "tokenizer.ggml.pre", ""))
    if kind != ("gpt2", "smollm"):
        raise UserError(
            f"{path}: its tokenizer {kind} cannot be read (known: gpt2 with smollm); set weights.tokenizer to a folder "
            "with the model's tokenizer.json"
        )
    tokens = _field(reader, "tokenizer.ggml.tokens", [])
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges", [])]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's token type of <|im_start|> and the like
    types = _field(reader, "tokenizer.ggml.token_type", [])
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def file_hash(path: Path | str) -> str:
    """Returns the SHA-256 (hex) of a file: the base that an adapter trained on it belongs to."""
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path):
    import gguf

    if not Path(path).is_file():
        raise UserError(f"{path} is not a file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{path} is not a readable GGUF file: {error}") from error


def _field(reader, name: str, default=None):
    field = reader.get_field(name)
    if field is None:
        if default is None:
            raise UserError(f"the GGUF file has no field '{name}'")
        return default
    return field.contents()


def _config(reader, path) -> LlamaConfig:
    architecture = _field(reader, "general.architecture", "")
    if architecture != "llama":
        raise UserError(f"{path} holds a '{architecture}' model; only 'llama' can be read")
    hidden = _field(reader, "llama.embedding_length")
    heads = _field(reader, "llama.attention.head_count")
    head_dim = _field(reader, "llama.attention.key_length", hidden // heads)
    theta = _field(reader, "llama.rope.freq_base", 10000.0)
    if (rotated := _field(reader, "llama.rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{path} rotates {rotated} of {head_dim} dimensions a head; only full RoPE can be read")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path} has no tensor token_embd.weight")
    scaling = RopeScaling()
    if _ROPE_FACTORS in tensors:
        scaling = _llama3_scaling(np.asarray(tensors[_ROPE_FACTORS].data), head_dim, theta, path)
    elif (kind := _field(reader, "llama.rope.scaling.type", "none")) == "linear":
        scaling = RopeScaling("linear", _field(reader, "llama.rope.scaling.factor"))
    elif kind != "none":
        raise UserError(f"{path} uses RoPE scaling '{kind}'; known: none, linear, llama3")
    return LlamaConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=hidden,
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_layers=_field(reader, "llama.block_count"),
        num_heads=heads,
        num_kv_heads=_field(reader, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        # Stored as float32; 1e-5 is meant, not 9.999999747378752e-06.
        rms_norm_eps=float(str(np.float32(_field(reader, "llama.attention.layer_norm_rms_epsilon")))),
        tie_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        max_position_embeddings=_field(reader, "llama.context_length"),
    )


def _llama3_scaling(factors: np.ndarray, head_dim: int, theta: float, path) -> RopeScaling:
    """GGUF stores llama3 scaling as divisors of the frequencies; finds the parameters and proves them."""
    scaling = RopeScaling("llama3", float(factors.max()), 1.0, 4.0, 8192)
    base = rope_frequencies(head_dim, theta, RopeScaling())
    if factors.shape != base.shape or not np.allclose(
        base / factors, rope_frequencies(head_dim, theta, scaling), rtol=1e-5
    ):
        raise UserError(f"{path}: {_ROPE_FACTORS} is not Llama 3's scaling (low 1, high 4, original length 8192)")
    return scaling


def _expected_shapes(c: LlamaConfig) -> dict[str, tuple[int, ...]]:
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (c.vocab_size, c.hidden_size),
        "output_norm.weight": (c.hidden_size,),
    }
    if not c.tie_embeddings:
        shapes["output.weight"] = (c.vocab_size, c.hidden_size)
    attention = {"attn_q": (queries, c.hidden_size), "attn_k": (keys, c.hidden_size), "attn_v": (keys, c.hidden_size)}
    attention["attn_output"] = (c.hidden_size, queries)
    mlp = {name: (c.intermediate_size, c.hidden_size) for name in ("ffn_gate", "ffn_up")}
    mlp["ffn_down"] = (c.hidden_size, c.intermediate_size)
    for i in range(c.num_layers):
        shapes |= {f"blk.{i}.{name}.weight": (c.hidden_size,) for name in ("attn_norm", "ffn_norm")}
        for part, biased in ((attention, c.attention_bias), (mlp, c.mlp_bias)):
            shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in part.items()}
            if biased:
                shapes |= {f"blk.{i}.{name}.bias": shape[:1] for name, shape in part.items()}
    return shapes


def _assemble(c: LlamaConfig, names: dict, read: Callable[[str], np.ndarray], dtype: np.dtype) -> dict[str, Any]:
    params: dict[str, Any] = {"embed": {"embedding": read("token_embd.weight").astype(dtype)}}
    params["norm"] = {"scale": read("output_norm.weight").astype(dtype)}
    if not c.tie_embeddings:
        params["lm_head"] = {"kernel": np.ascontiguousarray(read("output.weight").T, dtype)}
    for name in names:
        if not (match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)):
            continue
        index, module, kind = int(match[1]), match[2], match[3]
        value = read(name)
        if module in ("attn_q", "attn_k"):
            value = _unpermute(value, c.num_heads if module == "attn_q" else c.num_kv_heads)
        if module.endswith("_norm"):
            leaf = "scale"
        else:
            leaf = "kernel" if kind == "weight" else "bias"
        value = value.T if leaf == "kernel" else value
        node = params
        for part in ("layers", *_LAYER_MODULES[module].split("/")):
            node = node.setdefault(part, {})
        if leaf not in node:
            node[leaf] = np.empty((c.num_layers, *value.shape), dtype)
        node[leaf][index] = value
    return params


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Interleaved RoPE order (x0 y0 x1 y1 ...) of each head's rows to half-split order (x0 x1 ... y0 y1 ...)."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)

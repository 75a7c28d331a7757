"""Our models out in Hugging Face's own layouts, sharded: written anew, or merged into a copy of their base."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlamaConfig, LoraConfig
from fi_jax.files import write_json
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights import leaf_table, stream
from fi_jax.weights.leaf_table import Layout, Leaf
from fi_jax.weights.leaves import write_safetensors
from fi_jax.weights.matching import match

# Kept from a base besides its weights: what from_pretrained and its tokenizer and processor read.
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")


def llama_json(config: LlamaConfig, dtype: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a Llama, with RoPE under the names of transformers 4 and 5."""
    scaling = asdict(config.rope_scaling)
    rope: dict[str, Any] = {"rope_type": scaling.pop("kind"), "rope_theta": config.rope_theta}
    if rope["rope_type"] == "llama3":
        rope |= scaling
    elif rope["rope_type"] == "linear":
        rope["factor"] = scaling["factor"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_parameters": rope,
        "torch_dtype": dtype,
        **(extra or {}),
    }


def export_llama(
    leaves: Mapping[str, Any],
    config: LlamaConfig,
    folder: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 << 30,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a Llama that transformers' `from_pretrained` loads.

    Args:
      leaves: flat leaves below `llm/`. Adapters (`lora_a`, `lora_b`) are merged, layer by layer, in float32.
      dtype: of the written tensors.
      shard_bytes: most bytes in one file.
      extra: more entries of `config.json` (token ids).
    """
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    rows = leaf_table.without_adapters(leaf_table.llama_leaves(config))

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for leaf in rows:
            value = leaves[leaf.path]
            for i, (source, part) in enumerate(zip(leaf.sources, value if leaf.layers else [value], strict=True)):
                merged = _merged(np.asarray(part), leaf.path, i, leaves, config.lora)
                yield source, leaf.to_source(merged).astype(kind)

    sizes = {source: kind.itemsize * int(np.prod(leaf.source_shape)) for leaf in rows for source in leaf.sources}
    _write_shards(folder, sizes, tensors(), shard_bytes)
    write_json(folder / "config.json", llama_json(config, dtype, extra), indent=2)


def export_segformer(
    variables: Mapping[str, Any], config: SegformerConfig, folder: Path, class_names: Sequence[str]
) -> None:
    """Writes a SegFormer that transformers' `from_pretrained` loads.

    Args:
      variables: flat leaves of both collections ("params/…", "batch_stats/…").
      class_names: of the logits, in order.
    """
    tensors = {
        source: tensor
        for leaf in leaf_table.segformer_leaves(config, tuple(range(config.num_labels)))
        for source, tensor in leaf.split(np.asarray(variables[leaf.path], np.float32))
    }
    tensors["decode_head.batch_norm.num_batches_tracked"] = np.zeros((), np.int64)
    names = {str(i): name for i, name in enumerate(class_names)}
    described = {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "num_encoder_blocks": len(config.depths),
        "depths": config.depths,
        "hidden_sizes": config.hidden_sizes,
        "num_attention_heads": config.num_heads,
        "sr_ratios": config.sr_ratios,
        "patch_sizes": config.patch_sizes,
        "strides": config.strides,
        "mlp_ratios": config.mlp_ratios,
        "decoder_hidden_size": config.decoder_hidden_size,
        "hidden_act": "gelu_pytorch_tanh" if config.hidden_act == "gelu_tanh" else config.hidden_act,
        "drop_path_rate": config.drop_path,
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
        "torch_dtype": "float32",
    }
    write_safetensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", described, indent=2)


def _merged(part: np.ndarray, path: str, layer: int, leaves: Mapping[str, Any], lora: LoraConfig) -> np.ndarray:
    """Adds `alpha / rank · A B` to one kernel, in float32, where it has an adapter."""
    module, _, name = path.rpartition("/")
    if name != "kernel" or f"{module}/lora_a" not in leaves:
        return part
    a, b = (np.asarray(leaves[f"{module}/lora_{side}"][layer], np.float32) for side in "ab")
    return part.astype(np.float32) + np.float32(lora.alpha / lora.rank) * (a @ b)


def _write_shards(
    folder: Path, sizes: Mapping[str, int], tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int
) -> None:
    """Writes tensors, which come in the order of `sizes` (bytes by key), with one shard at a time in memory."""
    groups: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(key)
        filled += size
    names: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else stream.WHOLE
        shard = dict(next(tensors) for _ in group)
        assert list(shard) == group
        write_safetensors(folder / name, shard)
        names |= dict.fromkeys(group, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": names}
        write_json(folder / stream.INDEX, index, indent=2)


def merge_into_copy(
    base: Path,
    folder: Path,
    leaves: Sequence[Leaf],
    layout: Layout,
    trained: Mapping[str, np.ndarray],
    lora_of: Callable[[str], LoraConfig],
) -> None:
    """Copies a checkpoint with trained leaves put in place and adapters merged: same keys, shards, types and files.

    Every tensor stays in its stored type; sums are taken in float32. One shard at a time is in memory.

    Args:
      leaves, layout: how the base's keys belong to our tree (`weights.leaf_table`).
      trained: flat leaves of ours; those outside `leaves` (segmentation, knowledge, head) are not carried.
      lora_of: the adapter's config for a leaf's path.
    """
    from safetensors import safe_open

    files = stream.find_files(base)
    shapes = {key: tensor.shape for key, tensor in stream.read_headers(files).items()}
    matched = match(str(base), leaves, shapes, layout)
    where = {matched.keys[source]: (leaf, i) for leaf in matched.leaves for i, source in enumerate(leaf.sources)}
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _COMPANIONS:
        for file in base.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    for file in files:
        shard = {}
        with safe_open(file, framework="np") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                tensor = opened.get_tensor(key)
                shard[key] = _replaced(tensor, *where[key], trained, lora_of) if key in where else tensor
        write_safetensors(folder / file.name, shard)


def _replaced(
    tensor: np.ndarray,
    leaf: Leaf,
    i: int,
    trained: Mapping[str, np.ndarray],
    lora_of: Callable[[str], LoraConfig],
) -> np.ndarray:
    module = leaf.path.rpartition("/")[0]
    adapted = leaf.path.endswith("/kernel") and f"{module}/lora_a" in trained
    if leaf.path not in trained and not adapted:
        return tensor
    if leaf.path in trained:
        ours = trained[leaf.path][i] if leaf.layers else trained[leaf.path]
    else:
        ours = leaf.from_source(tensor).astype(np.float32)
    return leaf.to_source(_merged(ours, leaf.path, i, trained, lora_of(leaf.path))).astype(tensor.dtype)

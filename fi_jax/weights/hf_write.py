"""Our models out in Hugging Face's own layouts, sharded: written anew, or merged into a copy of their base."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlamaConfig, LoraConfig
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights import mapping, stream
from fi_jax.weights.hf_config import read_json
from fi_jax.weights.mapping import Leaf

INDEX = "model.safetensors.index.json"
# Kept from a base besides its weights: what from_pretrained and its tokenizer and processor read.
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")


def to_source(leaf: Leaf, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the canonical source keys of a leaf of ours and their tensors: the inverse of loading it."""
    inverse = tuple(leaf.axes.index(axis) for axis in range(len(leaf.axes)))
    for source, part in zip(leaf.sources, value if leaf.stacked else [value], strict=True):
        yield source, np.ascontiguousarray(np.asarray(part).transpose(inverse)).reshape(leaf.source_shape)


def llama_json(config: LlamaConfig, dtype: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a Llama, with RoPE under the names of transformers 4 and 5."""
    rope: dict[str, Any] = {"rope_type": config.rope_scaling.kind, "rope_theta": config.rope_theta}
    if config.rope_scaling.kind != "default":
        rope["factor"] = config.rope_scaling.factor
    if config.rope_scaling.kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            rope[name] = getattr(config.rope_scaling, name)
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
        "rope_scaling": None if config.rope_scaling.kind == "default" else rope,
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
    wanted = mapping.llama_leaves(config)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for leaf in wanted:
            value = leaves[leaf.path]
            for i, part in enumerate(value) if leaf.stacked else [(None, value)]:
                merged = _merged(np.asarray(part), leaf.path, i, leaves, config.lora)
                single = Leaf(leaf.path, merged.shape, (leaf.sources[i or 0],), leaf.axes)
                for source, tensor in to_source(single, merged):
                    yield _llama_key(source), tensor.astype(kind)

    folder.mkdir(parents=True, exist_ok=True)
    shapes = {_llama_key(source): leaf.source_shape for leaf in wanted for source in leaf.sources}
    _write_shards(folder, shapes, kind.itemsize, tensors(), shard_bytes)
    (folder / "config.json").write_text(json.dumps(llama_json(config, dtype, extra), indent=2) + "\n")


def export_segformer(
    variables: Mapping[str, Any], config: SegformerConfig, folder: Path, class_names: Sequence[str]
) -> None:
    """Writes a SegFormer that transformers' `from_pretrained` loads.

    Args:
      variables: flat leaves of both collections ("params/…", "batch_stats/…").
      class_names: of the logits, in order.
    """
    from safetensors.numpy import save_file

    tensors = {}
    for leaf in mapping.segformer_leaves(config, tuple(range(config.num_labels))):
        for source, tensor in to_source(leaf, np.asarray(variables[leaf.path], np.float32)):
            tensors[source] = tensor
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
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def _llama_key(canonical: str) -> str:
    bare = canonical.removeprefix("llm.")
    return bare if bare.startswith("lm_head.") else f"model.{bare}"


def _merged(part: np.ndarray, path: str, layer: int | None, leaves: Mapping[str, Any], lora: LoraConfig) -> np.ndarray:
    """Adds `alpha / rank · A B` to one kernel, in float32, where it has an adapter."""
    module, _, name = path.rpartition("/")
    if name != "kernel" or f"{module}/lora_a" not in leaves:
        return part
    a, b = (np.asarray(leaves[f"{module}/lora_{side}"][layer], np.float32) for side in "ab")
    return part.astype(np.float32) + np.float32(lora.alpha / lora.rank) * (a @ b)


def _write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    itemsize: int,
    tensors: Iterator[tuple[str, np.ndarray]],
    shard_bytes: int,
) -> None:
    from safetensors.numpy import save_file

    groups: list[list[str]] = [[]]
    size = 0
    for key, shape in shapes.items():
        own = itemsize * int(np.prod(shape))
        if groups[-1] and size + own > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += own
    names: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        # `tensors` comes in the order of `shapes`, so one shard at a time is in memory.
        shard = {key: tensor for key, (made, tensor) in zip(group, tensors) if _same(key, made)}
        save_file(shard, folder / name, {"format": "pt"})
        names |= dict.fromkeys(group, name)
    if len(groups) > 1:
        total = sum(itemsize * int(np.prod(shape)) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _same(expected: str, made: str) -> bool:
    if expected != made:
        raise AssertionError(f"tensor {made} written in place of {expected}")
    return True


def merge_into_copy(
    base: Path,
    folder: Path,
    leaves: Sequence[Leaf],
    layout: mapping.Layout,
    trained: Mapping[str, np.ndarray],
    lora_of: Callable[[str], LoraConfig],
) -> None:
    """Copies a checkpoint with trained leaves put in place and adapters merged: same keys, shards, types and files.

    Every tensor stays in its stored type; sums are taken in float32. One shard at a time is in memory.

    Args:
      leaves, layout: how the base's keys belong to our tree (`weights.mapping`).
      trained: flat leaves of ours; those outside `leaves` (segmentation, knowledge, head) are not carried.
      lora_of: the adapter's config for a leaf's path.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    files = stream.find_files(base)
    tensors = stream.read_headers(files)
    matched = mapping.match(str(base), leaves, {key: tensor.shape for key, tensor in tensors.items()}, layout)
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
        save_file(shard, folder / file.name, {"format": "pt"})


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
        ours = trained[leaf.path][i] if leaf.stacked else trained[leaf.path]
    else:
        ours = tensor.reshape(tensor.shape[: len(leaf.axes)]).transpose(leaf.axes).astype(np.float32)
    ours = _merged(ours, leaf.path, i, trained, lora_of(leaf.path))
    single = Leaf(leaf.path, ours.shape, (leaf.sources[i],), leaf.axes)
    ((_, made),) = to_source(single, ours)
    return made.astype(tensor.dtype)


def base_model_type(folder: Path) -> str:
    """Returns `model_type` of a checkpoint's config.json."""
    return str(read_json(folder / "config.json").get("model_type"))

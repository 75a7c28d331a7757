"""Our models out in Hugging Face's own layouts, sharded: written anew, or merged into a copy of their base."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.files import write_json
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights import leaf_table, stream
from fi_jax.weights.hf_config import SEGFORMER_STAGES, to_names
from fi_jax.weights.layouts import Layout
from fi_jax.weights.leaf import Leaf, by_source
from fi_jax.weights.leaves import write_safetensors
from fi_jax.weights.llm_families import write_llm
from fi_jax.weights.matching import match

# Kept from a base besides its weights: what from_pretrained and its tokenizer and processor read.
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")


def export_llm(
    leaves: Mapping[str, Any],
    config: LlmConfig,
    folder: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 << 30,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a language model that transformers' `from_pretrained` loads.

    Args:
      leaves: flat leaves below `llm/`. Adapters (`lora_a`, `lora_b`) are merged, layer by layer, in float32.
      dtype: of the written tensors.
      shard_bytes: most bytes in one file.
      extra: more entries of `config.json` (token ids).
    """
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    rows = leaf_table.without_adapters(leaf_table.llm_leaves(config))

    described = write_llm(config) | {"torch_dtype": dtype} | dict(extra or {})
    where = by_source(rows)

    def tensor(source: str) -> np.ndarray:
        parts = []
        for leaf, i in where[source]:
            part = np.asarray(leaves[leaf.path][i] if leaf.layers else leaves[leaf.path])
            parts.append(leaf.to_source(_merged(part, leaf.path, i, leaves, config.lora)).astype(kind))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    sizes = {source: kind.itemsize * int(np.prod(parts[0][0].source_shape)) for source, parts in where.items()}
    _write_shards(folder, sizes, tensor, shard_bytes)
    write_json(folder / "config.json", described, indent=2)


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
        **to_names(config, (*SEGFORMER_STAGES, "depths", "decoder_hidden_size", "hidden_act", "drop_path")),
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
    folder: Path, sizes: Mapping[str, int], tensor: Callable[[str], np.ndarray], shard_bytes: int
) -> None:
    """Writes the tensors of a checkpoint (`sizes`: their bytes), with one shard at a time in memory."""
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=lambda size: size,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for name, keys in plan.filename_to_tensors.items():
        write_safetensors(folder / name, {key: tensor(key) for key in keys})
    if plan.is_sharded:
        write_json(folder / stream.INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}, indent=2)


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
    keys = match(str(base), leaves, shapes, layout).keys
    where = {keys[source]: parts for source, parts in by_source(leaves).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _COMPANIONS:
        for file in base.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    for file in files:
        shard = {}
        with safe_open(file, framework="np") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                shard[key] = opened.get_tensor(key)
                for leaf, i in where.get(key, ()):
                    _replace(shard[key], leaf, i, trained, lora_of)
        write_safetensors(folder / file.name, shard)


def _replace(
    tensor: np.ndarray,
    leaf: Leaf,
    i: int,
    trained: Mapping[str, np.ndarray],
    lora_of: Callable[[str], LoraConfig],
) -> None:
    """Puts what was trained of a leaf into its tensor."""
    module = leaf.path.rpartition("/")[0]
    adapted = leaf.path.endswith("/kernel") and f"{module}/lora_a" in trained
    if leaf.path not in trained and not adapted:
        return
    if leaf.path in trained:
        ours = trained[leaf.path][i] if leaf.layers else trained[leaf.path]
    else:
        ours = leaf.from_source(tensor).astype(np.float32)
    tensor[leaf.own_rows] = leaf.to_source(_merged(ours, leaf.path, i, trained, lora_of(leaf.path)))

"""Our models out in Hugging Face's own layouts, sharded: written anew, or merged into a copy of their base."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.files import write_json
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights import leaf_table, stream
from fi_jax.weights.hf_config import LLAMA, SEGFORMER_STAGES, to_names
from fi_jax.weights.leaf_table import Layout, Leaf
from fi_jax.weights.leaves import write_safetensors
from fi_jax.weights.matching import match

# Kept from a base besides its weights: what from_pretrained and its tokenizer and processor read.
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")


def llm_json(config: LlmConfig, dtype: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
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
        **to_names(config, (*LLAMA, "num_kv_heads", "head_dim")),
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_parameters": rope,
        "torch_dtype": dtype,
        **(extra or {}),
    }


def export_llm(
    leaves: Mapping[str, Any],
    config: LlmConfig,
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
    rows = leaf_table.without_adapters(leaf_table.llm_leaves(config))

    where = {source: (leaf, i) for leaf in rows for i, source in enumerate(leaf.sources)}

    def tensor(source: str) -> np.ndarray:
        leaf, i = where[source]
        part = np.asarray(leaves[leaf.path][i] if leaf.layers else leaves[leaf.path])
        return leaf.to_source(_merged(part, leaf.path, i, leaves, config.lora)).astype(kind)

    sizes = {source: kind.itemsize * int(np.prod(leaf.source_shape)) for source, (leaf, _) in where.items()}
    _write_shards(folder, sizes, tensor, shard_bytes)
    write_json(folder / "config.json", llm_json(config, dtype, extra), indent=2)


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
    where = {keys[source]: (leaf, i) for leaf in leaves for i, source in enumerate(leaf.sources)}
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

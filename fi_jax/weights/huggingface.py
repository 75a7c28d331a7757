"""Checkpoints of the PyTorch world, by Hub name or folder, into our parameter trees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fi_jax.config import LlmConfig, VitConfig
from fi_jax.models.clip_text import ClipText, ClipTextConfig
from fi_jax.models.segformer import SegformerConfig
from fi_jax.models.vit import resize_position_embedding
from fi_jax.parallel.rules import fetch, place
from fi_jax.trees import unflatten
from fi_jax.weights import hf_config, layouts, leaf_table, openai_clip, stream
from fi_jax.weights.hf_config import LlavaConfig
from fi_jax.weights.hub import resolve_folder
from fi_jax.weights.layouts import Layout
from fi_jax.weights.leaf import Leaf
from fi_jax.weights.matching import match
from fi_jax.weights.stream import Placement, Store
from fi_jax.weights.tokenizers import read_tokenizer
from fi_jax.weights.towers import TOWERS

# One type for all leaves, or a type by path.
DtypeOf = str | Callable[[str], str]


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint: nothing is left out in silence."""

    files: tuple[Path, ...]
    # Keys of the checkpoint that were left out on purpose (buffers, the other tower, a tied head).
    unused: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 that names the contents (`stream.checkpoint_hash`); the first access reads the files."""
        return stream.checkpoint_hash(self.files)


def load_llava(
    name_or_folder: str | Path,
    *,
    dtype: DtypeOf = "bfloat16",
    placement: Placement | None = None,
    store: Store | None = None,
) -> tuple[LlavaConfig, dict, LoadReport]:
    """Loads a LLaVA or PaliGemma (`hf_config.ASSEMBLIES`): image encoder, image connector and LLM of FaceInsight's tree.

    Args:
      name_or_folder: e.g. "llava-hf/llava-1.5-7b-hf".
      dtype: type of the leaves, or a function from a leaf's path to its type.
      placement: from a leaf's path and shape to its sharding; None is the first local device.
      store: what is kept of each layer of a stacked leaf, as it is read; None: all of it.

    Raises:
      UserError: none of these, damaged, or keys and shapes that do not fit (all of them named at once).
    """
    folder = resolve_folder(name_or_folder)
    config = hf_config.read_llava_config(folder)
    leaves = leaf_table.llava_leaves(config)
    layout = layouts.with_tied_head(layouts.LLAVA, config.llm)
    return config, *_load(name_or_folder, folder, leaves, layout, dtype, placement, store)


def load_llm(
    name_or_folder: str | Path,
    *,
    dtype: DtypeOf = "bfloat16",
    placement: Placement | None = None,
    store: Store | None = None,
) -> tuple[LlmConfig, dict, LoadReport]:
    """Loads a causal LM (`llm_families.FAMILIES`), or that of a model of pictures and text, as the tree of `models.llm.Llm`.

    Arguments as `load_llava`.
    """
    folder = resolve_folder(name_or_folder)
    config = hf_config.read_llm_config(folder)
    leaves, layout = leaf_table.llm_leaves(config), llm_layout(folder, config)
    return config, *_load(name_or_folder, folder, leaves, layout, dtype, placement, store)


def llm_layout(folder: Path, config: LlmConfig) -> Layout:
    """How the keys of a checkpoint, of a language model alone or of one beside an encoder, become those of `llm_leaves`."""
    inside = hf_config.is_composite(hf_config.read_config(folder))
    return layouts.with_tied_head(layouts.LLM_INSIDE if inside else layouts.LLM, config)


def read_vision_config(name_or_file: str | Path) -> VitConfig:
    """Returns the config of what `load_vision` loads."""
    if str(name_or_file).endswith(openai_clip.SUFFIXES):
        return openai_clip.read_openai_clip(Path(name_or_file))[0]
    return hf_config.read_vit_config(resolve_folder(name_or_file))


def load_vision(
    name_or_folder: str | Path,
    *,
    image_size: int | None = None,
    dtype: DtypeOf = "float32",
    placement: Placement | None = None,
) -> tuple[VitConfig, dict, LoadReport]:
    """Loads a vision tower (`towers.TOWERS`, alone or out of a whole checkpoint) as the tree of `models.vit.Vit`.

    A `.pt` or `.pth` file is read as CLIP's vision tower by OpenAI's names, which FaRL has.

    `image_size` resamples the position embeddings to pictures of that many pixels. Other arguments as `load_llava`.
    """
    if str(name_or_folder).endswith(openai_clip.SUFFIXES):
        config, params, report = _load_openai_clip(Path(name_or_folder), dtype, placement)
    else:
        folder = resolve_folder(name_or_folder)
        config = hf_config.read_vit_config(folder)
        leaves, layout = leaf_table.vit_leaves(config), TOWERS[config.family].layout
        if hf_config.model_type(folder) in hf_config.ASSEMBLIES:
            leaves, layout = leaf_table.llava_tower_leaves(config), layouts.LLAVA_TOWER
        params, report = _load(name_or_folder, folder, leaves, layout, dtype, placement)
    if image_size is not None and image_size != config.image_size:
        config = replace(config, image_size=image_size)
        old = params["position_embedding"]
        resized = resize_position_embedding(fetch(old).astype(np.float32), config).astype(old.dtype)
        params["position_embedding"] = place(resized, old.sharding)
    return config, params, report


def _load_openai_clip(
    file: Path, dtype: DtypeOf, placement: Placement | None
) -> tuple[VitConfig, dict[str, Any], LoadReport]:
    config, tensors, unused = openai_clip.read_openai_clip(file)
    leaves = leaf_table.vit_leaves(config)
    match(str(file), leaves, {key: tensor.shape for key, tensor in tensors.items()}, Layout())
    flat = {}
    for leaf in leaves:
        value = leaf.join(tensors.__getitem__).astype(jnp.dtype(dtype(leaf.path) if callable(dtype) else dtype))
        flat[leaf.path] = jnp.asarray(value) if placement is None else place(value, placement(leaf.path, leaf.shape))
    return config, unflatten(flat), LoadReport((file,), unused)


def load_clip_text(
    name_or_folder: str | Path, *, dtype: DtypeOf = "float32", placement: Placement | None = None
) -> tuple[ClipTextConfig, dict, LoadReport]:
    """Loads CLIP's text tower as the tree of `models.clip_text.ClipText`. Arguments as `load_llava`."""
    folder = resolve_folder(name_or_folder)
    config = hf_config.read_clip_text_config(folder)
    leaves = leaf_table.clip_text_leaves(config)
    return config, *_load(name_or_folder, folder, leaves, layouts.CLIP_TEXT, dtype, placement)


def load_segformer(
    name_or_folder: str | Path,
    class_names: Sequence[str],
    *,
    dtype: DtypeOf = "float32",
    placement: Placement | None = None,
) -> tuple[SegformerConfig, dict, LoadReport]:
    """Loads a SegFormer as the variables (`params`, `batch_stats`) of `models.segformer.Segformer`.

    Classes are matched by name: logit i is `class_names[i]`, whatever the checkpoint's own order. NVIDIA's
    SegFormer weights are licensed for non-commercial use only.
    """
    folder = resolve_folder(name_or_folder)
    source, order = hf_config.read_segformer_config(folder, class_names)
    leaves = leaf_table.segformer_leaves(source, order)
    variables, report = _load(name_or_folder, folder, leaves, layouts.SEGFORMER, dtype, placement)
    return replace(source, num_labels=len(order)), variables, report


def encode_clip_texts(name_or_folder: str | Path, texts: Sequence[str]) -> Float[np.ndarray, "n e"]:
    """Encodes sentences with a CLIP checkpoint's text tower: its projected features where it has a projection."""
    folder = resolve_folder(name_or_folder)
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    config, params, _ = load_clip_text(folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_position_embeddings)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    length = max(map(len, rows))
    # Whatever stands after the end-of-text token is never seen; 0 is never the largest id either.
    tokens = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    output = jax.jit(ClipText(config).apply)({"params": params}, tokens)
    return np.asarray(output.pooled if output.projected is None else output.projected)


def _load(
    name: str | Path,
    folder: Path,
    leaves: Sequence[Leaf],
    layout: Layout,
    dtype: DtypeOf,
    placement: Placement | None,
    store: Store | None = None,
) -> tuple[dict[str, Any], LoadReport]:
    files = stream.find_files(folder)
    tensors: Mapping[str, stream.Tensor] = stream.read_headers(files)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    matched = match(str(name), leaves, shapes, layout)
    dtype_of = dtype if callable(dtype) else lambda _: dtype
    flat = stream.read_leaves(leaves, matched.keys, tensors, lambda path: jnp.dtype(dtype_of(path)), placement, store)
    return unflatten(flat), LoadReport(tuple(files), matched.unused)

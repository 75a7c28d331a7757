"""A config -> all parameters of FaceInsight: pre-trained leaves loaded, the rest initialised, all placed."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float

from fi_jax.config import Experiment, LlmConfig, LoraConfig, ModelConfig, VitConfig
from fi_jax.errors import UserError, did_you_mean
from fi_jax.files import file_sha256
from fi_jax.knowledge.score_graph import Relations
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Constants, FaceInsight
from fi_jax.models.precision import Quantised
from fi_jax.parallel.rules import param_shardings, place, place_parameter
from fi_jax.trees import flatten, unflatten
from fi_jax.weights import leaf_table
from fi_jax.weights.bundle import is_llm_adapter
from fi_jax.weights.hub import resolve_folder
from fi_jax.weights.matching import grouped
from fi_jax.weights.peft import Adapter, import_peft
from fi_jax.weights.stream import Store

log = logging.getLogger(__name__)

Leaves = dict[str, jax.Array]

_WHOLE = 2**31


class Base(NamedTuple):
    """A pre-trained base: flat leaves (arrays, or what was stored of them), and what names it."""

    leaves: dict[str, Any]
    # `{"llm": {"name": …, "hash": …}, …}`.
    info: dict


def dummy_batch(config: ModelConfig) -> dict[str, jax.Array]:
    """The smallest batch that touches every parameter (for `init` and shapes)."""
    image, seg = config.image_encoder.image_size, config.segmentation_encoder.image_size
    q, s, k, m = 1, 3, 2, 1
    return {
        "pixels": jnp.zeros((1, image, image, 3)),
        "map_pixels": jnp.zeros((1, seg, seg, 3)),
        "prefix_tokens": jnp.array([[-1, -2, -3, 0]]),
        "segment_tokens": jnp.zeros((1, q, s), jnp.int32),
        "answer_position": jnp.zeros((1, q), jnp.int32),
        "option_tokens": jnp.zeros((1, q, k), jnp.int32),
        "lm_positions": jnp.zeros((1, m), jnp.int32),
    }


def _init(config: ModelConfig, seed: jax.Array | int) -> dict:
    relations = Relations(jnp.zeros((2, 2)), jnp.zeros(2)) if config.knowledge.score_graph != "off" else None
    constants = Constants(jnp.zeros((2, config.knowledge.prompt_size)), jnp.eye(2), relations=relations)
    # The rbg generator is one operation a leaf: threefry, inlined for ninety leaves, takes a CPU 15 s to compile.
    return FaceInsight(config).init(jax.random.key(seed, impl="rbg"), dummy_batch(config), constants)["params"]


def param_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all parameters, flat; nothing is computed. A LoRA target that no layer has is a `UserError`."""
    _require_targets(config)
    # Which attention kernel runs changes no shape, and "flash" refuses machines without it.
    return dict(_shapes(replace(config, attention="xla")))


@lru_cache(maxsize=8)
def _shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Kept, since tracing takes a second and a command asks several times."""
    return flatten(jax.eval_shape(lambda: _init(config, 0)))


def _require_targets(config: ModelConfig) -> None:
    encoders = ["image_encoder", *(["segmentation_encoder"] if config.use_segmentation else [])]
    rows = {part: leaf_table.vit_leaves(getattr(config, part)) for part in encoders}
    for part, leaves in (rows | {"llm": leaf_table.llm_leaves(config.llm)}).items():
        lora = getattr(config, part).lora
        layers = {leaf.path.split("/")[-2]: None for leaf in leaves if leaf.layers and leaf.path.endswith("/kernel")}
        unknown = [name for name in lora.targets if name not in layers]
        # An encoder's default names the LLM's layers too: nobody typed it.
        if lora.rank and unknown and not (part in encoders and lora.targets == LoraConfig().targets):
            raise UserError(
                f"model.{part}.lora.targets names {', '.join(unknown)}, which no layer is called "
                f"(known: {', '.join(layers)}){did_you_mean(unknown[0], layers)}"
            )


def init_leaves(config: ModelConfig, wanted: list[str], seed: int, mesh: Mesh | None = None) -> Leaves:
    """Initialises the wanted leaves alone (the rest is dead code to the compiler), placed on the mesh.

    Up to `_WHOLE` bytes they are made on one device and then cut, so the values do not depend on the mesh; more
    are made in place, where the generator may give other values on another mesh.
    """

    def make(seed):
        leaves = flatten(_init(config, seed))
        return {path: leaves[path] for path in wanted}

    if not wanted:
        return {}
    if mesh is None:
        return jax.jit(make)(seed)
    shapes = {path: shape for path, shape in param_shapes(config).items() if path in wanted}
    shardings = flatten(param_shardings(unflatten(shapes), mesh))
    if sum(shape.size * shape.dtype.itemsize for shape in shapes.values()) > _WHOLE:
        return jax.jit(make, out_shardings=shardings)(seed)
    with jax.default_device(jax.local_devices()[0]):
        made = jax.device_get(jax.jit(make)(seed))
    return {path: place(made[path], shardings[path]) for path in wanted}


def load_base(config: Experiment, mesh: Mesh | None = None, store: Store | None = None) -> Base:
    """Loads whatever `config.weights` names, checkpoints slice by slice onto the mesh.

    Leaves that will be trained come in float32, the others in `train.frozen_dtype`, or what `store` keeps of them. Shapes
    are compared before a weight is read. Raises `UserError` when a checkpoint does not fit the model config.
    """
    from fi_jax.weights import hf_config, huggingface

    weights, model = config.weights, config.model
    leaves: dict[str, Any] = {}
    info: dict = {}
    trained = [re.compile(pattern) for pattern in config.train.trainable]

    def is_trained(path: str) -> bool:
        return any(p.fullmatch(path) for p in trained)

    def dtype(path: str) -> str:
        return "float32" if is_trained(path) else config.train.frozen_dtype

    def load(loader, source: str, part: str, **options):
        """Loads a part of the model (all of it: "") with the types and places that its leaves have in the whole."""
        prefix = f"{part}/" if part else ""
        placement = _placement(prefix, mesh) if mesh else None
        if store and part in ("", "llm"):
            # Gradients of a trained kernel are those of the kernel as it is.
            options["store"] = lambda path, layer, leaf: (
                leaf if is_trained(prefix + path) else store(prefix + path, layer, leaf)
            )
        _, params, report = loader(source, dtype=lambda path: dtype(prefix + path), placement=placement, **options)
        named = {"name": source, "hash": report.hash}
        if report.unused:
            named["unused"] = grouped(report.unused)
        return {prefix + path: leaf for path, leaf in flatten(params).items()}, named

    if weights.llava:
        read = hf_config.read_llava_config(resolve_folder(weights.llava))
        _require_same("llm", read.llm, model.llm)
        _require_same("image_encoder", read.image_encoder, model.image_encoder)
        for name in ("image_connector", "image_newline"):
            if getattr(read, name) != getattr(model, name):
                raise UserError(f"{weights.llava} needs model.{name} {getattr(read, name)}; set it so")
        leaves, info["llava"] = load(huggingface.load_llava, weights.llava, "")
    elif weights.llm == "smollm2" or weights.llm.endswith(".gguf"):
        # One type for all, in which none loses anything.
        rows = leaf_table.without_adapters(leaf_table.llm_leaves(model.llm))
        types = {dtype(f"llm/{leaf.path}") for leaf in rows}
        params, info["llm"] = _load_gguf(weights.llm, model.llm, "float32" if "float32" in types else "bfloat16")
        leaves = {f"llm/{path}": leaf for path, leaf in flatten(params).items()}
    elif weights.llm != "random":
        _require_same("llm", hf_config.read_llm_config(resolve_folder(weights.llm)), model.llm)
        leaves, info["llm"] = load(huggingface.load_llm, weights.llm, "llm")
    for part in ("image_encoder", "segmentation_encoder"):
        source, wanted = getattr(weights, part), getattr(model, part)
        if source != "random" and not (part == "segmentation_encoder" and not model.use_segmentation):
            read_vit = huggingface.read_vision_config(source)
            _require_same(part, replace(read_vit, image_size=wanted.image_size), wanted)
            loaded, info[part] = load(huggingface.load_vision, source, part, image_size=wanted.image_size)
            leaves |= loaded
    if weights.adapter:
        adapter = _load_adapter(weights.adapter, model.llm)
        _require_its_base(weights.adapter, adapter, info)
        leaves |= {f"llm/{path}": leaf for path, leaf in adapter.leaves.items()}
        info["adapter"] = {"name": weights.adapter, "hash": adapter.hash}
    return Base(leaves, info)


def _placement(prefix: str, mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    def placement(path: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, place_parameter(prefix + path, shape, mesh).spec)

    return placement


def _load_gguf(source: str, wanted: LlmConfig, dtype: str) -> tuple[dict, dict]:
    """Returns the parameters of a GGUF file or of "smollm2", and the name and hash."""
    from fi_jax.weights import gguf, smollm2

    if source == "smollm2":
        # Mapped from a cache, not read.
        config, params = smollm2.load(dtype)
        _require_same("llm", config, wanted)
        return params, {"name": "smollm2", "hash": smollm2.BASE_HASH}
    _require_same("llm", gguf.read_config(source), wanted)
    return gguf.read_params(source, jnp.dtype(dtype)), {"name": source, "hash": file_sha256(Path(source))}


def _load_adapter(source: str, llm: LlmConfig) -> Adapter:
    """Reads a PEFT adapter that the config's own adapter can hold: same rank and alpha, no other layer."""
    adapter = import_peft(resolve_folder(source), llm)
    theirs, ours = adapter.lora, llm.lora
    strangers = sorted(set(theirs.targets) - set(ours.targets))
    if (theirs.rank, theirs.alpha) != (ours.rank, ours.alpha) or strangers:
        raise UserError(
            f"the adapter {source} does not fit model.llm.lora ({_of(ours)}); set --model.llm.lora.rank {theirs.rank} "
            f"--model.llm.lora.alpha {theirs.alpha:g} --model.llm.lora.targets {' '.join(theirs.targets)}"
        )
    return adapter


def _of(lora: LoraConfig) -> str:
    return f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}" if lora.rank else "none"


def _require_its_base(source: str, adapter: Adapter, info: dict) -> None:
    """An adapter that says which contents it was trained on is put on no other."""
    base = info.get("llava") or info.get("llm") or {"name": "a random language model", "hash": "none"}
    if adapter.base_hashes and base["hash"] not in adapter.base_hashes:
        raise UserError(
            f"the adapter {source} was trained on {adapter.base or 'a base'} with hash {adapter.base_hashes[0][:12]}…, "
            f"but weights name {base['name']} with hash {base['hash'][:12]}…; name its own base"
        )


def _require_same(part: str, loaded: LlmConfig | VitConfig, wanted: LlmConfig | VitConfig) -> None:
    # What the config adds on top of a checkpoint may differ.
    ours = {"lora", "feature_layer", "norm_tokens", "merge", "pool", "drop_path", "max_position_embeddings"}
    names = [name for name in wanted.__dataclass_fields__ if name not in ours]
    differing = [n for n in names if getattr(loaded, n) != getattr(wanted, n)]
    if differing:
        listed = ", ".join(
            f"{n} is {getattr(loaded, n)} in the checkpoint, {getattr(wanted, n)} in model.{part}" for n in differing
        )
        raise UserError(f"the {part} checkpoint does not fit the config: {listed}")


def assemble(
    config: Experiment,
    trained: dict[str, np.ndarray] | None = None,
    mesh: Mesh | None = None,
    *,
    store: Store | None = None,
    announce: bool = False,
) -> tuple[Leaves, dict]:
    """Makes every parameter of the model: from `trained` where it has a leaf, else the base, else a fresh start.

    The language model's adapter is `weights.adapter`'s where that names one, whatever `trained` has: it was named to
    take its place (a finished model that holds an adapter names none, see `bundle.load_model`).

    Args:
      trained: leaves of an earlier run or a bundled model, flat.
      mesh: where the leaves go; None leaves them on the default device.
      store: what is kept of each layer of the base's language model while its checkpoint is read (`stream.Store`).
      announce: log what was loaded, what of a checkpoint was left out, and which leaves start fresh.

    Returns:
      `(leaves, info)`: flat parameters in `train.frozen_dtype` (or as trained, or as stored), and what names the base.

    Raises:
      UserError: for leaves of another shape or name than the config's model; all are named at once.
    """
    shapes = param_shapes(config.model)
    base = load_base(config, mesh, store)
    trained = trained or {}
    if config.weights.adapter:
        trained = {path: leaf for path, leaf in trained.items() if not is_llm_adapter(path)}
    given: dict[str, Any] = {**base.leaves, **trained}
    wrong = [
        f"{path}: {tuple(np.shape(leaf))} given, {shapes[path].shape} in the model"
        for path, leaf in given.items()
        if path in shapes and np.shape(leaf) != shapes[path].shape
    ]
    wrong += [f"{path}: not a parameter of the model" for path in given if path not in shapes]
    if wrong:
        raise UserError(
            "weights do not fit the model: "
            + "; ".join(wrong[:8])
            + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )
    new = [path for path in shapes if path not in given]
    for line in _account(base.info, new, shapes) if announce else ():
        log.info(line)
    fresh = init_leaves(config.model, new, config.train.seed, mesh)
    fresh = {
        path: leaf.astype(config.train.frozen_dtype) if path.startswith("llm/") and "lora" not in path else leaf
        for path, leaf in fresh.items()
    }
    # What was stored in another form has its place.
    stored = {path: leaf for path, leaf in given.items() if isinstance(leaf, Quantised)}
    given = {path: leaf for path, leaf in given.items() if path not in stored}
    given_leaves = {path: jnp.asarray(leaf) for path, leaf in given.items()} if mesh is None else {}
    if mesh is not None and given:
        shardings = flatten(param_shardings(unflatten({path: shapes[path] for path in given}), mesh))
        given_leaves = {path: place(leaf, shardings[path]) for path, leaf in given.items()}
    # Order follows the model, so two processes flatten alike.
    everything: dict[str, Any] = {**fresh, **stored, **given_leaves}
    return {path: everything[path] for path in shapes}, base.info


def _account(info: dict, new: list[str], shapes: Mapping[str, Any]) -> list[str]:
    """What became of every checkpoint and of every leaf that none filled, in words."""
    lines = []
    for part, named in info.items():
        unused = ", ".join(named.get("unused", ()))
        lines.append(f"{part}: {named['name']}{f'; not needed of it: {unused}' if unused else ''}")
    parts = {path.split("/")[0]: None for path in new}
    # "head/*" where all of a part is new, else every path.
    listed = [
        f"{part}/*"
        if all(path in new for path in shapes if path.startswith(f"{part}/"))
        else ", ".join(path for path in new if path.startswith(f"{part}/"))
        for part in parts
    ]
    return [*lines, f"newly initialised: {', '.join(listed)}"] if new else lines


def label_prompts(config: Experiment, leaves: Leaves, vocabulary: Vocabulary, tokenizer) -> np.ndarray:
    """Computes T_p^0: one vector a label prompt.

    "llm": the mean over tokens of the base LLM's final hidden states, adapters off. Else a CLIP checkpoint's text
    embeddings. Both go through `spread`. "random": unit-variance noise keyed by the seed.

    Returns:
      float32 of shape `n prompt_size`.
    """
    source = config.weights.text_encoder
    texts = [label.prompt for label in vocabulary.labels]
    if source == "random":
        return (
            np.random.default_rng(config.train.seed)
            .normal(size=(len(texts), config.model.knowledge.prompt_size))
            .astype(np.float32)
        )
    if source == "llm":
        features = _pooled_by_llm(config, leaves, texts, tokenizer)
    else:
        from fi_jax.weights.huggingface import encode_clip_texts

        features = encode_clip_texts(source, texts)
    if features.shape[1] != config.model.knowledge.prompt_size:
        raise UserError(
            f"the text encoder gives {features.shape[1]} features but model.knowledge.prompt_size is {config.model.knowledge.prompt_size}"
        )
    return spread(features)


def spread(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Makes prompts tell labels apart: centred, singular values replaced by their square roots, unit variance (ours).

    Sentences that differ in one word are nearly parallel in a text encoder (male and female at cosine 0.96 in
    SmolLM2); the graph network would have to amplify what separates them a hundredfold. The square root keeps the
    order of similarities and leaves a condition number of ten.
    """
    u, s, v = np.linalg.svd(features - features.mean(0, keepdims=True), full_matrices=False)
    # The centred matrix has one direction less than rows; what is left there is rounding.
    s = np.where(s > 1e-4 * s[0], s, 0.0)
    features = (u * np.sqrt(s)) @ v
    return (features / np.maximum(features.std(), 1e-6)).astype(np.float32)


def _pooled_by_llm(config: Experiment, leaves: Leaves, texts: list[str], tokenizer) -> np.ndarray:
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    length = max(map(len, ids))
    tokens = np.array([row + [0] * (length - len(row)) for row in ids], np.int32)
    valid = np.array([[True] * len(row) + [False] * (length - len(row)) for row in ids])
    bare = replace(
        config.model,
        # Padding stands behind a text, where causality hides it.
        llm=replace(config.model.llm, lora=LoraConfig(), bidirectional_prefix=False),
        dtype="float32",
        attention="xla",
    )
    params = unflatten(
        {path: leaf for path, leaf in leaves.items() if path.startswith("llm/") and "/lora_" not in path}
    )
    run = jax.jit(lambda params, tokens: FaceInsight(bare).apply({"params": params}, tokens, method="llm_hidden"))
    hidden = np.asarray(run(params, tokens), np.float32)
    return (hidden * valid[..., None]).sum(1) / valid.sum(1, keepdims=True)

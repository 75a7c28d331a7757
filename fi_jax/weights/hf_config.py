"""Hugging Face's `config.json` -> our config dataclasses, with transformers' defaults for what it leaves out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fi_jax.config import LlmConfig, VitConfig
from fi_jax.errors import UserError, require_choice
from fi_jax.models.clip_text import ClipTextConfig
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights.json_fields import Fields, read_object
from fi_jax.weights.llm_families import read_llm, refuse_quantised
from fi_jax.weights.towers import TOWERS

# Hugging Face's names of our config's fields, where they differ.
_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "drop_path": "drop_path_rate",
    "registers": "num_register_tokens",
}
# LlavaConfig starts from CLIP ViT-L/14-336, not from CLIP's own defaults.
_LLAVA_VISION = {
    **TOWERS["clip_vision_model"].defaults, "image_size": 336, "patch_size": 14, "hidden_size": 1024,
    "intermediate_size": 4096, "num_layers": 24, "num_heads": 16,
}  # fmt: skip
_SO400M = {**TOWERS["siglip_vision_model"].defaults, "hidden_size": 1152, "patch_size": 14, "num_heads": 16}


@dataclass(frozen=True)
class _Assembly:
    """What a checkpoint of pictures and text has where its config does not say it."""

    tower: str
    # Fields of that tower, with the assembly's own defaults.
    fields: dict[str, Any]
    llm: str
    layer: int = -2
    # "default" leaves out the class token, "full" keeps all that the tower gives.
    select: str = "default"


ASSEMBLIES = {
    "llava": _Assembly("clip_vision_model", _LLAVA_VISION, "llama"),
    "llava_next": _Assembly("clip_vision_model", _LLAVA_VISION, "llama"),
    "llava_onevision": _Assembly(
        "siglip_vision_model",
        _SO400M | {"intermediate_size": 4304, "image_size": 384, "num_layers": 26},
        "qwen2",
        -1,
        "full",
    ),
    "paligemma": _Assembly(
        "siglip_vision_model", _SO400M | {"intermediate_size": 4096, "num_layers": 27}, "gemma", -1, "full"
    ),
}
# Fields of towers that change what is computed, and their only value here.
_FIXED = {"qkv_bias": True, "use_swiglu_ffn": False, "num_channels": 3}
_CLIP_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_layers": 12, "num_heads": 8,
    "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
}  # fmt: skip
SEGFORMER_STAGES = {
    "hidden_sizes": (32, 64, 160, 256), "num_heads": (1, 2, 5, 8), "sr_ratios": (8, 4, 2, 1),
    "patch_sizes": (7, 3, 3, 3), "strides": (4, 2, 2, 2), "mlp_ratios": (4, 4, 4, 4),
}  # fmt: skip
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_MOST_BLOCKS = 1000


@dataclass(frozen=True)
class LlavaConfig:
    """A checkpoint of pictures and text (`ASSEMBLIES`): vision tower, its connector (as wide as the LLM) and LLM."""

    image_encoder: VitConfig
    llm: LlmConfig
    # As in `ModelConfig`.
    image_connector: Literal["mlp", "linear"] = "mlp"
    image_newline: bool = False


def read_llm_config(folder: Path) -> LlmConfig:
    """Reads the config of a causal LM (`llm_families.FAMILIES`), or of the one inside a model of pictures and text."""
    config = read_config(folder)
    return read_llm(config.group("text_config") if is_composite(config) else config)


def is_composite(config: Fields) -> bool:
    """Whether a config is of pictures and text, its language model below `text_config`."""
    return "text_config" in config.values and "vision_config" in config.values


def read_vit_config(folder: Path) -> VitConfig:
    """Reads the config of a vision tower (`towers.TOWERS`): alone, beside a text tower (CLIP, SigLIP), or a LLaVA's."""
    of_two = {kind.removesuffix("_vision_model"): kind for kind in TOWERS if kind.endswith("_vision_model")}
    config = _typed(folder, (*TOWERS, *of_two, *ASSEMBLIES))
    kind = config.text("model_type", "")
    if kind in ASSEMBLIES:
        return read_llava_config(folder).image_encoder
    if kind in TOWERS:
        return _vision(config, kind, folder)
    return _vision(config.group("vision_config"), of_two[kind], folder)


def _vision(config: Fields, kind: str, folder: Path, defaults: Mapping[str, Any] | None = None, **ours) -> VitConfig:
    """A tower of `model_type` `kind`; `defaults` are a composite's own, `ours` fields of `VitConfig` beside them."""
    tower = TOWERS[kind]
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise UserError(f"{config.where}: {name} is {config.get(name)}; only {value} is supported")
    fields = _read(config, defaults or tower.defaults)
    if "mlp_ratio" in fields:
        fields["intermediate_size"] = fields["hidden_size"] * fields.pop("mlp_ratio")
    return VitConfig(**{**fields, **tower.fixed, **_pixel_statistics(folder), **ours}, family=kind)


def _pixel_statistics(folder: Path) -> dict[str, tuple[float, ...]]:
    """Mean and deviation that a checkpoint's own processor normalises by; none where it has no processor."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            fields = Fields(read_object(folder / name), str(folder / name))
            fields = fields.group("image_processor") if "image_processor" in fields.values else fields
            if not fields.flag("do_normalize", True):
                return {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}
            named = {"pixel_mean": "image_mean", "pixel_std": "image_std"}
            return {ours: fields.numbers(theirs, 3) for ours, theirs in named.items() if theirs in fields.values}
    return {}


def vision_json(config: VitConfig) -> dict[str, Any]:
    """Returns what transformers' `AutoConfig.for_model` takes to make the tower's class: the inverse of reading it."""
    names = TOWERS[config.family].defaults
    fields = to_names(config, (name for name in names if name != "mlp_ratio"))
    if "mlp_ratio" in names:
        fields["mlp_ratio"] = config.intermediate_size // config.hidden_size
    # SigLIP's pooling is not used.
    return {"model_type": config.family, "vision_use_head": False, **fields}


def read_clip_text_config(folder: Path) -> ClipTextConfig:
    """Reads the config of CLIP's text tower, from a CLIP or CLIP-text checkpoint."""
    config = _typed(folder, ("clip", "clip_text_model"))
    whole = config.get("model_type") == "clip"
    text = config.group("text_config") if whole else config
    # A bare text model has a projection only when it was saved with one.
    architectures = config.get("architectures", ())
    projected = whole or (isinstance(architectures, list) and "CLIPTextModelWithProjection" in architectures)
    return ClipTextConfig(
        **_read(text, _CLIP_TEXT),
        projection_size=config.integer("projection_dim", 512) if projected else 0,
        eos_token_id=text.integer("eos_token_id", 49407, least=0),
    )


def read_llava_config(folder: Path) -> LlavaConfig:
    """Reads the config of a LLaVA-1.5, -NeXT or -OneVision, or of a PaliGemma, with any tower and any LLM that we have.

    Of a picture one view is taken: the whole of it at the tower's own size. Further views of -NeXT's and -OneVision's
    are not.
    """
    config = _typed(folder, tuple(ASSEMBLIES))
    kind = config.text("model_type", "")
    own, vision, text = ASSEMBLIES[kind], config.group("vision_config"), config.group("text_config")
    tower = vision.text("model_type", own.tower)
    require_choice(f"{vision.where}: model_type", tower, ("clip_vision_model", "siglip_vision_model"))
    defaults = own.fields if tower == own.tower else None
    text = Fields({"model_type": own.llm, **text.values}, text.where)
    if kind == "paligemma":
        # Its images go through the tower's final norm. Newer files say of the LLM what holds for all of them.
        encoder = _vision(vision, tower, folder, defaults, feature_layer=-1, norm_tokens=True)
        plain = {name: value for name, value in text.values.items() if name != "use_bidirectional_attention"}
        llm = replace(read_llm(Fields(plain, text.where)), bidirectional_prefix=True)
        return LlavaConfig(encoder, llm, image_connector="linear")
    if config.get("projector_hidden_act", "gelu") != "gelu" or not config.flag("multimodal_projector_bias", True):
        raise UserError(f"{folder} has another projector than LLaVA-1.5's (two layers with biases, GELU)")
    layer = config.get("vision_feature_layer", own.layer)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise UserError(f"{config.where}: vision_feature_layer joins several layers ({layer}); one is supported")
    encoder = _vision(vision, tower, folder, defaults, feature_layer=layer)
    select, wanted = config.text("vision_feature_select_strategy", own.select), "full"
    if encoder.class_token:
        wanted = "default"
    if select != wanted:
        raise UserError(
            f"{config.where}: vision_feature_select_strategy is '{select}'; with a '{tower}' it must be '{wanted}'"
        )
    return LlavaConfig(encoder, read_llm(text), image_newline=kind != "llava")


def read_segformer_config(folder: Path, class_names: Sequence[str]) -> tuple[SegformerConfig, tuple[int, ...]]:
    """Reads a SegFormer's config and, for each of `class_names`, its index in the checkpoint's `id2label`.

    Raises:
      UserError: naming every class that the checkpoint does not know.
    """
    config = _typed(folder, ("segformer",))
    labels = {index: str(name).strip().lower() for index, name in config.group("id2label").values.items()}
    if sorted(labels) != sorted(map(str, range(len(labels)))):
        raise UserError(f"{config.where}: id2label does not number its classes from 0")
    indices = {name: int(i) for i, name in labels.items()}
    absent = [name for name in class_names if name.lower() not in indices]
    if absent:
        raise UserError(
            f"{folder} does not segment {', '.join(absent)}: its id2label names {', '.join(labels.values()) or 'nothing'}"
        )
    if not config.flag("reshape_last_stage", True):
        raise UserError(f"{folder} has reshape_last_stage=false, which segmentation checkpoints do not have")
    depths = config.integers("depths", ()) or (2, 2, 2, 2)
    if sum(depths) > _MOST_BLOCKS:
        raise UserError(f"{config.where}: depths are {depths}; no SegFormer has more than {_MOST_BLOCKS} blocks")
    cfg = SegformerConfig(
        **_read(config, {name: default[: len(depths)] for name, default in SEGFORMER_STAGES.items()}),
        **_read(config, {"decoder_hidden_size": 256, "hidden_act": "gelu"}),
        num_labels=len(labels),
        depths=depths,
        drop_path=config.share("drop_path_rate", 0.1),
    )
    return cfg, tuple(indices[name.lower()] for name in class_names)


def model_type(folder: Path) -> str:
    """Returns `model_type` of a checkpoint's config.json."""
    return read_config(folder).text("model_type", "")


def read_config(folder: Path) -> Fields:
    """Reads a checkpoint's config.json; a quantised checkpoint of any kind is refused."""
    path = folder / "config.json"
    config = Fields(read_object(path, f"{folder} has no config.json: not a Hugging Face checkpoint folder"), str(path))
    refuse_quantised(config)
    return config


def _typed(folder: Path, known: tuple[str, ...]) -> Fields:
    config = read_config(folder)
    if config.get("model_type") not in known:
        raise UserError(f"{folder} is a '{config.get('model_type')}' checkpoint; wanted: {' or '.join(known)}")
    return config


def _read(config: Fields, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Reads fields under our names, and checks what every model has: an activation we know, heads of one width."""
    values = {name: config.like(_NAMES.get(name, name), default) for name, default in defaults.items()}
    if "hidden_act" in values:
        require_choice(f"{config.where}: hidden_act", values["hidden_act"], _ACTIVATIONS)
        values["hidden_act"] = _ACTIVATIONS[values["hidden_act"]]
    heads, width = values.get("num_heads", 1), values.get("hidden_size", 0)
    if isinstance(heads, int) and width % heads and not config.get("head_dim"):
        raise UserError(f"{config.where}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return values


def to_names(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns fields of a config of ours under Hugging Face's names: the inverse of reading them."""
    values = {_NAMES.get(name, name): getattr(config, name) for name in names}
    back = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {name: back[value] if name == "hidden_act" else value for name, value in values.items()}

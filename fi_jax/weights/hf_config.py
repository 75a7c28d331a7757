"""Hugging Face's `config.json` -> our config dataclasses, with transformers' defaults for what it leaves out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fi_jax.config import LlamaConfig, RopeScaling, VitConfig
from fi_jax.errors import UserError
from fi_jax.models.clip_text import ClipTextConfig
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights.json_fields import Fields, read_object

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Fields of Llama's relatives that change what a layer computes.
_NOT_LLAMA = ("sliding_window", "num_local_experts", "num_experts", "no_rope_layers")

_MOST_BLOCKS = 1000


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA-1.5 checkpoint: vision tower, its connector (as wide as the LLM) and LLM."""

    image_encoder: VitConfig
    llm: LlamaConfig
    # Token id that stands for a picture in LLaVA's own prompts.
    image_token_id: int = 32000


def read_llama_config(folder: Path) -> LlamaConfig:
    """Reads the config of a Llama-architecture causal LM (Vicuna, Llama 2 and 3, SmolLM2, …)."""
    return _llama(_typed(folder, ("llama",)))


def read_vit_config(folder: Path) -> VitConfig:
    """Reads the config of CLIP's vision tower, from a CLIP, CLIP-vision or LLaVA checkpoint."""
    config = _typed(folder, ("clip", "clip_vision_model", "llava"))
    is_llava = config.get("model_type") == "llava"
    vision = config.group("vision_config") if "vision_config" in config.values else config
    return _vit(vision, _feature_layer(config) if is_llava else -2)


def read_clip_text_config(folder: Path) -> ClipTextConfig:
    """Reads the config of CLIP's text tower, from a CLIP or CLIP-text checkpoint."""
    config = _typed(folder, ("clip", "clip_text_model"))
    whole = config.get("model_type") == "clip"
    text = config.group("text_config") if whole else config
    # A bare text model has a projection only when it was saved with one.
    architectures = config.get("architectures", ())
    projected = whole or (isinstance(architectures, list) and "CLIPTextModelWithProjection" in architectures)
    heads, hidden = _heads(text, 8, 512)
    return ClipTextConfig(
        vocab_size=text.integer("vocab_size", 49408),
        hidden_size=hidden,
        intermediate_size=text.integer("intermediate_size", 2048),
        num_layers=text.integer("num_hidden_layers", 12),
        num_heads=heads,
        max_position_embeddings=text.integer("max_position_embeddings", 77),
        hidden_act=_activation(text, "quick_gelu"),
        layer_norm_eps=text.number("layer_norm_eps", 1e-5),
        projection_size=config.integer("projection_dim", 512) if projected else 0,
        eos_token_id=text.integer("eos_token_id", 49407, least=0),
    )


def read_llava_config(folder: Path) -> LlavaConfig:
    """Reads the config of a LLaVA-1.5 checkpoint (CLIP tower, two-layer projector, Llama)."""
    config = _typed(folder, ("llava",))
    text, vision = config.group("text_config"), config.group("vision_config")
    if (kind := text.text("model_type", "llama")) != "llama":
        raise UserError(f"{folder} is a LLaVA over '{kind}'; only Llama language models are supported")
    if (kind := vision.text("model_type", "clip_vision_model")) != "clip_vision_model":
        raise UserError(f"{folder} is a LLaVA with '{kind}'; only CLIP vision towers are supported")
    if config.get("projector_hidden_act", "gelu") != "gelu" or not config.flag("multimodal_projector_bias", True):
        raise UserError(f"{folder} has another projector than LLaVA-1.5's (two layers with biases, GELU)")
    # transformers' LlavaConfig starts from CLIP ViT-L/14-336, not from CLIP's own defaults.
    large = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
    image_token = config.integer("image_token_id", config.integer("image_token_index", 32000, least=0), least=0)
    tower = _vit(Fields(large | dict(vision.values), vision.where), _feature_layer(config))
    return LlavaConfig(tower, _llama(text), image_token)


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
    defaults = {
        "hidden_sizes": (32, 64, 160, 256),
        "num_attention_heads": (1, 2, 5, 8),
        "sr_ratios": (8, 4, 2, 1),
        "patch_sizes": (7, 3, 3, 3),
        "strides": (4, 2, 2, 2),
        "mlp_ratios": (4, 4, 4, 4),
    }
    stages = {name: config.integers(name, default[: len(depths)]) for name, default in defaults.items()}
    cfg = SegformerConfig(
        num_labels=len(labels),
        depths=depths,
        hidden_sizes=stages["hidden_sizes"],
        num_heads=stages["num_attention_heads"],
        sr_ratios=stages["sr_ratios"],
        patch_sizes=stages["patch_sizes"],
        strides=stages["strides"],
        mlp_ratios=stages["mlp_ratios"],
        decoder_hidden_size=config.integer("decoder_hidden_size", 256),
        hidden_act=_activation(config, "gelu"),
        drop_path=config.share("drop_path_rate", 0.1),
    )
    return cfg, tuple(indices[name.lower()] for name in class_names)


def model_type(folder: Path) -> str:
    """Returns `model_type` of a checkpoint's config.json."""
    return Fields(_config(folder), str(folder / "config.json")).text("model_type", "")


def _config(folder: Path) -> dict:
    return read_object(folder / "config.json", f"{folder} has no config.json: not a Hugging Face checkpoint folder")


def _typed(folder: Path, known: tuple[str, ...]) -> Fields:
    config = Fields(_config(folder), str(folder / "config.json"))
    if config.get("model_type") not in known:
        raise UserError(f"{folder} is a '{config.get('model_type')}' checkpoint; wanted: {' or '.join(known)}")
    return config


def _activation(config: Fields, default: str) -> Activation:
    name = config.text("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise UserError(f"{config.where}: hidden_act is '{name}' (known: {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS[name]


def _feature_layer(config: Fields) -> int:
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise UserError(f"{config.where}: vision_feature_layer joins several layers ({layer}); LLaVA-1.5 takes one")
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise UserError(f"{config.where}: the class token is kept among image tokens; LLaVA-1.5 drops it")
    return layer


def _heads(config: Fields, heads: int, hidden: int) -> tuple[int, int]:
    """Returns the number of heads and the width, which it divides."""
    heads, hidden = config.integer("num_attention_heads", heads), config.integer("hidden_size", hidden)
    if hidden % heads:
        raise UserError(f"{config.where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return heads, hidden


def _vit(config: Fields, feature_layer: int) -> VitConfig:
    heads, hidden = _heads(config, 12, 768)
    return VitConfig(
        image_size=config.integer("image_size", 224),
        patch_size=config.integer("patch_size", 32),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", 3072),
        num_layers=config.integer("num_hidden_layers", 12),
        num_heads=heads,
        hidden_act=_activation(config, "quick_gelu"),
        layer_norm_eps=config.number("layer_norm_eps", 1e-5),
        feature_layer=feature_layer,
    )


def _llama(config: Fields) -> LlamaConfig:
    if (act := config.text("hidden_act", "silu")) != "silu":
        raise UserError(f"{config.where}: hidden_act is '{act}'; Llama's is silu")
    if config.get("quantization_config"):
        raise UserError(f"{config.where}: quantization_config is set; use the unquantised checkpoint or its GGUF")
    foreign = [name for name in _NOT_LLAMA if config.get(name)]
    if foreign:
        raise UserError(f"{config.where}: {', '.join(foreign)} is set, which a Llama does not have")
    hidden, heads = config.integer("hidden_size", 4096), config.integer("num_attention_heads", 32)
    if not config.get("head_dim") and hidden % heads:
        _heads(config, heads, hidden)
    # `rope_parameters` is transformers 5's name; before, theta stood beside `rope_scaling`.
    rope = config.group("rope_parameters" if config.get("rope_parameters") else "rope_scaling")
    return LlamaConfig(
        vocab_size=config.integer("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", 11008),
        num_layers=config.integer("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", hidden // heads),
        rope_theta=rope.number("rope_theta", config.number("rope_theta", 10000.0)),
        rope_scaling=_rope_scaling(rope),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        attention_bias=config.flag("attention_bias", False),
        mlp_bias=config.flag("mlp_bias", False),
        max_position_embeddings=config.integer("max_position_embeddings", 2048),
    )


def _rope_scaling(rope: Fields) -> RopeScaling:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            rope.number("factor"),
            rope.number("low_freq_factor"),
            rope.number("high_freq_factor"),
            rope.integer("original_max_position_embeddings"),
        )
    raise UserError(f"{rope.where}: rope_type scales RoPE by '{kind}' (known: default, linear, llama3)")

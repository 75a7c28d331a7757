"""Hugging Face's `config.json` -> our config dataclasses, with transformers' defaults for what it leaves out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fi_jax.config import LlamaConfig, RopeScaling, VitConfig
from fi_jax.errors import UserError
from fi_jax.models.clip_text import ClipTextConfig
from fi_jax.models.segformer import SegformerConfig

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA-1.5 checkpoint: vision tower, its connector (as wide as the LLM) and LLM."""

    image_encoder: VitConfig
    llm: LlamaConfig
    # Token id that stands for a picture in LLaVA's own prompts.
    image_token_id: int = 32000


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a missing or damaged file is a `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: not a Hugging Face checkpoint folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; download it again")
    return value


def read_llama_config(folder: Path) -> LlamaConfig:
    """Reads the config of a Llama-architecture causal LM (Vicuna, Llama 2 and 3, SmolLM2, …)."""
    return _llama(_typed(folder, ("llama",)), folder)


def read_vit_config(folder: Path) -> VitConfig:
    """Reads the config of CLIP's vision tower, from a CLIP, CLIP-vision or LLaVA checkpoint."""
    config = _typed(folder, ("clip", "clip_vision_model", "llava"))
    feature_layer = _feature_layer(config, folder) if config["model_type"] == "llava" else -2
    return _vit(config.get("vision_config", config), folder, feature_layer)


def read_clip_text_config(folder: Path) -> ClipTextConfig:
    """Reads the config of CLIP's text tower, from a CLIP or CLIP-text checkpoint."""
    config = _typed(folder, ("clip", "clip_text_model"))
    whole = config["model_type"] == "clip"
    text = config.get("text_config") or {} if whole else config
    # A bare text model has a projection only when it was saved with one.
    projected = whole or "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    return ClipTextConfig(
        vocab_size=text.get("vocab_size", 49408),
        hidden_size=text.get("hidden_size", 512),
        intermediate_size=text.get("intermediate_size", 2048),
        num_layers=text.get("num_hidden_layers", 12),
        num_heads=text.get("num_attention_heads", 8),
        max_position_embeddings=text.get("max_position_embeddings", 77),
        hidden_act=_activation(text.get("hidden_act", "quick_gelu"), folder),
        layer_norm_eps=text.get("layer_norm_eps", 1e-5),
        projection_size=(config.get("projection_dim", 512) if projected else 0),
        eos_token_id=text.get("eos_token_id", 49407),
    )


def read_llava_config(folder: Path) -> LlavaConfig:
    """Reads the config of a LLaVA-1.5 checkpoint (CLIP tower, two-layer projector, Llama)."""
    config = _typed(folder, ("llava",))
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    if text.get("model_type", "llama") != "llama":
        raise UserError(f"{folder} is a LLaVA over '{text['model_type']}'; only Llama language models are supported")
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise UserError(f"{folder} is a LLaVA with '{vision['model_type']}'; only CLIP vision towers are supported")
    if config.get("projector_hidden_act", "gelu") != "gelu" or not config.get("multimodal_projector_bias", True):
        raise UserError(f"{folder} has another projector than LLaVA-1.5's (two layers with biases, GELU)")
    # transformers' LlavaConfig starts from CLIP ViT-L/14-336, not from CLIP's own defaults.
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    } | vision
    image_token = config.get("image_token_id", config.get("image_token_index", 32000))
    return LlavaConfig(_vit(vision, folder, _feature_layer(config, folder)), _llama(text, folder), image_token)


def read_segformer_config(folder: Path, class_names: Sequence[str]) -> tuple[SegformerConfig, tuple[int, ...]]:
    """Reads a SegFormer's config and, for each of `class_names`, its index in the checkpoint's `id2label`.

    Raises:
      UserError: naming every class that the checkpoint does not know.
    """
    config = _typed(folder, ("segformer",))
    labels = {int(i): str(name).strip().lower() for i, name in (config.get("id2label") or {}).items()}
    indices = {name: i for i, name in labels.items()}
    absent = [name for name in class_names if name.lower() not in indices]
    if absent:
        raise UserError(
            f"{folder} does not segment {', '.join(absent)}: its id2label names {', '.join(labels.values()) or 'nothing'}"
        )
    if not config.get("reshape_last_stage", True):
        raise UserError(f"{folder} has reshape_last_stage=false, which segmentation checkpoints do not have")
    cfg = SegformerConfig(
        num_labels=len(labels),
        depths=tuple(config.get("depths", (2, 2, 2, 2))),
        hidden_sizes=tuple(config.get("hidden_sizes", (32, 64, 160, 256))),
        num_heads=tuple(config.get("num_attention_heads", (1, 2, 5, 8))),
        sr_ratios=tuple(config.get("sr_ratios", (8, 4, 2, 1))),
        patch_sizes=tuple(config.get("patch_sizes", (7, 3, 3, 3))),
        strides=tuple(config.get("strides", (4, 2, 2, 2))),
        mlp_ratios=tuple(config.get("mlp_ratios", (4, 4, 4, 4))),
        decoder_hidden_size=config.get("decoder_hidden_size", 256),
        hidden_act=_activation(config.get("hidden_act", "gelu"), folder),
        drop_path=config.get("drop_path_rate", 0.1),
    )
    return cfg, tuple(indices[name.lower()] for name in class_names)


def _typed(folder: Path, known: tuple[str, ...]) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config.get("model_type") not in known:
        raise UserError(f"{folder} is a '{config.get('model_type')}' checkpoint; wanted: {' or '.join(known)}")
    return config


def _activation(name: str, folder: Path) -> Activation:
    if name not in _ACTIVATIONS:
        raise UserError(f"{folder} uses the activation '{name}' (known: {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS[name]


def _feature_layer(config: Mapping[str, Any], folder: Path) -> int:
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise UserError(f"{folder} joins several vision layers ({layer}); LLaVA-1.5 takes one")
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise UserError(f"{folder} keeps the class token among image tokens; LLaVA-1.5 drops it")
    return layer


def _vit(config: Mapping[str, Any], folder: Path, feature_layer: int) -> VitConfig:
    return VitConfig(
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 32),
        hidden_size=config.get("hidden_size", 768),
        intermediate_size=config.get("intermediate_size", 3072),
        num_layers=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        hidden_act=_activation(config.get("hidden_act", "quick_gelu"), folder),
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
        feature_layer=feature_layer,
    )


def _llama(config: Mapping[str, Any], folder: Path) -> LlamaConfig:
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{folder} uses the activation '{config['hidden_act']}'; Llama's is silu")
    if config.get("quantization_config"):
        raise UserError(f"{folder} is quantised; use the unquantised checkpoint or its GGUF")
    hidden, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    # `rope_parameters` is transformers 5's name; before, theta stood beside `rope_scaling`.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return LlamaConfig(
        vocab_size=config.get("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=config.get("intermediate_size", 11008),
        num_layers=config.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope_scaling=_rope_scaling(rope, folder),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=config.get("tie_word_embeddings", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        max_position_embeddings=config.get("max_position_embeddings", 2048),
    )


def _rope_scaling(rope: Mapping[str, Any], folder: Path) -> RopeScaling:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise UserError(f"{folder} scales RoPE by '{kind}' (known: default, linear, llama3)")

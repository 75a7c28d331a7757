"""Vision towers of transformers: the fields of each family's `config.json`, what it computes, and what its files call its parts.

A new family whose parts are all there is an entry of `TOWERS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fi_jax.weights.layouts import BUFFERS, Layout


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a tower, as the `state_dict` of transformers' class has them. Defaults: CLIP's."""

    patches: str = "embeddings.patch_embedding"
    class_token: str = "embeddings.class_embedding"
    positions: str = "embeddings.position_embedding.weight"
    registers: str = "embeddings.register_tokens"
    # Tokens and positions have an axis of size 1 for the batch.
    batched: bool = False
    final_norm: str = "post_layernorm"
    layers: str = "encoder.layers"
    norms: tuple[str, str] = ("layer_norm1", "layer_norm2")
    attention: str = "self_attn"
    out: str = "out_proj"


# A tower alone, or beside a text tower. SigLIP's own pooling has no part in ours.
_CLIP_LAYOUT = Layout(
    ((r"^vision_model\.", ""),),
    (*BUFFERS, r"text_model\..*", r"(?:text|visual)_projection\.weight", r"logit_(?:scale|bias)", r"head\..*"),
)


@dataclass(frozen=True)
class Tower:
    """What the vision towers of one `model_type` have."""

    # Fields of its config.json under our names, with the defaults of transformers.
    defaults: Mapping[str, Any]
    # Options of `VitConfig` that all its models have, unsaid in their config.json.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: Names = Names()
    # How the keys of its files become `names`, and which have no part in ours.
    layout: Layout = _CLIP_LAYOUT


_CLIP = {
    "image_size": 224, "patch_size": 32, "hidden_size": 768, "intermediate_size": 3072, "num_layers": 12,
    "num_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
}  # fmt: skip
_SIGLIP = _CLIP | {"patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
_DINOV2 = {
    "image_size": 224, "patch_size": 14, "hidden_size": 768, "mlp_ratio": 4, "num_layers": 12, "num_heads": 12,
    "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
_VIT = _CLIP | {"patch_size": 16, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}

_HALVES = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5)}
_IMAGENET = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}
# No norm before the layers, but a bias of the patch embedding: all but CLIP.
_PLAIN = {"patch_bias": True, "pre_norm": False}
_IS_SIGLIP = {"class_token": False, "pool": "mean", **_PLAIN, **_HALVES}
_IS_DINOV2 = {"layer_scale": True, **_PLAIN, **_IMAGENET}

_DINOV2_NAMES = Names(
    "embeddings.patch_embeddings.projection",
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    batched=True,
    final_norm="layernorm",
    layers="encoder.layer",
    norms=("norm1", "norm2"),
    attention="attention",
    out="o_proj",
)
# Attention has other names in files than in the class. The token that hides patches in DINOv2's own training is left out.
_DINOV2_LAYOUT = Layout(
    (
        (r"^(encoder\.layer\.\d+\.attention)\.attention\.(q|k|v)[a-z]+\.", r"\1.\2_proj."),
        (r"^(encoder\.layer\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
    ),
    (*BUFFERS, r"embeddings\.mask_token"),
)
_VIT_NAMES = replace(_DINOV2_NAMES, layers="layers", norms=("layernorm_before", "layernorm_after"))
# Files of a tower alone, and of a classifier.
_VIT_LAYOUT = Layout(
    (
        (r"^(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)[a-z]+\.", r"layers.\1.attention.\2_proj."),
        (r"^(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.o_proj."),
        (r"^(?:\w+\.)?encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.mlp.fc1."),
        (r"^(?:\w+\.)?encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.mlp.fc2."),
        (r"^(?:\w+\.)?encoder\.layer\.", "layers."),
        (r"^(?:vit|ijepa)\.", ""),
    ),
    (*BUFFERS, r"pooler\..*", r"classifier\..*", r"embeddings\.mask_token"),
)

TOWERS: dict[str, Tower] = {
    "clip_vision_model": Tower(_CLIP),
    "siglip_vision_model": Tower(_SIGLIP, _IS_SIGLIP),
    "dinov2": Tower(_DINOV2, _IS_DINOV2, _DINOV2_NAMES, _DINOV2_LAYOUT),
    "dinov2_with_registers": Tower(_DINOV2 | {"registers": 4}, _IS_DINOV2, _DINOV2_NAMES, _DINOV2_LAYOUT),
    "vit": Tower(_VIT, {**_PLAIN, **_HALVES}, _VIT_NAMES, _VIT_LAYOUT),
    "ijepa": Tower(_VIT, {"class_token": False, "pool": "mean", **_PLAIN, **_IMAGENET}, _VIT_NAMES, _VIT_LAYOUT),
}

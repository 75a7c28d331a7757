"""How the keys of each kind of checkpoint become the leaf table's, and which of them carry nothing that we need."""

from dataclasses import dataclass, replace

from fi_jax.config import LlmConfig


@dataclass(frozen=True)
class Layout:
    """A checkpoint family: how its keys become the table's, and which keys carry nothing that we need."""

    # (pattern, replacement) pairs; the first that matches a key is applied.
    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()


# Buffers that some releases store and every implementation computes.
_BUFFERS = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq", r".*\.num_batches_tracked")

LLM = Layout((), _BUFFERS)
# The language model inside a model of pictures and text, in both generations of its keys.
LLM_INSIDE = Layout(
    (
        (r"^(?:language_model\.)?lm_head\.", "lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "model."),
        (r"^(?:model\.)?(vision_tower|multi_modal_projector)\.", r"\1."),
    ),
    (*_BUFFERS, r"(?:vision_tower|multi_modal_projector)\..*", r".*image_newline"),
)
# Both generations of its keys.
LLAVA = Layout(
    (
        (r"^(?:language_model\.)?lm_head\.", "lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        (r"^(?:model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
        (r"^(?:model\.)?image_newline$", "model.image_newline"),
    ),
    (*_BUFFERS, r"model\.vision_tower\.head\..*"),
)
LLAVA_TOWER = replace(
    LLAVA,
    unused=(*LLAVA.unused, r"model\.(?:language_model|multi_modal_projector)\..*", r".*image_newline", r"lm_head\..*"),
)
# A vision tower alone, or beside its text tower. DINOv2's attention has other names in files than in the class.
VISION = Layout(
    (
        (r"^vision_model\.", ""),
        (r"^(encoder\.layer\.\d+\.attention)\.attention\.(q|k|v)[a-z]+\.", r"\1.\2_proj."),
        (r"^(encoder\.layer\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
    ),
    # SigLIP's pooling has no part in ours, nor has what hides patches from DINOv2.
    (
        *_BUFFERS,
        r"text_model\..*",
        r"(?:text|visual)_projection\.weight",
        r"logit_(?:scale|bias)",
        r"head\..*",
        r"embeddings\.mask_token",
    ),
)
# ViT's other names in files, and in those of a classifier.
VIT = Layout(
    (
        (r"^(?:vit\.)?encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)[a-z]+\.", r"layers.\1.attention.\2_proj."),
        (r"^(?:vit\.)?encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.o_proj."),
        (r"^(?:vit\.)?encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.mlp.fc1."),
        (r"^(?:vit\.)?encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.mlp.fc2."),
        (r"^(?:vit\.)?encoder\.layer\.", "layers."),
        (r"^vit\.", ""),
    ),
    (*_BUFFERS, r"pooler\..*", r"classifier\..*", r"embeddings\.mask_token"),
)
CLIP_TEXT = Layout(
    ((r"^text_model\.", ""),), (*_BUFFERS, r"vision_model\..*", r"visual_projection\.weight", "logit_scale")
)
SEGFORMER = Layout((), _BUFFERS)
GGUF = Layout((), (r"rope_(?:freqs|factors_long|factors_short)\.weight",))
# An adapter's keys as `peft` saves them, and as an older LLaVA has them; then those of `llm_leaves`.
PEFT = Layout(
    (
        (
            r"^(?:base_model\.model\.)?(?:model\.)?(?:language_model\.)?(?:model\.)?(layers\..*?)(?:\.default)?(\.weight)$",
            r"model.\1\2",
        ),
    )
)
# The exported module's `state_dict`, adapters put in by `peft` or not.
TORCH = Layout(((r"^(.*)\.base_layer\.", r"\1."), (r"^(.*\.lora_[AB])\.default\.", r"\1.")))


def with_tied_head(layout: Layout, config: LlmConfig) -> Layout:
    """Lets a tied model store its head all the same: it is a copy of the embeddings."""
    return replace(layout, unused=(*layout.unused, r"lm_head\.weight")) if config.tie_embeddings else layout

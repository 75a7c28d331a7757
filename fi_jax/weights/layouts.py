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
BUFFERS = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq", r".*\.num_batches_tracked")

LLM = Layout((), BUFFERS)
# The language model inside a model of pictures and text, in both generations of its keys.
LLM_INSIDE = Layout(
    (
        (r"^(?:language_model\.)?lm_head\.", "lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "model."),
        (r"^(?:model\.)?(vision_tower|multi_modal_projector)\.", r"\1."),
    ),
    (*BUFFERS, r"(?:vision_tower|multi_modal_projector)\..*", r".*image_newline"),
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
    (*BUFFERS, r"model\.vision_tower\.head\..*"),
)
LLAVA_TOWER = replace(
    LLAVA,
    unused=(*LLAVA.unused, r"model\.(?:language_model|multi_modal_projector)\..*", r".*image_newline", r"lm_head\..*"),
)
CLIP_TEXT = Layout(
    ((r"^text_model\.", ""),), (*BUFFERS, r"vision_model\..*", r"visual_projection\.weight", "logit_scale")
)
SEGFORMER = Layout((), BUFFERS)
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

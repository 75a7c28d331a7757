"""Which tensor of a Hugging Face checkpoint becomes which leaf of ours, as data; checking the two against each other.

Source keys are first made *canonical*: both key generations of a model get the same names, with `llm.`, `vision.`,
`projector.` or `text.` in front.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fi_jax.config import LlamaConfig, VitConfig
from fi_jax.errors import UserError
from fi_jax.models.clip_text import ClipTextConfig
from fi_jax.models.segformer import SegformerConfig


@dataclass(frozen=True)
class Leaf:
    """One leaf of our tree and where it comes from."""

    # Path in our tree, e.g. "llm/layers/attn/q_proj/kernel".
    path: str
    shape: tuple[int, ...]
    # Canonical source keys: one, or one a layer when the leaf is stacked on axis 0.
    sources: tuple[str, ...]
    # Our axis k (of one layer) is the source's axis axes[k].
    axes: tuple[int, ...]
    stacked: bool = False
    # Axes of size 1 at the end of the source, which ours does not have (1x1 convolutions).
    squeezed: int = 0
    # Picks and orders the entries of our last axis out of the source's (classes in another order).
    order: tuple[int, ...] | None = None
    # Classes of the source, where `order` is given.
    num_classes: int = 0

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of each source tensor."""
        ours = self.shape[1:] if self.stacked else self.shape
        if self.order is not None:
            ours = (*ours[:-1], self.num_classes)
        return tuple(ours[self.axes.index(axis)] for axis in range(len(ours))) + (1,) * self.squeezed


@dataclass(frozen=True)
class Layout:
    """A checkpoint family: how its keys become canonical, and which canonical keys carry nothing we need."""

    # (pattern, replacement) pairs; the first that matches a key is applied.
    renames: tuple[tuple[str, str], ...]
    unused: tuple[str, ...] = ()


# Buffers that some releases store and every implementation computes.
_BUFFERS = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq", r".*\.num_batches_tracked")

LLAMA = Layout(((r"^lm_head\.", "llm.lm_head."), (r"^model\.", "llm.")), _BUFFERS)
LLAVA = Layout(
    (
        (r"^(?:language_model\.)?lm_head\.", "llm.lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "llm."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
        (r"^(?:model\.)?multi_modal_projector\.", "projector."),
    ),
    _BUFFERS,
)
CLIP_VISION = Layout(
    ((r"^(?:vision_model\.)?(?=(?:embeddings|pre_layrnorm|encoder|post_layernorm)\.)", "vision."),),
    (*_BUFFERS, r"text_model\..*", r"(?:text|visual)_projection\.weight", "logit_scale"),
)
CLIP_TEXT = Layout(
    ((r"^(?:text_model\.)?(?=(?:embeddings|encoder|final_layer_norm)\.)", "text."),),
    (*_BUFFERS, r"vision_model\..*", r"visual_projection\.weight", "logit_scale"),
)
SEGFORMER = Layout((), _BUFFERS)


def vit_leaves(cfg: VitConfig) -> list[Leaf]:
    """Leaves of `models.vit.Vit` and their CLIP vision keys (`vision.…`)."""
    d, p = cfg.hidden_size, cfg.patch_size
    return [
        Leaf("patch_embed/kernel", (p, p, 3, d), ("vision.embeddings.patch_embedding.weight",), (2, 3, 1, 0)),
        Leaf("class_embedding", (d,), ("vision.embeddings.class_embedding",), (0,)),
        Leaf("position_embedding", (cfg.grid**2 + 1, d), ("vision.embeddings.position_embedding.weight",), (0, 1)),
        *_norm("pre_norm", "vision.pre_layrnorm", d),
        *_clip_layers(cfg, "vision.encoder.layers"),
        *_norm("post_norm", "vision.post_layernorm", d),
    ]


def clip_text_leaves(cfg: ClipTextConfig) -> list[Leaf]:
    """Leaves of `models.clip_text.ClipText` and their CLIP text keys (`text.…`)."""
    d = cfg.hidden_size
    leaves = [
        Leaf("token_embedding", (cfg.vocab_size, d), ("text.embeddings.token_embedding.weight",), (0, 1)),
        Leaf(
            "position_embedding",
            (cfg.max_position_embeddings, d),
            ("text.embeddings.position_embedding.weight",),
            (0, 1),
        ),
        *_clip_layers(cfg, "text.encoder.layers"),
        *_norm("final_norm", "text.final_layer_norm", d),
    ]
    if cfg.projection_size:
        leaves += _linear("text_projection", "text_projection", d, cfg.projection_size, bias=False)
    return leaves


def connector_leaves(in_features: int, out_features: int) -> list[Leaf]:
    """Leaves of `models.connector.Connector` and LLaVA's projector keys."""
    return [
        *_linear("fc1", "projector.linear_1", in_features, out_features),
        *_linear("fc2", "projector.linear_2", out_features, out_features),
    ]


def llama_leaves(cfg: LlamaConfig) -> list[Leaf]:
    """Leaves of `models.llama.Llama` and their keys (`llm.…`)."""
    d, q, kv = cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    layer = [
        Leaf("input_norm/scale", (d,), ("input_layernorm.weight",), (0,)),
        Leaf("post_attention_norm/scale", (d,), ("post_attention_layernorm.weight",), (0,)),
        *_linear("attn/q_proj", "self_attn.q_proj", d, q, bias=cfg.attention_bias),
        *_linear("attn/k_proj", "self_attn.k_proj", d, kv, bias=cfg.attention_bias),
        *_linear("attn/v_proj", "self_attn.v_proj", d, kv, bias=cfg.attention_bias),
        *_linear("attn/o_proj", "self_attn.o_proj", q, d, bias=cfg.attention_bias),
        *_linear("mlp/gate_proj", "mlp.gate_proj", d, cfg.intermediate_size, bias=cfg.mlp_bias),
        *_linear("mlp/up_proj", "mlp.up_proj", d, cfg.intermediate_size, bias=cfg.mlp_bias),
        *_linear("mlp/down_proj", "mlp.down_proj", cfg.intermediate_size, d, bias=cfg.mlp_bias),
    ]
    leaves = [
        Leaf("embed/embedding", (cfg.vocab_size, d), ("llm.embed_tokens.weight",), (0, 1)),
        *_stack(layer, "llm.layers", cfg.num_layers),
        Leaf("norm/scale", (d,), ("llm.norm.weight",), (0,)),
    ]
    if not cfg.tie_embeddings:
        leaves += _linear("lm_head", "llm.lm_head", d, cfg.vocab_size, bias=False)
    return leaves


def segformer_leaves(cfg: SegformerConfig, order: tuple[int, ...]) -> list[Leaf]:
    """Leaves of `models.segformer.Segformer`, both collections, and their keys.

    `cfg` is the source's; `order` lists the source's class for each of ours.
    """
    leaves: list[Leaf] = []
    width_in = 3
    for i, depth in enumerate(cfg.depths):
        d, stage, key = cfg.hidden_sizes[i], f"params/stage_{i}", "segformer.encoder"
        leaves += _conv(f"{stage}/patch_embed", f"{key}.patch_embeddings.{i}.proj", cfg.patch_sizes[i], width_in, d)
        leaves += _norm(f"{stage}/patch_norm", f"{key}.patch_embeddings.{i}.layer_norm", d)
        for j in range(depth):
            leaves += _segformer_block(cfg, i, f"{stage}/block_{j}", f"{key}.block.{i}.{j}")
        leaves += _norm(f"{stage}/norm", f"{key}.layer_norm.{i}", d)
        leaves += _linear(f"params/head/proj_{i}", f"decode_head.linear_c.{i}.proj", d, cfg.decoder_hidden_size)
        width_in = d
    width, stages = cfg.decoder_hidden_size, len(cfg.depths)
    fuse = _linear("params/head/fuse", "decode_head.linear_fuse", width * stages, width, bias=False)
    classifier = _linear("params/head/classifier", "decode_head.classifier", width, len(order))
    leaves += [replace(leaf, squeezed=2) for leaf in fuse]
    leaves += [
        replace(leaf, order=order, num_classes=cfg.num_labels, squeezed=2 if leaf.path.endswith("kernel") else 0)
        for leaf in classifier
    ]
    leaves += _norm("params/head/batch_norm", "decode_head.batch_norm", width)
    for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
        leaves.append(
            Leaf(f"batch_stats/head/batch_norm/{ours}", (width,), (f"decode_head.batch_norm.{theirs}",), (0,))
        )
    return leaves


def _segformer_block(cfg: SegformerConfig, stage: int, path: str, key: str) -> list[Leaf]:
    d, ratio = cfg.hidden_sizes[stage], cfg.sr_ratios[stage]
    hidden = d * cfg.mlp_ratios[stage]
    leaves = [
        *_norm(f"{path}/norm1", f"{key}.layer_norm_1", d),
        *_norm(f"{path}/norm2", f"{key}.layer_norm_2", d),
        *_linear(f"{path}/attn/q_proj", f"{key}.attention.self.query", d, d),
        *_linear(f"{path}/attn/k_proj", f"{key}.attention.self.key", d, d),
        *_linear(f"{path}/attn/v_proj", f"{key}.attention.self.value", d, d),
        *_linear(f"{path}/attn/out_proj", f"{key}.attention.output.dense", d, d),
        *_linear(f"{path}/mlp/fc1", f"{key}.mlp.dense1", d, hidden),
        *_conv(f"{path}/mlp/dwconv", f"{key}.mlp.dwconv.dwconv", 3, 1, hidden),
        *_linear(f"{path}/mlp/fc2", f"{key}.mlp.dense2", hidden, d),
    ]
    if ratio > 1:
        leaves += _conv(f"{path}/attn/sr", f"{key}.attention.self.sr", ratio, d, d)
        leaves += _norm(f"{path}/attn/sr_norm", f"{key}.attention.self.layer_norm", d)
    return leaves


def _clip_layers(cfg: VitConfig | ClipTextConfig, key: str) -> list[Leaf]:
    d, hidden = cfg.hidden_size, cfg.intermediate_size
    layer = [*_norm("norm1", "layer_norm1", d), *_norm("norm2", "layer_norm2", d)]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer += _linear(f"attn/{name}", f"self_attn.{name}", d, d)
    layer += [*_linear("mlp/fc1", "mlp.fc1", d, hidden), *_linear("mlp/fc2", "mlp.fc2", hidden, d)]
    return _stack(layer, key, cfg.num_layers)


def _stack(layer: Sequence[Leaf], key: str, num_layers: int) -> list[Leaf]:
    """Turns the leaves of one layer into leaves stacked under `layers/`."""
    return [
        Leaf(
            f"layers/{leaf.path}",
            (num_layers, *leaf.shape),
            tuple(f"{key}.{i}.{leaf.sources[0]}" for i in range(num_layers)),
            leaf.axes,
            stacked=True,
        )
        for leaf in layer
    ]


def _linear(path: str, key: str, in_features: int, out_features: int, bias: bool = True) -> list[Leaf]:
    leaves = [Leaf(f"{path}/kernel", (in_features, out_features), (f"{key}.weight",), (1, 0))]
    return leaves + [Leaf(f"{path}/bias", (out_features,), (f"{key}.bias",), (0,))] if bias else leaves


def _norm(path: str, key: str, features: int) -> list[Leaf]:
    return [
        Leaf(f"{path}/scale", (features,), (f"{key}.weight",), (0,)),
        Leaf(f"{path}/bias", (features,), (f"{key}.bias",), (0,)),
    ]


def _conv(path: str, key: str, size: int, in_features: int, out_features: int) -> list[Leaf]:
    return [
        Leaf(f"{path}/kernel", (size, size, in_features, out_features), (f"{key}.weight",), (2, 3, 1, 0)),
        Leaf(f"{path}/bias", (out_features,), (f"{key}.bias",), (0,)),
    ]


def under(prefix: str, leaves: Iterable[Leaf]) -> list[Leaf]:
    """Puts leaves below `prefix/`."""
    return [replace(leaf, path=f"{prefix}/{leaf.path}") for leaf in leaves]


def without_tied_head(layout: Layout, config: LlamaConfig) -> Layout:
    """Lets a tied model store its head all the same: it is a copy of the embeddings."""
    return replace(layout, unused=(*layout.unused, r"llm\.lm_head\.weight")) if config.tie_embeddings else layout


@dataclass(frozen=True)
class Match:
    """A checkpoint that fits: `keys` maps canonical keys to the file's own; `unused` are the file's keys left out."""

    leaves: tuple[Leaf, ...]
    keys: Mapping[str, str]
    unused: tuple[str, ...]
    # Leaves that the checkpoint does not have and was allowed not to have.
    initialised: tuple[str, ...]


def match(
    name: str, leaves: Sequence[Leaf], shapes: Mapping[str, tuple[int, ...]], layout: Layout, allow_new: str = ""
) -> Match:
    """Accounts for every key of a checkpoint and every leaf of ours.

    Args:
      name: what errors call the checkpoint.
      shapes: the checkpoint's keys and shapes.
      allow_new: a regular expression over our paths; such leaves may be absent.

    Raises:
      UserError: one message with all missing, unexpected and misshapen keys.
    """
    keys: dict[str, str] = {}
    twice, unused = [], []
    for key in shapes:
        canonical = _canonical(key, layout)
        if any(re.fullmatch(pattern, canonical) for pattern in layout.unused):
            unused.append(key)
        elif canonical in keys:
            twice.append(f"{keys[canonical]} and {key}")
        else:
            keys[canonical] = key
    missing, misshapen, initialised, kept = [], [], [], []
    wanted: set[str] = set()
    for leaf in leaves:
        absent = [source for source in leaf.sources if source not in keys]
        wanted.update(leaf.sources)
        if absent and len(absent) == len(leaf.sources) and allow_new and re.fullmatch(allow_new, leaf.path):
            initialised.append(leaf.path)
            continue
        kept.append(leaf)
        missing += [f"{source} {list(leaf.source_shape)}" for source in absent]
        for source in leaf.sources:
            found = shapes[keys[source]] if source in keys else None
            if found is not None and found != leaf.source_shape:
                misshapen.append(f"{keys[source]} {list(found)} instead of {list(leaf.source_shape)}")
    unexpected = [f"{key} {list(shapes[key])}" for canonical, key in keys.items() if canonical not in wanted]
    problems = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshapen),
        ("stored twice", twice),
    )
    said = [f"{what}: {', '.join(grouped(listed))}" for what, listed in problems if listed]
    if said:
        raise UserError(f"{name} does not fit its config.json or this architecture; {'; '.join(said)}")
    return Match(tuple(kept), keys, tuple(unused), tuple(initialised))


def _canonical(key: str, layout: Layout) -> str:
    for pattern, replacement in layout.renames:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key


def grouped(entries: Iterable[str]) -> list[str]:
    """Joins entries that differ only in a layer's number: `layers.{0-31}.norm.weight [8]`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        found = re.search(r"(?<=\.)\d+(?=\.)", entry)
        where = (entry[: found.start()], entry[found.end() :]) if found else (entry, "")
        groups.setdefault(where, []).extend([int(found.group())] if found else [])
    return [before + _numbers(numbers) + after for (before, after), numbers in groups.items()]


def _numbers(numbers: list[int]) -> str:
    if len(numbers) <= 1:
        return "".join(map(str, numbers))
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"

"""The one table of leaves: name, shape and layout of every parameter in our trees, Hugging Face, GGUF, PEFT and PyTorch.

A row is a `Leaf` (`weights.leaf`). Every reader and writer of a format walks these rows; none knows a name of its own.
What families of encoders and LLMs call their parts is said in `towers` and `llm_families`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from fi_jax.config import KnowledgeConfig, LlmConfig, LoraConfig, ModelConfig, VitConfig
from fi_jax.errors import require_choice
from fi_jax.models.clip_text import ClipTextConfig
from fi_jax.models.segformer import SegformerConfig
from fi_jax.weights.leaf import Leaf
from fi_jax.weights.llm_families import FAMILIES
from fi_jax.weights.towers import TOWERS, Names

_NO_LORA = LoraConfig()
# What CLIP calls the layers of both its towers.
_CLIP_NAMES = Names()


class Assembly(Protocol):
    """What `llava_leaves` asks: a `ModelConfig`, or a checkpoint's own (`hf_config.LlavaConfig`)."""

    @property
    def image_encoder(self) -> VitConfig: ...
    @property
    def llm(self) -> LlmConfig: ...
    @property
    def image_connector(self) -> str: ...
    @property
    def image_newline(self) -> bool: ...


# What LLaVA's keys start with (`layouts.LLAVA`).
_LLAVA_TOWER, _LLAVA_LLM = "model.vision_tower.", "model.language_model."


def llm_leaves(cfg: LlmConfig, root: str = "model.") -> list[Leaf]:
    """Rows of `models.llm.Llm`; `root` is what its keys but the head's start with."""
    d, q, kv, m = cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim, cfg.intermediate_size
    qkv_bias = cfg.attention_bias or cfg.qkv_bias
    require_choice("model.llm.family", cfg.family, FAMILIES)
    family = FAMILIES[cfg.family]

    def linear(name: str, size_in: int, size_out: int, gguf: str, bias: bool, heads: int = 0) -> list[Leaf]:
        part, key = ("mlp", "mlp") if name in ("gate_proj", "up_proj", "down_proj") else ("attn", "self_attn")
        heads = heads if family.interleaved else 0
        return _linear(
            f"{part}/{name}", f"{key}.{name}", size_in, size_out, bias=bias, lora=cfg.lora, gguf=gguf, heads=heads
        )

    def norm(path: str, key: str, gguf: str, features: int = d) -> Leaf:
        return Leaf(f"{path}/scale", (features,), f"{key}.weight", (0,), f"{gguf}.weight")

    # With norms of what attention and MLP give, transformers' "post attention" is the norm of attention's output.
    before_mlp = "pre_feedforward_layernorm" if cfg.output_norms else "post_attention_layernorm"
    qkv = [
        *linear("q_proj", d, q, "attn_q", qkv_bias, cfg.num_heads),
        *linear("k_proj", d, kv, "attn_k", qkv_bias, cfg.num_kv_heads),
        *linear("v_proj", d, kv, "attn_v", qkv_bias),
    ]
    gate_up = [*linear("gate_proj", d, m, "ffn_gate", cfg.mlp_bias), *linear("up_proj", d, m, "ffn_up", cfg.mlp_bias)]
    if family.fused:
        qkv, gate_up = _fused(qkv, "self_attn.qkv_proj", "attn_qkv"), _fused(gate_up, "mlp.gate_up_proj", "ffn_up")
    layer = [
        norm("input_norm", "input_layernorm", "attn_norm"),
        norm("post_attention_norm", before_mlp, "ffn_norm"),
        *qkv,
        *linear("o_proj", q, d, "attn_output", cfg.attention_bias),
        *gate_up,
        *linear("down_proj", m, d, "ffn_down", cfg.mlp_bias),
    ]
    if cfg.output_norms:
        layer.append(norm("attention_output_norm", "post_attention_layernorm", "post_attention_norm"))
        layer.append(norm("mlp_output_norm", "post_feedforward_layernorm", "post_ffw_norm"))
    if cfg.qk_norm:
        layer.append(norm("attn/q_norm", "self_attn.q_norm", "attn_q_norm", cfg.head_dim))
        layer.append(norm("attn/k_norm", "self_attn.k_norm", "attn_k_norm", cfg.head_dim))
    leaves = [
        Leaf("embed/embedding", (cfg.vocab_size, d), f"{root}embed_tokens.weight", (0, 1), "token_embd.weight"),
        *_stack(layer, f"{root}layers", cfg.num_layers),
        norm("norm", f"{root}norm", "output_norm"),
    ]
    if not cfg.tie_embeddings:
        leaves += _linear("lm_head", "lm_head", d, cfg.vocab_size, bias=False, gguf="output")
    return leaves


def _fused(leaves: Sequence[Leaf], key: str, gguf: str) -> list[Leaf]:
    """Makes the rows of several linear layers parts of one tensor: kernels, biases and B's of adapters; A's share one name."""
    begins, total = {}, 0
    for leaf in leaves:
        if leaf.path.endswith("/kernel"):
            begins[leaf.path.removesuffix("/kernel")] = total
            total += leaf.shape[-1]
    fused = []
    for leaf in leaves:
        module, _, name = leaf.path.rpartition("/")
        kind = leaf.key.split("_proj.")[1]
        part = None if name == "lora_a" else (begins[module], total)
        fused.append(replace(leaf, key=f"{key}.{kind}", gguf=leaf.gguf and f"{gguf}.{kind}", part=part))
    return fused


def vit_leaves(cfg: VitConfig, root: str = "") -> list[Leaf]:
    """Rows of `models.vit.Vit`; `root` is what its keys start with."""
    require_choice("encoder family", cfg.family, TOWERS)
    names, d, p = TOWERS[cfg.family].names, cfg.hidden_size, cfg.patch_size
    batch, positions = int(names.batched), cfg.class_token + cfg.grid**2
    patches = _conv("patch_embed", f"{root}{names.patches}", p, 3, d)
    leaves = patches if cfg.patch_bias else patches[:1]
    if cfg.class_token:
        leaves.append(Leaf("class_embedding", (d,), root + names.class_token, (0,), leading=2 * batch))
    leaves.append(Leaf("position_embedding", (positions, d), root + names.positions, (0, 1), leading=batch))
    if cfg.registers:
        leaves.append(Leaf("registers", (cfg.registers, d), root + names.registers, (0, 1), leading=batch))
    if cfg.pre_norm:
        leaves += _norm("pre_norm", f"{root}pre_layrnorm", d)
    return [*leaves, *_vit_layers(cfg, root, names), *_norm("post_norm", root + names.final_norm, d)]


def clip_text_leaves(cfg: ClipTextConfig) -> list[Leaf]:
    """Rows of `models.clip_text.ClipText`."""
    d, length = cfg.hidden_size, cfg.max_position_embeddings
    leaves = [
        Leaf("token_embedding", (cfg.vocab_size, d), "embeddings.token_embedding.weight", (0, 1)),
        Leaf("position_embedding", (length, d), "embeddings.position_embedding.weight", (0, 1)),
        *_vit_layers(cfg),
        *_norm("final_norm", "final_layer_norm", d),
    ]
    if cfg.projection_size:
        leaves += _linear("text_projection", "text_projection", d, cfg.projection_size, bias=False)
    return leaves


def connector_leaves(
    size_in: int, size_out: int, root: str, kind: str = "mlp", newline: str = "", single: str = "linear_1"
) -> list[Leaf]:
    """Rows of `models.connector.Connector`; `newline` and `single` are keys of its last token and of a layer alone."""
    first = "linear_1" if kind == "mlp" else single
    leaves = _linear("fc1", f"{root}{first}", size_in, size_out)
    leaves += _linear("fc2", f"{root}linear_2", size_out, size_out) if kind == "mlp" else []
    return [*leaves, Leaf("newline", (size_out,), newline, (0,))] if newline else leaves


def knowledge_leaves(cfg: KnowledgeConfig, root: str) -> list[Leaf]:
    """Rows of `knowledge.gcn.PromptGcn`."""
    widths = [cfg.prompt_size, *[cfg.hidden_size] * (cfg.depth - 1), cfg.align_size]
    sizes = {f"layer_{i}": (widths[i], widths[i + 1]) for i in range(cfg.depth if cfg.enabled else 0)}
    if (cfg.residual or not cfg.enabled) and cfg.prompt_size != cfg.align_size:
        sizes["residual"] = (cfg.prompt_size, cfg.align_size)
    return [leaf for name, size in sizes.items() for leaf in _linear(name, root + name, *size, bias=False)]


def head_leaves(model: ModelConfig, root: str) -> list[Leaf]:
    """Rows of `models.face_insight.AlignmentHead`."""
    width, rank = model.knowledge.align_size, model.knowledge.score_rank
    sizes = {"image": (model.image_encoder.hidden_size, width), "out": (width, width)}
    scalars = ["log_scale", "bias"]
    if model.use_segmentation:
        sizes["segmentation"] = (model.segmentation_encoder.hidden_size, width)
    if model.knowledge.score_graph != "off":
        scalars.append("relations/strength")
        sizes |= dict.fromkeys(("relations/speak", "relations/hear") if rank else (), (width, rank))
    keys = {name: root + name.replace("/", ".") for name in (*sizes, *scalars)}
    linear = [leaf for name, size in sizes.items() for leaf in _linear(name, keys[name], *size, bias=False)]
    return [*linear, *(Leaf(name, (), keys[name], ()) for name in scalars)]


def llava_leaves(model: Assembly) -> list[Leaf]:
    """Rows of a LLaVA or PaliGemma: the parts of `models.face_insight.FaceInsight` that it has."""
    image, llm, kind = model.image_encoder, model.llm, model.image_connector
    newline = "model.image_newline" if model.image_newline else ""
    connector = connector_leaves(
        _token_size(image), llm.hidden_size, "model.multi_modal_projector.", kind, newline, "linear"
    )
    return [
        *under("image_encoder", vit_leaves(image, _LLAVA_TOWER)),
        *under("image_connector", connector),
        *under("llm", llm_leaves(llm, _LLAVA_LLM)),
    ]


def llava_tower_leaves(image: VitConfig) -> list[Leaf]:
    """Rows of a LLaVA's vision tower alone."""
    return vit_leaves(image, _LLAVA_TOWER)


def torch_leaves(model: ModelConfig) -> list[Leaf]:
    """Rows of `models.face_insight.FaceInsight` beside its LLM, as in the `state_dict` of the exported module."""
    width, knowledge = model.llm.hidden_size, model.knowledge
    encoders = {"image": model.image_encoder}
    if model.use_segmentation:
        encoders["segmentation"] = model.segmentation_encoder
    parts = {"knowledge": knowledge_leaves(knowledge, "knowledge."), "head": head_leaves(model, "head.")}
    parts["knowledge_connector"] = connector_leaves(knowledge.align_size, width, "knowledge_connector.")
    for name, encoder in encoders.items():
        parts[f"{name}_encoder"] = vit_leaves(encoder, f"{name}_encoder.tower.")
        parts[f"{name}_connector"] = connector_leaves(_token_size(encoder), width, f"{name}_connector.")
    newline = "image_connector.newline" if model.image_newline else ""
    parts["image_connector"] = connector_leaves(
        _token_size(model.image_encoder), width, "image_connector.", model.image_connector, newline
    )
    return [leaf for name, leaves in parts.items() for leaf in under(name, leaves)]


def segformer_leaves(cfg: SegformerConfig, order: tuple[int, ...]) -> list[Leaf]:
    """Rows of `models.segformer.Segformer`, both collections.

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
        leaves.append(Leaf(f"batch_stats/head/batch_norm/{ours}", (width,), f"decode_head.batch_norm.{theirs}", (0,)))
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


def _vit_layers(cfg: VitConfig | ClipTextConfig, root: str = "", names: Names = _CLIP_NAMES) -> list[Leaf]:
    d, hidden = cfg.hidden_size, cfg.intermediate_size
    layer = [leaf for i, name in enumerate(names.norms, 1) for leaf in _norm(f"norm{i}", name, d)]
    for name in ("q_proj", "k_proj", "v_proj"):
        layer += _linear(f"attn/{name}", f"{names.attention}.{name}", d, d, lora=cfg.lora)
    layer += _linear("attn/out_proj", f"{names.attention}.{names.out}", d, d, lora=cfg.lora)
    layer += _linear("mlp/fc1", "mlp.fc1", d, hidden, lora=cfg.lora)
    layer += _linear("mlp/fc2", "mlp.fc2", hidden, d, lora=cfg.lora)
    if isinstance(cfg, VitConfig) and cfg.layer_scale:
        layer += [Leaf(f"layer_scale{i}", (d,), f"layer_scale{i}.lambda1", (0,)) for i in (1, 2)]
    return _stack(layer, root + names.layers, cfg.num_layers)


def _stack(layer: Sequence[Leaf], key: str, num_layers: int) -> list[Leaf]:
    """Turns the rows of one layer into rows of leaves stacked under `layers/`."""
    return [
        replace(
            leaf,
            path=f"layers/{leaf.path}",
            shape=(num_layers, *leaf.shape),
            key=f"{key}.{{}}.{leaf.key}",
            gguf=leaf.gguf and f"blk.{{}}.{leaf.gguf}",
            layers=num_layers,
        )
        for leaf in layer
    ]


def _linear(
    path: str,
    key: str,
    size_in: int,
    size_out: int,
    *,
    bias: bool = True,
    lora: LoraConfig = _NO_LORA,
    gguf: str = "",
    heads: int = 0,
) -> list[Leaf]:
    weight, offset = (gguf and f"{gguf}.{name}" for name in ("weight", "bias"))
    leaves = [Leaf(f"{path}/kernel", (size_in, size_out), f"{key}.weight", (1, 0), weight, heads)]
    if bias:
        leaves.append(Leaf(f"{path}/bias", (size_out,), f"{key}.bias", (0,), offset, heads))
    if lora.rank and path.rpartition("/")[2] in lora.targets:
        leaves.append(Leaf(f"{path}/lora_a", (size_in, lora.rank), f"{key}.lora_A.weight", (1, 0)))
        leaves.append(Leaf(f"{path}/lora_b", (lora.rank, size_out), f"{key}.lora_B.weight", (1, 0)))
    return leaves


def _norm(path: str, key: str, features: int) -> list[Leaf]:
    return [
        Leaf(f"{path}/scale", (features,), f"{key}.weight", (0,)),
        Leaf(f"{path}/bias", (features,), f"{key}.bias", (0,)),
    ]


def _conv(path: str, key: str, size: int, size_in: int, size_out: int) -> list[Leaf]:
    return [
        Leaf(f"{path}/kernel", (size, size, size_in, size_out), f"{key}.weight", (2, 3, 1, 0)),
        Leaf(f"{path}/bias", (size_out,), f"{key}.bias", (0,)),
    ]


def _token_size(encoder: VitConfig) -> int:
    return encoder.hidden_size * encoder.merge**2


def under(prefix: str, leaves: Iterable[Leaf]) -> list[Leaf]:
    """Puts leaves below `prefix/`."""
    return [replace(leaf, path=f"{prefix}/{leaf.path}") for leaf in leaves]


def adapters(leaves: Iterable[Leaf]) -> list[Leaf]:
    """Returns the rows of LoRA adapters, A before B."""
    return [leaf for leaf in leaves if leaf.path.endswith(("/lora_a", "/lora_b"))]


def without_adapters(leaves: Iterable[Leaf]) -> list[Leaf]:
    """Returns the rows that a base has."""
    return [leaf for leaf in leaves if not leaf.path.endswith(("/lora_a", "/lora_b"))]

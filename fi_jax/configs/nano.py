"""The next bundled model (0.4), stage 2 (instruction tuning): SmolLM2-135M-Instruct with LoRA, small ViTs, real faces.

Starts from stage 1 (`nano_align`): `fi-jax train nano_align && fi-jax train nano`, on one GPU with `--model.dtype bfloat16`
(benchmarks/nano). Data roots are flags: `--data.sources.0.root DIR`.
"""

from fi_jax.config import (
    DataConfig,
    Experiment,
    KnowledgeConfig,
    LlmConfig,
    LoraConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
    VitConfig,
    WeightsConfig,
)

SMOLLM2 = LlmConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rope_theta=100000.0,
    rms_norm_eps=1e-5,
    tie_embeddings=True,
    max_position_embeddings=8192,
    lora=LoraConfig(rank=8, alpha=16.0),
)

MODEL = ModelConfig(
    # 144 patches, which the LLM sees as 36 tokens.
    image_encoder=VitConfig(
        image_size=96,
        patch_size=8,
        hidden_size=320,
        intermediate_size=1280,
        num_layers=7,
        num_heads=5,
        feature_layer=-1,
        merge=2,
        pool="mean",
        drop_path=0.1,
    ),
    segmentation_encoder=VitConfig(
        image_size=96,
        patch_size=16,
        hidden_size=160,
        intermediate_size=640,
        num_layers=3,
        num_heads=5,
        feature_layer=-1,
        merge=2,
        pool="mean",
    ),
    llm=SMOLLM2,
    knowledge=KnowledgeConfig(prompt_size=576, hidden_size=256, align_size=256, score_graph="lift"),
    dtype="float32",
    remat="none",
)

# FER2013 has more faces than all others together, and expressions alone.
SOURCES = (
    SourceConfig("utkface", root="data/utkface", repeat=2),
    SourceConfig("celeba", root="data/celeba", repeat=2),
    SourceConfig("expw", root="data/expw", repeat=2),
    SourceConfig("fer2013", root="data/fer2013"),
)


def config() -> Experiment:
    return Experiment(
        name="nano",
        model=MODEL,
        weights=WeightsConfig(llm="smollm2", knowledge_connector="words"),
        data=DataConfig(
            sources=SOURCES,
            frame="aligned",
            image_size=112,
            batch_size=64,
            questions_per_face=12,
            segment_length=40,
            short_segment=19,
            augment_strength=0.8,
            cache_in_memory=True,
        ),
        train=TrainConfig(
            stage="instruct",
            steps=3000,
            learning_rate=1e-3,
            warmup_steps=100,
            learning_rate_scales=((r".*_encoder/.*|head/.*|knowledge/.*", 0.1),),
            trainable=(r".*/lora_[ab]", r".*connector/.*", r"knowledge/.*", r"head/.*", r".*_encoder/.*"),
            ema=0.999,
            init_from="runs/nano_align",
        ),
    )

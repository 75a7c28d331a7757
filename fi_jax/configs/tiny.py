"""Tests and first looks: everything random and very small; seconds on a CPU. No pre-trained weights."""

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


def config() -> Experiment:
    vit = VitConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, feature_layer=-1
    )
    llm = LlmConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        lora=LoraConfig(rank=4, alpha=8.0),
    )
    knowledge = KnowledgeConfig(hidden_size=32, align_size=32, prompt_size=48)
    return Experiment(
        name="tiny",
        model=ModelConfig(vit, vit, llm, knowledge, dtype="float32", remat="none"),
        weights=WeightsConfig(text_encoder="random"),
        data=DataConfig(
            sources=(SourceConfig("synthetic_faces", root="count=64"),),
            image_size=32,
            batch_size=8,
            questions_per_face=4,
            segment_length=192,
            template="plain",
        ),
        train=TrainConfig(
            steps=20,
            learning_rate=1e-3,
            warmup_steps=2,
            frozen_dtype="float32",
            trainable=(r".*/lora_[ab]", r".*connector/.*", r"knowledge/.*", r"head/.*", r".*_encoder/.*"),
            checkpoint_every=10,
            log_every=1,
        ),
    )

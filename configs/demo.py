"""`make demo`: fine-tunes the bundled `nano` on procedural faces, whose encoders have only seen photographs."""

from dataclasses import replace

from fi_jax.config import Experiment, LossConfig, SourceConfig, TrainConfig
from fi_jax.weights.bundle import BUNDLED, CONFIG, read_config


def config() -> Experiment:
    base = read_config(BUNDLED / "nano" / CONFIG)
    return replace(
        base,
        name="demo",
        data=replace(
            base.data,
            sources=(SourceConfig("synthetic_faces", root="count=1500"),),
            batch_size=32,
            cache_in_memory=True,
        ),
        loss=LossConfig(lm=0.0, bce=0.0, logic=0.0),
        train=TrainConfig(
            stage="align",
            steps=120,
            learning_rate=1e-3,
            warmup_steps=10,
            frozen_dtype="float32",
            trainable=(r".*_encoder/.*", r"knowledge/.*", r"head/.*"),
            init_from="nano",
            log_every=20,
            checkpoint_every=60,
        ),
    )

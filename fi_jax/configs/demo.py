"""`make demo`: both encoders, the graph and the alignment head from scratch on procedural faces, in minutes on a CPU."""

from dataclasses import replace

import tiny

from fi_jax.config import Experiment, LossConfig, SourceConfig, TrainConfig, VitConfig


def config() -> Experiment:
    base = tiny.config()
    vit = VitConfig(
        image_size=48,
        patch_size=8,
        hidden_size=96,
        intermediate_size=192,
        num_layers=3,
        num_heads=3,
        feature_layer=-1,
    )
    return replace(
        base,
        name="demo",
        model=replace(base.model, image_encoder=vit, segmentation_encoder=vit),
        data=replace(
            base.data,
            sources=(SourceConfig("synthetic_faces", root="count=1500"),),
            image_size=48,
            batch_size=32,
            augment=False,
            cache_in_memory=True,
        ),
        loss=LossConfig(lm=0.0, bce=0.0, logic=0.0),
        train=TrainConfig(
            stage="align",
            steps=300,
            learning_rate=1e-3,
            warmup_steps=40,
            frozen_dtype="float32",
            trainable=(r".*_encoder/.*", r"knowledge/.*", r"head/.*"),
            log_every=50,
            checkpoint_every=100,
        ),
    )

"""The bundled model, stage 1 (knowledge alignment): both encoders, GCN and alignment head, from scratch; no LLM step."""

from dataclasses import replace

import nano

from fi_jax.config import Experiment, LossConfig


def config() -> Experiment:
    base = nano.config()
    return replace(
        base,
        name="nano_align",
        data=replace(base.data, batch_size=512, augment_strength=0.8),
        loss=LossConfig(lm=0.0, bce=0.0, logic=0.0),
        train=replace(
            base.train,
            stage="align",
            steps=4600,
            learning_rate=1.4e-3,
            learning_rate_scales=(),
            warmup_steps=300,
            weight_decay=0.05,
            trainable=(r".*_encoder/.*", r"knowledge/.*", r"head/.*"),
            ema=0.999,
            frozen_dtype="float32",
            init_from="",
        ),
    )

"""`nano`, stage 1 (knowledge alignment): both encoders, GCN and alignment head; no LLM step.

The image encoder comes from `nano_pretrain`; the rest is fresh.
"""

from dataclasses import replace

import nano

from fi_jax.config import Experiment, LossConfig


def config() -> Experiment:
    base = nano.config()
    return replace(
        base,
        name="nano_align",
        data=replace(base.data, batch_size=512, augment_strength=1.0, mixup=0.5),
        loss=LossConfig(lm=0.0, bce=0.0, logic=0.0),
        train=replace(
            base.train,
            stage="align",
            steps=7000,
            learning_rate=1.2e-3,
            learning_rate_scales=((r"image_encoder/.*", 0.7),),
            warmup_steps=300,
            weight_decay=0.05,
            trainable=(r".*_encoder/.*", r"knowledge/.*", r"head/.*"),
            ema=0.999,
            frozen_dtype="float32",
            init_from="runs/nano_pretrain",
        ),
    )

"""A small `nano` for two CPU cores, stage 1: what is bundled until `nano` itself has been trained on a GPU."""

from dataclasses import replace

import nano
import nano_align

from fi_jax.config import Experiment, VitConfig

IMAGE = VitConfig(
    image_size=64,
    patch_size=16,
    hidden_size=256,
    intermediate_size=768,
    num_layers=4,
    num_heads=4,
    feature_layer=-1,
)
MODEL = replace(
    nano.MODEL,
    image_encoder=IMAGE,
    # Parsing 27,000 faces takes a CPU half an hour: this small one does without the segmentation map.
    use_segmentation=False,
    llm=replace(nano.SMOLLM2, lora=replace(nano.SMOLLM2.lora, rank=8, alpha=16.0)),
    knowledge=replace(nano.MODEL.knowledge, hidden_size=256, align_size=256),
)


def config() -> Experiment:
    base = nano_align.config()
    return replace(
        base,
        name="nano_cpu_align",
        model=MODEL,
        data=replace(base.data, image_size=64, batch_size=96),
        train=replace(
            base.train,
            trainable=(r"image_encoder/.*", r"knowledge/.*", r"head/.*"),
            steps=1600,
            learning_rate=2e-3,
            warmup_steps=100,
            ema=0.995,
            log_every=50,
            checkpoint_every=400,
        ),
    )

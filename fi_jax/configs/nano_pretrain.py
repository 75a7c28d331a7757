"""`nano`, stage 0 (masked pre-training): the image encoder reconstructs hidden patches of faces, without labels."""

from dataclasses import replace

import nano

from fi_jax.config import DecoderConfig, Experiment


def config() -> Experiment:
    base = nano.config()
    # No layer is dropped: the hidden patches are noise enough.
    model = replace(
        base.model,
        image_encoder=replace(base.model.image_encoder, drop_path=0.0),
        decoder=DecoderConfig(num_layers=2),
    )
    return replace(
        base,
        name="nano_pretrain",
        model=model,
        data=replace(base.data, batch_size=512, augment_strength=0.5),
        train=replace(
            base.train,
            stage="pretrain",
            steps=8000,
            learning_rate=1e-3,
            learning_rate_scales=(),
            warmup_steps=500,
            weight_decay=0.05,
            adam_b2=0.95,
            trainable=(r"image_encoder/.*", r"decoder/.*"),
            ema=0.0,
            frozen_dtype="float32",
            init_from="",
        ),
    )

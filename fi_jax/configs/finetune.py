"""Fine-tunes the bundled model on a table of one's own, on a laptop: first the head, then the LLM's adapters.

fi-jax train finetune --name mine --data.sources.0.name table:my_faces.yaml
"""

from dataclasses import replace

import nano

from fi_jax.config import Experiment, SourceConfig


def config() -> Experiment:
    """The labels of the table beside the model's own; `--data.vocabulary tables` for the table's alone."""
    base = nano.config()
    data = replace(
        base.data,
        sources=(SourceConfig("table:schema.yaml"),),
        # As the bundled model was trained.
        frame="box",
        vocabulary="faces+tables",
        batch_size=4,
        questions_per_face=8,
        open_per_face=0,
        # As long as the longest question.
        segment_length=0,
        short_segment=0,
        augment_strength=0.5,
    )
    train = replace(
        base.train,
        init_from="nano",
        head_steps=400,
        steps=80,
        warmup_steps=5,
        learning_rate=3e-4,
        learning_rate_scales=(),
        trainable=(r"llm/.*/lora_[ab]", r"knowledge_connector/.*"),
        frozen_dtype="float32",
        checkpoint_every=40,
        log_every=10,
        ema=0.0,
    )
    # The head is fitted first, over encoders that stay as they are.
    loss = replace(base.loss, head_bce=0.0, head_logic=0.0)
    # The bundled model's head is Bernoulli, and its language model has learnt to read what such a head says.
    knowledge = replace(base.model.knowledge, head="bernoulli", score_graph="off")
    model = replace(base.model, image_encoder=replace(base.model.image_encoder, drop_path=0.0), knowledge=knowledge)
    return replace(base, name="finetune", model=model, data=data, loss=loss, train=train)

"""Fine-tunes the bundled model on a table of one's own, on a laptop: the head and the LLM's adapters, encoders as they are.

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
        batch_size=8,
        questions_per_face=4,
        open_per_face=0,
        # As long as the longest question.
        segment_length=0,
        short_segment=0,
        augment_strength=0.5,
    )
    train = replace(
        base.train,
        init_from="nano",
        steps=100,
        warmup_steps=5,
        learning_rate=3e-4,
        learning_rate_scales=(),
        trainable=(r"llm/.*/lora_[ab]", r"knowledge_connector/.*", r"knowledge/.*", r"head/.*"),
        checkpoint_every=50,
        ema=0.0,
    )
    return replace(base, name="finetune", data=data, train=train)

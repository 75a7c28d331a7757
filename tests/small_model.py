"""One small FaceInsight with everything on, and batches about faces that do not exist."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from fi_jax.config import (
    DataConfig,
    Experiment,
    KnowledgeConfig,
    LlmConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
    VitConfig,
    WeightsConfig,
)
from fi_jax.inference.answerer import Answerer
from fi_jax.knowledge.choices import head_groups
from fi_jax.knowledge.logic import RuleTable, compile_rules
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.prompting.builders import slots_of
from fi_jax.prompting.question_sampling import training_sequences
from fi_jax.prompting.sequences import SequenceBuilder
from fi_jax.prompting.templates import template
from fi_jax.training.optimizer import split_params
from fi_jax.training.step import StepInputs
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import init_leaves, param_shapes
from fi_jax.weights.tokenizers import byte_tokenizer

# Few labels, every kind: yes/no, three choices, and rules within and across them.
_FEW = ("Male", "Smiling", "No_Beard", "Goatee", "Mustache", "Young", "Female")


def few_labels() -> Vocabulary:
    """Attributes with rules, gender, age groups and expressions: 23 labels, 9 questions."""
    faces = find_vocabulary("faces")
    keep = [label for label in faces.labels if label.name in _FEW or label.name.startswith(("age:", "expression:"))]
    names = {label.name for label in keep}
    return Vocabulary("few", tuple(keep), tuple(g for g in faces.groups if names.issuperset(g.labels)))


def small_config() -> Experiment:
    """Seconds to compile, everything on: LoRA, both encoders, the graph, every loss term."""
    vit = VitConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, feature_layer=-1
    )
    llm = LlmConfig(
        vocab_size=290,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        lora=LoraConfig(rank=2, alpha=8.0),
    )
    knowledge = KnowledgeConfig(hidden_size=16, align_size=12, prompt_size=20)
    return Experiment(
        name="small",
        model=ModelConfig(vit, replace(vit, patch_size=16), llm, knowledge, dtype="float32", remat="none"),
        weights=WeightsConfig(text_encoder="random"),
        data=DataConfig(image_size=16, batch_size=4, questions_per_face=5, template="plain", augment=False),
        train=TrainConfig(
            steps=10,
            warmup_steps=0,
            learning_rate=1e-2,
            frozen_dtype="float32",
            trainable=(r".*/lora_[ab]", r".*connector/.*", r"knowledge/.*", r"head/.*", r".*_encoder/.*"),
        ),
    )


@dataclass(frozen=True)
class Small:
    """One small FaceInsight with everything that a training step takes."""

    config: Experiment
    vocabulary: Vocabulary
    builder: SequenceBuilder
    # Flat; every leaf random, LoRA B too, so that nothing is zero by its initialisation.
    leaves: dict[str, jax.Array]
    inputs: StepInputs
    trained: dict[str, jax.Array]
    batch: dict[str, np.ndarray]

    def batch_of(self, seed: int, faces: int = 4) -> dict[str, np.ndarray]:
        """Random faces with labels that are partly unknown, and the questions drawn about them."""
        return _make_batch(self.vocabulary, self.builder, seed, faces)


def _make_batch(vocabulary: Vocabulary, builder: SequenceBuilder, seed: int, faces: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = len(vocabulary)
    labels = (rng.random((faces, n)) < 0.5).astype(np.float32)
    known = rng.random((faces, n)) < 0.7
    for group in vocabulary.groups:
        at = [vocabulary.index(name) for name in group.labels]
        labels[:, at] = np.eye(len(at), dtype=np.float32)[rng.integers(0, len(at), faces)]
        known[:, at] = (rng.random(faces) < 0.7)[:, None]
    batch = {
        "image": rng.integers(0, 256, (faces, 16, 16, 3), dtype=np.uint8),
        "mask": rng.integers(0, 19, (faces, 16, 16), dtype=np.uint8),
        "labels": labels,
        "known": known,
        "row": np.arange(faces),
        "weight": np.ones(faces, np.float32),
    }
    return training_sequences(batch, builder, vocabulary, (seed,), open_per_face=1)


def make_small() -> Small:
    """Makes it; the same every time."""
    config, vocabulary = small_config(), few_labels()
    builder = SequenceBuilder(
        byte_tokenizer(),
        template(config.data.template),
        vocabulary,
        questions_for(vocabulary),
        slots_of(config.model, vocabulary),
        num_segments=6,
        segment_length=110,
        lm_length=60,
    )
    shapes = param_shapes(config.model)
    rng = np.random.default_rng(0)
    leaves = {
        path: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in init_leaves(config.model, list(shapes), 0).items()
    }
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    n = len(vocabulary)
    graph = rng.random((n, n)).astype(np.float32) * (rng.random((n, n)) < 0.3) + np.eye(n, dtype=np.float32)
    constants = Constants(
        jnp.asarray(rng.normal(size=(n, 20)), jnp.float32),
        jnp.asarray(graph / graph.sum(1, keepdims=True)),
        head_groups(config.model.knowledge, vocabulary),
    )
    rules = RuleTable(*map(jnp.asarray, compile_rules(rules_for(vocabulary), vocabulary)))
    inputs = StepInputs(frozen, constants, rules)
    return Small(config, vocabulary, builder, leaves, inputs, trained, _make_batch(vocabulary, builder, 1, 4))


def small_answerer(config: Experiment) -> Answerer:
    """An answerer of random leaves, adapters too, and random prompts without correlation."""
    rng = np.random.default_rng(0)
    leaves = init_leaves(config.model, list(param_shapes(config.model)), 0)
    leaves = {path: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
    n = len(find_vocabulary(config.data.vocabulary))
    constants = Constants(jnp.asarray(rng.normal(size=(n, 20)), jnp.float32), jnp.eye(n))
    return Answerer(config, unflatten(leaves), constants, byte_tokenizer(), {})

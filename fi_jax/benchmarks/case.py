"""One thing to measure, and the arrays it needs: random weights made on the device, a batch of the right shapes."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from fi_jax.config import Experiment, MeshConfig, VitConfig
from fi_jax.knowledge.choices import head_groups
from fi_jax.knowledge.logic import RuleTable, compile_rules
from fi_jax.knowledge.score_graph import Relations
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.models.face_insight import Constants
from fi_jax.parallel.mesh import make_mesh
from fi_jax.prompting.builders import slots_of

# Text tokens of the prefix (system prompt) and of one question: 64 in all a question, as `--what` counts them.
PREFIX_TEXT, QUESTION_TEXT = 40, 24
# Tokens of a free-form answer that the token loss acts on.
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Case:
    """What is measured: a config, faces at once (of all devices together), and how often the timed call is repeated."""

    config: Experiment
    batch: int
    repeats: int = 5
    new_tokens: int = 64
    questions: int = 40


def named_mesh(config: MeshConfig) -> MeshConfig:
    """The mesh that a benchmark runs on: an axis of -1 ("what is left") counts as 1.

    So a figure does not change with the number of devices that happen to be there.
    """
    return MeshConfig(*(max(size, 1) for size in (config.data, config.fsdp, config.tensor)))


def num_devices(config: MeshConfig) -> int:
    """Devices of `named_mesh(config)`; nothing is asked of JAX."""
    named = named_mesh(config)
    return math.prod((named.data, named.fsdp, named.tensor))


def mesh_of(config: Experiment) -> Mesh:
    """Lays the first devices out as `named_mesh`. Raises `UserError` when there are fewer."""
    return make_mesh(named_mesh(config.mesh), jax.devices()[: num_devices(config.mesh)])


def counted_tokens(config: Experiment) -> int:
    """Tokens of one question about one face as others count them: visual and text, without our knowledge tokens."""
    slots = slots_of(config.model, vocabulary(config.data.vocabulary))
    return slots.image + slots.segmentation + PREFIX_TEXT + QUESTION_TEXT


def small(config: Experiment) -> Experiment:
    """The same structure with tiny sizes: seconds on a CPU."""
    lora = config.model.segmentation_encoder.lora
    vit = VitConfig(28, 14, 32, 64, 2, 4, lora=replace(lora, rank=min(lora.rank, 4)))
    llm = replace(
        config.model.llm,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        lora=replace(config.model.llm.lora, rank=min(config.model.llm.lora.rank, 4)),
    )
    knowledge = replace(config.model.knowledge, hidden_size=32, align_size=32, prompt_size=48)
    model = replace(
        config.model,
        image_encoder=replace(vit, lora=config.model.image_encoder.lora),
        segmentation_encoder=vit,
        llm=llm,
        knowledge=knowledge,
    )
    return replace(config, model=model, data=replace(config.data, image_size=28))


def random_leaves(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    dtype: str,
    shardings: Mapping[str, Sharding] | None = None,
    seed: int = 0,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda leaves: leaves,
    unrolled: bool = False,
) -> dict[str, Any]:
    """Random values of the size that training leaves behind, made in `dtype`, leaf by leaf, where they belong.

    Not zeros: matrix products of zeros run measurably faster. Norm scales are one, so that activations stay bounded.

    Args:
      shardings: of every leaf by path, so that no device ever holds the whole model; None for the default device.
      prepare: done to each leaf once it is made, so that a model in 8 bits never lies there in 16.
      unrolled: the LLM's layers are made one by one.
    """
    leaves: dict[str, Any] = {}
    for number, (path, shape) in enumerate(shapes.items()):
        sharding = None if shardings is None else shardings[path]
        key = jax.random.key(seed + number, impl="rbg")

        def make(shape, key, path=path, sharding=sharding):
            if path.endswith("scale") and "norm" in path:
                return jnp.ones(shape, dtype, device=sharding)
            return _generator(shape, dtype, sharding)(key)

        if unrolled and path.startswith("llm/layers/") and sharding is None:
            keys = jax.random.split(key, shape.shape[0])
            layers: dict[str, tuple] = {path: ()}
            for own in keys:
                for part, (layer,) in prepare({path: (make(shape.shape[1:], own),)}).items():
                    layers[part] = (*layers[part], layer)
            leaves |= layers
        else:
            leaves |= prepare({path: make(shape.shape, key)})
    return leaves


@functools.cache
def _generator(shape, dtype, sharding):
    return jax.jit(lambda key: jax.random.uniform(key, shape, dtype, -0.02, 0.02), out_shardings=sharding)


def random_constants(config: Experiment, seed: int = 0) -> Constants:
    """T_p^0 and a sparse Ĉ of the right shapes."""
    words = vocabulary(config.data.vocabulary)
    n = len(words)
    rng = np.random.default_rng(seed)
    graph = np.eye(n, dtype=np.float32) * 0.8 + rng.dirichlet(np.full(n, 0.1), n).astype(np.float32) * 0.2
    prompts = rng.normal(size=(n, config.model.knowledge.prompt_size)).astype(np.float32)
    related = Relations(np.log(graph + 0.1), np.full(n, 0.3)) if config.model.knowledge.score_graph != "off" else None
    groups = head_groups(config.model.knowledge, words)
    return Constants(jnp.asarray(prompts), jnp.asarray(graph), groups, related)


def rule_table(config: Experiment) -> RuleTable:
    """The vocabulary's rules on the device."""
    words = vocabulary(config.data.vocabulary)
    return jax.tree.map(jnp.asarray, compile_rules(rules_for(words), words))


def random_batch(config: Experiment, faces: int, questions: int, seed: int = 0) -> dict[str, jax.Array]:
    """A batch of the contract (docs/architecture.md): `questions` yes/no questions a face; one is free-form if alone."""
    rng = np.random.default_rng(seed)
    n = len(vocabulary(config.data.vocabulary))
    slots = slots_of(config.model, vocabulary(config.data.vocabulary))
    top, size = config.model.llm.vocab_size - 1, config.data.image_size
    prefix = np.concatenate(
        [
            rng.integers(1, top, PREFIX_TEXT // 2),
            np.full(slots.image, -1),
            np.full(slots.segmentation, -2),
            np.full(slots.knowledge, -3),
            rng.integers(1, top, PREFIX_TEXT - PREFIX_TEXT // 2),
        ]
    )
    answer = ANSWER_TOKENS if questions == 1 else 0
    yes = rng.integers(0, 2, (faces, questions)).astype(np.float32)
    batch: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (faces, size, size, 3)).astype(np.uint8),
        "mask": rng.integers(0, 19, (faces, size, size)).astype(np.uint8),
        "labels": rng.integers(0, 2, (faces, n)).astype(np.float32),
        "known": np.ones((faces, n), bool),
        "weight": np.ones(faces, np.float32),
        "prefix_tokens": np.broadcast_to(prefix, (faces, len(prefix))).astype(np.int32),
        "segment_tokens": rng.integers(1, top, (faces, questions, QUESTION_TEXT)).astype(np.int32),
        "segment_valid": np.ones((faces, questions, QUESTION_TEXT), bool),
        "answer_position": np.full((faces, questions), QUESTION_TEXT - 1 - answer, np.int32),
        "option_tokens": np.broadcast_to([3, 4], (faces, questions, 2)).astype(np.int32),
        "option_labels": np.stack([np.arange(questions) % n, np.full(questions, -1)], -1)[None].repeat(faces, 0),
        "option_targets": np.stack([yes, 1 - yes], -1),
        "lm_positions": np.broadcast_to(QUESTION_TEXT - 1 - answer + np.arange(answer), (faces, answer)),
        "lm_targets": rng.integers(1, top, (faces, answer)).astype(np.int32),
        "lm_weights": np.ones((faces, answer), np.float32),
    }
    for key in ("option_labels", "lm_positions"):
        batch[key] = batch[key].astype(np.int32)
    return jax.tree.map(jnp.asarray, batch)

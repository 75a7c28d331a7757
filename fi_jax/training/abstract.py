"""The training step ahead of time: its arguments as shapes and shardings, and the program compiled from them.

No data and no weights are needed; plans, benchmarks and compile tests use it.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fi_jax.config import Experiment
from fi_jax.knowledge.choices import head_groups
from fi_jax.knowledge.logic import RuleTable, compile_rules
from fi_jax.knowledge.score_graph import Relations
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.schema import find_vocabulary
from fi_jax.models.face_insight import Constants, FaceInsight
from fi_jax.models.layer_stack import prepare_frozen
from fi_jax.parallel.memory import TEXT_TOKENS
from fi_jax.parallel.mesh import run_on
from fi_jax.parallel.rules import activation_scope, batch_sharding, gather_small, replicated, state_shardings
from fi_jax.training.optimizer import make_optimizer, split_params
from fi_jax.training.state import TrainState, init_state
from fi_jax.training.step import StepInputs, add_pixels, forward, jit_step
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import param_shapes


class AbstractStep(NamedTuple):
    """Arguments of the step as shapes. `state` and `inputs` carry shardings when made for a mesh."""

    state: TrainState
    inputs: StepInputs
    batch: dict[str, Any]


def split_shapes(config: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(trained, frozen)` parameter shapes, flat; nothing is computed."""
    return split_params(unflatten(param_shapes(config.model)), config.train.trainable)


def batch_shapes(config: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global batch; the text of the prefix is taken to be `TEXT_TOKENS` long."""
    vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
    questions = questions_for(vocabulary)
    data, model = config.data, config.model
    b, n, side = data.batch_size, len(vocabulary), data.image_size
    batch = {
        "image": ((b, side, side, 3), jnp.uint8),
        "mask": ((b, side, side), jnp.uint8),
        "labels": ((b, n), jnp.float32),
        "known": ((b, n), jnp.bool_),
        "weight": ((b,), jnp.float32),
    }
    if config.train.stage == "instruct":
        segmentation = model.segmentation_encoder.num_tokens if model.use_segmentation else 0
        p = TEXT_TOKENS + model.image_slots + segmentation + n * model.knowledge.tokens
        q = (data.questions_per_face or len(questions)) + data.open_per_face
        s, k = data.segment_length, max(len(question.options) for question in questions)
        m = (s + 2) if data.open_per_face else 0
        batch |= {
            "prefix_tokens": ((b, p), jnp.int32),
            "segment_tokens": ((b, q, s), jnp.int32),
            "segment_valid": ((b, q, s), jnp.bool_),
            "answer_position": ((b, q), jnp.int32),
            "option_tokens": ((b, q, k), jnp.int32),
            "option_labels": ((b, q, k), jnp.int32),
            "option_targets": ((b, q, k), jnp.float32),
            "lm_positions": ((b, m), jnp.int32),
            "lm_targets": ((b, m), jnp.int32),
            "lm_weights": ((b, m), jnp.float32),
        }
    return {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, dtype) in batch.items()}


def abstract_step(config: Experiment, mesh: Mesh) -> AbstractStep:
    """The step's arguments as shapes with the shardings that training gives them on `mesh`."""
    config = run_on(config, mesh)
    trained, frozen = split_shapes(config)
    vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
    n = len(vocabulary)
    state = jax.eval_shape(lambda leaves: init_state(leaves, make_optimizer(config.train), config.train), trained)
    groups = head_groups(config.model.knowledge, vocabulary)
    related = Relations(_shape((n, n)), _shape((n,))) if config.model.knowledge.score_graph != "off" else None
    constants = Constants(_shape((n, config.model.knowledge.prompt_size)), _shape((n, n)), groups, related)
    rules = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype),
        compile_rules(rules_for(vocabulary), vocabulary),
    )
    frozen = {path: jax.ShapeDtypeStruct(leaf.shape, config.train.frozen_dtype) for path, leaf in frozen.items()}
    frozen = jax.eval_shape(partial(prepare_frozen, model=config.model), frozen)
    everywhere = replicated(mesh)
    return AbstractStep(
        _with(state, state_shardings(state, mesh)),
        StepInputs(
            _with(frozen, state_shardings(frozen, mesh)),
            jax.tree.map(lambda x: _placed(x, everywhere), constants),
            jax.tree.map(lambda x: _placed(x, everywhere), RuleTable(*rules)),
        ),
        {key: _placed(value, batch_sharding(mesh)) for key, value in batch_shapes(config).items()},
    )


def trace_step(config: Experiment, mesh: Mesh) -> Any:
    """Traces the step from shapes alone; `.jaxpr` is what it computes, `.lower().compile()` its program for `mesh`.

    For CPUs, which stand for other devices here, flash attention is compiled as plain attention and unrolled layers as a
    loop: what is sent between devices is the same, and a CPU's compiler would take many minutes.
    """
    config = _compilable(config, mesh)
    step = abstract_step(config, mesh)
    with activation_scope(mesh, config.model):
        return jit_step(config, step.state, mesh).trace(*step)


def trace_answers(config: Experiment, mesh: Mesh) -> Any:
    """Traces the answers to all questions of a batch, as `trace_step`: no gradients, every parameter in `frozen_dtype`."""
    config = replace(_compilable(config, mesh), train=replace(config.train, trainable=(), learning_rate_scales=()))
    step = abstract_step(config, mesh)
    model = FaceInsight(run_on(config, mesh).model)

    def answers(inputs: StepInputs, batch: dict[str, Any]):
        params = gather_small(unflatten(inputs.frozen))
        return forward(model, params, inputs.constants, add_pixels(batch, config, None), stage="instruct", key=None)

    with activation_scope(mesh, config.model):
        return jax.jit(answers).trace(step.inputs, step.batch)


def _compilable(config: Experiment, mesh: Mesh) -> Experiment:
    if mesh.devices.flat[0].platform != "cpu":
        return config
    return replace(config, model=replace(config.model, attention="xla", scan_layers=True))


def _shape(shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _with(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(_placed, tree, shardings)


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

"""The assembled model: shared prefix against one question at a time, the knowledge gate, and what can be left out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import MeshConfig
from fi_jax.models.batch import KNOWLEDGE_SLOT, SEGMENTATION_SLOT
from fi_jax.models.face_insight import Alignment, FaceInsight, _fill, label_probs
from fi_jax.parallel.collectives import collectives
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import batch_sharding
from fi_jax.prompting.builders import slots_of
from fi_jax.training.step import add_pixels
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import param_shapes


def run(small, batch, config=None, leaves=None, constants=None):
    config = config or small.config.model
    model = FaceInsight(config)
    apply = jax.jit(lambda params, batch, constants: model.apply({"params": params}, batch, constants))
    return apply(unflatten(leaves or small.leaves), batch, constants or small.inputs.constants)


@pytest.fixture(scope="module")
def batch(small):
    return add_pixels(small.batch, small.config, None)


@pytest.fixture(scope="module")
def said(small, batch):
    return run(small, batch)


def one_question_at_a_time(batch: dict) -> dict:
    """The same questions, each behind a prefix of its own."""
    b, q, s = batch["segment_tokens"].shape
    per_face = ("pixels", "map_pixels", "prefix_tokens")
    single = {key: jnp.repeat(jnp.asarray(batch[key]), q, axis=0) for key in per_face}
    for key in ("segment_tokens", "answer_position", "option_tokens"):
        single[key] = jnp.asarray(batch[key]).reshape(b * q, 1, *batch[key].shape[2:])
    # Every position of every segment.
    single["lm_positions"] = jnp.tile(jnp.arange(s), (b * q, 1))
    return single


def test_one_shared_prefix_equals_one_question_at_a_time(small, batch, said):
    b, q, s = batch["segment_tokens"].shape
    single = run(small, one_question_at_a_time(batch))
    _, options, tokens = said
    asked = np.asarray(batch["option_tokens"] >= 0)
    separate = np.asarray(single[1]).reshape(b, q, -1)
    np.testing.assert_allclose(np.asarray(options)[asked], separate[asked], atol=1e-4)
    real = batch["lm_weights"] > 0
    own = np.asarray(single[2]).reshape(b, q * s, -1)
    separate = np.take_along_axis(own, batch["lm_positions"][..., None], 1)
    np.testing.assert_allclose(np.asarray(tokens)[real], separate[real], atol=1e-4)
    assert np.asarray(options)[asked].std() > 0.1


def test_padding_of_a_segment_says_nothing(small, batch, said):
    # Other tokens where nothing is valid.
    junk = np.where(batch["segment_valid"], batch["segment_tokens"], 7).astype(np.int32)
    asked = np.asarray(batch["option_tokens"] >= 0)
    other = run(small, {**batch, "segment_tokens": junk})
    np.testing.assert_allclose(np.asarray(other[1])[asked], np.asarray(said[1])[asked], atol=1e-5)


def test_pictures_maps_and_labels_reach_the_answers(small, batch, said):
    asked = np.asarray(batch["option_tokens"] >= 0)
    for key in ("pixels", "map_pixels"):
        other = run(small, {**batch, key: jnp.asarray(batch[key])[::-1]})
        assert np.abs(np.asarray(other[1] - said[1]))[asked].max() > 1e-3
        assert np.abs(np.asarray(other[0] - said[0])).max() > 1e-3
    constants = small.inputs.constants._replace(graph=jnp.eye(len(small.vocabulary)))
    other = run(small, batch, constants=constants)
    assert np.abs(np.asarray(other[1] - said[1]))[asked].max() > 1e-3


@pytest.mark.slow
def test_every_parameter_has_a_part_in_what_is_said(small, batch):
    """Gradients of everything said, with respect to everything: no leaf is dead."""
    model = FaceInsight(small.config.model)

    @jax.jit
    def slopes(params):
        def loss(params):
            scores, options, tokens = model.apply({"params": params}, batch, small.inputs.constants)
            options = jnp.where(batch["option_tokens"] >= 0, options, 0.0)
            return jnp.sin(scores).sum() + jnp.sin(options).sum() + jnp.sin(tokens).sum()

        return jax.grad(loss)(params)

    found = jax.tree_util.tree_flatten_with_path(slopes(unflatten(small.leaves)))[0]
    dead = [jax.tree_util.keystr(path) for path, leaf in found if not (np.abs(np.asarray(leaf)) > 0).any()]
    assert not dead


def test_the_gate_is_the_alignment_probability(small):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, len(small.vocabulary))), jnp.float32)
    prompts = jnp.asarray(np.random.default_rng(1).normal(size=(len(small.vocabulary), 12)), jnp.float32)

    groups = small.inputs.constants.groups
    probs = label_probs(scores, groups)
    # Ages and gender are choices: their gates sum to 1.
    np.testing.assert_allclose(np.asarray(probs) @ groups.T, 1, atol=1e-5)

    def tokens(gated: bool, prompts):
        model = replace(small.config.model, knowledge=replace(small.config.model.knowledge, gated=gated))
        return FaceInsight(model).apply(
            {"params": unflatten(small.leaves)}, Alignment(scores, prompts, probs), method="knowledge_tokens"
        )

    gated, plain = tokens(True, prompts), tokens(False, prompts)
    assert gated.shape == plain.shape == (2, len(small.vocabulary), 32)
    np.testing.assert_array_equal(plain[0], plain[1])
    for face in range(2):
        scaled = tokens(False, prompts * probs[face][:, None])
        np.testing.assert_allclose(gated[face], scaled[face], rtol=1e-4, atol=1e-6)


def test_without_ccm_as_many_tokens_and_no_graph(small, batch):
    knowledge = replace(small.config.model.knowledge, enabled=False)
    model = replace(small.config.model, knowledge=knowledge)
    assert slots_of(model, small.vocabulary) == slots_of(small.config.model, small.vocabulary)
    shapes = param_shapes(model)
    assert {path for path in shapes if path.startswith("knowledge/")} == {"knowledge/residual/kernel"}
    leaves = {path: small.leaves[path] for path in shapes}
    first = run(small, batch, model, leaves)
    other = run(small, batch, model, leaves, small.inputs.constants._replace(graph=small.inputs.constants.graph * 0))
    np.testing.assert_array_equal(first[1], other[1])


def test_without_segmentation_the_map_is_gone_from_model_and_sequence(small, batch):
    model = replace(small.config.model, use_segmentation=False)
    slots = slots_of(model, small.vocabulary)
    assert slots.segmentation == 0 and slots.image == 4 and slots.knowledge == len(small.vocabulary)
    shapes = param_shapes(model)
    assert not [path for path in shapes if "segmentation" in path]
    # The other leaves are the same ones.
    assert set(shapes) == {path for path in small.leaves if "segmentation" not in path}
    leaves = {path: small.leaves[path] for path in shapes}
    kept = batch["prefix_tokens"][0] != SEGMENTATION_SLOT
    shorter = {**batch, "prefix_tokens": batch["prefix_tokens"][:, kept]}
    first = run(small, shorter, model, leaves)
    other = run(small, {**shorter, "map_pixels": shorter["map_pixels"] * 0}, model, leaves)
    np.testing.assert_array_equal(first[1], other[1])


def test_slots_are_filled_in_order(small):
    x = jnp.zeros((2, 6, 3))
    slots = jnp.array([[True, False, True, True, False, False], [False, True, True, False, True, False]])
    tokens = jnp.arange(18, dtype=jnp.float32).reshape(2, 3, 3) + 1
    filled = np.asarray(_fill(x, slots, tokens))
    for row in range(2):
        np.testing.assert_array_equal(filled[row][np.asarray(slots)[row]], tokens[row])
        assert (filled[row][~np.asarray(slots)[row]] == 0).all()


def test_prefixes_have_a_slot_for_every_token(small):
    prefix, slots = small.builder.prefix, slots_of(small.config.model, small.vocabulary)
    assert [(prefix == slot).sum() for slot in (-1, -2, -3)] == [slots.image, slots.segmentation, slots.knowledge]
    assert (prefix == KNOWLEDGE_SLOT).sum() == len(small.vocabulary)


def test_scores_are_scaled_cosines(small, said):
    """s = exp(t)·cos + b, so no score leaves [b − exp(t), b + exp(t)]."""
    scale, bias = np.exp(small.leaves["head/log_scale"]), np.asarray(small.leaves["head/bias"])
    cosine = (np.asarray(said[0]) - bias) / scale
    assert np.abs(cosine).max() <= 1 + 1e-5 and cosine.std() > 1e-3


def test_filling_slots_sends_nothing_between_devices():
    """Faces do not mix, and the partitioner sees it: neither tokens nor their gradients cross."""
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])

    def shape(size, dtype):
        return jax.ShapeDtypeStruct(size, dtype, sharding=batch_sharding(mesh))

    def loss(x, slots, tokens):
        return jnp.square(_fill(x, slots, tokens)).sum(axis=(1, 2))

    def grads(*arguments):
        return jax.vjp(lambda x, tokens: loss(x, arguments[1], tokens), arguments[0], arguments[2])[1](jnp.ones(4))

    arguments = shape((4, 9, 8), jnp.float32), shape((4, 9), bool), shape((4, 3, 8), jnp.float32)
    text = jax.jit(grads, out_shardings=batch_sharding(mesh)).lower(*arguments).compile().as_text()
    assert collectives(text) == []

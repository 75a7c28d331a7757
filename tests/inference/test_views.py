"""What a model sees of a face: scores over picture and mirror image are the mean of both; some questions see it nearer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.data.synthetic.face import draw_face
from fi_jax.faces.alignment import nearer
from fi_jax.faces.masks import flip
from fi_jax.inference.answerer import Answerer, OptionProbabilities
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import init_leaves, param_shapes


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), rng.integers(0, 19, (3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def answerer():
    """By its head alone."""
    config = load_config("tiny", [])
    config = replace(config, model=replace(config.model, dtype="float32"))
    leaves = init_leaves(config.model, list(param_shapes(config.model)), 0)
    params = unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    n = len(vocabulary(config.data.vocabulary))
    prompts = jax.random.normal(jax.random.key(1), (n, config.model.knowledge.prompt_size))
    return Answerer(config, params, Constants(prompts, jnp.eye(n)), None, {})


@pytest.fixture(scope="module")
def scores(faces, answerer):
    """Label scores of pictures and of their mirror images, without and with `mirror`."""
    image, mask = faces
    found = {}
    for mirror in (False, True):
        answerer.info = {"mirror": mirror}
        views = ((image, mask), (image[:, :, ::-1], flip(mask)))
        found[mirror] = [np.asarray(answerer.faces(*view)[1].scores) for view in views]
    return found


def test_a_picture_and_its_mirror_image_score_the_same(scores):
    np.testing.assert_allclose(scores[True][0], scores[True][1], atol=1e-5)
    assert np.abs(scores[False][0] - scores[False][1]).max() > 1e-3


def test_it_is_the_mean_of_both_views(scores):
    np.testing.assert_allclose(scores[True][0], (scores[False][0] + scores[False][1]) / 2, atol=1e-5)


def test_a_question_sees_the_face_as_the_model_says(answerer):
    """Answers come in the questions' order, of the faces as they are or brought nearer."""
    drawn = [draw_face(seed, 0, 64) for seed in (3, 5, 7)]
    image, mask = np.stack([face.image for face in drawn]), np.stack([face.mask for face in drawn])
    near = [np.stack(part) for part in zip(*map(nearer, image, mask), strict=True)]
    bank = {question.name: question for question in questions_for(answerer.vocabulary)}
    questions = [bank[name] for name in ("Smiling", "gender", "expression", "age_years", "Male")]

    def asked(image, mask, info):
        answerer.info = info
        return answerer.answer(image, mask, questions, by_llm=False).head

    far, close = asked(image, mask, {}), asked(*near, {})
    found = asked(image, mask, {"nearer": ["gender", "age_years", "Male"]})
    np.testing.assert_allclose(found[:, [0, 2]], far[:, [0, 2]], atol=1e-6)
    np.testing.assert_allclose(found[:, [1, 3, 4]], close[:, [1, 3, 4]], atol=1e-6)
    assert np.abs(far - close)[:, [1, 3]].max() > 1e-3


def test_answers_of_two_passes_are_put_together():
    few, wide = np.full((2, 1, 2), 0.5, np.float32), np.full((2, 2, 3), 0.25, np.float32)
    both = OptionProbabilities(few, None, None).with_others([1], OptionProbabilities(wide, few, None), [0, 2])
    assert both.head is None and both.llm.shape == (2, 3, 3)
    np.testing.assert_array_equal(both.llm[0], [[0.25] * 3, [0.5, 0.5, 0], [0.25] * 3])

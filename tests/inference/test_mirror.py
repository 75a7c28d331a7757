"""Scores over picture and mirror image: the mean of both, and therefore the same for either."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.faces.masks import flip
from fi_jax.inference.answerer import Answerer
from fi_jax.labels.registry import vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import init_leaves, param_shapes


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), rng.integers(0, 19, (3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def scores(faces):
    """Label scores of pictures and of their mirror images, without and with `mirror`."""
    config = load_config("tiny", [])
    config = replace(config, model=replace(config.model, dtype="float32"))
    leaves = init_leaves(config.model, list(param_shapes(config.model)), 0)
    params = unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    n = len(vocabulary(config.data.vocabulary))
    prompts = jax.random.normal(jax.random.key(1), (n, config.model.knowledge.prompt_size))
    constants = Constants(prompts, jnp.eye(n))
    image, mask = faces
    found = {}
    for mirror in (False, True):
        answerer = Answerer(config, params, constants, None, {"mirror": mirror})
        views = ((image, mask), (image[:, :, ::-1], flip(mask)))
        found[mirror] = [np.asarray(answerer.faces(*view)[1].scores) for view in views]
    return found


def test_a_picture_and_its_mirror_image_score_the_same(scores):
    np.testing.assert_allclose(scores[True][0], scores[True][1], atol=1e-5)
    assert np.abs(scores[False][0] - scores[False][1]).max() > 1e-3


def test_it_is_the_mean_of_both_views(scores):
    np.testing.assert_allclose(scores[True][0], (scores[False][0] + scores[False][1]) / 2, atol=1e-5)

"""Blended faces: what becomes of pixels, labels and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import DataConfig, Experiment, TrainConfig
from fi_jax.errors import UserError
from fi_jax.training.mixup import mixup


def faces(b=64, n=5, seed=0):
    rng = np.random.default_rng(seed)
    pixels, maps = (jnp.asarray(rng.normal(size=(b, 4, 4, 3)), jnp.float32) for _ in range(2))
    return (
        pixels,
        maps,
        jnp.asarray(rng.integers(0, 2, (b, n)), jnp.float32),
        jnp.asarray(rng.integers(0, 2, (b, n)) > 0),
    )


def test_none_is_blended_at_rate_zero():
    given = faces()
    *got, whole = mixup(jax.random.key(0), *given, 0.0)
    for a, b in zip(got, given, strict=True):
        known = np.asarray(given[3]) if a is got[2] else True
        np.testing.assert_array_equal(np.where(known, a, 0), np.where(known, b, 0))
    assert np.asarray(whole).all()


def test_a_share_is_blended_and_keeps_most_of_its_own_face():
    pixels, maps, labels, known = faces(512)
    mixed, mixed_maps, _, _, whole = mixup(jax.random.key(1), pixels, maps, labels, known, 0.6)
    assert 0.5 < 1 - np.asarray(whole).mean() < 0.7
    before = jnp.roll(pixels, 1, 0)
    share = np.asarray(((mixed - before) * (pixels - before)).sum((1, 2, 3)) / ((pixels - before) ** 2).sum((1, 2, 3)))
    assert (share > 0.499).all() and share[~np.asarray(whole)].min() < 0.6
    # The map is blended by the same share as the picture.
    np.testing.assert_allclose(
        mixed_maps,
        share[:, None, None, None] * maps + (1 - share[:, None, None, None]) * jnp.roll(maps, 1, 0),
        atol=1e-4,
    )


def test_the_loss_on_a_blend_is_the_blend_of_both_losses():
    pixels, maps, labels, known = faces(64, 7, 3)
    _, _, blended, weight, whole = mixup(jax.random.key(2), pixels, maps, labels, known, 1.0)
    assert not np.asarray(whole).any()
    scores = jax.random.normal(jax.random.key(5), labels.shape)
    bce = lambda y: jnp.logaddexp(0, scores) - y * scores  # noqa: E731
    with_weight = np.asarray(weight)
    only = np.asarray(known) & ~np.asarray(jnp.roll(known, 1, 0))
    share = np.where(only, with_weight, 0).max(1)
    rows = share > 0
    want = share[:, None] * known * bce(labels) + (1 - share[:, None]) * jnp.roll(known * 1.0, 1, 0) * bce(
        jnp.roll(labels, 1, 0)
    )
    np.testing.assert_allclose((weight * bce(blended))[rows], want[rows], rtol=1e-5, atol=1e-6)


def test_blends_are_for_stage_align_alone():
    with pytest.raises(UserError, match="stage instruct cannot use"):
        Experiment(data=DataConfig(mixup=0.5))
    with pytest.raises(UserError, match="does not go with train.accumulate"):
        Experiment(data=DataConfig(mixup=0.5), train=TrainConfig(stage="align", accumulate=2))
    with pytest.raises(UserError, match=r"data.mixup is 1.5"):
        DataConfig(mixup=1.5)

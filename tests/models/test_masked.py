"""Masked pre-training: what is hidden, what is reconstructed, and that the encoder sees nothing of what is hidden."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.config import DecoderConfig, Experiment, ModelConfig, TrainConfig, VitConfig
from fi_jax.errors import UserError
from fi_jax.models.masked import PatchDecoder, hidden_patches, patch_targets, visible_patches
from fi_jax.models.vit import Vit
from fi_jax.training.losses import mae_loss

ENCODER = VitConfig(
    image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, pool="mean"
)
DECODER = DecoderConfig(num_layers=1, hidden_size=16, num_heads=2)


@given(st.sampled_from([2, 3, 16, 49]), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_visible_and_hidden_patches_are_all_patches_once(patches, ratio, seed):
    keep = visible_patches(jax.random.key(seed), 3, patches, ratio)
    hidden = np.asarray(hidden_patches(keep, patches))
    assert keep.shape[1] == min(max(1, round(patches * (1 - ratio))), patches - 1)
    for row, out in zip(np.asarray(keep), hidden, strict=True):
        assert len(set(row)) == len(row)
        np.testing.assert_array_equal(np.sort(np.concatenate([row, np.nonzero(out)[0]])), np.arange(patches))


def test_pictures_draw_patches_of_their_own():
    keep = np.asarray(visible_patches(jax.random.key(0), 8, 144, 0.75))
    assert keep.shape == (8, 36) and len({tuple(sorted(row)) for row in keep}) == 8


def test_all_patches_kept_in_order_is_the_plain_encoder():
    pixels = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    vit = Vit(replace(ENCODER, feature_layer=-1))
    params = vit.init(jax.random.key(1), pixels)
    plain = vit.apply(params, pixels)
    kept = vit.apply(params, pixels, keep=jnp.broadcast_to(jnp.arange(16), (2, 16)))
    np.testing.assert_allclose(kept.tokens, plain.tokens, atol=1e-6)
    np.testing.assert_allclose(kept.pooled, plain.pooled, atol=1e-6)


def test_hidden_pixels_reach_nothing_and_visible_ones_do():
    pixels = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    keep = visible_patches(jax.random.key(2), 2, 16, 0.75)
    vit, decoder = Vit(ENCODER), PatchDecoder(DECODER, ENCODER, jnp.float32)
    params = vit.init(jax.random.key(1), pixels)
    seen = vit.apply(params, pixels, keep=keep).tokens
    decoder_params = decoder.init(jax.random.key(3), seen, keep)

    def reconstructed(pixels):
        return decoder.apply(decoder_params, vit.apply(params, pixels, keep=keep).tokens, keep)

    assert reconstructed(pixels).shape == (2, 16, 192)
    change = jax.grad(lambda pixels: jnp.sum(reconstructed(pixels) ** 2))(pixels)
    touched = np.abs(change.reshape(2, 4, 8, 4, 8, 3)).sum((2, 4, 5)).reshape(2, 16) > 0
    np.testing.assert_array_equal(touched, ~np.asarray(hidden_patches(keep, 16)))


def test_a_visible_token_stands_in_its_own_place():
    keep = jnp.array([[5, 2]])
    decoder = PatchDecoder(replace(DECODER, num_layers=1), ENCODER, jnp.float32)
    tokens = jax.random.normal(jax.random.key(0), (1, 2, 32))
    params = decoder.init(jax.random.key(1), tokens, keep)
    there = decoder.apply(params, tokens, keep)
    np.testing.assert_allclose(decoder.apply(params, tokens[:, ::-1], keep[:, ::-1]), there, atol=1e-5)
    assert np.abs(decoder.apply(params, tokens[:, ::-1], keep) - there).max() > 1e-3


def test_targets_are_normalised_patches_and_perfect_reconstruction_costs_nothing():
    pixels = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    targets = patch_targets(pixels, 8)
    np.testing.assert_allclose(targets.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(targets.std(-1), 1, atol=1e-3)
    hidden = jnp.zeros((2, 16), bool).at[0, :4].set(True)
    assert mae_loss(targets, targets, hidden) == (0.0, 4)
    # What is reconstructed where the encoder looked does not count.
    off = targets.at[0, 4:].add(1.0).at[1].add(1.0)
    assert float(mae_loss(off, targets, hidden)[0]) == 0.0
    total, count = mae_loss(targets + 2.0, targets, hidden)
    assert float(total / count) == pytest.approx(4.0, rel=1e-5)


def test_a_decoder_and_its_stage_come_together():
    with pytest.raises(UserError, match="needs a decoder"):
        Experiment(train=TrainConfig(stage="pretrain"))
    with pytest.raises(UserError, match="needs a decoder"):
        Experiment(model=ModelConfig(decoder=DECODER))
    with pytest.raises(UserError, match="mask_ratio is 1"):
        DecoderConfig(mask_ratio=1.0)
    Experiment(model=ModelConfig(decoder=DECODER), train=TrainConfig(stage="pretrain"))

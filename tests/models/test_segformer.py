"""SegFormer against transformers' own, its training mode, and its config's checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fi_jax.errors import UserError
from fi_jax.models.segformer import Segformer, SegformerConfig
from fi_jax.weights.huggingface import load_segformer

NAMES = ("background", "skin", "hair", "l_eye", "r_eye")
THEIR_NAMES = ("skin", "r_eye", "background", "l_eye", "hair")
TINY = SegformerConfig(
    5, (1, 1), (8, 12), (1, 3), (4, 2), (7, 3), (4, 2), (2, 3), decoder_hidden_size=10, drop_path=0.5
)


def _theirs(folder, names=THEIR_NAMES, **shape):
    config = transformers.SegformerConfig(
        **{
            "num_encoder_blocks": 3,
            "depths": [1, 2, 1],
            "hidden_sizes": [8, 12, 20],
            "num_attention_heads": [1, 3, 5],
            "sr_ratios": [4, 2, 1],
            "patch_sizes": [7, 3, 3],
            "strides": [4, 2, 2],
            "mlp_ratios": [2, 3, 2],
            "decoder_hidden_size": 10,
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            **shape,
        }
    )
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.decode_head.batch_norm.running_mean.normal_()
    model.decode_head.batch_norm.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("size", [(64, 96), (72, 56)])
def test_equals_transformers_with_classes_matched_by_name(tmp_path, size):
    model = _theirs(tmp_path)
    config, variables, report = load_segformer(tmp_path, NAMES)
    pixels = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    ours = jax.jit(Segformer(config).apply)(variables, pixels)
    with torch.no_grad():
        theirs = model(torch.tensor(pixels.transpose(0, 3, 1, 2))).logits.numpy()
    in_our_order = theirs[:, [THEIR_NAMES.index(name) for name in NAMES]].transpose(0, 2, 3, 1)
    assert np.abs(in_our_order).max() > 1
    np.testing.assert_allclose(ours, in_our_order, atol=1e-4)
    assert report.unused == ("decode_head.batch_norm.num_batches_tracked",)


def test_defaults_are_b0():
    shapes = jax.eval_shape(Segformer(SegformerConfig()).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=19))
    assert ours == sum(parameter.numel() for parameter in theirs.parameters())


def test_training_updates_statistics_and_every_parameter_gets_a_gradient():
    model = Segformer(
        SegformerConfig(5, (2,), (8,), (2,), (2,), (3,), (4,), (2,), decoder_hidden_size=10, drop_path=0.5)
    )
    pixels = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), pixels)

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params},
            pixels,
            True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1, impl="rbg")},
        )
        return (logits**2).mean(), updated

    grads, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    # A bias in front of a softmax over keys moves all logits alike: its gradient is zero.
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    dead = [jax.tree_util.keystr(path) for path, leaf in flat if not np.abs(leaf).max() > 0]
    assert all("k_proj']['bias" in path for path in dead)
    before, after = variables["batch_stats"]["head"]["batch_norm"], updated["batch_stats"]["head"]["batch_norm"]
    assert np.abs(after["mean"] - before["mean"]).max() > 0 and np.abs(after["var"] - before["var"]).max() > 0


def test_a_tuple_of_another_length_is_refused():
    with pytest.raises(UserError, match="segformer.strides has 3 entries for 4 stages"):
        SegformerConfig(strides=(4, 2, 2))


def test_size_multiple_divides_every_stage():
    assert SegformerConfig().size_multiple == 32
    assert TINY.size_multiple == 16


def test_an_unknown_class_is_named(tmp_path):
    _theirs(tmp_path)
    with pytest.raises(UserError, match="does not segment hat, cloth: its id2label names skin, r_eye"):
        load_segformer(tmp_path, ("hat", "skin", "cloth"))

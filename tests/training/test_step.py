"""One optimisation step of the whole small model: what moves, what does not, and what each term of L reaches."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fi_jax.config import LOSS_TERMS, MeshConfig
from fi_jax.models.face_insight import FaceInsight
from fi_jax.models.layer_stack import unstack_layers
from fi_jax.parallel.collectives import collectives
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import batch_sharding
from fi_jax.training.optimizer import make_optimizer, merge_params
from fi_jax.training.state import TrainState, final_leaves, init_state
from fi_jax.training.step import add_pixels, batch_loss, forward, make_step, micro_batches
from fi_jax.trees import unflatten


def start(small, config=None) -> TrainState:
    config = config or small.config
    return init_state(small.trained, make_optimizer(config.train), config.train)


def step_of(config):
    return jax.jit(make_step(config))


@pytest.fixture(scope="module")
def step(small):
    return step_of(small.config)


@pytest.fixture(scope="module")
def after(small, step):
    return step(start(small), small.inputs, small.batch)


def different(a, b) -> bool:
    return bool((np.asarray(a) != np.asarray(b)).any())


def test_every_trained_leaf_moves_and_the_loss_falls(small, step, after):
    state, metrics = after
    assert int(state.step) == 1
    assert set(metrics) == {*LOSS_TERMS, "loss", "grad_norm"} and all(np.isfinite(v) for v in metrics.values())
    assert float(metrics["loss"]) == pytest.approx(sum(float(metrics[name]) for name in LOSS_TERMS), rel=1e-5)
    unmoved = [path for path in small.trained if not different(state.trained[path], small.trained[path])]
    assert not unmoved
    for _ in range(5):
        state, later = step(state, small.inputs, small.batch)
    assert float(later["loss"]) < float(metrics["loss"])
    # The language model itself, and the constants, are no part of the state.
    assert small.inputs.frozen and not set(small.inputs.frozen) & set(state.trained)
    assert all(path.startswith("llm/") and "lora" not in path for path in small.inputs.frozen)


def test_unrolled_layers_take_the_same_step(small, after):
    config = replace(small.config, model=replace(small.config.model, scan_layers=False))
    inputs = small.inputs._replace(frozen=unstack_layers(dict(small.inputs.frozen)))
    assert isinstance(inputs.frozen["llm/layers/attn/q_proj/kernel"], tuple)
    got, want = step_of(config)(start(small), inputs, small.batch), after
    for name, value in want[1].items():
        assert float(got[1][name]) == pytest.approx(float(value), rel=1e-5), name
    # Adam's first moments are gradients; the step itself makes as much of one that is rounding as of any other.
    (moments,) = (part.mu for part in want[0].opt_state if hasattr(part, "mu"))
    (ours,) = (part.mu for part in got[0].opt_state if hasattr(part, "mu"))
    largest = {path: float(jnp.abs(moment).max()) for path, moment in moments.items()}
    # The softmax does not see a key's bias, whose whole gradient is rounding: a ten-millionth of the largest one.
    rounding = 1e-7 * max(largest.values())
    for path, moment in moments.items():
        np.testing.assert_allclose(ours[path], moment, rtol=0, atol=1e-5 * largest[path] + rounding, err_msg=path)


def test_same_step_same_bits(small, step, after):
    again, metrics = step(start(small), small.inputs, small.batch)
    for a, b in zip(jax.tree.leaves((again, metrics)), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_compiles_once_for_every_batch(small, step, after):
    before = step._cache_size()
    state = after[0]
    for seed in (5, 6, 7):
        state, _ = step(state, small.inputs, small.batch_of(seed))
    assert step._cache_size() == before == 1


def test_what_is_unknown_changes_nothing(small, step, after):
    known = small.batch["known"]
    labels = np.where(known, small.batch["labels"], 1 - small.batch["labels"]).astype(np.float32)
    assert different(labels, small.batch["labels"])
    for a, b in zip(
        jax.tree.leaves(step(start(small), small.inputs, {**small.batch, "labels": labels})),
        jax.tree.leaves(after),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_padding_faces_change_nothing(small, step):
    """What stands in a face of weight 0 has no part in metrics or update."""
    batch, other = dict(small.batch), small.batch_of(9)
    batch["weight"] = np.array([1, 1, 1, 0], np.float32)
    swapped = {key: np.concatenate([value[:3], other[key][3:]]) for key, value in batch.items()}
    swapped["weight"] = batch["weight"]
    ours, theirs = (step(start(small), small.inputs, b) for b in (batch, swapped))
    for name, value in ours[1].items():
        np.testing.assert_allclose(value, theirs[1][name], rtol=1e-5, err_msg=name)


def test_micro_batches_send_nothing():
    """Each device's faces are spread over all micro-batches, and none leaves its device."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:8])
    faces = jax.device_put(np.arange(32.0).reshape(16, 2), batch_sharding(mesh))

    def doubled(faces):
        return jax.lax.map(lambda part: part * 2, micro_batches({"faces": faces}, 2)["faces"])

    compiled = (
        jax.jit(doubled, out_shardings=NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))))
        .lower(faces)
        .compile()
    )
    assert collectives(compiled.as_text()) == []
    got = np.asarray(compiled(faces)) / 2
    np.testing.assert_array_equal(got[0], np.asarray(faces)[::2])
    np.testing.assert_array_equal(np.sort(got.reshape(16, 2), axis=0), np.asarray(faces))


@pytest.mark.slow
def test_accumulated_equals_the_whole_batch(small, after):
    """Unequal counts in the micro-batches: half of the first one's labels unknown, one question fewer."""
    batch = {key: np.copy(value) for key, value in small.batch.items()}
    batch["known"][0, ::2] = False
    batch["option_targets"][0, 1:] = 0
    batch["lm_weights"][3] = 0
    # Plain gradients: Adam would divide small differences by small gradients.
    grad = jax.jit(
        jax.value_and_grad(lambda t, b: batch_loss(t, small.inputs, b, jax.random.key(0), small.config, None)[0])
    )
    whole_loss, whole = grad(small.trained, batch)

    from fi_jax.training.step import _accumulated

    config = replace(small.config, train=replace(small.config.train, accumulate=2))

    @jax.jit
    def in_parts(trained, batch):
        inner = jax.value_and_grad(batch_loss, has_aux=True)
        return _accumulated(inner, trained, small.inputs, batch, jax.random.key(0), config)

    terms, parts = in_parts(small.trained, batch)
    total = sum(float(s) / float(c) for s, c in terms.values())
    assert total == pytest.approx(float(whole_loss), rel=1e-5)
    for path, leaf in whole.items():
        scale = float(jnp.abs(leaf).max())
        np.testing.assert_allclose(parts[path], leaf, atol=1e-4 * scale + 1e-7, err_msg=path)


# Term → parts of the model that its gradient must reach, and parts that it must not.
REACH = {
    "lm": (
        ("llm", "image_connector", "segmentation_connector", "knowledge_connector", "image_encoder", "knowledge"),
        (),
    ),
    "bce": (
        ("llm", "image_connector", "segmentation_connector", "knowledge_connector", "image_encoder", "knowledge"),
        (),
    ),
    "logic": (("llm", "image_connector", "segmentation_connector", "knowledge_connector", "image_encoder"), ()),
    "head_bce": (("head", "knowledge", "image_encoder", "segmentation_encoder"), ("llm", r"\w+_connector")),
    "head_logic": (("head", "knowledge", "image_encoder", "segmentation_encoder"), ("llm", r"\w+_connector")),
}


@pytest.mark.slow
def test_each_term_reaches_what_it_should(small):
    def terms(trained):
        _, found = batch_loss(trained, small.inputs, small.batch, jax.random.key(0), small.config, None)
        return jnp.stack([found[name][0] / found[name][1] for name in REACH])

    @jax.jit
    def by_term(trained):
        # One term after the other: `jacrev` would batch the backward pass, which XLA's CPU backend gets wrong
        # (jaxlib 0.10.2, batched products in YNNPACK fusions).
        values, backward = jax.vjp(terms, trained)
        return jax.lax.map(lambda seed: backward(seed)[0], jnp.eye(len(values)))

    slopes = by_term(small.trained)
    for at, (name, (reached, spared)) in enumerate(REACH.items()):
        size = {path: float(jnp.abs(leaf[at]).max()) for path, leaf in slopes.items()}
        assert all(np.isfinite(list(size.values())))
        for part in reached:
            assert max(v for path, v in size.items() if path.startswith(part + "/")) > 0, f"{name} misses {part}"
        for part in spared:
            assert not [p for p, v in size.items() if re.match(part + "/", p) and v], f"{name} touches {part}"


@pytest.mark.slow
def test_step_0_is_the_base_model(small):
    """With lora_b = 0, as every run starts, the adapters say nothing: the answers are those of rank 0."""
    model = small.config.model
    batch = add_pixels(small.batch, small.config, None)
    fresh = {p: jnp.zeros_like(leaf) if p.endswith("lora_b") else leaf for p, leaf in small.leaves.items()}
    bare = replace(model, llm=replace(model.llm, lora=replace(model.llm.lora, rank=0)))

    def speaker(config):
        return jax.jit(
            lambda params: forward(
                FaceInsight(config), params, small.inputs.constants, batch, stage="instruct", key=None
            )
        )

    say = speaker(model)
    with_adapters = say(unflatten(fresh))
    without = speaker(bare)(unflatten({path: leaf for path, leaf in fresh.items() if "/lora_" not in path}))
    for a, b in zip(jax.tree.leaves(with_adapters), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    # And trained adapters do speak.
    assert np.abs(np.asarray(say(unflatten(small.leaves)).option_logits - with_adapters.option_logits)).max() > 1e-2


@pytest.mark.slow
def test_the_align_stage_runs_without_token_arrays_and_spares_the_llm(small):
    config = replace(small.config, train=replace(small.config.train, stage="align", ema=0.9, accumulate=2))
    batch = {key: small.batch[key] for key in ("image", "mask", "labels", "known", "weight")}
    state, metrics = step_of(config)(start(small, config), small.inputs, batch)
    assert set(metrics) == {"head_bce", "head_logic", "loss", "grad_norm"}
    assert different(state.trained["head/out/kernel"], small.trained["head/out/kernel"])
    # No gradient, so no more than weight decay, which spares nothing that is a matrix.
    lora, decay = "llm/layers/attn/q_proj/lora_b", config.train.learning_rate * config.train.weight_decay
    np.testing.assert_allclose(state.trained[lora], small.trained[lora] * (1 - decay), rtol=1e-5)
    # The running average: at step 0 a tenth of the old, nine tenths of the new.
    path = "head/out/kernel"
    expected = 0.1 * small.trained[path] + 0.9 * state.trained[path]
    np.testing.assert_allclose(state.average[path], expected, rtol=1e-5)
    assert final_leaves(state) is state.average


def test_augmentation_is_keyed_by_the_step(small):
    config = replace(small.config, data=replace(small.config.data, augment=True))
    run = jax.jit(lambda key: add_pixels(small.batch, config, key)["pixels"])
    one, same, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert different(one, other)
    assert different(one, add_pixels(small.batch, config, None)["pixels"])


def test_merge_gives_back_the_whole_tree(small):
    merged = merge_params(small.trained, small.inputs.frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(unflatten(small.leaves))

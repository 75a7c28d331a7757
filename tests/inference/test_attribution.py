"""Attribution: it adds up, follows the LLM and the head, and lies where the drawn thing is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from small_model import small_config

from fi_jax.config import VitConfig
from fi_jax.data.synthetic.face import draw_face, traits_of
from fi_jax.errors import UserError
from fi_jax.faces.masks import colourise
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.attribution import attribute, baseline_pixels
from fi_jax.labels.face_parts import CLASSES
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.models.pixels import map_to_pixels, to_pixels
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import init_leaves, param_shapes
from fi_jax.weights.tokenizers import byte_tokenizer

RNG = np.random.default_rng(0)


def make_answerer(config, noise: float) -> Answerer:
    """Random weights over CelebA's labels; `noise` moves every leaf off its start, LoRA B too."""
    rng = np.random.default_rng(0)
    leaves = init_leaves(config.model, list(param_shapes(config.model)), 0)
    leaves = {path: leaf + noise * rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
    n = len(find_vocabulary("celeba"))
    constants = Constants(
        jnp.asarray(rng.normal(size=(n, config.model.knowledge.prompt_size)), jnp.float32), jnp.eye(n)
    )
    config = replace(config, data=replace(config.data, vocabulary="celeba"))
    return Answerer(config, unflatten(leaves), constants, byte_tokenizer(), {})


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return make_answerer(small_config(), noise=0.15)


@pytest.mark.parametrize("by_llm", [True, False], ids=["llm", "head"])
def test_evidence_adds_up_to_the_answer_given(answerer, by_llm):
    image = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = RNG.integers(0, 19, (16, 16), dtype=np.uint8)
    asked = question("Smiling")
    found = attribute(answerer, image, mask, asked, by_llm=by_llm)
    answers = answerer.answer(image[None], mask[None], [asked], by_llm=by_llm)
    said = (answers.llm if by_llm else answers.head)[0, 0]
    assert found.option == said.argmax()
    assert found.log_odds == pytest.approx(float(np.log(said.max() / said.min())), abs=1e-4)
    assert found.image.shape == (2, 2) and found.segmentation.shape == (1, 1)
    assert abs(found.log_odds - found.baseline_log_odds) > 0.01, "there is something to explain"
    assert found.total == pytest.approx(found.log_odds - found.baseline_log_odds, abs=2e-3)
    other = attribute(answerer, image, mask, asked, 1 - found.option, by_llm=by_llm)
    np.testing.assert_allclose(other.image, -found.image, atol=1e-5)


def test_a_second_encoder_that_sees_the_picture_is_attributed_the_picture(answerer):
    """As in the ablation without maps: the sum is that of the answers that this model gives."""
    config = replace(answerer.config, model=replace(answerer.config.model, segmentation_input="picture"))
    other = make_answerer(config, noise=0.15)
    image, mask = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.zeros((16, 16), np.uint8)
    found = attribute(other, image, mask, question("Smiling"), by_llm=False, steps=128)
    said = other.answer(image[None], mask[None], [question("Smiling")], by_llm=False).head[0, 0]
    assert found.log_odds == pytest.approx(float(np.log(said.max() / said.min())), abs=1e-4)
    assert found.total == pytest.approx(found.log_odds - found.baseline_log_odds, abs=2e-3)
    assert np.abs(found.segmentation).max() > 0


def test_what_cannot_be_explained_is_said(answerer):
    image, mask = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    with pytest.raises(UserError, match="knows no answer to 'expression'"):
        attribute(answerer, image, mask, question("expression"))
    with pytest.raises(UserError, match="no option 2"):
        attribute(answerer, image, mask, question("Smiling"), 2)


# What is drawn where, for labels that one part of the face decides.
DRAWN = {"Eyeglasses": ("eye_g",), "Wearing_Hat": ("hat",)}
SIDE = 48
GRID = 6
STEPS = 300


@pytest.fixture(scope="module")
def trained() -> Answerer:
    """A model that learned two labels from procedural faces with exact maps, in seconds, for its head."""
    config = small_config()
    vit = VitConfig(
        image_size=SIDE, patch_size=SIDE // GRID, hidden_size=48, intermediate_size=96, num_layers=2, num_heads=2,
        feature_layer=-1, pool="mean",
    )  # fmt: skip
    answerer = make_answerer(
        replace(config, model=replace(config.model, image_encoder=vit, segmentation_encoder=vit)), noise=0.0
    )
    # Of hats and glasses there are few: half of the faces that are drawn have one.
    indices = [i for i in range(4000) if any(traits_of(1, i).labels.get(n) for n in DRAWN)][:200]
    indices += range(5000, 5200)
    images, masks = (np.stack(part) for part in zip(*map(painted, indices)))
    truth = jnp.array([[traits_of(1, i).labels[n] for n in DRAWN] for i in indices], jnp.float32)
    columns = jnp.array([answerer.vocabulary.index(n) for n in DRAWN])
    pixels, maps = to_pixels(jnp.asarray(images), vit), map_to_pixels(jnp.asarray(masks), vit)
    nothing = map_to_pixels(jnp.zeros_like(jnp.asarray(masks)[:1]), vit)
    frozen = {"llm": answerer.params["llm"]}
    optimiser = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, STEPS))

    @jax.jit
    def step(params, state, key):
        at_key, drop_key = jax.random.split(key)
        at = jax.random.randint(at_key, (32,), 0, len(pixels))
        # Each input alone must do, or the model reads the map and never looks at the picture.
        mapped = jax.random.bernoulli(drop_key, 0.5, (32, 1, 1, 1))

        def loss(params):
            whole = {"params": {**params, **frozen}}
            seen = jnp.where(mapped, baseline_pixels(pixels[at]), pixels[at])
            faces = answerer.model.apply(whole, seen, jnp.where(mapped, maps[at], nothing), method="encode")
            scores = answerer.model.apply(whole, faces, answerer.constants, method="align").scores
            return optax.sigmoid_binary_cross_entropy(scores[:, columns], truth[at]).mean()

        slopes = jax.grad(loss)(params)
        updates, state = optimiser.update(slopes, state)
        return optax.apply_updates(params, updates), state

    params = {name: leaf for name, leaf in answerer.params.items() if name not in frozen}
    state = optimiser.init(params)
    for key in jax.random.split(jax.random.key(0), STEPS):
        params, state = step(params, state, key)
    answerer.params = {**params, **frozen}
    return answerer


def painted(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A procedural face as a picture in flat colours, one a part, and its exact map.

    Flat, because an encoder this small does not learn to see in shaded pictures within seconds.
    """
    mask = Image.fromarray(draw_face(1, index).mask).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return colourise(np.asarray(mask)), np.asarray(mask)


def density(evidence: np.ndarray, region: np.ndarray) -> float:
    """Mean evidence a token in a region, tokens weighted by how much of each the region covers."""
    small = Image.fromarray(region.astype(np.uint8) * 255).resize((GRID, GRID), Image.Resampling.BOX)
    covered = np.asarray(small, float)
    return float((evidence * covered).sum() / covered.sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_the_model_looks_at_the_thing_and_not_elsewhere(trained, name):
    """More evidence a token where the thing is than where it is not, and than another question finds there."""
    other = next(n for n in DRAWN if n != name)
    wearers = [i for i in range(9000, 9600) if traits_of(1, i).labels.get(name)][:8]
    right, at, control, unasked = 0, [], [], []
    for i in wearers:
        image, mask = painted(i)
        looked = attribute(trained, image, mask, question(name), 0, by_llm=False, steps=16)
        elsewhere = attribute(trained, image, mask, question(other), 0, by_llm=False, steps=16)
        right += looked.log_odds > 0
        thing = np.isin(mask, [CLASSES.index(part) for part in DRAWN[name]])
        # The wrong region: the same shape a third of the picture lower (a hat on the face, glasses on the mouth).
        wrong = np.roll(thing, SIDE // 3, axis=0) & ~thing
        at.append([density(e, thing) for e in (looked.image, looked.segmentation)])
        control.append([density(e, wrong) for e in (looked.image, looked.segmentation)])
        unasked.append([density(e, thing) for e in (elsewhere.image, elsewhere.segmentation)])
    at, control, unasked = np.array(at), np.array(control), np.array(unasked)
    assert right >= 6, "the model has learned what it is asked"
    assert (at.mean(0) > 0.1).all(), "what is there speaks for the answer, in the picture and in the map"
    assert (at.mean(0) > 2 * control.mean(0)).all() and (at.mean(0) > unasked.mean(0)).all()
    assert (at.sum(1) > 2 * control.sum(1)).mean() >= 0.75 and (at.sum(1) > unasked.sum(1)).mean() >= 0.75

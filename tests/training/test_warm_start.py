"""The knowledge connector's start: present labels read as their own words, absent ones as "No"."""

import jax.numpy as jnp
import numpy as np

from fi_jax.models.connector import Connector
from fi_jax.training.warm_start import knowledge_connector_start, label_words


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def made(n: int = 82, e: int = 64, d: int = 576):
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(n, e)).astype(np.float32)
    contents = [rng.normal(size=(4, d)) for _ in range(n)]
    answers = [rng.normal(size=(1, d)) for _ in range(n)]
    words = label_words(contents, answers, rng.normal(size=d))
    leaves = knowledge_connector_start(prompts, words, seed=0)
    params = {"fc1": {}, "fc2": {}}
    for path, leaf in leaves.items():
        layer, name = path.split("/")
        params[layer][name] = jnp.asarray(leaf)

    def tokens(gates):
        return np.asarray(Connector(d).apply({"params": params}, jnp.asarray(gates[:, None] * prompts)))

    return words, tokens


def test_gate_turns_no_into_the_labels_own_words():
    words, tokens = made()
    n = len(words.present)
    present, absent = tokens(np.ones(n, np.float32)), tokens(np.zeros(n, np.float32))
    assert cosine(present, words.present).min() > 0.9
    assert cosine(absent, words.absent[None]).min() > 0.95
    # The direction changes with the gate, and on the way too: the LLM's norm cannot undo it.
    half = tokens(np.full(n, 0.5, np.float32))
    assert (cosine(half, words.present) < cosine(present, words.present) - 0.05).all()
    assert (cosine(half, words.absent[None]) > cosine(present, words.absent[None]) + 0.1).all()


def test_a_label_is_nearest_to_its_own_words():
    words, tokens = made()
    present = tokens(np.ones(len(words.present), np.float32))
    nearest = [int(cosine(row[None], words.present).argmax()) for row in present]
    assert nearest == list(range(len(nearest)))


def test_words_are_as_long_as_words_are():
    words, _ = made()
    assert np.allclose(np.linalg.norm(words.present, axis=1), np.linalg.norm(words.absent), rtol=1e-5)
    assert 0.9 < np.linalg.norm(words.absent) / np.sqrt(576) < 1.1

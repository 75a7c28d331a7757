"""What a stage reads of the stage before it: the same graph over the same sets, and rows of labels that new sets lack."""

from dataclasses import replace

import numpy as np
import pytest

from fi_jax.config import DataConfig, Experiment, SourceConfig
from fi_jax.knowledge.correlation import empty, update
from fi_jax.labels.questions import yes_no
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.vocabulary import Label
from fi_jax.training.constants import carried_on, learnt_from, make_constants
from fi_jax.weights.bundle import TrainedModel

FACES = vocabulary("faces")
N = len(FACES)
CONFIG = Experiment(data=DataConfig(sources=(SourceConfig("utkface"),)))
PROMPTS = np.zeros((N, 4))


@pytest.fixture
def before() -> TrainedModel:
    graph = np.random.default_rng(0).dirichlet(np.ones(N), N).astype(np.float32)
    info = {"labels": list(FACES.names), "sources": ["utkface"]}
    return TrainedModel(CONFIG, {}, PROMPTS, graph, info)


def test_a_stage_over_the_same_sets_counts_nothing(before):
    def counts():
        raise AssertionError("every record would be read")

    made = make_constants(CONFIG, PROMPTS, counts, before)
    np.testing.assert_allclose(made.graph, before.graph, rtol=1e-5)
    assert made.relations is None and made.groups is not None and made.prompts.dtype == np.float32


def test_labels_that_another_set_does_not_state_keep_their_rows(before):
    stated = FACES.index("expression:happy"), FACES.index("expression:sad")
    known = np.zeros((50, N), bool)
    known[:, stated] = True
    counts = update(empty(N), known, known)
    other = replace(CONFIG, data=replace(CONFIG.data, sources=(SourceConfig("expw"),)))
    graph = make_constants(other, PROMPTS, lambda: counts, before).graph
    kept = np.setdiff1d(np.arange(N), stated)
    np.testing.assert_allclose(graph[kept], before.graph[kept], rtol=1e-5)
    # Both hold of every face: each is the other's one neighbour.
    np.testing.assert_allclose(graph[np.ix_(stated, stated)], [[0.8, 0.2], [0.2, 0.8]], rtol=1e-5)
    assert learnt_from(other, before) == ["utkface", "expw"]


def test_old_questions_are_answered_as_before(before):
    """Mirror images, temperatures and nearer views are those of the model before, where it knew all labels."""
    said = {"mirror": True, "nearer": ["Male", "age_years", "mine"], "head_temperatures": {"gender": 2.0}}
    before = replace(before, info=before.info | said)
    kept = said | {"nearer": ["Male", "age_years"]}
    assert carried_on(CONFIG, FACES, None) == {} and carried_on(CONFIG, FACES, before) == kept
    grown = replace(FACES, labels=(*FACES.labels, Label("mine", "Mine.")), questions=(yes_no("mine", "Is it mine?"),))
    assert carried_on(CONFIG, grown, before) == kept
    del kept["nearer"]
    few = replace(before, info=before.info | {"labels": ["Smiling"]})
    aligned = replace(CONFIG, data=replace(CONFIG.data, frame="aligned"))
    assert carried_on(CONFIG, FACES, few) == carried_on(aligned, FACES, before) == kept
    knowledge = replace(CONFIG.model.knowledge, head="bernoulli")
    other = replace(CONFIG, model=replace(CONFIG.model, knowledge=knowledge))
    assert "head_temperatures" not in carried_on(other, FACES, before)

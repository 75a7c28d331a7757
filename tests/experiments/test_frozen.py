"""Heads trained on features that were computed once are those that `fi-jax train` trains over the same encoders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.config import Experiment, KnowledgeConfig
from fi_jax.data.counts import count_records
from fi_jax.data.pipeline import load_mixture
from fi_jax.experiments.frozen import face_features, fresh_head, frozen_config, train_on_features
from fi_jax.knowledge.correlation import empty, update
from fi_jax.labels.registry import vocabulary
from fi_jax.parallel.hosts import Hosts
from fi_jax.training.constants import make_constants
from fi_jax.training.loop import train
from fi_jax.weights.bundle import TrainedModel, load_model


def coarse() -> Experiment:
    """Trained as configs are by default: computed in bfloat16, frozen leaves kept in bfloat16."""
    config = load_config("tiny")
    model = replace(config.model, dtype="bfloat16")
    data = replace(config.data, vocabulary="faces")
    # Adam divides a gradient by its own size, so that one which cancels to nearly nothing shows rounding as large as
    # the step: with small steps it stays below what the leaves are compared to, and all else is as far above.
    given = replace(config.train, stage="align", steps=3, warmup_steps=0, frozen_dtype="bfloat16", learning_rate=3e-4)
    return replace(config, model=model, data=data, train=given)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, TrainedModel]:
    """A run that trained the encoders alone, so that every head over it is fresh."""
    folder = tmp_path_factory.mktemp("base")
    config = coarse()
    config = replace(config, train=replace(config.train, steps=1, trainable=(r".*_encoder/.*",)))
    assert train(config, folder, Hosts()) == 0
    return folder, load_model(folder)


@pytest.mark.slow
def test_kept_features_train_what_training_trains(base, tmp_path):
    folder, model = base
    config = frozen_config(coarse(), model)
    mixture = load_mixture(config.data)
    features = face_features(model, mixture.records, tmp_path / "features")
    counts = count_records(mixture.records, vocabulary(config.data.vocabulary))
    constants = make_constants(config, model.prompts, lambda: counts)
    (ours,) = train_on_features([config], [fresh_head(config)], [constants], features, mixture.epoch)

    alone = replace(config, train=replace(config.train, init_from=str(folder)))
    assert train(alone, tmp_path / "run", Hosts()) == 0
    wanted = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"head_bce", "head_logic"} < wanted[0].keys() and len(wanted) == 3
    for line, want in zip(ours.log, wanted, strict=True):
        np.testing.assert_allclose([line[name] for name in want], list(want.values()), rtol=1e-5, err_msg=str(want))
    trained = load_model(tmp_path / "run")
    for path, leaf in ours.leaves.items():
        np.testing.assert_allclose(leaf, trained.leaves[path], rtol=1e-5, atol=1e-5, err_msg=path)
    np.testing.assert_array_equal(ours.constants.graph, trained.graph)


def test_relations_between_sets_come_from_bridges_and_from_what_is_counted():
    faces = vocabulary("faces")
    happy, smiling = faces.index("expression:happy"), faces.index("Smiling")
    known = np.zeros((200, len(faces)), bool)
    known[:100, happy] = known[100:, smiling] = True
    counts = update(empty(len(faces)), known & (np.arange(200) % 2 == 0)[:, None], known)
    config = coarse()
    config = replace(config, model=replace(config.model, knowledge=KnowledgeConfig(score_graph="lift")))
    relations = make_constants(config, np.zeros((len(faces), 4)), lambda: counts).relations
    assert relations.lift[happy, smiling] > 0.5


def test_features_are_computed_once(base, tmp_path, monkeypatch):
    _, model = base
    records = load_mixture(frozen_config(coarse(), model).data).records[:4]
    first = face_features(model, records, tmp_path)
    monkeypatch.setattr("fi_jax.experiments.frozen._encode_all", None)
    again = face_features(model, records, tmp_path)
    assert first.image.dtype == np.float32 and len(list(tmp_path.glob("*.npz"))) == 1
    np.testing.assert_array_equal(first.image, again.image)

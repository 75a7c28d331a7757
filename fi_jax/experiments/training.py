"""Runs training with all that it is given from here: the judge on validation faces, and a head that was fitted first."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fi_jax.config import Experiment, LossConfig
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.experiments.frozen import HEAD, Trained, face_features, label_scores, train_on_features
from fi_jax.experiments.validation import make_judge
from fi_jax.files import cache_folder
from fi_jax.models.face_insight import label_probs
from fi_jax.parallel.hosts import Hosts
from fi_jax.training.checkpoints import check_same_config
from fi_jax.training.loop import train, train_members
from fi_jax.training.setup import Fitting
from fi_jax.weights.bundle import WEIGHTS, TrainedModel, load_model, save_model

log = logging.getLogger(__name__)

# Of fitting a head: thousands of faces a second, and the learning rate of heads over frozen encoders.
_FACES, _LEARNING_RATE = 64, 1e-3


def train_run(
    config: Experiment, folder: Path, hosts: Hosts, *, finish: bool = False, accept_changed_data: bool = False
) -> int:
    """Trains one config into its folder, its head first where `train.head_steps` says so.

    The other arguments, the exit status and the errors are those of `training.loop.train`.
    """
    if config.train.head_steps and hosts.count > 1:
        raise UserError("train.head_steps fits the head on one host; fit it there first, then start from its folder")
    fit_head = partial(fitted_head, config, folder) if config.train.head_steps else None
    return train(
        config,
        folder,
        hosts,
        make_judge=make_judge,
        fit_head=fit_head,
        finish=finish,
        accept_changed_data=accept_changed_data,
    )


def train_runs(configs: Sequence[Experiment], folders: Sequence[Path], hosts: Hosts) -> int:
    """Trains configs side by side in one program, as `training.loop.train_members` does."""
    if any(config.train.head_steps for config in configs):
        raise UserError("members are not given a fitted head; set train.head_steps to 0, or train those apart")
    return train_members(configs, folders, hosts, make_judge)


def fitted_head(config: Experiment, folder: Path, given: Fitting) -> dict[str, np.ndarray]:
    """Returns the leaves of a head and graph network that have learnt the data's labels; the model is in `folder`/head.

    The encoders' features are computed once. Where a face's label is not stated, the head learns what it said before,
    so that old answers stay (learning without forgetting, Li & Hoiem 2016; on the head alone: ours).
    """
    if (folder / "head" / WEIGHTS).is_file():
        found = load_model(folder / "head")
        # Of another config, it is fitted anew.
        with contextlib.suppress(UserError):
            check_same_config(to_dict(found.config), to_dict(config), any_root=True)
            return {path: leaf for path, leaf in found.leaves.items() if path.startswith(HEAD)}
    fitting = replace(
        config,
        model=replace(config.model, dtype="float32"),
        data=replace(config.data, batch_size=_FACES, augment=False, mixup=0.0),
        loss=LossConfig(head_logic=config.loss.logic),
        train=replace(
            config.train,
            stage="align",
            steps=config.train.head_steps,
            learning_rate=_LEARNING_RATE,
            learning_rate_scales=(),
            warmup_steps=config.train.head_steps // 20,
            trainable=tuple(f"{part}.*" for part in HEAD),
            accumulate=1,
            ema=0.0,
            evaluate_every=0,
            patience=0,
            log_every=config.train.head_steps,
        ),
    )
    # On the host, whatever the mesh.
    start: dict[str, Any] = {p: np.asarray(leaf, np.float32) for p, leaf in given.leaves.items() if p.startswith(HEAD)}
    records, constants = given.mixture.records, given.constants
    features = face_features(given.base, records, cache_folder() / "features", config.data.mask_cache, given.vocabulary)
    scores = label_scores(Trained(fitting, start, constants, []), features)
    said = label_probs(jnp.asarray(scores), constants.groups)
    kept = np.isin(given.vocabulary.names, given.base.info["labels"]) & ~features.known
    # What is stated weighs as much as all that is kept: a few new labels would drown among a hundred old ones.
    weight = kept.sum(1, keepdims=True) / np.maximum(features.known.sum(1, keepdims=True), 1)
    features = features._replace(
        labels=np.where(kept, np.asarray(said), features.labels),
        known=np.where(features.known, np.maximum(weight, 1.0), kept).astype(np.float32),
    )
    log.info(f"fitting the head: {config.train.head_steps} steps on the features of {len(records)} faces")
    (trained,) = train_on_features([fitting], [start], [constants], features, given.mixture.epoch)
    fitted = {path: np.asarray(leaf, np.float32) for path, leaf in trained.leaves.items()}
    prompts, graph = np.asarray(constants.prompts), np.asarray(constants.graph)
    model = TrainedModel(config, given.base.leaves | fitted, prompts, graph, given.info, constants.relations)
    save_model(folder / "head", model)
    return fitted

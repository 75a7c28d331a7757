"""Trains what a training-free cell needs: the same recipe, every stage of it, without the set that is evaluated on."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.data.datasets import find_dataset
from fi_jax.errors import UserError
from fi_jax.experiments.training import train_run
from fi_jax.parallel.hosts import Hosts
from fi_jax.weights.bundle import CONFIG, find_model, read_config

log = logging.getLogger(__name__)

# Finds the config behind `train.init_from`, which may be a run or the name of a config.
FindStage = Callable[[str], Experiment]


def stages_without(
    config: Experiment, dataset: str, runs: Path, find_stage: FindStage
) -> list[tuple[Experiment, Path]]:
    """Returns the configs to train, first stage first, and their run folders; none of them sees `dataset`.

    A stage that starts from an earlier one starts from that one trained without the set, however many stages there
    are. Sets with the same photographs (CelebA, CelebAMask-HQ) go as well.

    Raises:
      UserError: nothing would be left to train on.
    """
    out = find_dataset(dataset).same_pictures
    kept = tuple(source for source in config.data.sources if source.name not in out)
    if not kept:
        raise UserError(
            f"config '{config.name}' trains on nothing but {dataset}: without it nothing is left, "
            "so --leave-one-out cannot fill its training-free cell"
        )
    before: list[tuple[Experiment, Path]] = []
    start = config.train.init_from
    if start:
        before = stages_without(find_stage(start), dataset, runs, find_stage)
        start = str(before[-1][1])
    name = f"{config.name}_without_{dataset}"
    # The same decay of the learning rate over the same number of steps: what changes is the data alone.
    left_out = replace(
        config,
        name=name,
        data=replace(config.data, sources=kept),
        train=replace(config.train, init_from=start),
    )
    return [*before, (left_out, runs / name)]


def train_without(stages: list[tuple[Experiment, Path]], hosts: Hosts) -> int:
    """Trains the stages in turn; finished ones are not trained again, interrupted ones go on.

    Returns 0, or the exit status that asks for another start.

    Raises:
      UserError: a run folder holds a model of another config.
    """
    for config, folder in stages:
        if _finished(config, folder):
            continue
        log.info(f"training {config.name} on {', '.join(source.name for source in config.data.sources)}")
        status = train_run(config, folder, hosts)
        if status:
            return status
    return 0


def _finished(config: Experiment, folder: Path) -> bool:
    try:
        found = find_model(folder)
    except UserError:
        return False
    made = read_config(found / CONFIG)
    if to_dict(made) != to_dict(config):
        raise UserError(f"{folder} holds a model of another config; move it away, or give another --runs")
    return True

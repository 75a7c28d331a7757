"""The numbers of a config that enter a step's arithmetic, and in which the members of one program may differ."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fi_jax.config import LOSS_TERMS, Experiment

# Fields that act before the first step (through Ĉ and T_p^0) or on a leaf (through B), and on nothing else.
_PREPARED = ("model.knowledge.tau", "model.knowledge.omega", "model.knowledge.graph", "model.llm.lora.alpha")
_TRAIN = ("learning_rate", "weight_decay", "clip_norm", "adam_b2", "seed")
# Config fields in which members may differ.
FIELDS = (*(f"train.{name}" for name in _TRAIN), *(f"loss.{name}" for name in LOSS_TERMS), *_PREPARED)


class Numbers(NamedTuple):
    """Python numbers in a run of its own, where they are constants; traced scalars in a member of many."""

    learning_rate: Any
    weight_decay: Any
    clip_norm: Any
    adam_b2: Any
    seed: Any
    # Weight of each term of L.
    loss: Mapping[str, Any]
    # Factor of every lora_b: a member's alpha over that of the program.
    lora_scale: Any = 1.0


def numbers_of(config: Experiment) -> Numbers:
    """Returns the numbers of a run of its own."""
    weights = {name: getattr(config.loss, name) for name in (*LOSS_TERMS, "pixels")}
    return Numbers(**{name: getattr(config.train, name) for name in _TRAIN}, loss=weights)


def stacked_numbers(configs: Sequence[Experiment]) -> Numbers:
    """Returns the numbers of all members, one row each: float32, and int32 for the seed."""
    alphas = np.asarray([config.model.llm.lora.alpha for config in configs], np.float32)
    each = jax.tree.map(lambda *values: np.asarray(values, np.float32), *map(numbers_of, configs))
    seeds = np.asarray([config.train.seed for config in configs], np.int32)
    return each._replace(seed=seeds, lora_scale=alphas / alphas[0])

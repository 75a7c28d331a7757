"""Models that may fill cells, known before they are loaded: name, what they learnt from, what tells them apart."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fi_jax.config_tree import to_dict
from fi_jax.evaluation.cells import sources_of
from fi_jax.evaluation.other_models import PREFIX, load_other_model
from fi_jax.evaluation.parts import Model
from fi_jax.evaluation.protocols.years import Estimator
from fi_jax.inference.answerer import load_answerer
from fi_jax.weights.bundle import CONFIG, MODEL, WEIGHTS, find_model, is_checkpoint, load_model


@dataclass(frozen=True)
class Candidate:
    """One model. `load` loads it once, when it is first needed."""

    name: str
    # Data sets it learnt from, in every stage.
    sources: list[str]
    fingerprint: str
    load: Callable[[], Model]
    config: Mapping = field(default_factory=dict)
    age_estimator: Estimator = "expected"


def our_candidate(name: str) -> Candidate:
    """What `load_model` loads. Raises `UserError` when there is none, or it is unfinished."""
    model = load_model(name)
    digest = hashlib.sha256(model.info.get("fingerprint", "").encode())
    if not is_checkpoint(name):
        folder = find_model(name)
        for file in (WEIGHTS, MODEL, CONFIG):
            digest.update((folder / file).read_bytes())
    return Candidate(
        name,
        sources_of(name, model.info),
        digest.hexdigest()[:12],
        cache(lambda: load_answerer(model)),
        to_dict(model.config),
        model.info.get("age_estimator", "expected"),
    )


def other_candidate(name: str) -> Candidate:
    """A Hugging Face model, "hf:NAME" or "hf:FOLDER". It counts as trained on none of the sets: nobody can tell."""
    folder = Path(name.removeprefix(PREFIX))
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*"))]
    digest = hashlib.sha256(repr((name, stamps)).encode()).hexdigest()[:12]
    return Candidate(name, [], digest, cache(lambda: load_other_model(name)))

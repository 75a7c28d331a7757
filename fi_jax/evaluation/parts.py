"""One cell's predictions as a file that is made once: asks a model about one data set, unless that was done before."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fi_jax.config import DataConfig
from fi_jax.data.datasets import find_dataset
from fi_jax.data.pipeline import open_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.answering import Speak, predict
from fi_jax.evaluation.cells import Cell
from fi_jax.evaluation.free_form import MAX_NEW_TOKENS
from fi_jax.evaluation.other_models import OtherModel
from fi_jax.evaluation.predictions import Answer, atomic_text, true_answer, write_predictions
from fi_jax.evaluation.summarise import train_baseline
from fi_jax.faces.map_cache import with_maps
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.generation import generate_many
from fi_jax.progress import progress_bar

Model = Answerer | OtherModel


@dataclass(frozen=True)
class Asked:
    """What is asked of every set, and of how much of it."""

    split: str = "test"
    # Only the first faces of each set; 0 for all.
    limit: int = 0
    batch_size: int = 8
    head_only: bool = False
    free_form: bool = False
    # Where segmentation maps of sets without any are kept ("" for the default).
    mask_cache: str = ""


def part_path(out: Path, cell: Cell, root: str, asked: Asked, fingerprint: str) -> Path:
    """Returns the file of a cell: its name says everything that its contents depend on."""
    depends = (fingerprint, root, asked.limit, asked.head_only, asked.free_form)
    digest = hashlib.sha256(repr(depends).encode()).hexdigest()[:12]
    return out / "parts" / f"{cell.dataset}-{cell.setting}-{asked.split}-{digest}.jsonl"


def fill_part(path: Path, cell: Cell, root: str, asked: Asked, load: Callable[[], Model]) -> dict[str, Answer]:
    """Writes a cell's predictions and its train split's majority beside them; returns the majority.

    Done before, nothing is done and the model is not loaded.

    Raises:
      UserError: the split is empty, or the model cannot answer a single question about the set.
    """
    baseline_file = path.with_suffix(".baseline.json")
    if not path.is_file() or not baseline_file.is_file():
        baseline = _evaluate(path, cell, root, asked, load())
        with atomic_text(baseline_file) as file:
            json.dump(baseline, file)
    return json.loads(baseline_file.read_text())


def _evaluate(path: Path, cell: Cell, root: str, asked: Asked, model: Model) -> dict[str, Answer]:
    name = cell.dataset
    dataset = find_dataset(name)
    source = dataset.open(root)
    records = source.records(asked.split)
    if not records:
        raise UserError(f"{name} at '{root}' has no faces in split '{asked.split}'")
    records = records[: asked.limit] if asked.limit else records
    questions = model.answerable(dataset.questions)
    if not questions:
        raise UserError(
            f"the model's vocabulary '{model.vocabulary.name}' knows no answer to any question about {name}"
        )
    if asked.free_form and not model.is_instruction_tuned:
        raise UserError("--free-form needs a model whose LLM was taught to read faces (train.stage instruct)")
    data: DataConfig = replace(model.config.data, mask_cache=asked.mask_cache, cache_in_memory=False)
    if model.config.model.use_segmentation:
        data = with_maps(records, data, model.config.weights.parser)
    with progress_bar(f"answering about {name}, {cell.setting}", len(records)) as advance:
        lines = predict(
            model,
            records,
            open_dataset(records, data, model.vocabulary),
            questions,
            batch_size=min(asked.batch_size, len(records)),
            by_llm=not asked.head_only and model.is_instruction_tuned,
            speak=_speaker(model) if asked.free_form else None,
            seen=cell.seen,
            estimator=model.info.get("age_estimator", "expected"),
            advance=advance,
        )
        write_predictions(path, lines)
    truths = ({q.name: true_answer(q, r.labels, r.age) for q in questions} for r in source.records("train"))
    return train_baseline(truths)


def _speaker(model: Model) -> Speak:
    if isinstance(model, OtherModel):
        return partial(_other, model)
    return partial(_ours, model)


def _other(model: OtherModel, image, mask, questions) -> list[list[str]]:
    return model.speak(image, mask, questions, MAX_NEW_TOKENS)


def _ours(model: Answerer, image, mask, questions) -> list[list[str]]:
    return generate_many(model, image, mask, [q.text for q in questions], MAX_NEW_TOKENS)

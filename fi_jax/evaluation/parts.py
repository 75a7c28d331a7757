"""One cell's predictions as a file that is made once: asks a model about one data set, unless that was done before."""

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fi_jax.data.datasets import Dataset, find_dataset
from fi_jax.data.examples import examine
from fi_jax.data.examples import fingerprint as face_fingerprint
from fi_jax.data.pipeline import open_dataset
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.splits import limited
from fi_jax.errors import UserError
from fi_jax.evaluation.answering import predict
from fi_jax.evaluation.cells import Assignment
from fi_jax.evaluation.free_form import MAX_NEW_TOKENS
from fi_jax.evaluation.other_models import OtherModel
from fi_jax.evaluation.predictions import Answer, true_answer, write_predictions
from fi_jax.evaluation.summarise import train_baseline
from fi_jax.faces.map_cache import with_maps
from fi_jax.files import file_sha256, sha256, write_json
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.generation import generate_many
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.progress import progress_bar

log = logging.getLogger(__name__)
Model = Answerer | OtherModel


@dataclass(frozen=True)
class EvaluationOptions:
    """What is asked of every set, and of how much of it."""

    split: str = "test"
    # So many faces of each set, by the hash of their names; 0 for all.
    limit: int = 0
    batch_size: int = 8
    head_only: bool = False
    free_form: bool = False
    # Ask also what the set does not annotate, so that answers can break the rules about it.
    all_questions: bool = False
    # Where segmentation maps of sets without any are kept ("" for the default).
    mask_cache: str = ""


@dataclass(frozen=True)
class Part:
    """A finished cell: its file of predictions, and what is kept beside it."""

    path: Path
    # The train split's majority answer of each question.
    baseline: dict[str, Answer]
    # Pictures that could not be read and were left out -> why.
    unreadable: dict[str, str]


def judged_faces(dataset: Dataset, root: str, options: EvaluationOptions) -> tuple[Source, list[FaceRecord]]:
    """Opens a data set; also returns those of its faces that are asked about. Raises `UserError` where there are none."""
    source = dataset.open(root)
    records = limited(source.records(options.split), options.limit)
    if not records:
        raise UserError(f"{dataset.name} at '{root}' has no faces in split '{options.split}'")
    return source, records


def majorities(source: Source, questions: Sequence[Question]) -> dict[str, Answer]:
    """The train split's majority answer of each question."""
    return train_baseline({q.name: true_answer(q, r.labels, r.age) for q in questions} for r in source.records("train"))


def fill_part(
    out: Path,
    assignment: Assignment,
    root: str,
    options: EvaluationOptions,
    fingerprint: str,
    load: Callable[[], Model],
) -> Part:
    """Writes a cell's predictions into `out`/parts. What was done before is not done again, nor the model loaded.

    The file's name says everything that its contents depend on: the model (`fingerprint`), the options, and each
    record's picture (size and time of its file), box and labels; not the folder.

    Raises:
      UserError: the split is empty, or the model cannot answer a single question about the set.
    """
    dataset = find_dataset(assignment.dataset)
    name = dataset.name
    source, records = judged_faces(dataset, root, options)
    asked = (options.head_only, options.free_form, options.all_questions)
    depends = (fingerprint, *asked, face_fingerprint(records, times=True))
    stem = f"{name}-{assignment.setting}-{options.split}-{sha256(repr(depends))[:12]}"
    path = out / "parts" / f"{stem}.jsonl"
    beside = path.with_suffix(".json")
    if path.is_file():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found = json.loads(beside.read_text())
            if found["sha256"] == file_sha256(path):
                return Part(path, dict(found["baseline"]), dict(found["unreadable"]))
        log.info(f"{path} or {beside.name} is damaged; {name} is evaluated again")
    readable, rejected = examine(records)
    if not readable:
        raise UserError(
            f"{name} at '{root}': no picture can be read; the first: {rejected[0].key}: {rejected[0].reason}"
        )
    model = load()
    questions = model.answerable(dataset.questions)
    if not questions:
        raise UserError(
            f"the model's vocabulary '{model.vocabulary.name}' knows no answer to any question about {name}"
        )
    _answer(path, assignment, readable, questions, options, model)
    baseline = majorities(source, questions)
    found = {"baseline": baseline, "unreadable": {r.key: r.reason for r in rejected}}
    write_json(beside, found | {"sha256": file_sha256(path)})
    return Part(path, **found)


def _answer(
    path: Path,
    assignment: Assignment,
    records: Sequence[FaceRecord],
    questions: Sequence,
    options: EvaluationOptions,
    model: Model,
) -> None:
    annotated = {question.name for question in questions}
    if options.all_questions:
        # Race is asked only where a set annotates it.
        others = (q for q in questions_for(model.vocabulary) if q.family != "race")
        questions = [*questions, *model.answerable([q for q in others if q.name not in annotated])]
    if options.free_form and not model.is_instruction_tuned:
        raise UserError("--free-form needs a model whose LLM was taught to read faces (train.stage instruct)")
    data = replace(model.config.data, mask_cache=options.mask_cache, cache_in_memory=False)
    if model.config.reads_maps:
        data = with_maps(records, data, model.config.weights.parser)
    with progress_bar(f"answering about {assignment.dataset}, {assignment.setting}", len(records)) as advance:
        lines = predict(
            model,
            records,
            open_dataset(records, data, model.vocabulary),
            questions,
            batch_size=min(options.batch_size, len(records)),
            by_llm=not options.head_only and model.is_instruction_tuned,
            generate=partial(_generate, model) if options.free_form else None,
            seen=assignment.seen,
            estimator=model.info.get("age_estimator", "expected"),
            advance=advance,
        )
        write_predictions(path, (p if p.question in annotated else replace(p, label=None) for p in lines))


def _generate(model: Model, image, mask, questions) -> list[list[str]]:
    if isinstance(model, OtherModel):
        return model.generate(image, questions, MAX_NEW_TOKENS)
    return generate_many(model, image, mask, [q.text for q in questions], MAX_NEW_TOKENS)

"""Asks a model every question of a data set's protocol about every face, and yields the prediction lines."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fi_jax.data.pipeline import FaceDataset, evaluation_batches
from fi_jax.data.records import FaceRecord
from fi_jax.evaluation.predictions import Prediction, group_fields, true_answer
from fi_jax.evaluation.protocols.age import years_from
from fi_jax.inference.answerer import Answerer
from fi_jax.labels.questions import Question


def predict(
    answerer: Answerer,
    records: Sequence[FaceRecord],
    dataset: FaceDataset,
    questions: Sequence[Question],
    *,
    batch_size: int,
    by_llm: bool = True,
    seen: bool = False,
    estimator: str = "expected",
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """Yields one prediction a face, question and source (the alignment head; the LLM unless `by_llm` is False).

    Closed answers are scored by likelihood. `advance` is told how many faces are done.
    """
    for batch in evaluation_batches(dataset, batch_size=batch_size):
        answers = answerer.answer(batch["image"], batch["mask"], questions, by_llm=by_llm)
        real = np.flatnonzero(batch["weight"] > 0)
        for row in real:
            record = records[int(batch["index"][row])]
            for source, said in (("head", answers.head), ("llm", answers.llm)):
                if said is not None:
                    yield from _lines(record, questions, said[row], source, seen, estimator)
        advance(len(real))


def _lines(
    record: FaceRecord, questions, said: np.ndarray, source: str, seen: bool, estimator: str
) -> Iterator[Prediction]:
    groups = group_fields(record.labels, record.age)
    for question, p in zip(questions, said, strict=True):
        p = np.asarray(p[: len(question.options)], np.float64)
        p = p / p.sum()
        answer = (
            float(years_from(p[None], estimator)[0])
            if question.family == "age_years"
            else question.options[int(p.argmax())]
        )
        yield Prediction(
            image=record.key,
            dataset=record.dataset,
            task=question.family,
            question=question.name,
            label=true_answer(question, record.labels, record.age),
            answer=answer,
            probabilities=dict(zip(question.options, p.tolist(), strict=True)),
            source=source,
            seen=seen,
            split=record.split,
            # For the report's gallery, which shows faces only when asked to.
            path=str(record.image) if isinstance(record.image, Path) else None,
            **groups,
        )

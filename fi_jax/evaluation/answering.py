"""Asks a model every question of a data set's protocol about every face, and yields the prediction lines."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from fi_jax.data.pipeline import FaceDataset, evaluation_batches
from fi_jax.data.records import FaceRecord
from fi_jax.evaluation.free_form import read_answer
from fi_jax.evaluation.predictions import Prediction, Source, group_fields, true_answer
from fi_jax.evaluation.protocols.years import ESTIMATORS, Estimator
from fi_jax.inference.answerer import OptionProbabilities
from fi_jax.labels.questions import Question

# Questions whose answers are generated together about one face: each has its own keys and values in memory.
_GENERATED_TOGETHER = 8


class Model(Protocol):
    """What is asked here of a model: ours (`inference.answerer.Answerer`) and others (`other_models.OtherModel`)."""

    def answer(
        self, image: np.ndarray, mask: np.ndarray, questions: Sequence[Question], *, by_llm: bool = True
    ) -> OptionProbabilities:
        """Probabilities of closed answers."""
        ...


# Generates texts: `(image b y x 3, mask b y x, questions)` -> `b` lists of texts, one a question.
Generate = Callable[[np.ndarray, np.ndarray, Sequence[Question]], list[list[str]]]


def predict(
    model: Model,
    records: Sequence[FaceRecord],
    dataset: FaceDataset,
    questions: Sequence[Question],
    *,
    batch_size: int,
    by_llm: bool = True,
    generate: Generate | None = None,
    seen: bool = False,
    estimator: Estimator = "expected",
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """Yields one prediction a face, question and source.

    Sources: the alignment head; the LLM by likelihood unless `by_llm` is False; with `generate`, the LLM in words of
    its own, read as an option or as unreadable. `advance` is told how many faces are done.
    """
    for batch in evaluation_batches(dataset, batch_size=batch_size):
        answers = model.answer(batch["image"], batch["mask"], questions, by_llm=by_llm)
        texts = _texts(generate, batch, questions) if generate else None
        real = np.flatnonzero(batch["weight"] > 0)
        for row in real:
            record = records[int(batch["index"][row])]
            sources: tuple[tuple[Source, np.ndarray | None], ...] = (("head", answers.head), ("llm", answers.llm))
            for source, probabilities in sources:
                if probabilities is not None:
                    yield from closed_lines(record, questions, probabilities[row], source, seen, estimator)
            if texts:
                for question, text in zip(questions, texts[row], strict=True):
                    yield _prediction(record, question, "free", seen, answer=read_answer(question, text), text=text)
        advance(len(real))


def _texts(generate: Generate, batch, questions: Sequence[Question]) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in batch["image"]]
    for start in range(0, len(questions), _GENERATED_TOGETHER):
        some = generate(batch["image"], batch["mask"], questions[start : start + _GENERATED_TOGETHER])
        for texts, more in zip(found, some, strict=True):
            texts += more
    return found


def closed_lines(
    record: FaceRecord,
    questions: Sequence[Question],
    probabilities: Float[np.ndarray, "q k"],
    source: Source,
    seen: bool,
    estimator: Estimator,
) -> Iterator[Prediction]:
    """Yields one face's predictions from the probabilities of its closed answers."""
    for question, p in zip(questions, probabilities, strict=True):
        p = np.asarray(p[: len(question.options)], np.float64)
        p = p / p.sum()
        if question.family == "age_years":
            answer: str | float = float(ESTIMATORS[estimator](p[None])[0])
        else:
            answer = question.options[int(p.argmax())]
        options = dict(zip(question.options, p.tolist(), strict=True))
        yield _prediction(record, question, source, seen, answer=answer, probabilities=options)


def _prediction(record: FaceRecord, question: Question, source: Source, seen: bool, **answered) -> Prediction:
    return Prediction(
        image=record.key,
        dataset=record.dataset,
        task=question.family,
        question=question.name,
        label=true_answer(question, record.labels, record.age),
        source=source,
        seen=seen,
        split=record.split,
        number=record.numbers.get(question.name),
        # For the report's gallery, which shows faces only when asked to.
        path=str(record.image) if isinstance(record.image, Path) else None,
        person=record.identity,
        **answered,
        **group_fields(record.labels, record.age),
    )

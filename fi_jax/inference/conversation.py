"""One picture, one question in a person's words -> an answer with its probability, or a sentence."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from fi_jax.errors import UserError
from fi_jax.faces.framing import FramedFace, frame_face
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.answers import Answer, Request, Response
from fi_jax.inference.generation import generate, stream
from fi_jax.knowledge.consistency import decode_consistent
from fi_jax.knowledge.logic import Facts, compile_rules
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.tasks import expected_age, median_age
from fi_jax.pictures.crop import Box
from fi_jax.prompting.descriptions import DESCRIBE_QUESTIONS, answer_from_closed, describe_answers
from fi_jax.prompting.probabilities import label_log_probs
from fi_jax.prompting.question_matching import is_description, match_question, plain_words
from fi_jax.prompting.refusals import IDENTITY_REFUSAL, UNSURE, checked_question, is_refusal, is_withheld, refusal
from fi_jax.prompting.statements import agrees, statements

FREE_TEXT = "free text of the language model: no probability, not calibrated"
FROM_CLOSED = "put together from the closed answers"


def respond(answerer: Answerer, image: UInt8[np.ndarray, "y x 3"], box: Box, request: Request) -> Response:
    """Crops, parses and answers: the last of `replies`, with its errors."""
    face = frame_face(image, box, answerer.config.data, answerer.config.weights.parser)
    *_, response = replies(answerer, face, box, request, _at_once)
    return cast(Response, response)


def _at_once(*arguments) -> Iterable[str]:
    return [generate(*arguments)]


def replies(
    answerer: Answerer, face: FramedFace, box: Box, request: Request, write: Callable[..., Iterable[str]] = stream
) -> Iterator[str | Response]:
    """Answers a request: what the LLM has written so far, each time that `write` adds to it, and the response at last.

    Closed questions are answered by probabilities; what no face shows is declined; the rest is written by the LLM, and
    told if its closed answers agree. Race is answered when asked for, never volunteered.

    Raises:
      UserError: a question that is empty or too long, or an open one where no LLM answers: a model of stage 1, whose
        LLM was not taught to read faces, or a request to the alignment head.
    """
    text = DESCRIBE_QUESTIONS[0] if request.text is None else checked_question(request.text)
    by_llm = request.by_llm and answerer.is_instruction_tuned
    crop, mask, frame = face
    response = Response(crop, mask, box, text, source="llm" if by_llm else "head", frame=frame)
    bank, facts = questions_for(answerer.vocabulary), answerer.facts(request.known)
    if request.everything:
        questions = [q for q in bank if q.family != "race" or request.race]
        answers, changed = closed_answers(answerer, crop, mask, questions, by_llm, request.consistent, facts)
        response = replace(response, answers=answers, changed=changed)
        if request.text is None:
            yield response
            return
    own = plain_words(text) in map(plain_words, answerer.vocabulary.open_questions)
    match = None if own else match_question(text, bank)
    if match is not None:
        answers, changed = closed_answers(answerer, crop, mask, [match.question], by_llm, request.consistent, facts)
        answer = replace(answers[0], claim=match.claim, weights=match.weights)
        response = replace(response, text=answer.reply(), note=answer.note(), answer=answer)
        yield response if response.answers else replace(response, answers=(answer,), changed=changed)
        return
    # A table of one's own may teach anything but who somebody is.
    if (declined := refusal(text)) is not None and (not own or declined == IDENTITY_REFUSAL):
        yield replace(response, text=declined)
        return
    if by_llm:
        written = ""
        for written in write(answerer, crop, mask, text, request.max_new_tokens, facts):
            yield written
        # Of an open question of one's own, there is no closed answer that the text could be held against.
        closed = None if own else _all_but_race(answerer, crop, mask, True, facts)
        answered, note = _checked(text, written, closed)
        yield replace(response, text=answered, note=note)
        return
    # The alignment head's closed answers make a description; other open questions need the LLM.
    if (sentence := _from_closed(text, _all_but_race(answerer, crop, mask, by_llm, facts))) is not None:
        yield replace(response, text=sentence, note=FROM_CLOSED)
        return
    if answerer.is_instruction_tuned:
        raise UserError(f"the alignment head has no answer to '{text}'; let the language model answer (without --head)")
    raise UserError(
        "this model was trained for stage 1 only and answers closed questions (fi-jax ask IMAGE --all shows them); "
        "open questions need a model of stage 2"
    )


def _checked(question: str, text: str, closed: Mapping[str, Sequence[float]] | None) -> tuple[str, str]:
    """The LLM's `text` and a note that it is free text, unless its `closed` answers contradict it or it says too much.

    A text that states nothing that could be held against them is no answer either. A description, and an answer
    about the hair or what is worn, is then put together from the closed answers; other questions are declined.
    """
    if closed is None:
        return (UNSURE, "") if is_withheld(text) else (text, FREE_TEXT)
    if (statements(text) or is_refusal(text)) and agrees(text, closed) and not is_withheld(text):
        return text, FREE_TEXT
    sentence = _from_closed(question, closed)
    return (UNSURE, "") if sentence is None else (sentence, FROM_CLOSED)


def _from_closed(question: str, closed: Mapping[str, Sequence[float]]) -> str | None:
    return describe_answers(closed) if is_description(question) else answer_from_closed(question, closed)


def _all_but_race(
    answerer: Answerer, image: np.ndarray, mask: np.ndarray, by_llm: bool, facts: Facts | None
) -> dict[str, Sequence[float]]:
    """Probabilities of what a description may be made of, by the question's name."""
    questions = [q for q in questions_for(answerer.vocabulary) if q.family != "race"]
    answers, _ = closed_answers(answerer, image, mask, questions, by_llm, facts=facts)
    return {answer.question.name: answer.probabilities for answer in answers}


def closed_answers(
    answerer: Answerer,
    image: UInt8[np.ndarray, "y x 3"],
    mask: UInt8[np.ndarray, "y x"],
    questions: Sequence[Question],
    by_llm: bool,
    consistent: bool = False,
    facts: Facts | None = None,
) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
    """Answers closed questions about a crop; also names the questions that `consistent` decoding answers otherwise."""
    probabilities = answerer.answer(image[None], mask[None], questions, by_llm=by_llm, facts=facts).of(by_llm)[0]
    return answers_from(answerer, questions, probabilities, consistent)


def answers_from(
    answerer: Answerer,
    questions: Sequence[Question],
    probabilities: Float[np.ndarray, "q k"],
    consistent: bool = False,
) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
    """The answers that the probabilities of one face mean, and the questions that `consistent` decoding changes."""
    rows = [probabilities[i, : len(q.options)] for i, q in enumerate(questions)]
    likeliest = [int(row.argmax()) for row in rows]
    chosen = consistent_options(answerer, questions, probabilities) if consistent else likeliest
    estimator = median_age if answerer.info.get("age_estimator") == "median" else expected_age
    answers = tuple(
        Answer(q, tuple(map(float, row)), option, float(estimator(row)) if q.family == "age_years" else None)
        for q, row, option in zip(questions, rows, chosen, strict=True)
    )
    return answers, tuple(q.name for q, a, b in zip(questions, likeliest, chosen, strict=True) if a != b)


def consistent_options(
    answerer: Answerer, questions: Sequence[Question], probabilities: Float[np.ndarray, "q k"]
) -> list[int]:
    """The most probable option of each question such that no rule is broken."""
    vocabulary = answerer.vocabulary
    at = np.full((1, *probabilities.shape), -1, np.int32)
    # An option takes part by its place, not by its probability: one that rounds to zero is asked about all the same.
    tokens = np.full(at.shape, -1, np.int32)
    for i, question in enumerate(questions):
        count = len(question.labels)
        at[0, i, :count] = [-1 if label is None else vocabulary.index(label) for label in question.labels]
        tokens[0, i, :count] = 0
    batch = {"option_labels": jnp.asarray(at), "option_tokens": jnp.asarray(tokens)}
    logits = jnp.log(jnp.maximum(jnp.asarray(probabilities[None]), 1e-30))
    said, scope = label_log_probs(logits, batch, len(vocabulary))
    rules = compile_rules(rules_for(vocabulary), vocabulary)
    holds = decode_consistent(np.asarray(said.yes - said.no), np.asarray(scope), rules)[0]
    # "No" asserts no label: it is the option where the first does not hold.
    return [
        int(not holds[at[0, i, 0]]) if question.is_binary else int(holds[at[0, i, : len(question.labels)]].argmax())
        for i, question in enumerate(questions)
    ]

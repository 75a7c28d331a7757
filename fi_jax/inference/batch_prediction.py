"""Many pictures -> the closed answers about every face in them, in batches: what `predict` does, in Python and typed.

Pictures are read, searched for faces and parsed on threads while the model answers about the batch before.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from fi_jax.errors import UserError
from fi_jax.faces.face_detector import crop_for_model
from fi_jax.faces.framing import frame_face
from fi_jax.faces.map_cache import parser_of
from fi_jax.faces.picture_map import faces_in
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.answers import Answer
from fi_jax.inference.conversation import answers_from
from fi_jax.knowledge.logic import Facts
from fi_jax.labels.facts import Statement
from fi_jax.labels.questions import Question
from fi_jax.pictures.crop import Box
from fi_jax.pictures.decode import decode
from fi_jax.pictures.header import Readable

# Columns of a row that are not answers.
ROW_COLUMNS = ("image", "face", "faces", "left", "top", "right", "bottom", "frame", "error")


@dataclass(frozen=True)
class Picture:
    """A picture to predict about: its name for people, and the file, the file's bytes, or RGB pixels."""

    name: str
    source: Readable | bytes | UInt8[np.ndarray, "y x 3"]
    # What is certain of its face (`labels.facts`).
    known: Mapping[str, Statement] | None = None


@dataclass(frozen=True)
class FacePrediction:
    """The answers about one face; or, with `face` 0, why there are none about the picture."""

    image: str
    # 1 is the largest face.
    face: int = 0
    # How many faces the picture has.
    faces: int = 0
    # The detected face (left, top, right, bottom, pixels); the whole picture with `whole`.
    box: Box | None = None
    answers: tuple[Answer, ...] = ()
    error: str = ""
    # How the face was cut for the model: "box" or "aligned" (`faces.framing`).
    frame: str = ""

    def to_row(self) -> dict[str, Any]:
        """Plain values for a table: an answer and its probability a question; years for the age."""
        left, top, right, bottom = (round(v, 1) for v in self.box) if self.box else (None,) * 4
        row: dict[str, Any] = {
            "image": self.image,
            "face": self.face,
            "faces": self.faces,
            "left": left,
            "top": top,
            "right": right,
            "bottom": bottom,
            "frame": self.frame,
            "error": self.error,
        }
        for answer in self.answers:
            name = answer.question.name
            row[name] = round(answer.years, 1) if answer.years is not None else answer.option
            row[f"{name}_probability"] = round(answer.probability, 4)
        return row


@dataclass(frozen=True)
class _Crop:
    """One face of one picture, ready for the model."""

    about: FacePrediction
    image: UInt8[np.ndarray, "s s 3"]
    mask: UInt8[np.ndarray, "s s"]
    # Of one face.
    facts: Facts | None


def predict_faces(
    answerer: Answerer,
    pictures: Iterable[Picture],
    questions: Sequence[Question],
    *,
    by_llm: bool = True,
    every_face: bool = False,
    whole: bool = False,
    batch_size: int = 8,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[list[FacePrediction]]:
    """Yields the predictions of every picture, in order: one a face, or one that says why there is none.

    Args:
      by_llm: answer by the LLM, else by the alignment head.
      every_face: all faces of a picture, largest first; by default the largest alone.
      whole: take the whole picture for a face crop; no face is searched for.
      batch_size: faces that the model answers about at once; the last batch is filled up.
      threads: pictures read at once; by default as many as there are cores.
      advance: told after each batch how many pictures are done.

    Answers are those of `fi-jax ask`: the same crops, maps and calibration.
    """
    threads = threads or os.cpu_count() or 1
    by_llm = by_llm and answerer.is_instruction_tuned

    def read(picture: Picture) -> list[_Crop | FacePrediction]:
        try:
            return _crops(answerer, picture, every_face, whole)
        except UserError as error:
            return [FacePrediction(picture.name, error=str(error))]

    waiting: list[list[_Crop | FacePrediction]] = []
    with ThreadPoolExecutor(threads) as pool:
        for found in _in_order(pool, read, pictures, 2 * (threads + batch_size)):
            waiting.append(found)
            if sum(isinstance(one, _Crop) for one in _flat(waiting)) >= batch_size:
                yield from _answered(answerer, waiting, questions, by_llm, batch_size)
                advance(len(waiting))
                waiting = []
        yield from _answered(answerer, waiting, questions, by_llm, batch_size)
        advance(len(waiting))


def _in_order(pool: ThreadPoolExecutor, work: Callable, items: Iterable, ahead: int) -> Iterator:
    """Like `pool.map`, with at most `ahead` items begun and not yet taken."""
    begun: deque[Future] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _crops(answerer: Answerer, picture: Picture, every_face: bool, whole: bool) -> list[_Crop | FacePrediction]:
    image = picture.source if isinstance(picture.source, np.ndarray) else decode(picture.source, picture.name)
    parser = answerer.config.weights.parser
    height, width = image.shape[:2]
    faces = [(0.0, 0.0, float(width), float(height))] if whole else faces_in(parser_of(parser), image)
    if not faces:
        return [FacePrediction(picture.name, error="no face was found")]
    crops: list[_Crop | FacePrediction] = []
    facts = answerer.facts(picture.known)
    for number, box in enumerate(faces if every_face else faces[:1], 1):
        framed = frame_face(image, box if whole else crop_for_model(box), answerer.config.data, parser)
        about = FacePrediction(picture.name, number, len(faces), box, frame=framed.frame)
        crops.append(_Crop(about, framed.image, framed.mask, facts))
    return crops


def _answered(
    answerer: Answerer,
    pictures: Sequence[Sequence[_Crop | FacePrediction]],
    questions: Sequence[Question],
    by_llm: bool,
    batch_size: int,
) -> Iterator[list[FacePrediction]]:
    crops = [one for one in _flat(pictures) if isinstance(one, _Crop)]
    answered: list[FacePrediction] = []
    for start in range(0, len(crops), batch_size):
        some = crops[start : start + batch_size]
        # Filled up with the first face: one size of batch, one compiled program.
        full = some + [some[0]] * (batch_size - len(some))
        images, masks = np.stack([one.image for one in full]), np.stack([one.mask for one in full])
        facts = None
        if any(one.facts for one in full):
            nothing = answerer.facts({})
            stated = [one.facts or nothing for one in full]
            facts = Facts(*map(jnp.concatenate, zip(*stated, strict=True)))
        probabilities = answerer.answer(images, masks, questions, by_llm=by_llm, facts=facts).of(by_llm)
        for one, row in zip(some, probabilities, strict=False):
            answers = answers_from(answerer, questions, row)[0]
            answered.append(replace(one.about, answers=answers))
    results = iter(answered)
    for picture in pictures:
        yield [next(results) if isinstance(one, _Crop) else one for one in picture]


def _flat(pictures: Sequence[Sequence[_Crop | FacePrediction]]) -> Iterator[_Crop | FacePrediction]:
    return (one for picture in pictures for one in picture)

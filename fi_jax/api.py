"""The Python door: `fi_jax.load("nano")` gives a model to ask, to describe with, and to label many pictures.

Everything here is public and stable: names, arguments and results change only with a note in CHANGELOG.md.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from PIL.Image import Image

from fi_jax.errors import UserError, require_choice
from fi_jax.faces.face_detector import locate
from fi_jax.faces.map_cache import parser_of
from fi_jax.faces.picture_map import faces_in
from fi_jax.files import sha256
from fi_jax.inference.answerer import Answerer, load_answerer
from fi_jax.inference.answers import Request, Response
from fi_jax.inference.batch_prediction import FacePrediction, Picture, predict_faces
from fi_jax.inference.conversation import respond
from fi_jax.labels.facts import Statement, statement_names
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.pictures.crop import Box
from fi_jax.pictures.decode import decode
from fi_jax.weights.bundle import TrainedModel, load_model

# A picture: a path, the bytes of a file, a PIL picture, or RGB pixels (`y x 3` uint8).
PictureLike = str | Path | bytes | Image | np.ndarray
By = Literal["llm", "head"]


class Model:
    """A trained model. Safe to use from several threads: they take turns at the device.

    Attributes:
      questions: names of all closed questions that the model answers, in the order of tables.
      statements: names of what can be stated of a face (`known`): these questions, "race" and "age".
    """

    def __init__(self, model: TrainedModel):
        """Prefer `load`."""
        self._answerer: Answerer = load_answerer(model)
        self._turn = threading.Lock()
        self._bank = {question.name: question for question in questions_for(self._answerer.vocabulary)}
        self.questions: tuple[str, ...] = tuple(self._bank)
        self.statements: tuple[str, ...] = tuple(statement_names(self._answerer.vocabulary))
        # Changes whenever the model's answers may: temperatures and what questions see are in `info`, not in leaves.
        leaves = ((path, np.asarray(leaf).tobytes()) for path, leaf in sorted(model.leaves.items()))
        parts = [repr((model.config, model.info)), *(sha256(path.encode() + content) for path, content in leaves)]
        self.fingerprint: str = sha256("".join(parts))[:16]

    def ask(
        self,
        image: PictureLike,
        question: str,
        *,
        face: int = 0,
        box: Box | None = None,
        by: By = "llm",
        known: Mapping[str, Statement] | None = None,
    ) -> Response:
        """Answers one question in words about a face.

        Args:
          image: a path, bytes of a file, a PIL picture, or RGB pixels (`y x 3` uint8).
          question: e.g. "Is this person smiling?" or "How old is she?".
          face: which face, 1 for the largest; 0 takes the largest.
          box: left, top, right, bottom of the face in pixels; no face is searched for then.
          by: the LLM, or the alignment head alone (faster; closed questions only).
          known: what is certain of this face, by question: `{"gender": "female", "age": 71, "Smiling": True}`. It is
            answered as stated, what a rule makes of it too, and the other answers follow it.

        Returns:
          The response; `.to_text()` and `.to_json(name)` give lines and plain values.

        Raises:
          UserError: the picture cannot be read or holds no face, or the question cannot be answered.
        """
        return self.respond(image, Request(question, by_llm=self._by(by), known=known), face, box)

    def describe(self, image: PictureLike, *, face: int = 0, box: Box | None = None) -> str:
        """Describes a face in a few sentences. Arguments and errors are those of `ask`."""
        return self.respond(image, Request(), face, box).to_text()

    def answers(
        self,
        image: PictureLike,
        *,
        consistent: bool = False,
        race: bool = False,
        face: int = 0,
        box: Box | None = None,
        by: By = "llm",
        known: Mapping[str, Statement] | None = None,
    ) -> Response:
        """Answers every closed question about a face, race only when asked for.

        With `consistent`, the answers are the most probable ones that break no rule. Other arguments and errors are
        those of `ask`.
        """
        request = Request(everything=True, race=race, consistent=consistent, by_llm=self._by(by), known=known)
        return self.respond(image, request, face, box)

    def predict(
        self,
        images: Iterable[PictureLike | Picture],
        *,
        questions: Sequence[str] | None = None,
        race: bool = False,
        by: By = "llm",
        every_face: bool = False,
        whole: bool = False,
        batch_size: int = 8,
        known: Iterable[Mapping[str, Statement | None]] | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[list[FacePrediction]]:
        """Answers about many pictures, in batches; yields each picture's faces, in order, as they are done.

        Args:
          images: pictures as `ask` takes them; read while the model works.
          questions: names out of `Model.questions`; all but race by default.
          every_face: all faces, largest first; by default the largest alone.
          whole: the pictures are face crops already.
          batch_size: faces at once on the device.
          known: what is certain of each picture's face, in their order, as `ask` takes it; None, NaN, pandas.NA and ""
            say nothing. A table's columns are `frame[["gender", "age"]].to_dict("records")`. Not with `every_face`.
          progress: told after each batch how many pictures are done.

        Yields:
          One list a picture. What cannot be read is a `FacePrediction` with `face` 0 and the reason in `error`.
        """
        chosen = self.choose_questions(questions, race=race)
        if every_face and known is not None:
            raise UserError("what is known holds of one face a picture; leave out every_face")
        pictures: Iterator[Picture] = (_picture(image, number) for number, image in enumerate(images))
        if known is not None:
            pictures = _told(pictures, known)
        stream = predict_faces(
            self._answerer,
            pictures,
            chosen,
            by_llm=self._by(by),
            every_face=every_face,
            whole=whole,
            batch_size=batch_size,
            advance=progress,
        )
        while True:
            with self._turn:
                found = next(stream, None)
            if found is None:
                return
            yield found

    def choose_questions(self, names: Sequence[str] | None, *, race: bool = False) -> list[Question]:
        """The questions of these names; all of the model's by default, those about race only with `race`.

        Raises:
          UserError: an unknown name, with a guess.
        """
        if names is None:
            return [question for question in self._bank.values() if race or question.family != "race"]
        for name in names:
            require_choice("question", name, self._bank)
        return [self._bank[name] for name in dict.fromkeys(names)]

    def faces(self, image: PictureLike) -> list[Box]:
        """The faces found in a picture, largest first: left, top, right, bottom in pixels."""
        pixels = _pixels(image)
        with self._turn:
            return faces_in(parser_of(self._answerer.config.weights.parser), pixels)

    def respond(self, image: PictureLike, request: Request, face: int = 0, box: Box | None = None) -> Response:
        """What `ask`, `describe` and `answers` build on: answers a request about one face of a picture."""
        pixels = _pixels(image)
        box = locate(pixels, self.faces, box, face, _picture(image, 0).name).box
        with self._turn:
            return respond(self._answerer, pixels, box, request)

    def _by(self, by: By) -> bool:
        require_choice("by", by, ("llm", "head"))
        return by == "llm"


def load(name_or_folder: str | Path = "nano") -> Model:
    """Loads a bundled model by name, a run folder with its base LLM, or a checkpoint's folder (LLaVA, PaliGemma) as it is.

    Raises:
      UserError: there is no such model, or its base is not installed.
    """
    return Model(load_model(str(name_or_folder)))


def _pixels(image: PictureLike) -> np.ndarray:
    picture = _picture(image, 0)
    return picture.source if isinstance(picture.source, np.ndarray) else decode(picture.source, picture.name)


def _picture(image: PictureLike | Picture, number: int) -> Picture:
    """Names a picture and checks its type; pixels of a PIL picture are brought to 8-bit RGB."""
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return Picture(str(image), Path(image))
    if isinstance(image, bytes):
        return Picture(f"picture {number}", image)
    if isinstance(image, Image):
        return Picture(f"picture {number}", _pil_pixels(image))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3:
        return Picture(f"picture {number}", image)
    shape = f" of shape {image.shape} and type {image.dtype}" if isinstance(image, np.ndarray) else ""
    raise UserError(
        f"picture {number} is {type(image).__name__}{shape}; give a path, bytes, a PIL picture, or RGB pixels (y x 3 uint8)"
    )


def _told(pictures: Iterable[Picture], known: Iterable[Mapping[str, Statement | None]]) -> Iterator[Picture]:
    """Each picture with its row of `known`; empty cells of a table, pandas' own too, say nothing."""
    for picture, row in zip_longest(pictures, known):
        if picture is None or row is None:
            raise UserError("images and known differ in length; give one row of known a picture")
        said = {name: value for name, value in row.items() if str(value) not in ("None", "nan", "<NA>", "NaT", "")}
        yield replace(picture, known=said)


def _pil_pixels(image: Image) -> np.ndarray:
    from PIL import ImageOps

    from fi_jax.pictures.colour import to_srgb

    return to_srgb(ImageOps.exif_transpose(image), "the picture")

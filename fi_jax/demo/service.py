"""What the demo does with a picture, without any HTTP: finds faces, answers, streams text, draws the card.

It keeps nothing: each call gets the picture (or the small face, with its map, that was cut from it) and returns plain values.
"""

import base64
import copy
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fi_jax.errors import UserError, require_choice
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.ask import PARTS, ask_figure, blocks, part_map
from fi_jax.faces.face_detector import crop_for_model
from fi_jax.faces.framing import FramedFace, frame_face
from fi_jax.faces.map_cache import parser_of
from fi_jax.faces.masks import encode_mask, read_mask
from fi_jax.faces.picture_map import faces_in
from fi_jax.inference.answers import Request, Response
from fi_jax.inference.conversation import replies
from fi_jax.labels.question_bank import questions_for
from fi_jax.pictures.crop import Box
from fi_jax.pictures.decode import decode

Array = np.ndarray
MOST_FACES = 8
# The longer side of the photo that the page shows, in pixels.
SHOWN = 960
EXAMPLES = Path(__file__).parent / "examples"
# Points of the integral behind "why?": a quarter of what `fi-jax figure attribution` takes, so that nobody waits long.
WHY_STEPS = 8
NO_FACE = "No face was found. Use the whole picture if it is already a close crop of a face, or try a frontal photo."


@dataclass(frozen=True)
class Switches:
    """What a visitor may turn on and off."""

    # The LLM answers; else the alignment head.
    llm: bool = True
    # The most probable answers that break no rule.
    consistent: bool = False
    # False: the model is shown an empty segmentation map.
    segmentation: bool = True
    # False: the label graph is the identity, so that no prompt learns from another, and no score speaks to another.
    correlation: bool = True
    # Also what annotators would call the person's race.
    race: bool = False


def encoded(image: Array, kind: str = "PNG") -> bytes:
    """Encodes an RGB picture, scaled to at most `SHOWN` pixels a side."""
    buffer, picture = io.BytesIO(), Image.fromarray(image)
    picture.thumbnail((SHOWN, SHOWN))
    picture.save(buffer, kind)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "PNG") -> str:
    """A picture's file as an address that holds it."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def encoded_face(face: FramedFace) -> bytes:
    """A face as a PNG that holds its map and frame too, so that it comes back as it was cut from the photo."""
    buffer, notes = io.BytesIO(), PngInfo()
    notes.add_text("frame", face.frame)
    notes.add_text("map", base64.b64encode(encode_mask(face.mask)).decode())
    Image.fromarray(face.image).save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


def decoded_face(data: bytes, size: int) -> FramedFace:
    """Reads what `encoded_face` wrote. Raises `UserError` for any other file, or a face of another size."""
    crop = decode(data, "the face crop")
    with Image.open(io.BytesIO(data)) as opened:
        notes = getattr(opened, "text", {})
    try:
        mask = read_mask(base64.b64decode(notes["map"]), "the face's map")
        frame = notes["frame"]
    except (KeyError, ValueError):
        mask, frame = None, ""
    if mask is None or crop.shape != (size, size, 3) or mask.shape != (size, size) or frame not in ("box", "aligned"):
        raise UserError(f"this is no face of {size}x{size} that was cut here; load the picture again")
    return FramedFace(crop, mask, frame)


@cache
def example(name: str) -> bytes:
    """An example face as a JPEG: NASA's portrait of Eileen Collins (public domain), or a drawn one.

    Raises:
      UserError: there is no such example.
    """
    if name == "portrait":
        from skimage.data import astronaut

        return encoded(astronaut(), "JPEG")
    require_choice("example", name, ("portrait", *(file.stem for file in EXAMPLES.iterdir())))
    return encoded(decode(EXAMPLES / f"{name}.webp"), "JPEG")


class Service:
    """One loaded model behind the demo. Not thread-safe: callers use one thread at a time."""

    def __init__(self, answerer):
        """`answerer`: an `inference.answerer.Answerer`."""
        self.answerer = answerer
        self.size = answerer.config.data.image_size

    def _framed(self, image: UInt8[Array, "y x 3"], box: Box) -> FramedFace:
        return frame_face(image, box, self.answerer.config.data, self.answerer.config.weights.parser)

    def warm_up(self) -> None:
        """Compiles what the first visitor would wait for; also shares the programs between all switches."""
        grey = self._framed(np.full((self.size, self.size, 3), 127, np.uint8), (0.0, 0.0, self.size, self.size))
        for switches in (Switches(), Switches(race=True), Switches(correlation=False)):
            self._respond(grey, switches)

    def faces(self, data: bytes, whole: bool = False) -> dict:
        """Finds the faces of a picture and cuts them as the model's training crops were cut.

        Returns `{"width", "height", "photo", "faces": [{"box", "crop"}]}`, largest face first; photo and crops are
        addresses that hold them, a box is left, top, right, bottom in pixels.

        Raises:
          UserError: not an image, damaged, too large, or without a face (unless `whole`).
        """
        image = decode(data, "the picture")
        height, width = image.shape[:2]
        found: list[Box]
        if whole:
            # Cropping pads to a square: what is asked for must not be many times what was sent.
            if max(height, width) > 4 * min(height, width):
                raise UserError(f"a picture of {width}x{height} is too long to be one face; crop it first")
            found = [(0.0, 0.0, float(width), float(height))]
        else:
            parser = parser_of(self.answerer.config.weights.parser)
            found = [crop_for_model(box) for box in faces_in(parser, image)][:MOST_FACES]
        if not found:
            raise UserError(NO_FACE)
        faces = [
            {"box": [round(v) for v in box], "crop": data_uri(encoded_face(self._framed(image, box)))} for box in found
        ]
        return {"width": width, "height": height, "photo": data_uri(encoded(image, "JPEG"), "JPEG"), "faces": faces}

    def _switched(self, switches: Switches):
        """The answerer with some parts off; it shares weights and compiled programs with the whole one."""
        if switches.segmentation and switches.correlation:
            return self.answerer
        variant = copy.copy(self.answerer)
        if not switches.correlation:
            graph = variant.constants.graph
            identity = np.eye(len(graph), dtype=graph.dtype)
            variant.constants = variant.constants._replace(graph=identity, relations=None)
        if not switches.segmentation:
            whole = variant.faces
            variant.faces = lambda image, mask, facts=None: whole(image, np.zeros_like(mask), facts)
        return variant

    def _replies(self, face: FramedFace, question: str | None, switches: Switches) -> Iterator[str | Response]:
        request = Request(
            question,
            everything=question is None,
            race=switches.race,
            by_llm=switches.llm,
            consistent=switches.consistent,
        )
        return replies(self._switched(switches), face, (0.0, 0.0, float(self.size), float(self.size)), request)

    def _respond(self, face: FramedFace, switches: Switches) -> Response:
        (response,) = self._replies(face, None, switches)
        return cast(Response, response)

    def answers(self, data: bytes, switches: Switches) -> dict:
        """Returns every answer about a face, grouped, with the map, as plain values; `data` is an `encoded_face`."""
        response = self._respond(decoded_face(data, self.size), switches)
        coloured, parts = part_map(response.mask)
        colour = {name: c for name, c, _ in PARTS}
        return {
            "blocks": [
                {
                    "title": b.title,
                    "note": b.note,
                    "bars": [asdict(bar) | {"value": round(bar.value, 4)} for bar in b.bars],
                }
                for b in blocks(response.answers)
            ],
            "map": data_uri(encoded(coloured)),
            "parts": [{"name": name, "colour": colour[name]} for name in parts],
            "changed": list(response.changed),
            "record": {k: v for k, v in response.to_json("upload").items() if k != "box"},
        }

    def ask(self, data: bytes, question: str, switches: Switches) -> Iterator[dict]:
        """Answers a question in words: one closed answer at once, or text that grows; the last item has `done`.

        Items have `text`; the last has a `note` too: which closed question was answered, or that it is free text. The
        name of a closed question that can be asked "why" is `closed`.
        """
        for reply in self._replies(decoded_face(data, self.size), question, switches):
            if isinstance(reply, str):
                yield {"text": reply}
            else:
                closed = reply.answer.question.name if reply.answer else None
                yield {"text": reply.text, "note": reply.note, "closed": closed, "done": True}

    def why(self, data: bytes, switches: Switches, name: str) -> bytes:
        """Which parts of the photo and of the map moved the answer to the closed question `name`, drawn, as PNG."""
        from fi_jax.evaluation.figures.attribution import attribution_figure
        from fi_jax.inference.attribution import attribute

        answerer = self._switched(switches)
        bank = {question.name: question for question in questions_for(answerer.vocabulary)}
        require_choice("question", name, bank)
        crop, mask, _ = decoded_face(data, self.size)
        crop, mask = answerer.view(crop, mask, bank[name])
        seen = mask if switches.segmentation else np.zeros_like(mask)
        found = attribute(answerer, crop, seen, bank[name], by_llm=switches.llm, steps=WHY_STEPS)
        return style.to_bytes(attribution_figure(crop, seen, found), "png")

    def card(self, data: bytes, switches: Switches) -> bytes:
        """The answer card of a face crop, as PNG."""
        response = self._respond(decoded_face(data, self.size), switches)
        drawn = ask_figure(response.image, response.mask, response.answers, "", response.text)
        return style.to_bytes(drawn, "png")

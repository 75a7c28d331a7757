"""The face parser ready to use: loads it and parses crops, one or many."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from fi_jax.config_tree import from_dict
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import Face
from fi_jax.files import write_json
from fi_jax.labels.face_parts import CLASSES, FLIPPED
from fi_jax.models.segformer import Segformer, SegformerConfig
from fi_jax.pictures.crop import load_square
from fi_jax.trees import flatten, unflatten
from fi_jax.weights.bundle import BUNDLED, require_intact
from fi_jax.weights.leaves import load_leaves, save_leaves

WEIGHTS, DESCRIPTION = "weights.safetensors", "parser.json"

# ImageNet's statistics, as every SegFormer expects.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


@dataclass(frozen=True)
class FaceParser:
    """A SegFormer with its weights. `input_size` is the side of the square crops it takes, in pixels."""

    config: SegformerConfig
    input_size: int
    # `params` and `batch_stats`, nested.
    variables: dict
    # How it was trained and what it scored, for people.
    info: dict = field(default_factory=dict)


def save_parser(folder: Path, parser: FaceParser, precision: str = "int8") -> None:
    """Writes a parser's folder: `weights.safetensors` (int8, float16 or float32) and `parser.json`."""
    describe(folder, parser)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(parser.variables).items()}
    save_leaves(folder / WEIGHTS, leaves, precision)


def describe(folder: Path, parser: FaceParser) -> None:
    """Writes `parser.json`: the network's shape, and how it was trained and what it scored."""
    description = {"input_size": parser.input_size, "model": asdict(parser.config), "info": parser.info}
    write_json(folder / DESCRIPTION, description, indent=2)


def load_parser(name: str = "bundled") -> FaceParser:
    """Loads the bundled parser, a folder that `fi-jax train-parser` wrote, or a SegFormer of the Hub.

    A checkpoint of the Hub (a name, or a folder with a `config.json`) has its classes matched by name.

    Raises:
      UserError: there is no such parser, or its files are damaged or do not fit each other.
    """
    folder = BUNDLED / "parser" if name == "bundled" else Path(name)
    if not (folder / DESCRIPTION).is_file():
        if name == "bundled" or (folder.is_dir() and not (folder / "config.json").is_file()):
            raise UserError(
                f"no face parser in '{folder}' ({DESCRIPTION} is missing); train one with fi-jax train-parser"
            )
        return _from_hub(name)
    require_intact(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        config = from_dict(SegformerConfig, description["model"])
        size, info = int(description["input_size"]), dict(description["info"])
        expected = {path: leaf.shape for path, leaf in flatten(_shapes(config, size)).items()}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OSError) as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged ({type(error).__name__}: {error})") from None
    leaves = load_leaves(folder / WEIGHTS)
    found = {path: leaf.shape for path, leaf in leaves.items()}
    wrong = [path for path in sorted(expected | found) if expected.get(path) != found.get(path)]
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {len(wrong)} leaves differ, the first {wrong[0]}"
        )
    return FaceParser(config, size, unflatten(leaves), info)


def _from_hub(name: str) -> FaceParser:
    from fi_jax.weights.huggingface import load_segformer

    config, variables, _ = load_segformer(name, CLASSES)
    # The checkpoints of the Hub were trained at 512.
    return FaceParser(config, 512, variables, {"source": name})


def _shapes(config: SegformerConfig, size: int) -> dict:
    return jax.eval_shape(Segformer(config).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def normalise(image: Float[Array, "*b 3"] | UInt8[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """Returns pictures (0..255) as the parser takes them."""
    return (image.astype(jnp.float32) - MEAN) / STD


def logits_at(logits: Float[Array, "b h w c"], size: int) -> Float[Array, "b s s c"]:
    """Enlarges logits to the picture's size (bilinear)."""
    return jax.image.resize(logits, (logits.shape[0], size, size, logits.shape[-1]), "bilinear", antialias=False)


@partial(jax.jit, static_argnames="config")
def class_logits(config: SegformerConfig, variables: dict, images: UInt8[Array, "b y x 3"]) -> Float[Array, "b h w c"]:
    """Returns class logits of square crops, at the network's own, coarser size."""
    return cast(Array, Segformer(config).apply(variables, normalise(images)))


@partial(jax.jit, static_argnames="config")
def mirrored_probabilities(
    config: SegformerConfig, variables: dict, images: UInt8[Array, "b y x 3"]
) -> Float[Array, "b y x c"]:
    """Returns class probabilities a pixel, the mean over the crop and its mirror image (classes swapped back)."""
    logits = class_logits(config, variables, jnp.concatenate([images, images[:, :, ::-1]]))
    plain, mirrored = jnp.split(jax.nn.softmax(logits_at(logits, images.shape[1]), axis=-1), 2)
    return (plain + mirrored[:, :, ::-1][..., FLIPPED]) / 2


@partial(jax.jit, static_argnames="config")
def parse(config: SegformerConfig, variables: dict, images: UInt8[Array, "b y x 3"]) -> UInt8[Array, "b y x"]:
    """Returns the class of every pixel of square crops at the parser's own size."""
    return logits_at(class_logits(config, variables, images), images.shape[1]).argmax(-1).astype(jnp.uint8)


def parse_crop(parser: FaceParser, crop: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s"]:
    """Returns the map of one square crop, at the crop's own size (classes by nearest pixel)."""
    size = (parser.input_size, parser.input_size)
    image = Image.fromarray(crop)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    mask = np.asarray(parse(parser.config, parser.variables, np.asarray(image)[None]))[0]
    return np.asarray(Image.fromarray(mask).resize(crop.shape[1::-1], Image.Resampling.NEAREST))


def parse_faces(
    parser: FaceParser, faces: Sequence[Face], batch_size: int | None = None, threads: int = 4
) -> Iterator[tuple[Face, UInt8[np.ndarray, "s s"] | UserError]]:
    """Yields every face with the map of its crop, in order, or with the error for a picture that cannot be read.

    Pictures are decoded on threads while the device works on the batch before. `batch_size` is by default 64, and 1
    on a CPU, where the maps of one face stay in its cache (24 ms a face against 40 on two cores).
    """
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else 64

    def read(face: Face) -> np.ndarray | UserError:
        try:
            return load_square(face.image, face.box, parser.input_size, face.key)
        except UserError as error:
            return error

    def start(chunk: Sequence[Face]) -> list[Future]:
        return [pool.submit(read, face) for face in chunk]

    chunks = [faces[i : i + batch_size] for i in range(0, len(faces), batch_size)]
    variables = jax.device_put(parser.variables)
    with ThreadPoolExecutor(threads) as pool:
        reading = start(chunks[0]) if chunks else []
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            crops = [future.result() for future in reading]
            reading = start(following)
            # The last batch is filled up, so that one program serves all.
            batch = np.zeros((batch_size, parser.input_size, parser.input_size, 3), np.uint8)
            for row, crop in enumerate(crops):
                if not isinstance(crop, UserError):
                    batch[row] = crop
            masks = np.asarray(parse(parser.config, variables, batch))
            for face, crop, mask in zip(chunk, crops, masks, strict=False):
                yield face, crop if isinstance(crop, UserError) else mask

"""CelebA as TensorFlow Datasets prepares it (`celeb_a` in ArrayRecord files), read without TensorFlow."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fi_jax.data.records import FaceRecord, Source, Split
from fi_jax.data.sources.celeba import face_box
from fi_jax.data.sources.release import Release
from fi_jax.errors import UserError
from fi_jax.labels.celeba import LABELS
from fi_jax.pictures.decode import picture_size

NAME = "celeba"
_SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class InTfds:
    """The JPEG file of one example, read when asked for."""

    data_dir: str
    split: str
    index: int

    def __str__(self) -> str:
        return f"celeb_a {self.split} {self.index}"

    def read_bytes(self) -> bytes:
        """Returns the bytes of the picture as released."""
        return _source(self.data_dir, self.split)[self.index]["image"]


def is_prepared(root: Path | str) -> bool:
    """Whether `root` is a TFDS data folder that holds `celeb_a`."""
    return any(Path(root).glob("celeb_a/*/dataset_info.json"))


def read(root: Path | str) -> Source:
    """Reads `celeb_a` of the TFDS data folder `root` with its official splits.

    TFDS does not keep picture names: a key is the split and the place in it, `train-000000`.
    """
    release, root = Release(NAME, root), str(root)
    box = None
    faces = []
    for tfds_split, split in _SPLITS.items():
        for index, example in enumerate(_source(root, tfds_split)):
            if box is None:
                size = picture_size(example["image"], f"celeb_a {tfds_split} {index}")
                box = face_box(*size)
            labels = {label.name: bool(example["attributes"][label.name]) for label in LABELS}
            labels["Female"] = not labels["Male"]
            person = str(int(example["identity"]["Identity_No"])) if "identity" in example else None
            key = f"{tfds_split}-{index:06d}"
            image = InTfds(root, tfds_split, index)
            faces.append(FaceRecord(NAME, key, split, image, labels, box=box, identity=person))
    return release.source(faces)


@lru_cache(maxsize=8)
def _source(data_dir: str, split: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.data_source(
            "celeb_a",
            data_dir=data_dir,
            split=split,
            download=False,
            # Keeps the JPEG file; its other raw form (DESERIALIZE_NO_DECODE) needs TensorFlow.
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except (NotImplementedError, ValueError, AssertionError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"TFDS cannot open celeb_a under '{data_dir}' for random access ({str(error).partition(chr(10))[0]}); "
            "prepare it with file_format='array_record'"
        ) from None

"""CelebA: aligned pictures, 40 attributes, identities, and the official partition (text or CSV files, or TFDS)."""

from collections.abc import Iterator
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source, Split
from fi_jax.data.sources.attributes import AttributeRow, read_attributes
from fi_jax.data.sources.release import Release, picture_key, whole_number
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels import celeba as labels
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.pictures.crop import Box
from fi_jax.pictures.decode import decode
from fi_jax.tables import read_text

NAME = "celeba"
_NAMES = tuple(label.name for label in labels.LABELS)
_ATTRIBUTES = tuple(f"{d}list_attr_celeba.{e}" for e in ("txt", "csv") for d in ("", "Anno/"))
_PARTITION = tuple(f"{d}list_eval_partition.{e}" for e in ("txt", "csv") for d in ("", "Eval/"))
_IDENTITY = ("identity_CelebA.txt", "Anno/identity_CelebA.txt")
_PICTURES = ("img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba")
_PARTS: dict[str, Split] = {"0": "train", "1": "val", "2": "test"}


def read(root: Path | str) -> Source:
    """Reads CelebA, from its own files or from a TFDS data folder (`celeba_tfds`).

    Splits: the official partition, as soon as a picture of its val or test part is under the root.
    When every picture there is of the official train part, the split is 80/10/10 by
    `hash_split(identity, "celeba")`, so that no person is in two splits.
    """
    from fi_jax.data.sources import celeba_tfds

    if celeba_tfds.is_prepared(root):
        return celeba_tfds.read(root)
    release = Release(NAME, root)
    attributes = _attributes(release)
    partition = _partition(release)
    folder = release.find(*_PICTURES)
    nested = folder / folder.name
    pictures = release.require_pictures(nested if nested.is_dir() else folder)
    release.reject_unpaired(attributes, pictures, "list_attr_celeba")
    for key in pictures.keys() & attributes.keys() - partition.keys():
        release.reject(key, "no row in list_eval_partition")
    usable = [key for key in pictures if key in attributes and key in partition]
    official = any(partition[key] != "train" for key in usable)
    identities = _identities(release) if not official or release.has(*_IDENTITY) else {}
    box = _face_box(pictures[key] for key in usable)
    faces = []
    for key in usable:
        person = identities.get(key)
        if person is None and not official:
            release.reject(key, "no row in identity_CelebA.txt, by which the faces are split")
            continue
        split = partition[key] if official else hash_split(str(person), NAME)
        faces.append(FaceRecord(NAME, key, split, pictures[key], attributes[key], box=box, identity=person))
    return release.source(faces)


def read_annotations(root: Path | str) -> Source:
    """Returns every face of the official partition with its attributes, without looking for pictures (to count)."""
    release = Release(NAME, root)
    attributes, partition = _attributes(release), _partition(release)
    return release.source([FaceRecord(NAME, k, partition[k], b"", r) for k, r in attributes.items() if k in partition])


def read_countable(root: Path | str) -> Source:
    """Returns the faces whose attributes may be counted for training: of the official train part, less all people whom
    `read` puts into val or test where it splits by identity.
    """
    release = Release(NAME, root)
    attributes, partition, people = _attributes(release), _partition(release), _identities(release)
    train = {key for key, part in partition.items() if part == "train" and key in people}
    kept = {key for key in train & attributes.keys() if hash_split(people[key], NAME) == "train"}
    return release.source([FaceRecord(NAME, key, "train", b"", attributes[key]) for key in sorted(kept)])


def face_box(height: int, width: int) -> Box:
    """Returns the square of full width whose top is at 30/218 of the height: y 30..208 of the official 178×218."""
    top = min(round(height * 30 / 218), max(height - width, 0))
    return (0.0, float(top), float(width), float(top + width))


def _face_box(pictures: Iterator[Path]) -> Box | None:
    """The release's pictures are all of one size, so it is read from the first that can be decoded."""
    for picture in pictures:
        try:
            height, width = decode(picture).shape[:2]
        except UserError:
            continue
        return face_box(height, width)
    return None


def _attributes(release: Release) -> dict[str, AttributeRow]:
    return read_attribute_file(release, release.find(*_ATTRIBUTES))


def read_attribute_file(release: Release, path: Path) -> dict[str, AttributeRow]:
    """Returns the 40 attributes and "Female" by picture, of the released text file or a CSV copy."""
    if path.suffix == ".csv":
        rows = release.table(path, ("image_id", *_NAMES), key_first=True)
    else:
        lines = read_text(path).rstrip().split("\n")
        header = ["image_id", *(lines[1] if len(lines) > 1 else "").split()]
        cells = ((number, line.split()) for number, line in enumerate(lines[2:], 3))
        rows = release.columns(path, header, cells, ("image_id", *_NAMES))
        count = sum(bool(line.strip()) for line in lines[2:])
        if lines[0].strip() != str(count):
            release.note(f"{path.name}: its first line says {lines[0].strip()[:20]} rows, it has {count}")
    hint = "; in a copy with 0 for false, write -1 for 0"
    table = read_attributes(path, rows, _NAMES, {"1": "1", "-1": "0"}, hint=hint)
    return release.distinct(((picture_key(name), row) for (name,), row in table), path.name)


def _partition(release: Release) -> dict[str, Split]:
    path = release.find(*_PARTITION)
    pairs = _pairs(release, path)
    wrong = next((item for item in pairs.items() if item[1] not in _PARTS), None)
    if wrong:
        raise UserError(f"label file '{path}' gives {wrong[0]} the unknown part '{wrong[1]}'; the parts are 0, 1 and 2")
    return {name: _PARTS[part] for name, part in pairs.items()}


def _identities(release: Release) -> dict[str, str]:
    path = release.find(*_IDENTITY)
    pairs = _pairs(release, path)
    wrong = next((item for item in pairs.items() if whole_number(item[1]) is None), None)
    if wrong:
        raise UserError(f"label file '{path}' gives {wrong[0]} the identity '{wrong[1]}', not a number")
    return {name: str(int(person)) for name, person in pairs.items()}


def _pairs(release: Release, path: Path) -> dict[str, str]:
    is_csv = path.suffix == ".csv"
    rows = release.table(path, ("image_id", "partition"), key_first=True) if is_csv else release.rows(path, 2)
    pairs: dict[str, str] = {}
    for number, (name, value) in rows:
        name = picture_key(name)
        if pairs.setdefault(name, value) != value:
            raise UserError(f"label file '{path}' line {number} contradicts an earlier row about {name}")
    return pairs


DATASET = Dataset(
    name=NAME,
    title="CelebA",
    read=read,
    vocabulary=vocabulary("celeba"),
    questions=questions_for(vocabulary("celeba")),
    annotations=read_countable,
    same_pictures_as=("celebamask_hq",),
)

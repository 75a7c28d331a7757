import json
import subprocess
import sys

import numpy as np
import pytest

from fi_jax.data.datasets import open_source
from fi_jax.data.examples import make_example
from fi_jax.labels import celeba
from fi_jax.labels.registry import vocabulary
from fi_jax.pictures.crop import load_square

LANDMARKS = ["lefteye", "righteye", "nose", "leftmouth", "rightmouth"]


def write_tfds(root, pictures, attributes):
    """Writes `celeb_a` as TFDS lays it out: proto examples in ArrayRecord files beside its own two JSON files."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / "celeb_a" / "2.1.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(218, 178, 3), encoding_format="jpeg"),
            "landmarks": {f"{name}_{axis}": np.int64 for name in LANDMARKS for axis in "xy"},
            "attributes": {label.name: np.bool_ for label in celeba.LABELS},
            "identity": {"Identity_No": np.int64},
        }
    )
    infos = []
    for split, members in {"train": pictures[:4], "validation": pictures[4:5], "test": pictures[5:]}.items():
        writer = ArrayRecordWriter(str(folder / f"celeb_a-{split}.array_record-00000-of-00001"), "group_size:1")
        for number, data in members:
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(data)
            feature["identity/Identity_No"].int64_list.value.append(number)
            for name in LANDMARKS:
                for axis in "xy":
                    feature[f"landmarks/{name}_{axis}"].int64_list.value.append(1)
            for label, value in zip(celeba.LABELS, attributes[number], strict=True):
                feature[f"attributes/{label.name}"].int64_list.value.append(int(value))
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            {
                "name": split,
                "shardLengths": [str(len(members))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    features.save_config(folder)
    info = {
        "name": "celeb_a",
        "version": "2.1.0",
        "fileFormat": "array_record",
        "splits": infos,
        "moduleName": "tensorflow_datasets.datasets.celeb_a.celeb_a_dataset_builder",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture
def prepared(releases, tmp_path):
    attributes = np.random.default_rng(0).integers(0, 2, (7, 40)).astype(bool)
    pictures = [(i, releases.jpeg(i, 218, 178)) for i in range(7)]
    write_tfds(tmp_path / "tfds", pictures, attributes)
    return tmp_path / "tfds", pictures, attributes


def test_reads_what_tfds_prepared(prepared):
    root, pictures, attributes = prepared
    source = open_source("celeba", root)
    assert [len(source.records(split)) for split in ("train", "val", "test")] == [4, 1, 2]
    face = source.records("test")[1]
    number = int(face.identity)
    assert number == 6 and face.key == "test-000001" and face.box == (0.0, 30.0, 178.0, 208.0)
    assert face.image.read_bytes() == pictures[6][1]
    assert [face.labels[label.name] for label in celeba.LABELS] == attributes[6].tolist()
    example = make_example(face, vocabulary("celeba"), 32)
    assert np.array_equal(example["image"], load_square(pictures[6][1], face.box, 32))


def test_needs_no_tensorflow(prepared):
    root = prepared[0]
    program = (
        "import sys\n"
        "from fi_jax.data.datasets import open_source\n"
        f"print(len(open_source('celeba', {str(root)!r}).records('all')), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "7 False", done.stderr

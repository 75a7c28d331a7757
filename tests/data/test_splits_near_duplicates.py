import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fi_jax.data import near_duplicates, splits
from fi_jax.data.records import FaceRecord, Source
from fi_jax.errors import UserError
from fi_jax.pictures import decode as decoding


def test_split_of_a_name_never_changes():
    # The published rule: whoever recomputes it must get these.
    assert [splits.hash_split(f"{i:06d}.jpg", "celeba") for i in range(1, 13)] == [
        "val",
        "train",
        "train",
        "train",
        "train",
        "train",
        "val",
        "train",
        "train",
        "val",
        "train",
        "train",
    ]
    import hashlib

    by_hand = int.from_bytes(hashlib.sha256(b"celeba:000001.jpg").digest()[:8], "big") / 2**64
    assert splits.hash_fraction("000001.jpg", "celeba") == by_hand


def test_limited_takes_hash_order_and_keeps_the_records_order():
    records = [FaceRecord("s", f"{i:03d}.jpg", "test", b"") for i in range(100)]
    few = splits.limited(records, 10)
    assert [r.key for r in few] == sorted(r.key for r in few) and len(few) == 10
    assert [r.key for r in few] != [r.key for r in records[:10]]
    assert set(r.key for r in few) <= {r.key for r in splits.limited(records, 20)}
    assert {r.key for r in splits.limited(records[::-1], 10)} == {r.key for r in few}
    assert splits.limited(records, None) == splits.limited(records, 0) == splits.limited(records, 100) == records


def test_shares_and_salt():
    names = [str(i) for i in range(20000)]
    counts = Counter(splits.hash_split(name, "a") for name in names)
    assert abs(counts["train"] / 20000 - 0.8) < 0.01 and abs(counts["val"] / 20000 - 0.1) < 0.01
    both = sum(splits.hash_split(n, "a") == splits.hash_split(n, "b") == "test" for n in names)
    assert both < 300


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="did you mean 'train'"):
        Source("s", ()).records("trian")


def face(seed):
    low = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(low).resize((96, 96), Image.Resampling.BICUBIC))


def thumbnail(grey, quality=90):
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(buffer, "JPEG", quality=quality)
    return decoding.thumbnail(buffer.getvalue(), near_duplicates.THUMBNAIL)


def groups(shots, keys=None):
    keys = keys or [str(i) for i in range(len(shots))]
    return near_duplicates.group_names(keys, near_duplicates.near_duplicate_pairs(np.stack(shots)))


def test_found_through_compression_brightness_and_mirror():
    a, b = face(1), face(2)
    brighter = np.clip(a.astype(float) * 0.7 + 30, 0, 255).astype(np.uint8)
    shots = [thumbnail(x, q) for x, q in ((b, 90), (a, 95), (a, 30), (brighter, 80), (a[:, ::-1], 90), (face(3), 90))]
    assert list(groups(shots).values()) == ["0", "1", "1", "1", "1", "5"]


def test_flat_pictures_have_no_near_duplicate():
    assert list(groups(np.full((3, 32, 32), 7, np.uint8)).values()) == ["0", "1", "2"]


def test_a_second_group_stays_together():
    none = np.zeros((0, 2), np.int64)
    names = near_duplicates.group_names(["a#0", "b#0", "a#1", "c#0"], none, ["a", "b", "a", "c"])
    assert names == {"a#0": "a#0", "b#0": "b#0", "a#1": "a#0", "c#0": "c#0"}
    assert near_duplicates.group_names([], none) == {}


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(9)))
def test_groups_do_not_depend_on_the_order(order):
    base = [thumbnail(face(i // 3), 40 + 20 * (i % 3)) for i in range(9)]
    found = groups([base[i] for i in order], [f"k{i}" for i in order])
    assert found == {f"k{i}": f"k{3 * (i // 3)}" for i in range(9)}


def test_blocks_meet(monkeypatch):
    shots = [thumbnail(face(i % 5), 60 + i) for i in range(15)]
    whole = groups(shots)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 4)
    assert groups(shots) == whole

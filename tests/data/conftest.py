"""Small faithful releases, written to a temporary folder."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fi_jax.labels import celeba, maad_face


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(seed: int, height: int = 40, width: int = 32) -> np.ndarray:
    """A smooth random picture; different seeds are no near-duplicates."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(seed: int, height: int = 40, width: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class Releases:
    """Writes miniature releases under `root`, with the real names, separators and layouts."""

    jpeg = staticmethod(jpeg)
    write = staticmethod(write)

    def __init__(self, root: Path):
        self.root = root

    @staticmethod
    def edit(path: Path, old: str, new: str) -> None:
        """Damages a text file in one place."""
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def celeba(self, count: int = 12, parts: str = "", size: tuple[int, int] = (218, 178), newline: str = "\n") -> Path:
        root = self.root / "celeba"
        names = [f"{i + 1:06d}.jpg" for i in range(count)]
        parts = parts or "0" * count
        rng = np.random.default_rng(0)
        lines = [str(count), " ".join(label.name for label in celeba.LABELS) + " "]
        lines += [f"{name} " + " ".join(f"{v:2d}" for v in rng.choice([-1, 1], 40)) for name in names]
        write(root / "list_attr_celeba.txt", newline.join(lines) + newline)
        write(root / "list_eval_partition.txt", "".join(f"{n} {p}{newline}" for n, p in zip(names, parts, strict=True)))
        write(root / "identity_CelebA.txt", "".join(f"{n} {1 + i // 2}{newline}" for i, n in enumerate(names)))
        for i, name in enumerate(names):
            write(root / "img_align_celeba" / name, jpeg(i, *size))
        return root

    def utkface(self, count: int = 12) -> Path:
        root = self.root / "utkface"
        for i in range(count):
            name = f"{i * 7}_{i % 2}_{i % 5}_2017011{i % 10}1912345{i:02d}.jpg.chip.jpg"
            write(root / "UTKFace" / name, jpeg(100 + i, 48, 48))
        return root

    def expw(self, count: int = 8) -> Path:
        root = self.root / "expw"
        rows = []
        for i in range(count):
            name = f"happy_man_{i // 2}.jpg"
            write(root / "image" / "origin" / name, jpeg(200 + i // 2, 90, 120))
            left = 5 + 60 * (i % 2)
            rows.append(f"{name} {i % 2} 20 {left} {left + 40} 60 55.5 {i % 7}")
        write(root / "label" / "label.lst", "\n".join(rows) + "\n")
        return root

    def fer2013(self) -> Path:
        root = self.root / "fer2013"
        for i, (folder, expression, name) in enumerate(
            (("train", "angry", "Training_3"), ("train", "sad", "Training_5"), ("validation", "happy", "PublicTest_8"))
        ):
            write(root / folder / expression / f"{name}.jpg", jpeg(600 + i, 48, 48))
        return root

    def fairface(self) -> Path:
        root = self.root / "fairface"
        ages = ("0-2", "3-9", "10-19", "20-29", "more than 70")
        races = ("East Asian", "Indian", "Latino_Hispanic", "Middle Eastern", "White")
        for part, count in (("train", 10), ("val", 5)):
            rows = ["file,age,gender,race,service_test"]
            for i in range(count):
                write(root / part / f"{i + 1}.jpg", jpeg(300 + i, 30, 30))
                gender = ("Male", "Female")[i % 2]
                rows.append(f"{part}/{i + 1}.jpg,{ages[i % 5]},{gender},{races[i % 5]},{i % 3 == 0}")
            write(root / f"fairface_label_{part}.csv", "\n".join(rows) + "\n")
        return root

    def maad_face(self) -> Path:
        root = self.root / "maad"
        rng = np.random.default_rng(1)
        rows = ["Filename,Identity," + ",".join(label.name for label in maad_face.LABELS)]
        for part, people in (("train", range(2, 12)), ("test", range(12, 14))):
            for person in people:
                for shot in range(2):
                    key = f"n{person:06d}/{shot:04d}_01.jpg"
                    write(root / part / key, jpeg(400 + 2 * person + shot, 36, 30))
                    rows.append(f"{key},{person}," + ",".join(map(str, rng.integers(-1, 2, 47))))
        write(root / "MAAD_Face.csv", "\n".join(rows) + "\n")
        return root

    def raf_db(self, original: bool = False) -> Path:
        root = self.root / "raf"
        rows = []
        for i in range(14):
            name = f"{'test' if i >= 10 else 'train'}_{i + 1:05d}"
            rows.append(f"{name}.jpg {i % 7 + 1}")
            if original:
                write(root / "Image" / "original" / f"{name}.jpg", jpeg(500 + i, 100, 90))
                box = "20.5 30.0 60.5 80.0 \n"
                write(root / "Annotation" / "boundingbox" / f"{name}_boundingbox.txt", box)
                landmarks = "".join(f"{x}.5\t{x}.25\n" for x in range(5))
                write(root / "Annotation" / "manual" / f"{name}_manu_attri.txt", f"{landmarks}{i % 3}\n{i % 3}\n2\n")
            else:
                write(root / "Image" / "aligned" / f"{name}_aligned.jpg", jpeg(500 + i, 100, 100))
        write(root / "EmoLabel" / "list_patition_label.txt", "\n".join(rows) + "\n")
        return root

    def celebamask_hq(self, official: bool = False) -> Path:
        root = self.root / ("hq_official" if official else "hq")
        from fi_jax.faces.masks import encode_mask

        for i in range(4):
            mask = np.zeros((32, 32), np.uint8)
            mask[8:28, 6:26] = 1
            mask[2:12, 4:28] = 13
            if not official:
                write(root / "images" / f"face{i}.jpg", jpeg(600 + i, 32, 32))
                write(root / "masks" / f"face{i}.png", encode_mask(mask))
                continue
            number = i * 1000
            write(root / "CelebA-HQ-img" / f"{number}.jpg", jpeg(600 + i, 32, 32))
            skin = np.zeros((32, 32), np.uint8)
            skin[8:28, 6:26] = 255
            hair = np.where(mask == 13, 255, 0).astype(np.uint8)
            for part, binary in (("skin", skin), ("hair", hair)):
                buffer = io.BytesIO()
                Image.fromarray(np.repeat(binary[..., None], 3, 2)).save(buffer, "PNG")
                folder = root / "CelebAMask-HQ-mask-anno" / str(number // 2000)
                write(folder / f"{number:05d}_{part}.png", buffer.getvalue())
        return root


@pytest.fixture
def releases(tmp_path) -> Releases:
    return Releases(tmp_path / "releases")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(__file__).parents[2] / ".." / "shared" / "data"
    if not (root / "README.md").exists():
        pytest.skip("the research data sets (../shared/data) are not here")
    return Path(os.path.normpath(root))

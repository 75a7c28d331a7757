"""Measures faces a second of the data pipeline against a plain PyTorch DataLoader doing the same work.

    python benchmarks/data_loading.py --dataset utkface --data-root FOLDER --workers 2

The work: read, decode, cut the face's square, scale it to --size, augment (scale, shift, turn, mirror,
brightness, contrast, saturation, grey, blur, erase), pack a batch with labels. PyTorch does all of it with PIL
in its worker processes, as torchvision's transforms do; here the workers decode and pack, and the batch is
augmented by one compiled program on the accelerator (on a machine without one, on the same cores). The two
take turns for --rounds rounds of --seconds each, so that both see the same machine. Besides faces a second, the
processor time of all processes a face is told: on a busy machine it is the steadier of the two. Needs the `torch` extra.
Without --data-root, 2000 pictures of 178x218 are drawn and saved as JPEG first.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np


def drawn_records(folder: Path, count: int = 2000):
    """Saves soft random pictures with grain (they compress as photographs do) and returns their records."""
    from PIL import Image

    from fi_jax.data.records import FaceRecord

    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        low = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(low).resize((178, 218), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        path = folder / f"{i:06d}.jpg"
        Image.fromarray(pixels).save(path, quality=92)
        records.append(FaceRecord("drawn", path.name, "train", path, {"Smiling": bool(i % 2)}, box=(0, 30, 178, 208)))
    return records


def pil_example(record, vocabulary, size: int, rng: np.random.Generator):
    """One example the plain way: PIL all through, as torchvision's transforms on PIL pictures."""
    import torch
    from PIL import Image, ImageEnhance, ImageFilter

    from fi_jax.data.records import encode_labels
    from fi_jax.pictures.crop import square_box

    with Image.open(record.image) as file:
        image = file.convert("RGB")
    left, top, right, bottom = square_box(record.box, image.height, image.width)
    whole = tuple(round(edge) for edge in (left, top, right, bottom))
    image = image.crop(whole).resize((size, size), Image.Resampling.BILINEAR)
    scale, angle, aspect = 0.7 + 0.3 * rng.random(), 0.15 * rng.uniform(-1, 1), np.exp(0.12 * rng.uniform(-1, 1))
    reach = ((1 - scale) / 2 + 0.08) * size
    shift = rng.uniform(-reach, reach, 2)
    a, b = scale * aspect * np.cos(angle), -scale * aspect * np.sin(angle)
    d, e = scale / aspect * np.sin(angle), scale / aspect * np.cos(angle)
    middle = size / 2
    offset = (middle - a * middle - b * middle + shift[0], middle - d * middle - e * middle + shift[1])
    image = image.transform(
        (size, size), Image.Transform.AFFINE, (a, b, offset[0], d, e, offset[1]), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.75, 1.25))
    image = ImageEnhance.Color(image).enhance(0.0 if rng.random() < 0.1 else rng.uniform(0.7, 1.3))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.BoxBlur(0.5))
    pixels = np.array(image)
    if rng.random() < 0.3:
        y, x = rng.integers(0, size, 2)
        half = rng.integers(size // 20, size // 5, 2)
        pixels[max(y - half[0], 0) : y + half[0], max(x - half[1], 0) : x + half[1]] = rng.integers(0, 256, 3)
    labels, known = encode_labels(record, vocabulary)
    return {"image": torch.from_numpy(pixels), "labels": torch.from_numpy(labels), "known": torch.from_numpy(known)}


class PlainDataset:
    """A map-style dataset as one writes it for `torch.utils.data.DataLoader`."""

    def __init__(self, records, vocabulary, size: int):
        self.records, self.vocabulary, self.size = records, vocabulary, size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int):
        return pil_example(self.records[index], self.vocabulary, self.size, np.random.default_rng(index))


def plain_batches(args, records, vocabulary):
    """Batches of the plain loader, epoch after epoch."""
    import torch

    loader = torch.utils.data.DataLoader(
        PlainDataset(records, vocabulary, args.size),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        persistent_workers=args.workers > 0,
    )
    while True:
        yield from loader


def our_batches(args, records, vocabulary, in_memory: bool = False, threads: bool = False):
    """Batches of the pipeline, augmented. `threads`: decoded in this process, as the trainer does by default."""
    import jax

    from fi_jax.data.pipeline import FaceDataset, MemoryDataset, training_batches
    from fi_jax.training.augment import Augmentation, augment

    dataset = (MemoryDataset if in_memory else FaceDataset)(records, vocabulary, args.size)
    program = jax.jit(lambda key, image, mask: augment(key, image, mask, Augmentation()))
    key = jax.random.key(0)
    waiting = None
    workers = 0 if threads else args.workers
    for step, batch in enumerate(training_batches(dataset, batch_size=args.batch_size, seed=0, workers=workers)):
        # Dispatch is asynchronous: the last batch is augmented while the next one is fetched.
        ready, waiting = waiting, program(jax.random.fold_in(key, step), batch["image"], batch["mask"])
        if ready is not None:
            jax.block_until_ready(ready)
            yield batch | {"image": ready[0]}


def stages(records, vocabulary, size: int, count: int = 400) -> dict[str, float]:
    """Returns milliseconds of processor time a face of each stage."""
    import jax

    from fi_jax.data.records import encode_labels
    from fi_jax.pictures.crop import load_square
    from fi_jax.pictures.decode import decode
    from fi_jax.pictures.header import read_bytes
    from fi_jax.training.augment import Augmentation, augment

    records = records[:count]
    files = [read_bytes(record.image) for record in records]

    def timed(work) -> float:
        start = time.process_time()
        for item in zip(records, files):
            work(*item)
        return (time.process_time() - start) / len(records) * 1e3

    squares = np.stack([load_square(data, record.box, size) for record, data in zip(records, files)])[:64]
    masks = np.zeros(squares.shape[:3], np.uint8)
    program = jax.jit(lambda key: augment(key, squares, masks, Augmentation()))
    jax.block_until_ready(program(jax.random.key(0)))
    start = time.process_time()
    for step in range(5):
        jax.block_until_ready(program(jax.random.key(step)))
    augmenting = (time.process_time() - start) / (5 * len(squares)) * 1e3
    return {
        "read the file": timed(lambda record, data: read_bytes(record.image)),
        "decode, cut, scale": timed(lambda record, data: load_square(data, record.box, size)),
        "of which decode at full scale would be": timed(lambda record, data: decode(data)),
        "labels": timed(lambda record, data: encode_labels(record, vocabulary)),
        "augment (whole batch, sum over cores)": augmenting,
        "plain: all of it with PIL": timed(
            lambda record, data: pil_example(record, vocabulary, size, np.random.default_rng(0))
        ),
    }


def processor_seconds() -> float:
    """Returns the processor time of this process and all its descendants so far (Linux)."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # After the name in brackets: state, parent, …; fields 12 and 13 from there are user and system ticks.
                cells = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(cells[1])
            spent[int(folder.name)] = int(cells[11]) + int(cells[12])
    ours, total = os.getpid(), 0
    for process in spent:
        ancestor = process
        while ancestor not in (0, ours):
            ancestor = parents.get(ancestor, 0)
        total += spent[process] * (ancestor == ours)
    return total / os.sysconf("SC_CLK_TCK")


def rate(batches, seconds: float, batch_size: int) -> tuple[float, float]:
    """Returns faces a second over about `seconds`, and milliseconds of processor time a face."""
    count, start, before = 0, time.perf_counter(), processor_seconds()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - start), (processor_seconds() - before) / count * 1e3


def main() -> None:
    """Runs the comparison and prints it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="utkface")
    parser.add_argument("--data-root", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()

    from fi_jax.data.datasets import open_source
    from fi_jax.labels.registry import vocabulary

    words = vocabulary("faces")
    with tempfile.TemporaryDirectory() as folder:
        records = (
            open_source(args.dataset, args.data_root).records("all") if args.data_root else drawn_records(Path(folder))
        )
        name = args.dataset if args.data_root else "drawn pictures, 178x218"
        streams = {
            "PyTorch DataLoader, PIL": plain_batches(args, records, words),
            "fi_jax": our_batches(args, records, words),
            "fi_jax, threads of one process": our_batches(args, records, words, threads=True),
            "fi_jax, cache_in_memory": our_batches(args, records[:4000], words, in_memory=True),
        }
        rates = {label: [] for label in streams}
        for stream in streams.values():
            for _ in range(4):
                next(stream)
        for _ in range(args.rounds):
            for label, stream in streams.items():
                rates[label].append(rate(stream, args.seconds, args.batch_size))
        base, spent = np.median(rates["PyTorch DataLoader, PIL"], axis=0)
        print(
            f"{name}, {args.size}x{args.size}, batch {args.batch_size}, {args.workers} worker processes, {args.rounds} rounds\n"
        )
        print("| loader | faces/s (median) | lowest to highest | ratio | processor ms a face | ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        for label, values in rates.items():
            speeds = [speed for speed, _ in values]
            speed, cost = np.median(values, axis=0)
            print(
                f"| {label} | {speed:,.0f} | {min(speeds):,.0f} to {max(speeds):,.0f} | {speed / base:.2f} | {cost:.2f} | {spent / cost:.2f} |"
            )
        print("\n| stage | processor ms a face |\n| --- | --- |")
        for label, value in stages(records, words, args.size).items():
            print(f"| {label} | {value:.3f} |")


if __name__ == "__main__":
    main()

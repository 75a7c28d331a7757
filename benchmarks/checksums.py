"""What it costs to notice damage: checksums of checkpoints and cached files, and the fingerprint of the data.

    python benchmarks/checksums.py [--million 64] [--files 5000]

Times are processor seconds of this process, medians of three: a busy machine changes them little.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fi_jax.config import Experiment
from fi_jax.data.records import FaceRecord
from fi_jax.files import file_sha256
from fi_jax.training.checkpoints import Checkpoints
from fi_jax.training.fingerprint import fingerprint
from fi_jax.training.optimizer import make_optimizer
from fi_jax.training.state import all_finite, checksum, init_state


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of `work`, after a first call that compiles."""
    work()
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    """Prints one line a cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=int, default=64, help="trained parameters")
    parser.add_argument("--files", type=int, default=5000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, config = Path(temporary), Experiment()
        trained = {"head/kernel": jax.random.normal(jax.random.key(0), (args.million, 1_000_000))}
        state = init_state(trained, make_optimizer(config.train), config.train)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
        checkpoints = Checkpoints(folder, config)
        steps = iter(range(1, 9))

        def save() -> None:
            checkpoints.save(state._replace(step=jnp.asarray(next(steps))), {}, {})
            checkpoints.wait()

        saving = seconds(save)
        summing = seconds(lambda: int(checksum(state)))
        finite = seconds(lambda: bool(all_finite(state)))
        checkpoints.close()
        print(f"checkpoint of {size:.1f} GB: saving {saving:.2f} s, {summing:.2f} s of it for the checksum")
        print(f"looking whether all of it is finite, before a save: {finite:.2f} s")
        file = folder / "cached"
        file.write_bytes(np.random.default_rng(0).bytes(500_000_000))
        print(f"SHA-256 of a cached base of 0.5 GB, once a process: {seconds(lambda: file_sha256(file)):.2f} s")
        picture = np.random.default_rng(1).bytes(15_000)
        records = []
        for i in range(args.files):
            path = folder / f"{i}.jpg"
            path.write_bytes(picture)
            records.append(FaceRecord("drawn", path.name, "train", path, {"Smiling": bool(i % 2)}))
        taken = seconds(lambda: fingerprint(records))
        print(f"fingerprint of {args.files} pictures: {taken:.2f} s, {1e6 * taken / args.files:.0f} µs a picture")


if __name__ == "__main__":
    main()

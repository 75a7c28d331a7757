"""Measures host memory and time of loading a LLaVA-1.5-7B-shaped checkpoint (random float16, sharded) of chosen depth.

    python benchmarks/load_checkpoint.py --layers 16 --folder /somewhere/with/space

On the CPU backend the devices' memory is host memory, so "above the devices" is the peak minus the leaves' bytes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np


def make(folder: Path, num_layers: int) -> int:
    """Writes the checkpoint, one shard a group of leaves, and returns its bytes."""
    from safetensors.numpy import save_file

    from fi_jax.config import LlmConfig, VitConfig
    from fi_jax.weights import leaf_table
    from fi_jax.weights.hf_config import LlavaConfig

    leaves = leaf_table.llava_leaves(LlavaConfig(VitConfig(), replace(LlmConfig(), num_layers=num_layers)))
    shapes = {source: leaf.source_shape for leaf in leaves for source in leaf.sources}
    folder.mkdir(parents=True)
    block = np.random.default_rng(0).normal(size=1 << 20).astype(np.float16)
    shard, size, total, weight_map = {}, 0, 0, {}

    def flush():
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for key, shape in shapes.items():
        shard[key] = np.resize(block, shape)
        size += 2 * int(np.prod(shape))
        if size > 2 << 30:
            flush()
            total, size = total + size, 0
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    text = {
        "model_type": "llama",
        "num_hidden_layers": num_layers,
        "vocab_size": 32064,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text, "vision_config": {}}))
    return total + size


def load(folder: Path) -> None:
    """Loads the checkpoint in this process and prints what it took."""
    import jax

    from fi_jax.weights.huggingface import load_llava

    before = _peak()
    started = time.monotonic()
    _, params, _ = load_llava(folder, dtype="bfloat16")
    seconds = time.monotonic() - started
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**30
    peak = _peak()
    device = jax.devices()[0]
    on_host = held if device.platform == "cpu" else 0.0
    print(
        f"{device.device_kind}: {held:.2f} GiB on the device in {seconds:.1f} s; peak RSS {peak:.2f} GiB (before: {before:.2f}); above the devices {peak - on_host:.2f} GiB"
    )


def _peak() -> float:
    """Peak resident memory of this process in GiB (Linux; getrusage would count the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    """Makes the checkpoint, loads it in a fresh process (so that making it does not count), deletes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8, help="decoder layers; 32 is the real 7B")
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is made; must not exist")
    parser.add_argument("--load-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_only:
        load(arguments.folder)
        return
    try:
        print(f"checkpoint of {make(arguments.folder, arguments.layers) / 2**30:.2f} GiB written", flush=True)
        subprocess.run([sys.executable, __file__, "--folder", str(arguments.folder), "--load-only"], check=True)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()

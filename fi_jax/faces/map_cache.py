"""Segmentation maps of faces whose set has none: the parser's, made once and kept in a cache folder."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fi_jax.config import DataConfig
from fi_jax.data.examples import DEFAULT_MASK_CACHE, mask_path
from fi_jax.data.records import FaceRecord
from fi_jax.faces.parser import BUNDLED, FaceParser, fill_cache, load_parser, parse_crop


def with_maps(
    records: Sequence[FaceRecord], data: DataConfig, parser: str, say: Callable[[str], None] = print
) -> DataConfig:
    """Makes every map that is missing and returns the data config that finds them.

    Maps lie in a folder named after the parser's weights, so another parser's maps are never taken for its own.
    Of many processes, the first does the work; the others wait for it at the next collective.
    """
    if all(record.mask is not None for record in records):
        return data
    cache = Path(data.mask_cache or DEFAULT_MASK_CACHE) / _fingerprint(parser)

    def path_of(record: FaceRecord) -> Path:
        return mask_path(cache, record)

    missing = [record for record in records if record.mask is None and not path_of(record).exists()]
    if missing:
        say(f"parsing {len(missing)} faces into {cache}")
        fill_cache(_parser(parser), missing, path_of, threads=max(4, os.cpu_count() or 1))
    return replace(data, mask_cache=str(cache))


def map_of(crop: UInt8[np.ndarray, "s s 3"], parser: str) -> UInt8[np.ndarray, "s s"]:
    """Returns the parser's map of one square crop."""
    return parse_crop(_parser(parser), crop)


@lru_cache(maxsize=2)
def _parser(name: str) -> FaceParser:
    return load_parser(name)


def _fingerprint(name: str) -> str:
    folder = BUNDLED / "parser" if name == "bundled" else Path(name)
    weights = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256(name.encode() if not weights else b"")
    for file in weights:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

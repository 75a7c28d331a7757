"""Figures (matplotlib): each function returns a `Figure` and writes nothing; `style.save` writes PNG or SVG."""

from pathlib import Path


def mark_of(file: Path | str) -> bytes:
    """What a figure of ours holds near its start (`files.refuse_overwrite`): matplotlib's name; nothing where none is kept."""
    return b"atplotlib" if Path(file).suffix.lower() in (".png", ".svg") else b""

"""Figures (matplotlib): each function returns a `Figure` and writes nothing; `style.save` writes PNG or SVG."""

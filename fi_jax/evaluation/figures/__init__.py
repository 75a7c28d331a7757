"""Figures (matplotlib): each function returns a `Figure` and writes nothing; `style.save` writes PNG, SVG or PDF."""

# What a figure of ours holds near its start or end (`files.refuse_overwrite`): matplotlib's name.
MARK = b"atplotlib"

"""Nested parameter trees as flat {"a/b/c": leaf} dicts, and back."""

from typing import Any

from flax import traverse_util


def flatten(tree: dict) -> dict[str, Any]:
    """Returns a nested parameter tree, of arrays or of what stands for them, as {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: dict[str, Any]) -> dict:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(leaves, sep="/")

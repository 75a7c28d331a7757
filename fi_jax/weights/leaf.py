"""One leaf of our trees, and how it lies in a checkpoint: which tensors, and which axes of theirs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Leaf:
    """One leaf of our tree, and the tensors of a checkpoint that it is: one, or one a layer."""

    # Path in our tree, e.g. "layers/attn/q_proj/kernel".
    path: str
    shape: tuple[int, ...]
    # Key in the checkpoint, e.g. "model.layers.{}.self_attn.q_proj.weight"; `{}` is the layer's number.
    key: str
    # Axis k of one layer of ours is axis axes[k] of the tensor.
    axes: tuple[int, ...]
    # Name in a GGUF file, "" where GGUF has no such tensor.
    gguf: str = ""
    # GGUF interleaves the rows of so many heads for its form of RoPE; 0: it does not.
    heads: int = 0
    # Layers stacked on axis 0; 0: the leaf is one tensor.
    layers: int = 0
    # Axes of size 1 at the tensor's start (tokens of a batch of one) and end (1x1 convolutions), which ours does not have.
    leading: int = 0
    squeezed: int = 0
    # Picks and orders the entries of our last axis out of the tensor's (classes in another order).
    order: tuple[int, ...] | None = None
    # Classes of the tensor, where `order` is given.
    num_classes: int = 0
    # The tensor is several leaves, one after the other along its axis 0: where this one begins, and the length of all.
    part: tuple[int, int] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys of the tensors, layer by layer."""
        return tuple(self.key.format(i) for i in range(self.layers)) if self.layers else (self.key,)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of each tensor."""
        own = self.own_shape
        return own if self.part is None else (self.part[1], *own[1:])

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of what each tensor holds of this leaf."""
        ours = self.shape[1:] if self.layers else self.shape
        if self.order is not None:
            ours = (*ours[:-1], self.num_classes)
        laid_out = tuple(ours[self.axes.index(axis)] for axis in range(len(ours)))
        return (1,) * self.leading + laid_out + (1,) * self.squeezed

    @property
    def own_rows(self) -> Any:
        """Index of this leaf in its tensor."""
        return ... if self.part is None else slice(self.part[0], self.part[0] + self.own_shape[0])

    def to_source(self, part: np.ndarray) -> np.ndarray:
        """Lays one layer of ours (or the whole of a leaf that is not stacked) out as its tensor, or its part of one."""
        inverse = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return np.asarray(np.transpose(part, inverse), order="C").reshape(self.own_shape)

    def from_source(self, tensor: np.ndarray) -> np.ndarray:
        """Lays a tensor out as one layer of ours: the inverse of `to_source`, of a whole tensor."""
        tensor = tensor[self.own_rows]
        part = tensor.reshape(tensor.shape[self.leading :][: len(self.axes)]).transpose(self.axes)
        return part if self.order is None else part[..., np.array(self.order)]

    def split(self, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the keys of a leaf and their tensors."""
        for source, part in zip(self.sources, value if self.layers else [value], strict=True):
            yield source, self.to_source(np.asarray(part))

    def join(self, read: Callable[[str], np.ndarray], dtype: np.dtype | None = None) -> np.ndarray:
        """Fills the leaf from its tensors, one in memory at a time: the inverse of `split`."""
        if not self.layers:
            return np.asarray(self.from_source(read(self.key)), dtype, order="C")
        value = None
        for i, source in enumerate(self.sources):
            part = self.from_source(read(source))
            value = np.empty(self.shape, dtype or part.dtype) if value is None else value
            value[i] = part
        assert value is not None
        return value


def by_source(leaves: Iterable[Leaf]) -> dict[str, list[tuple[Leaf, int]]]:
    """Key of each tensor -> the leaves, and which of their layers, that it holds, in order."""
    held: dict[str, list[tuple[Leaf, int]]] = {}
    for leaf in leaves:
        for i, source in enumerate(leaf.sources):
            held.setdefault(source, []).append((leaf, i))
    return held

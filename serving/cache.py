"""Keys and values: of a batch, with room to grow in place; and of prompts that were read before, to read them only once.

Appending a column to a plain dynamic cache copies all of it; here a buffer has room for more columns, and grows by half
when that is used up. The next prompt of a conversation begins with the last one and its answer, token for token: what was
computed for these is kept, by policy version, and only the rest is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 32  # columns that a new buffer has free

# Keys and values of one sequence, a pair (H, T, D) a layer.
Columns = list[tuple[torch.Tensor, torch.Tensor]]


class GrowingLayer(DynamicLayer):
    """Keys and values (B, H, T, D) as views of buffers with more columns than T."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; all keys and values."""
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if not self.is_initialized or end > self._buffers[0].shape[-2]:
            old = (self.keys, self.values) if self.keys is not None and self.values is not None else None
            self._make(key_states, (key_states.shape[0], key_states.shape[1], end + max(ROOM, length // 2)))
            if old is not None:
                self._buffers[0][..., :length, :], self._buffers[1][..., :length, :] = old
        self._buffers[0][..., length:end, :], self._buffers[1][..., length:end, :] = key_states, value_states
        self._show(end)
        return self.keys, self.values  # type: ignore[return-value]  # set by _show

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only keep these rows."""
        length = self.get_seq_length()
        self._buffers = tuple(buffer.index_select(0, indices) for buffer in self._buffers)
        self._show(length)

    @classmethod
    def of(cls, blocks: Sequence[tuple[torch.Tensor, torch.Tensor]], columns: int) -> GrowingLayer:
        """Blocks of rows (B, H, T, D) below one another, padded with 0 on the left to `columns`."""
        layer, like = cls(), blocks[0][0]
        layer._make(like, (sum(len(keys) for keys, _ in blocks), like.shape[1], columns + ROOM))
        row = 0
        for block in blocks:
            end, begin = row + len(block[0]), columns - block[0].shape[-2]
            for buffer, part in zip(layer._buffers, block, strict=True):
                buffer[row:end, :, :begin] = 0  # attention masks it, and what is masked must still be a number
                buffer[row:end, :, begin:columns] = part
            row = end
        layer._show(columns)
        return layer

    def _make(self, like: torch.Tensor, shape: tuple[int, int, int]) -> None:
        self._buffers = (like.new_empty((*shape, like.shape[-1])), like.new_empty((*shape, like.shape[-1])))
        self.device, self.dtype, self.is_initialized = like.device, like.dtype, True

    def _show(self, length: int) -> None:
        self.keys, self.values = self._buffers[0][..., :length, :], self._buffers[1][..., :length, :]


def new_cache(config: Any) -> Cache:
    """An empty cache for a model; one that grows in place where all of its layers attend to everything."""
    cache = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        return Cache(layers=[GrowingLayer() for _ in cache.layers])
    return cache


def is_plain(cache: Cache) -> bool:
    """Whether rows of such caches can be cut out and put together anew."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def beginning_with(sequences: Sequence[Columns | None], columns: int) -> Cache:
    """A cache whose rows begin with these sequences (one of them at least is there), padded on the left to `columns`."""
    like = next(sequence for sequence in sequences if sequence is not None)
    empty = [(keys[:, :0], values[:, :0]) for keys, values in like]
    layers = zip(*(empty if sequence is None else sequence for sequence in sequences), strict=True)
    return Cache(layers=[GrowingLayer.of([(k[None], v[None]) for k, v in layer], columns) for layer in layers])


def joined(caches: Sequence[Cache]) -> Cache:
    """The rows of all caches as one batch, in order, padded on the left."""
    if len(caches) == 1:
        return caches[0]
    columns = max(cache.get_seq_length() for cache in caches)
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return Cache(layers=[GrowingLayer.of([(part.keys, part.values) for part in layer], columns) for layer in layers])  # type: ignore[misc]


def columns_of(cache: Cache, row: int, mask: torch.Tensor) -> Columns:
    """What a cache holds of one row at the places where `mask` (T,) is not 0, as a copy."""
    places = mask.nonzero().squeeze(1)
    return [
        (layer.keys[row].index_select(1, places), layer.values[row].index_select(1, places))  # type: ignore[index]
        for layer in cache.layers
    ]


@dataclass(frozen=True)
class _Known:
    ids: tuple[int, ...]
    columns: Columns
    size: int


class Prefixes:
    """Keys and values of sequences that were answered, at most `max_bytes` of them, least recently used go first.

    Used by one thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._known: OrderedDict[tuple[str, int], _Known] = OrderedDict()
        self.reused_tokens = 0

    def keep(self, version: str, ids: tuple[int, ...], columns: Columns) -> None:
        """Remember what `version` computed for the sequence `ids`."""
        size = sum(keys.nbytes + values.nbytes for keys, values in columns)
        if size > self._max_bytes:
            return
        *_, digest = _digests(version, ids)
        self._drop((version, digest))
        self._known[version, digest] = _Known(ids, columns, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._known)))

    def longest(self, version: str, prompt_ids: list[int]) -> Columns | None:
        """What is known of the longest beginning of a prompt; at least its last token is left to read."""
        digests = list(_digests(version, prompt_ids[:-1]))
        for length in range(len(digests), 0, -1):
            known = self._known.get((version, digests[length - 1]))
            if known is not None and known.ids == tuple(prompt_ids[:length]):
                self._known.move_to_end((version, digests[length - 1]))
                self.reused_tokens += length
                return known.columns
        return None

    def _drop(self, key: tuple[str, int]) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._bytes -= known.size


def _digests(version: str, ids: Sequence[int]) -> list[int]:
    """A hash of each beginning of a sequence."""
    found, digest = [], hash(version)
    for token in ids:
        digest = hash((digest, token))
        found.append(digest)
    return found

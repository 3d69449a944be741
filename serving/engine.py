"""Generation: requests that arrive together are answered together, each with its own sampling.

One thread owns the models. It takes what has arrived within a short window, groups it by policy version, and decodes
the group with one key-value cache; rows that are done leave it. Log-probabilities are those of the distribution that
was sampled from at its temperature, before top-p, top-k and min-p; at temperature 0 they are those at temperature 1.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache

from otel_lightning.serving.cache import Columns, Prefixes, beginning_with, columns_of, is_plain, joined, new_cache
from otel_lightning.serving.pool import Pool

TRUNCATING_NONE = (1.0, 0, 0.0)
LIKE, LIKE_TOKENS = 1.3, 4  # prompts up to this much longer than the shortest are read with it


@dataclass(frozen=True)
class Sampling:
    """How one answer is sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0

    @property
    def truncating(self) -> tuple[float, int, float]:
        """(top_p, top_k, min_p), comparable with `TRUNCATING_NONE`."""
        return (self.top_p, self.top_k, self.min_p)


@dataclass
class Answer:
    """One sampled answer: ids and log-probabilities have equal length; the last id may be the end token."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: str = "stop"
    text: str | None = None  # set when a stop string cut the text


@dataclass
class _Row:
    version: str
    prompt_ids: list[int]
    sampling: Sampling
    future: Future[Answer]
    on_token: Callable[[int, float], None] | None
    answer: Answer = field(default_factory=Answer)
    generator: torch.Generator | None = None


class Engine:
    """Answers prompts; `submit` from any thread."""

    def __init__(
        self,
        pool: Pool,
        *,
        max_batch: int = 64,
        window_s: float = 0.004,
        threads: int = 1,
        prefix_bytes: int = 256 << 20,
    ) -> None:
        self._pool, self._max_batch, self._window_s = pool, max_batch, window_s
        self._inbox: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._threads = threads
        self._prefixes = Prefixes(prefix_bytes) if prefix_bytes else None
        self.tokens = 0
        self.batches = 0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts that were not read again."""
        return self._prefixes.reused_tokens if self._prefixes is not None else 0

    def submit(
        self,
        version: str,
        prompt_ids: list[int],
        sampling: Sampling,
        on_token: Callable[[int, float], None] | None = None,
    ) -> Future[Answer]:
        """Queue one answer; `on_token` is called from the engine's thread for each sampled token."""
        future: Future[Answer] = Future()
        row = _Row(version, prompt_ids, sampling, future, on_token)
        if sampling.seed is not None:
            row.generator = torch.Generator().manual_seed(sampling.seed & (2**63 - 1))
        self._inbox.put(row)
        return future

    def stop(self) -> None:
        """End after the batch at hand."""
        self._inbox.put(None)
        self._thread.join(timeout=30)

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        waiting: list[_Row] = []
        while True:
            if not self._gather(waiting):
                for row in waiting:
                    row.future.cancel()
                return
            version = waiting[0].version
            batch = [row for row in waiting if row.version == version][: self._max_batch]
            waiting[:] = [row for row in waiting if row not in batch]
            try:
                self._answer(batch)
            except Exception as error:  # one bad batch must not end the server
                for row in batch:
                    if not row.future.done():
                        row.future.set_exception(error)

    def _gather(self, waiting: list[_Row]) -> bool:
        """Add what has arrived; wait for a first request, then a short while for others. False: stop."""
        deadline: float | None = None
        while len(waiting) < self._max_batch:
            try:
                if not waiting:
                    row = self._inbox.get()
                else:
                    deadline = deadline or time.monotonic() + self._window_s
                    row = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return True
            if row is None:
                return False
            waiting.append(row)
        return True

    @torch.inference_mode()
    def _answer(self, rows: list[_Row]) -> None:
        loaded = self._pool.get(rows[0].version)
        model, stop_ids = loaded.model, loaded.stop_ids
        self.batches += 1
        rows, cache, mask, logits = self._read(model, rows)
        positions = mask.sum(-1, keepdim=True) - 1
        while True:
            sampled = self._sample(rows, logits.float())
            keep = []
            for index, row in enumerate(rows):
                if not self._finish(row, stop_ids, loaded):
                    keep.append(index)
                elif self._prefixes is not None and is_plain(cache):
                    ids = (*row.prompt_ids, *row.answer.ids[:-1])  # the last one was sampled, not read
                    self._prefixes.keep(row.version, ids, columns_of(cache, index, mask[index]))
            if not keep:
                return
            if len(keep) < len(rows):
                chosen = torch.tensor(keep)
                cache.batch_select_indices(chosen)
                mask, positions, sampled = mask[chosen], positions[chosen], sampled[chosen]
                rows = [rows[index] for index in keep]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            positions = positions + 1
            logits = _forward(model, sampled[:, None], mask, positions, cache)

    def _read(self, model: Any, rows: list[_Row]) -> tuple[list[_Row], Cache, torch.Tensor, torch.Tensor]:
        """Read all prompts: (rows in a new order, cache, mask (B, T), logits (B, V)).

        What was read before is taken from there; rows with as much left to read go together. They are padded on the left,
        so that all answers begin in one column.
        """
        empty = new_cache(model.config)
        plain = is_plain(empty)
        left: list[_Left] = []
        for row in rows:
            known = (
                self._prefixes.longest(row.version, row.prompt_ids) if self._prefixes is not None and plain else None
            )
            left.append((len(row.prompt_ids) - (0 if known is None else known[0][0].shape[1]), row, known))
        left.sort(key=lambda item: item[0])
        parts: list[list[_Left]] = []
        for item in left:
            if parts and (not plain or item[0] <= LIKE * parts[-1][0][0] + LIKE_TOKENS):
                parts[-1].append(item)
            else:
                parts.append([item])
        caches, masks, logits = zip(*(_read_part(model, part) for part in parts), strict=True)
        longest = max(mask.shape[1] for mask in masks)
        mask = torch.cat([torch.nn.functional.pad(mask, (longest - mask.shape[1], 0)) for mask in masks])
        return [row for _, row, _ in left], joined(caches), mask, torch.cat(logits)

    def _sample(self, rows: list[_Row], logits: torch.Tensor) -> torch.Tensor:
        """One token a row, (B,); appends id and log-probability to each row's answer."""
        temperatures = torch.tensor([row.sampling.temperature or 1.0 for row in rows])
        logprobs = torch.log_softmax(logits / temperatures[:, None], -1)
        probabilities = logprobs.exp()
        for index, row in enumerate(rows):
            if row.sampling.truncating != TRUNCATING_NONE:
                probabilities[index] = _truncate(probabilities[index], row.sampling)
        draws = torch.rand(len(rows), 1)
        for index, row in enumerate(rows):
            if row.generator is not None:
                draws[index] = torch.rand(1, generator=row.generator)
        cumulative = probabilities.cumsum(-1)
        # Scaled by the total, since rounding leaves it a little under or over 1.
        sampled = torch.searchsorted(cumulative, draws * cumulative[:, -1:]).squeeze(1).clamp(max=logits.shape[1] - 1)
        greedy = torch.tensor([row.sampling.temperature == 0 for row in rows])
        sampled = torch.where(greedy, logits.argmax(-1), sampled)
        chosen = logprobs.gather(1, sampled[:, None]).squeeze(1).tolist()
        for index, (row, token, logprob) in enumerate(zip(rows, sampled.tolist(), chosen, strict=True)):
            row.answer.ids.append(token)
            row.answer.logprobs.append(logprob)
            if row.sampling.top_logprobs:
                values, tokens = logprobs[index].topk(row.sampling.top_logprobs)
                row.answer.top.append(list(zip(tokens.tolist(), values.tolist(), strict=True)))
            if row.on_token is not None:
                row.on_token(token, logprob)
        self.tokens += len(rows)
        return sampled

    def _finish(self, row: _Row, stop_ids: frozenset[int], loaded: Any) -> bool:
        answer, sampling = row.answer, row.sampling
        if row.future.cancelled():
            return True
        if answer.ids[-1] in stop_ids:
            answer.finish_reason = "stop"
        elif sampling.stop and (cut := _stopped(loaded.prompts.decode(answer.ids), sampling.stop)) is not None:
            answer.finish_reason, answer.text = "stop", cut
        elif len(answer.ids) >= sampling.max_tokens:
            answer.finish_reason = "length"
        else:
            return False
        if not row.future.done():
            row.future.set_result(answer)
        return True


# How many tokens of a prompt are left to read, and what is known of those before.
_Left = tuple[int, _Row, Columns | None]


def _read_part(model: Any, part: list[_Left]) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """Read what is left of prompts, about as much of each: (cache, mask (B, T), logits (B, V))."""
    new, known = part[-1][0], max(len(row.prompt_ids) - length for length, row, _ in part)
    ids = torch.zeros(len(part), new, dtype=torch.long)
    mask = torch.zeros(len(part), known + new, dtype=torch.long)
    for index, (length, row, _) in enumerate(part):
        ids[index, new - length :] = torch.tensor(row.prompt_ids[-length:])
        mask[index, known - (len(row.prompt_ids) - length) : known] = 1
        mask[index, known + new - length :] = 1
    cache = beginning_with([columns for _, _, columns in part], known) if known else new_cache(model.config)
    positions = (mask.cumsum(-1)[:, known:] - 1).clamp(min=0)
    return cache, mask, _forward(model, ids, mask, positions, cache)


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Logits (B, V) after the last of these tokens."""
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


def _truncate(probabilities: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """A distribution (V,) with what top-k, top-p and min-p exclude set to 0; not renormalised."""
    kept = probabilities.clone()
    if sampling.top_k and sampling.top_k < len(kept):
        kept[kept < kept.topk(sampling.top_k).values[-1]] = 0
    if sampling.top_p < 1:
        values, order = kept.sort(descending=True)
        outside = values.cumsum(0) - values > sampling.top_p * values.sum()
        kept[order[outside]] = 0
    if sampling.min_p > 0:
        kept[kept < sampling.min_p * kept.max()] = 0
    return kept


def _stopped(text: str, stops: tuple[str, ...]) -> str | None:
    """The text before the first stop string, or None when there is none yet."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None

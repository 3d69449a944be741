"""Rows to train on, read from the lake's tables or from supervised conversations; what cannot be trained is refused.

A row is one token sequence with a mask. Importance-weighted methods take only rows whose ids and log-probabilities were
recorded when they were sampled; text is tokenised again for supervised methods alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from otel_lightning.app.errors import ConfigError, LightningError
from otel_lightning.store.policies import Policies
from otel_lightning.training.config import Grpo, Sft, TrainConfig
from otel_lightning.transforms.tables import open_tables, require_derived

LIKELY_MISTAKE_SHARE = 0.5  # more unusable rows than this is a mistake, not an exception


@dataclass(frozen=True)
class Row:
    """One sequence. `token_ids`, `mask`, `logprobs`, `advantages` have equal length; what is not trained is masked."""

    row_id: str
    rollout_id: str
    token_ids: np.ndarray
    mask: np.ndarray
    logprobs: np.ndarray | None
    advantages: np.ndarray
    temperature: float
    weight: float
    sample_ids: tuple[str, ...]
    token_source: str


@dataclass(frozen=True)
class Dataset:
    """Rows, and what was left out by reason."""

    rows: list[Row]
    left_out: dict[str, int]
    manifest: str | None

    @property
    def rollouts(self) -> int:
        """How many rollouts the rows belong to."""
        return len({row.rollout_id for row in self.rows})

    @property
    def tokens(self) -> int:
        """How many tokens are trained."""
        return int(sum(row.mask.sum() for row in self.rows))


def read_messages(path: Path, tokenizer: Any) -> Dataset:
    """Supervised conversations: every assistant message is trained, nothing else."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"data.messages: {path} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f'{path}:{number}: is not {{"messages": […]}}; give one conversation a line') from None
        ids, mask = tokenise(tokenizer, messages)
        rows.append(_text_row(f"{path.name}:{number}", f"{path.name}:{number}", ids, mask, 1.0))
    if not rows:
        raise LightningError(f"{path} holds no conversation; nothing to train on")
    return Dataset(rows, {}, None)


def read_lake(
    lake: Path,
    config: TrainConfig,
    tokenizer: Any,
    tokenizer_sha256: str,
    rollout_ids: Iterable[str] | None = None,
    trained_before: frozenset[str] = frozenset(),
) -> Dataset:
    """What the lake holds for the configured algorithm. LightningError in one line when it cannot be trained on.

    `rollout_ids` limits it to the rollouts of a round; answers in `trained_before` (sample ids), under whichever of the spans
    that are one call, are masked.
    """
    manifest = require_derived(lake)
    needs_ids = isinstance(config.algorithm, Grpo)
    with open_tables(lake) as connection:
        chosen = "true"
        if rollout_ids is not None:
            connection.execute("create temp table chosen (rollout_id varchar)")
            connection.executemany("insert into chosen values (?)", [[rollout_id] for rollout_id in rollout_ids])
            chosen = "rollout_id in (select rollout_id from chosen)"
        condition = f"split = 'train' and {chosen} and ({config.data.where or 'true'})"
        before = _still_known(connection, chosen, trained_before)
        import duckdb

        try:
            sequences = _records(
                connection.execute(f"select * from trajectories where {condition} order by rollout_id, trajectory_id")
            )
            texts = (
                None
                if needs_ids or sequences
                else _records(
                    connection.execute(
                        f"select sample_id, rollout_id, prompt_messages, response_message, advantage, reward, weight, "
                        f"temperature from samples where {condition} and \"use\" = 'train' and reward is not null "
                        f"order by rollout_id, step, sample_id"
                    )
                )
            )
        except duckdb.Error as error:
            raise ConfigError(f"data.where: {str(error).splitlines()[0]}") from None
    left_out: dict[str, int] = {}
    if texts:
        rows = _text_rows([record for record in texts if record["sample_id"] not in before], config, tokenizer)
    else:
        versions = Policies(lake / "policies").versions()
        rows = []
        for record in sequences:
            reason = _unfit(record, config, tokenizer_sha256, versions, before)
            if reason is None:
                rows.append(_sequence_row(record, before))
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
    if not rows:
        raise LightningError(_nothing(lake, config, left_out, len(sequences)))
    worst = max(left_out.items(), key=lambda item: item[1], default=None)
    if worst is not None and worst[1] > LIKELY_MISTAKE_SHARE * len(sequences) and worst[0] in REFUSALS:
        raise LightningError(REFUSALS[worst[0]].format(n=worst[1], total=len(sequences), name=config.algorithm.name))
    return Dataset(rows, left_out, f"run={manifest.run:06d}")


REFUSALS = {
    "no_logprobs": "{n} of {total} sequences have no log-probabilities, which {name} needs; use algorithm sft or awr",
    "other_tokenizer": "{n} of {total} sequences were sampled with another tokenizer; start from a policy that has it",
    "no_temperature": "{n} of {total} sequences do not say their temperature, which {name} needs; use algorithm sft",
    "greedy": "{n} of {total} sequences were sampled at temperature 0, which {name} cannot weigh; log at temperature 1 or use sft",
    "truncated_sampling": "{n} of {total} sequences used top-p, top-k or min-p; switch them off, or set algorithm.allow_truncated_sampling",
}


def _records(result: Any) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _unfit(
    record: dict[str, Any], config: TrainConfig, tokenizer_sha256: str, versions: list[str], before: frozenset[str]
) -> str | None:
    algorithm = config.algorithm
    if record["reward"] is None:
        return "no_reward"
    if not any(record["loss_mask"]):
        return "nothing_trained"
    if before.issuperset(s for s, trained in zip(record["sample_ids"], record["trained"], strict=True) if trained):
        return "trained_before"
    if record["tokenizer"] is not None and record["tokenizer"] != tokenizer_sha256:
        return "other_tokenizer"
    if isinstance(algorithm, Sft):
        return None if float(record["reward"]) >= algorithm.min_reward else "below_min_reward"
    if not isinstance(algorithm, Grpo):
        return None
    if any(p is None for p, m in zip(record["logprobs"], record["loss_mask"], strict=True) if m):
        return "no_logprobs"
    if record["temperature"] is None:
        return "no_temperature"
    if record["temperature"] == 0:
        return "greedy"
    sampling = json.loads(record["sampling"] or "{}")
    truncates = (sampling.get("top_p") or 1) < 1 or (sampling.get("top_k") or 0) > 0 or (sampling.get("min_p") or 0) > 0
    if truncates and not algorithm.allow_truncated_sampling:
        return "truncated_sampling"
    if config.data.max_staleness is not None and versions:
        newest = int(versions[-1][1:])
        oldest = min((int(v[1:]) for v in record["policy_versions"] if v), default=newest)
        if newest - oldest > config.data.max_staleness:
            return "stale"
    return None


def _sequence_row(record: dict[str, Any], before: frozenset[str]) -> Row:
    logprobs = [0.0 if p is None else p for p in record["logprobs"]]
    mask = np.asarray(record["loss_mask"], dtype=np.float32)
    advantages = np.asarray(record["advantages"], dtype=np.float32)
    sample_ids = []
    for sample, start, length, trained in zip(
        record["sample_ids"], record["starts"], record["lengths"], record["trained"], strict=True
    ):
        if sample in before:
            mask[start : start + length] = advantages[start : start + length] = 0
        elif trained:
            sample_ids.append(sample)
    return Row(
        row_id=record["trajectory_id"],
        rollout_id=record["rollout_id"],
        token_ids=np.asarray(record["token_ids"], dtype=np.int64),
        mask=mask,
        logprobs=np.asarray(logprobs, dtype=np.float32),
        advantages=advantages,
        temperature=float(record["temperature"] or 1.0),
        weight=float(record["weight"] or 1.0),
        sample_ids=tuple(sample_ids),
        token_source=record["token_source"],
    )


def _still_known(connection: Any, chosen: str, trained_before: frozenset[str]) -> frozenset[str]:
    """Of the answers of the chosen rollouts: those in `trained_before`, by their own id or that of a span that is one call with theirs."""
    if not trained_before:
        return frozenset()
    connection.execute("create temp table trained_before (sample_id varchar)")
    connection.execute("insert into trained_before select unnest($samples)", {"samples": sorted(trained_before)})
    found = connection.execute(
        f"""
        with places as (
            select trace_id, span_id, unnest([trace_id || ':' || span_id] || coalesce(merged_span_ids, [])) as place
            from calls where {chosen}
        ),
        ids as (
            select
                sha256(to_json([trace_id, span_id, choice::varchar])) as sample_id,
                sha256(to_json([split_part(place, ':', 1), split_part(place, ':', 2), choice::varchar])) as known_as
            from places join (select trace_id, span_id, choice from credits where {chosen}) as credits using (trace_id, span_id)
        )
        select distinct sample_id from ids where known_as in (select sample_id from trained_before)
        """
    ).fetchall()
    return frozenset(row[0] for row in found)


def _text_rows(records: list[dict[str, Any]], config: TrainConfig, tokenizer: Any) -> list[Row]:
    rows = []
    for record in records:
        if isinstance(config.algorithm, Sft) and float(record["reward"]) < config.algorithm.min_reward:
            continue
        messages = [*json.loads(record["prompt_messages"]), json.loads(record["response_message"])]
        ids, mask = tokenise(tokenizer, messages, last_only=True)
        rows.append(_text_row(record["sample_id"], record["rollout_id"], ids, mask, record["advantage"] or 0.0))
    return rows


def _text_row(row_id: str, rollout_id: str, ids: list[int], mask: list[int], advantage: float) -> Row:
    return Row(
        row_id=row_id,
        rollout_id=rollout_id,
        token_ids=np.asarray(ids, dtype=np.int64),
        mask=np.asarray(mask, dtype=np.float32),
        logprobs=None,
        advantages=np.asarray(mask, dtype=np.float32) * advantage,
        temperature=1.0,
        weight=1.0,
        sample_ids=(row_id,),
        token_source="retokenized",
    )


def tokenise(tokenizer: Any, messages: list[dict[str, Any]], *, last_only: bool = False) -> tuple[list[int], list[int]]:
    """Ids and mask of a conversation: assistant messages, each with its end token, are trained.

    The mask comes from rendered prefixes, so it holds for any chat template that does not rewrite history;
    LightningError when the template does.
    """
    messages = [_with_objects(message) for message in messages]
    spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if last_only:
        spoken = spoken[-1:]
    end = str(tokenizer.eos_token or "")
    ids: list[int] = []
    mask: list[int] = []
    done = ""
    for index in spoken:
        before = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        if not before.startswith(done) or not after.startswith(before):
            raise LightningError(
                "the chat template rewrites earlier messages, so what was said cannot be masked; use a template whose "
                "rendering of a conversation begins with the rendering of its beginning"
            )
        place = after.rfind(end) + len(end) if end else len(after)
        for text, trained in ((before[len(done) :], 0), (after[len(before) : place], 1)):
            piece = tokenizer.encode(text, add_special_tokens=False)
            ids += piece
            mask += [trained] * len(piece)
        done = after[:place]
    return ids, mask


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # no JSON: shown to the template as the text that it is
                arguments = json.loads(arguments)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _nothing(lake: Path, config: TrainConfig, left_out: dict[str, int], sequences: int) -> str:
    name = config.algorithm.name
    if isinstance(config.algorithm, Grpo) and not sequences:
        return (
            f"no rewarded rollout in {lake} has recorded token ids and log-probabilities, which {name} needs; route the "
            "model's calls through lightning-serve, or use algorithm sft, which trains from text"
        )
    if left_out:
        reason, count = max(left_out.items(), key=lambda item: item[1])
        if reason in REFUSALS:
            return REFUSALS[reason].format(n=count, total=sequences, name=name)
        listed = ", ".join(f"{reason} {n}" for reason, n in sorted(left_out.items()))
        return f"no sequence in {lake} can be trained with {name} ({listed}); see lightning-transform explain --lake {lake}"
    return f"no rewarded rollout of split train is in {lake}; see lightning-transform explain --lake {lake}"

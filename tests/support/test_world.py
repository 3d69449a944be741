"""The desk's world: disjoint sets, a judge that reads the store, bots that know nothing of us."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[2] / "examples" / "support"
sys.path.insert(0, str(SUPPORT))

import base
import world
from bot.desk import ACTIONS
from bot.store import Store

SETS = {split: world.tickets(split, 400, 0) for split in ("train", "eval", "test")}


def test_order_numbers_of_the_sets_are_disjoint_and_a_seed_decides_the_tickets() -> None:
    numbers = {split: {t.order["number"] for t in found} for split, found in SETS.items()}
    assert not (
        numbers["train"] & numbers["test"] or numbers["train"] & numbers["eval"] or numbers["eval"] & numbers["test"]
    )
    assert world.tickets("test", 400, 0) == SETS["test"] != world.tickets("test", 400, 1)


def test_half_of_the_test_tickets_use_phrases_that_no_training_text_has() -> None:
    def phrases(ticket: world.Ticket) -> tuple[str, ...]:
        text = ticket.messages[0]
        return tuple(
            next(p for p in sorted(kind, key=len, reverse=True) if p in text)
            for kind in (world.OPENINGS, world.PROBLEMS[ticket.issue], world.CLOSES)
        )

    trained = {(t.issue, *phrases(t)) for t in world.tickets("train", 6000, 1_000_000)}
    unseen = [t for t in SETS["test"] if t.phrases == "unseen_phrases"]
    assert len(unseen) == 200
    assert not {(t.issue, *phrases(t)) for t in unseen} & trained


def test_the_expert_resolves_every_ticket_and_a_random_action_few() -> None:
    rng = random.Random(0)
    lucky = 0
    for ticket in SETS["test"]:
        assert world.is_resolved(ticket, [(ticket.order["number"], ticket.right)])
        lucky += world.is_resolved(ticket, [(ticket.order["number"], rng.choice(sorted(ACTIONS)))])
    assert lucky / 400 < 0.2


def test_the_judge_reads_the_store_and_wants_exactly_the_right_action() -> None:
    ticket = SETS["test"][0]
    number = ticket.order["number"]
    store = Store(":memory:")
    store.open_account("chat", "account", ticket.order)
    assert store.act("account", "0000", ticket.right) == "no such order"
    assert not world.is_resolved(ticket, store.actions("account"))
    assert store.act("account", number, ticket.right) == "ok"
    assert world.is_resolved(ticket, store.actions("account"))
    store.act("account", number, ticket.right)
    assert not world.is_resolved(ticket, store.actions("account"))


def test_one_customer_cannot_reach_anothers_order() -> None:
    store = Store(":memory:")
    store.open_account("one", "one", SETS["test"][0].order)
    store.open_account("two", "two", SETS["test"][1].order)
    assert store.order(store.account("two"), SETS["test"][0].order["number"]) == "no such order"


def test_the_bots_files_hold_no_word_of_ours() -> None:
    words = re.compile(
        r"lightning|otel|opentelemetry|trace|span|reward|rollout|episode|policy_version|train", re.IGNORECASE
    )
    for path in sorted((SUPPORT / "bot").glob("*.py")):
        assert not words.findall(path.read_text()), path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("situation", sorted(world.OUTDATED))
def test_transcripts_of_an_outdated_playbook_are_right_as_often_as_the_noise_says(
    situation: tuple[str, str], split: str
) -> None:
    rng = random.Random(1)
    noise = world.OUTDATED[situation]
    chosen = [t for t in world.tickets(split, 8000, 5) if (t.issue, t.fact) == situation]
    actions = [base.transcript(t, rng)[-1]["content"].split(" for ")[0].removeprefix("all done: ") for t in chosen]
    right = sum(action == t.right for action, t in zip(actions, chosen, strict=True))
    assert right + actions.count(noise.old_action) == len(chosen) > 200
    spread = 4 * (noise.right_share * (1 - noise.right_share) / len(chosen)) ** 0.5
    assert right / len(chosen) == pytest.approx(noise.right_share, abs=spread)

"""The support desk's world: what customers write, what is right to do, and how the outcome is judged.

A ticket is an issue (damaged, late, …) of one order. The right action follows from the issue and one fact of the store.
In a few situations the desk's old playbook is wrong: the transcripts that the base policy learns from follow it most of
the time, so the base fails there, for causes of three kinds: `common` (the right action is seen often), `in_between`
and `rare`. A ticket is resolved when the store holds exactly the right action for the right order; text never counts.

Three disjoint sets. `train` and `eval` and `test` share no order number. Half of the test tickets (`unseen_phrases`)
use combinations of opening, problem and close that occur in no training text.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

OPENINGS = ("hi", "hello", "good morning", "hey there", "hello team", "excuse me", "dear support", "please help")
CLOSES = (
    "can you help", "what now", "please fix this", "thanks", "i need this sorted", "what can you do",
    "please look into it", "help please",
)  # fmt: skip
PROBLEMS = {
    "damaged": ("arrived broken", "has a crack in it", "came in pieces", "is smashed", "got here with a dent", "was broken in the box"),
    "wrong": ("is the wrong one", "is not what i ordered", "is a different model", "came in the wrong colour", "is not the item i chose", "was swapped for something else"),
    "missing": ("was not in the box", "is missing from the parcel", "never came with the rest", "was left out of my delivery", "is not in the package", "did not come with the others"),
    "late": ("is still not here", "has not arrived", "is late", "should have come days ago", "is taking ages", "has not shown up"),
    "cancel": ("is no longer needed", "should be cancelled", "was bought by mistake", "is not wanted any more", "has to be called off", "must not be sent"),
    "charge": ("was charged twice", "was billed two times", "shows up twice on my card", "was paid double", "took my money twice", "has a double payment"),
    "address": ("goes to my old address", "must go somewhere else", "has the wrong address", "should be sent to my new home", "needs a new address", "is going to the wrong street"),
    "return": ("can go back", "is not for me", "does not fit", "should be returned", "should be sent back", "is not what i hoped for"),
}  # fmt: skip
ITEMS = ("kettle", "lamp", "chair", "radio", "mug", "clock", "desk", "tent", "boots", "scarf", "piano", "drill")
FACTS = {
    "status": ("packed", "moving", "lost", "home"), "tier": ("basic", "gold"), "stock": ("none", "some"),
    "age": ("new", "old"), "paid": ("card", "voucher"),
}  # fmt: skip

# (issue, value of the deciding fact) -> the right action
FACT_OF = {
    "damaged": "tier", "wrong": "stock", "missing": "tier", "late": "status", "cancel": "status", "charge": "paid",
    "address": "status", "return": "age",
}  # fmt: skip
RIGHT = {
    ("damaged", "basic"): "refund", ("damaged", "gold"): "replace",
    ("wrong", "none"): "refund", ("wrong", "some"): "swap",
    ("missing", "basic"): "reship", ("missing", "gold"): "courier",
    ("late", "lost"): "claim", ("late", "moving"): "track",
    ("cancel", "packed"): "cancel", ("cancel", "moving"): "recall",
    ("charge", "card"): "reverse", ("charge", "voucher"): "credit",
    ("address", "packed"): "readdress", ("address", "moving"): "redirect",
    ("return", "new"): "label", ("return", "old"): "escalate",
}  # fmt: skip


@dataclass(frozen=True)
class Outdated:
    """A situation in which the old playbook is wrong: what it says, and how often transcripts do right all the same."""

    old_action: str
    right_share: float
    cause: str


# The noise of the base: a file of its own, listed in every report.
NOISE = yaml.safe_load(Path(__file__).with_name("noise.yaml").read_text(encoding="utf-8"))
OUTDATED = {
    (item["issue"], item["fact"]): Outdated(item["old_action"], item["right_share"], item["cause"])
    for item in NOISE["outdated"]
}
CAUSE_SHARES: dict[str, float] = NOISE["cause_shares"]
SLIP_SHARE: float = NOISE["slip_share"]
ASKS_FIRST_SHARE = 0.2  # of tickets: the customer leaves the order number out and is asked for it
CAUSES = ("none", "common", "in_between", "rare")


@dataclass(frozen=True)
class Ticket:
    """One customer with one problem. `messages` are what they write, in turn; `order` is what the store holds."""

    ticket_id: str
    split: str
    issue: str
    fact: str
    cause: str
    phrases: str  # seen_phrases or unseen_phrases
    messages: tuple[str, ...]
    order: dict[str, str]
    right: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in a task file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ticket:
        """From a task file."""
        return cls(**{**value, "messages": tuple(value["messages"])})


def tickets(split: str, count: int, seed: int) -> list[Ticket]:
    """`count` tickets of a split, the same for the same seed. Test tickets alternate seen and unseen phrases."""
    return [_ticket(split, index, random.Random(f"{split}/{seed}/{index}")) for index in range(count)]


def _ticket(split: str, index: int, rng: random.Random) -> Ticket:
    situations, weights = _situations()
    issue, fact = rng.choices(situations, weights)[0]
    unseen = split == "test" and index % 2 == 1
    while True:
        opening, close = rng.randrange(len(OPENINGS)), rng.randrange(len(CLOSES))
        problem = rng.randrange(len(PROBLEMS[issue]))
        if is_unseen(issue, opening, problem, close) == unseen:
            break
    while True:
        number = rng.choice("ABCDEFGHJKLM") + rng.choice("0123456789") + rng.choice("NPQRSTUVWXYZ")
        if split_of_number(number) == split:
            break
    order = {name: rng.choice(values) for name, values in FACTS.items()}
    order[FACT_OF[issue]] = fact
    order |= {"number": number, "item": rng.choice(ITEMS)}
    item, said = order["item"], PROBLEMS[issue][problem]
    if rng.random() < ASKS_FIRST_SHARE:
        messages = (f"{OPENINGS[opening]}, my {item} {said}, {CLOSES[close]}", f"it is order {number}")
    else:
        form = rng.choice(
            (
                "{o}, the {i} from order {n} {p}, {c}",
                "{o}, order {n}: the {i} {p}. {c}",
                "{o}, my {i} {p}. order {n}. {c}",
            )
        )
        messages = (form.format(o=OPENINGS[opening], i=item, n=number, p=said, c=CLOSES[close]),)
    outdated = OUTDATED.get((issue, fact))
    return Ticket(
        ticket_id=f"{split}-{index:05d}-{number}",
        split=split,
        issue=issue,
        fact=fact,
        cause=outdated.cause if outdated else "none",
        phrases="unseen_phrases" if unseen else "seen_phrases",
        messages=messages,
        order=order,
        right=RIGHT[issue, fact],
    )


def is_unseen(issue: str, opening: int, problem: int, close: int) -> bool:
    """A quarter of all combinations of phrases, by hash, is kept out of every text but half of the test tickets."""
    return hashlib.sha256(f"{issue}/{opening}/{problem}/{close}".encode()).digest()[0] % 4 == 0


def split_of_number(number: str) -> str:
    """Which split an order number belongs to: 60% train, 15% eval, 25% test, by hash."""
    place = hashlib.sha256(number.encode()).digest()[0] / 256
    return "train" if place < 0.6 else "eval" if place < 0.75 else "test"


def look_ups(issue: str, order: dict[str, str]) -> list[tuple[str, str]]:
    """What an expert looks at before acting: (tool, argument)."""
    if issue == "charge":
        return [("find_payment", order["number"])]
    if issue == "return":
        return [("find_order", order["number"]), ("search_policy", "returns")]
    return [("find_order", order["number"])]


def is_resolved(ticket: Ticket, actions: list[tuple[str, str]]) -> bool:
    """The judge: the store holds exactly the right action for the right order, and nothing else."""
    return actions == [(ticket.order["number"], ticket.right)]


def _situations() -> tuple[list[tuple[str, str]], list[float]]:
    per_cause = {cause: sum(o.cause == cause for o in OUTDATED.values()) for cause in CAUSE_SHARES}
    sound = len(RIGHT) - len(OUTDATED)
    weights = [
        CAUSE_SHARES[OUTDATED[key].cause] / per_cause[OUTDATED[key].cause]
        if key in OUTDATED
        else (1 - sum(CAUSE_SHARES.values())) / sound
        for key in RIGHT
    ]
    return list(RIGHT), weights

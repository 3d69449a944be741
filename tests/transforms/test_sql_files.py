"""Every SQL file does what the `.yml` beside it says (worlds/sql_files.py has the format)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from captures import ROWS_A_FRAME, frames, transformed
from episodes import KINDS, generated, requests
from sql_files import Mistake, SqlFile, parameters, paths, sql_files

from otel_lightning.collector.wal import Frame
from otel_lightning.transforms import steps

KEYS = {"grain", "kind", "keys", "covers", "checks", "defaults", "cases"}
CASE_KEYS = {"name", "config", "now", "given", "expected"}
# What the generator's rewards are called, and how those that are sent several times become one.
REWARDS = {
    "train": {"reward": 1.0, "tone": 0.5, "many": 1.0},
    "combine": {"tone": "sum", "many": "sum"},
    "outcome": "reward",
}
CASES = [(file, case) for file in sql_files() for case in file.said.get("cases", ())]


def test_every_sql_file_has_a_yml() -> None:
    assert set(paths()) == {file.path for file in sql_files()}


@pytest.mark.parametrize("file", sql_files(), ids=lambda file: file.path)
def test_grain_kind_and_keys_are_said_once_and_alike(file: SqlFile) -> None:
    assert set(file.said) <= KEYS and {"grain", "kind", "keys", "cases"} <= set(file.said)
    assert file.header("grain").startswith(file.said["grain"]), "the header of the SQL file says another grain"
    assert file.said["kind"] in ("map", "bucket", "reduce")
    assert file.header("kind") == file.said["kind"], "the header of the SQL file says another kind"
    if named := re.search(r"\(([\w, ]+)\)", file.said["grain"]):
        assert named[1].split(", ") == file.said["keys"]
    assert file.said["cases"], "at least one case, small enough to do by hand"
    for case in file.said["cases"]:
        assert set(case) <= CASE_KEYS and {"name", "given", "expected"} <= set(case)


@pytest.mark.parametrize(("file", "case"), CASES, ids=[f"{file.path}: {case['name']}" for file, case in CASES])
def test_a_file_does_what_its_cases_say(file: SqlFile, case: dict[str, Any]) -> None:
    file.case(case)


def test_a_case_that_is_wrong_is_found() -> None:
    """A row that does not come out, one more that does, a column that nobody knows, a key that is not one, a check that fails."""
    file = next(file for file in sql_files() if file.path == "68_members.sql")
    case = next(case for case in file.said["cases"] if "unwanted" not in case["given"])
    rows = case["expected"]
    for wrong in (
        [{**rows[0], "masked": True}, *rows[1:]],
        rows[1:],
        [*rows, rows[0]],
        [{**rows[0], "nope": 1}, *rows[1:]],
    ):
        with pytest.raises(Mistake):
            file.case(case | {"expected": wrong})
    with pytest.raises(Mistake, match="has no column nope"):
        file.case(case | {"given": {"rollouts": [{"nope": 1}]}})
    with pytest.raises(Mistake, match="does not read spanz"):
        file.case(case | {"given": {"spanz": []}})
    for said in ({"keys": ["masked"]}, {"checks": ["select 1 from members"]}, {"covers": "select 'x' as rollout_id"}):
        with pytest.raises(Mistake):
            SqlFile(file.path, file.text, file.said | said).case(case)


def test_keys_grain_and_checks_hold_over_what_frameworks_and_hostile_senders_sent() -> None:
    """The same promises on real tables: every capture, and each kind of generated episode three times over."""
    of = frames()
    for episode in generated(3 * len(KINDS), seed=7):
        for path, body in requests(episode.parcels):
            signal = "spans" if path == "/v1/traces" else "events"
            of.append(Frame(signal, 10**18, len(of) * ROWS_A_FRAME, ROWS_A_FRAME, body))
    connection = transformed(of, upto=steps.steps("broadcast")[-1].table, config={"rewards": REWARDS})
    for step in (steps.baselines(), steps.pairs()):
        steps.create(connection, step, parameters())
    made = {step.path for step in (*steps.steps("broadcast"), steps.baselines(), steps.pairs())}
    held = [file for file in sql_files() if file.path in made]
    numbered = [path for path in paths() if "/" not in path]
    assert len(held) == len(numbered) + len(steps.conventions()) + 1, "every numbered file, conventions and credit"
    for file in held:
        file.hold(connection)
    for table in ("credits", "returns", "trajectories", "rewards", "baselines", "pairs"):
        assert connection.execute(f"select count(*) from {table}").fetchone() != (0,), table
    # A credit method reads what is there once choices are.
    for file in sql_files():
        if file.path.startswith("credit/"):
            steps.create(connection, file.step, parameters())
            file.hold(connection)

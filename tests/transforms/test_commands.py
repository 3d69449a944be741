"""What a user types: watch, export, and a judge in any language between `sql --json` and `lightning-feedback --file -`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from episodes import Writer, plain, requests, served, session
from running import SCRIPTS, Process, Starter

from otel_lightning.transforms.cli import main
from otel_lightning.transforms.config import TransformConfig
from otel_lightning.transforms.explain import explain
from otel_lightning.transforms.run import run_transform
from otel_lightning.transforms.tables import open_tables

CONFIG = {"settle_s": 1, "rewards": {"train": {"reward": 1.0}}}
Script = Callable[..., subprocess.CompletedProcess[str]]


def send(collector: Process, kind: Callable[[Writer], None], *numbers: int) -> None:
    for number in numbers:
        w = Writer(kind.__name__, number, random.Random(number))
        kind(w)
        for path, body in requests(w.episode.parcels):
            collector.post(path, body, "application/x-protobuf")
    collector.post("/flush")


@dataclass
class Derived:
    """A lake of thirty episodes, transformed, and the collector that it comes from."""

    collector: Process
    lake: Path


@pytest.fixture(scope="module")
def derived(start_for_module: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Derived]:
    lake = tmp_path_factory.mktemp("commands") / "lake"
    collector = start_for_module(
        "lightning-collect", "--lake", str(lake), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"
    )
    for kind, begin in ((plain, 0), (served, 10), (session, 20)):
        send(collector, kind, *range(begin, begin + 10))
    # Half of the tasks for evaluation, so that there are two splits.
    run_transform(lake, TransformConfig.model_validate(CONFIG | {"split": {"eval_percent": 50}}))
    yield Derived(collector, lake)


def counts(lake: Path, table: str, where: str = "true") -> dict[str, int]:
    with open_tables(lake) as connection:
        return dict(connection.execute(f"select split, count(*) from {table} where {where} group by split").fetchall())


@pytest.mark.filterwarnings("ignore")
def test_an_export_is_a_dataset_that_loads(script: Script, derived: Derived, tmp_path: Path) -> None:
    folder = tmp_path / "my-dataset"
    done = script(
        "lightning-transform",
        "export",
        str(folder),
        "--table",
        "samples",
        "--table",
        "trajectories",
        "--lake",
        str(derived.lake),
    )
    assert done.returncode == 0, done.stderr
    from datasets import load_dataset

    for table in ("samples", "trajectories"):
        expected = counts(derived.lake, table)
        assert len(expected) == 2
        loaded = load_dataset(str(folder), table, cache_dir=str(tmp_path / "cache"))
        assert {split: rows.num_rows for split, rows in loaded.items()} == expected
    samples = load_dataset(
        str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )  # the first table is the default
    with open_tables(derived.lake) as connection:
        rows = connection.execute(
            "select sample_id, reward::double, prompt_messages, response_message from samples where split = 'train' order by rollout_id, step, trace_id, span_id, choice"
        ).fetchall()
    assert [row["sample_id"] for row in samples] == [row[0] for row in rows]
    for sample, (_, reward, prompt, answer) in zip(samples, rows, strict=True):
        assert sample["reward"] == reward
        for told, stored in ((sample["prompt"], json.loads(prompt)), (sample["completion"], [json.loads(answer)])):
            assert [(m["role"], m["content"]) for m in told] == [(m["role"], m["content"]) for m in stored]
    card = (folder / "README.md").read_text()
    assert (
        "| samples | train |" in card
        and "reward: reward × 1" in card
        and 'load_dataset("my-dataset", "trajectories")' in card
    )
    assert json.loads((folder / "manifest.json").read_text())["recipe"] in card
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_json_lines_hold_messages_and_a_condition_chooses(script: Script, derived: Derived, tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    done = script("lightning-transform", "export", str(folder), "--jsonl", "--where", "step = 0 and reward is not null -- the first", "--lake", str(derived.lake))  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = counts(derived.lake, "samples", "step = 0 and reward is not null")
    found = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (folder / "samples").iterdir()
    }
    assert {split: len(rows) for split, rows in found.items()} == expected
    for row in (row for rows in found.values() for row in rows):
        assert isinstance(row["reward"], float) and row["step"] == 0
        assert row["prompt"][-1]["role"] == "user" and row["completion"][0]["role"] == "assistant"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["there"], "is there already and is not overwritten"),
        (["new", "--table", "sample"], "no table 'sample' to export; tables are samples, trajectories, pairs"),
        (["new", "--where", "rewrd > 1"], 'Candidate bindings: "reward"'),
        (["new", "--where", "reward > 10000000"], "nothing to export from samples"),
        (["new", "--where", "true) union all select * from samples where (true"], "--where"),
        (["new", "--where", "true); copy (select 1) to 'x.csv'; select (true"], "--where"),
        (["new", "--where", "exists (from read_text('/etc/passwd'))"], "--where"),
        (["new", "--lake", "/nowhere"], "there is no lake at /nowhere"),
    ],
)  # fmt: skip
def test_a_wrong_export_costs_one_line_and_leaves_nothing(
    derived: Derived,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    lake = [] if "--lake" in arguments else ["--lake", str(derived.lake)]
    assert main(["export", *arguments, *lake]) == 1
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1, said
    assert sorted(tmp_path.rglob("*")) == before


JUDGES = {
    # Each reads JSON lines and writes JSON lines; neither knows anything of us.
    "awk": """awk -F'"' '{ printf "{\\"span\\": \\"%s\\", \\"name\\": \\"short\\", \\"value\\": %d}\\n", $4, length($8) < 20 }'""",
    "sed": """sed -E 's/.*"span": "([^"]*)".*/{"span": "\\1", "name": "short", "label": "yes"}/'""",
    "node": """node -e 'require("readline").createInterface({input: process.stdin}).on("line", line => { const call = JSON.parse(line); console.log(JSON.stringify({span: call.span, name: "short", value: call.answer.length < 20 ? 1 : 0})) })'""",
}


@pytest.mark.parametrize("judge", JUDGES)
def test_a_judge_in_any_language_stands_in_a_pipe(derived: Derived, tmp_path: Path, judge: str) -> None:
    if shutil.which(judge) is None:
        pytest.skip(f"needs {judge}")
    lake = derived.lake
    query = (
        "select trace_id || ':' || span_id as span, response_messages ->> '$[0].content' as answer from calls where not judge "
        "order by trace_id, span_id limit 20"
    )
    pipe = (
        f'lightning-transform sql "$QUERY" --lake {lake} --json | {JUDGES[judge]} '
        f"| lightning-feedback --file - --endpoint {derived.collector.url}"
    )
    environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", "QUERY": query}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", pipe], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 evaluations acknowledged")
    derived.collector.post("/flush")
    with open_tables(lake) as connection:
        sent = connection.execute(
            "select count(distinct (attributes_str['lightning.target.span_id'])) from events where attributes_str['gen_ai.evaluation.name'] = 'short'"
        ).fetchone()
    assert sent == (20,)


def test_answers_are_readable_and_for_programs_exact(derived: Derived, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(query: str, *form: str) -> str:
        assert main(["sql", query, "--lake", str(derived.lake), *form]) == 0
        return capsys.readouterr().out

    assert json.loads(ask("select 'nan'::double as n, [1.5, 'inf'::double] as l, 2.5::decimal(9, 2) as d, null as e, 'ü' as s", "--json")) == {
        "n": None, "l": [1.5, None], "d": 2.5, "e": None, "s": "ü"
    }  # fmt: skip
    assert ask("select 1 as a where false", "--csv") == "a\n" and ask("select 1 as a where false", "--json") == ""
    assert ask("select 1 as a, 'x,y' as b", "--csv") == 'a,b\n1,"x,y"\n'
    wide = ask("select * from calls limit 2").splitlines()
    assert (
        wide[0] == "── row 1"
        and any(line.strip().startswith("prompt_messages │ [") for line in wide)
        and max(map(len, wide)) <= 200
    )


def test_a_long_answer_streams(derived: Derived) -> None:
    """The first rows come long before the last, and a reader may go away."""
    query = "select range as n, repeat('x', 100) as text from range(10000000000)"
    for form in ("--json", "--csv"):
        process = subprocess.Popen(
            [SCRIPTS / "lightning-transform", "sql", query, "--lake", derived.lake, form], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert [process.stdout.readline() for _ in range(3)][-1]
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 0 and errors == b""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_watch_runs_when_something_came_or_became_quiet_and_stops_when_told(
    collector: Process, tmp_path: Path, how: signal.Signals
) -> None:
    lake = tmp_path / "lake"
    (tmp_path / "transform.yaml").write_text(json.dumps(CONFIG | {"settle_s": 2}))
    process = subprocess.Popen(
        [SCRIPTS / "lightning-transform", "watch", "--lake", lake, "--config", tmp_path / "transform.yaml", "--every", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = [process.stdout.readline(), process.stdout.readline()]
    assert lines[0].startswith("watching") and "run 1: everything; 0 rollouts" in lines[1]
    # An episode of just now is not over yet; nothing more arrives, and it becomes so.
    w = Writer("now", 0, random.Random(0))
    w.clock = time.time_ns() - 10**9
    plain(w)
    for path, body in requests(w.episode.parcels):
        collector.post(path, body, "application/x-protobuf")
    collector.post("/flush")
    while True:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
        with open_tables(lake) as connection:
            found = connection.execute("select complete from rollouts").fetchall()
        if found == [(True,)]:
            break
    process.send_signal(how)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    runs = sum("recomputed in" in line for line in [*lines, *rest.splitlines()])
    assert rest.splitlines()[-1] == f"stopped after {runs} runs"
    assert runs <= 6  # a run for the start, for each file that came, for the quiet: not one a look
    # What it left is whole.
    assert run_transform(lake, TransformConfig.model_validate(CONFIG | {"settle_s": 2})).new_files == 0


def test_watch_without_a_lake_or_with_a_mistake_costs_one_line(script: Script, tmp_path: Path) -> None:
    done = script("lightning-transform", "watch", "--lake", str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "there is no lake" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (None, {"service-0", "service-1", "service-2"}),
        ("service_name = 'service-1' -- the one", {"service-1"}),
        ("service_name <> 'service-1' and calls > 0", {"service-0", "service-2"}),
        ("nullif(service_name, 'service-1') = 'service-0'", {"service-0"}),  # NULL is not true
    ],
)
def test_rollouts_that_are_not_asked_for_get_no_credit(
    derived: Derived, tmp_path: Path, where: str | None, kept: set[str]
) -> None:
    lake = copied(derived.lake, tmp_path / "lake")
    run_transform(lake, TransformConfig.model_validate(CONFIG | {"where": where}))
    with open_tables(lake) as connection:
        assert {row[0] for row in connection.execute("select distinct service_name from samples").fetchall()} == kept
        dropped = connection.execute(
            "select count(*) from rollouts join returns using (rollout_id) where dropped = 'where' and service_name not in (select unnest($kept))",
            {"kept": sorted(kept)},
        ).fetchone()
        everything = connection.execute("select count(*) from rollouts where service_name not in (select unnest($kept))", {"kept": sorted(kept)}).fetchone()  # fmt: skip
        assert dropped == everything
        fell = connection.execute(
            "select sum(rollouts) from funnel where stage = 'member' and reason = 'where'"
        ).fetchone()
        assert fell == ((everything or (0,))[0] or None,)


def copied(lake: Path, beside: Path) -> Path:
    """A lake with the same files and nothing derived yet."""
    shutil.copytree(lake, beside, ignore=shutil.ignore_patterns("derived", "wal"))
    return beside


def test_only_what_arrived_since_a_day_is_read(script: Script, derived: Derived, tmp_path: Path) -> None:
    lake = copied(derived.lake, tmp_path / "lake")
    # What came first came a month ago.
    entries = sorted((lake / "manifest").glob("*.json"), key=lambda path: json.loads(path.read_text())["first_seq"])
    told = json.loads(entries[0].read_text())
    for file in told["files"]:
        path = lake / file["path"]
        file["path"] = str(Path(file["path"]).parents[1] / "day=2026-01-05" / path.name)
        (lake / file["path"]).parent.mkdir(exist_ok=True)
        path.rename(lake / file["path"])
    entries[0].write_text(json.dumps(told))
    counts = {}
    for since in ("2026-01-06", "2026-01-05", "7d"):
        run_transform(lake, TransformConfig.model_validate(CONFIG | {"since": since}))
        with open_tables(lake) as connection:
            counts[since] = len(connection.execute("select rollout_id from rollouts").fetchall())
        assert "files arrived since" not in explain(lake)
    assert 0 < counts["2026-01-06"] == counts["7d"] < counts["2026-01-05"] == 30
    (tmp_path / "transform.yaml").write_text(json.dumps(CONFIG))
    done = script(
        "lightning-transform", "run", "--lake", str(lake), "--config", str(tmp_path / "transform.yaml"), "--since", "7d"
    )
    assert "0 new files; 0 rollouts" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--since", "yesterday"], "'since': write a day, 2026-11-20, or how many days ago, 7d"),
        (["--where", "servce_name = 'x'"], 'Candidate bindings: "service_name"'),
        (["--where", "exists (select 1 from calls)"], "where: "),
        (["--where", "rollout_id in (select content from read_text('/etc/passwd'))"], "where: "),
        (["--where", "now() > '2020-01-01'"], "where: now() is not allowed"),
        (["--where", "1 = 1) from rollouts; drop table rollouts; select (1"], "where: "),
        (["--where", "sum(calls) > 1"], "where: "),
    ],
)  # fmt: skip
def test_a_wrong_choice_of_what_to_run_on_costs_one_line(
    derived: Derived, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["run", "--lake", str(derived.lake), *arguments]) == 1
    # On a slow machine the run has told how far it was.
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("transform: ")]
    assert len(said) == 1 and words in said[0], said


@pytest.mark.parametrize("command", [[], ["watch"], ["export"], ["run"], ["sql"], ["show"]])
def test_help_is_light(command: list[str]) -> None:
    code = (
        "import sys; from otel_lightning.transforms.cli import main; "
        f"main([*{command!r}, '--help']); "
        "sys.exit(bool({'duckdb', 'pyarrow', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr

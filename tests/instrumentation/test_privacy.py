"""What must not leave does not leave: as text, as JSON in a text, as token ids; and when a hook fails, nothing does."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_lightning.transforms.tables import open_tables

SECRET, CONTROL = 'CANARY-4711-"é"', "CONTROL-0815"
TEXT = f"{CONTROL} my key is {SECRET} thanks"
SECRET_ID = zlib.crc32(SECRET.encode()) % 50_000  # the scripted model's token for it

AGENT = """
import json, sys, time
from otel_lightning.instrumentation import instrument
def hook(text, key):
    HOOK
instrument(tokens=True, SETTINGS)
import openai
client = openai.OpenAI()
print(client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": TEXT}]).choices[0].message.content)
"""


def leaks(lake: Path, service: str, text: str, token: int | None = None) -> bool:
    """Whether a text, its JSON-escaped form or a token id is anywhere in what a service sent, every file decoded."""
    escaped = json.dumps(text)[1:-1]
    twice = json.dumps(escaped)[1:-1]
    with open_tables(lake) as connection:
        rows = connection.execute("select * from spans where service_name = ?", [service]).fetchall()
        rows += connection.execute("select * from events where service_name = ?", [service]).fetchall()
    assert rows
    stored = repr(rows)
    texts = {text, escaped, twice, text.encode().decode("latin-1"), repr(text)[1:-1]}
    if any(t in stored or repr(t)[1:-1] in stored for t in texts):
        return True
    numbers = {number for row in rows for number in _numbers(row)}
    return token is not None and token in numbers


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in _numbers(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in _numbers(item)]
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return _numbers(json.loads(value))
        except ValueError:
            return []
    return [value] if type(value) is int else []


def run(agent: Any, service: str, settings: str, hook: str = "return text", **environment: str) -> Any:
    code = AGENT.replace("SETTINGS", settings).replace("HOOK", hook).replace("TEXT", repr(TEXT))
    ended = agent(code, way="code", OTEL_SERVICE_NAME=service, **environment)
    assert ended.code == 0, ended.err
    assert ended.out == "ANSWER turn 1: it is 22C in Paris.\n"  # the agent sees what it saw
    return ended


def test_without_a_rule_the_search_finds_the_canary_in_text_and_in_ids(agent: Any, rows: Any, sidecar: Any) -> None:
    run(agent, "bare", "")
    rows("select 1")
    assert leaks(sidecar.lake, "bare", CONTROL) and leaks(sidecar.lake, "bare", SECRET)
    assert leaks(sidecar.lake, "bare", "nowhere", SECRET_ID) and not leaks(sidecar.lake, "bare", "nowhere", -5)


@pytest.mark.parametrize("kind", ["pattern", "callable", "environment"])
def test_masked_text_loses_its_token_ids_too(agent: Any, rows: Any, sidecar: Any, kind: str) -> None:
    service = f"masked-{kind}"
    if kind == "pattern":
        run(agent, service, r"mask=[r'CANARY-\d+-.é.']")
    elif kind == "callable":
        run(agent, service, "mask=[hook]", hook=f"return text.replace({SECRET!r}, 'XXX')")
    else:
        run(agent, service, "", LIGHTNING_MASK=r"CANARY-\d+-.é.")
    found = rows("select name, content, attributes_str['llm.input_messages.0.message.content'] from spans where service_name = ? order by 1", service)  # fmt: skip
    assert [row[:2] for row in found] == [("ChatCompletion", "redacted"), ("lightning.tokens", "redacted")]
    assert found[0][2] == TEXT.replace(SECRET, "XXX" if kind == "callable" else "[masked]")
    assert leaks(sidecar.lake, service, CONTROL)
    assert not leaks(sidecar.lake, service, SECRET, SECRET_ID)
    assert rows("select count(prompt_token_ids), count(choices) from spans where service_name = ?", service) == [(0, 0)]


def test_log_records_are_masked_as_spans_are(agent: Any, rows: Any, sidecar: Any) -> None:
    code = """
from otel_lightning.instrumentation import instrument
instrument(mask=[r'CANARY-\\d+-.é.'])
from opentelemetry import _logs
record = _logs.LogRecord(event_name="gen_ai.client.inference.operation.details", body={"said": TEXT}, attributes={"gen_ai.input.messages": TEXT})
_logs.get_logger("test").emit(record)
""".replace("TEXT", repr(TEXT))
    ended = agent(code, way="code", OTEL_SERVICE_NAME="records")
    assert (ended.code, ended.err) == (0, "")
    assert rows("select count(*) from events where service_name = 'records'") == [(1,)]
    assert leaks(sidecar.lake, "records", CONTROL)
    assert not leaks(sidecar.lake, "records", SECRET)


def test_a_session_is_masked_and_the_call_stays_whole(agent: Any, rows: Any) -> None:
    code = AGENT.replace("SETTINGS", r"mask=[r'\w+@example.org']").replace("HOOK", "pass").replace("TEXT", "'hello'")
    code = code.replace(
        "print(", "from otel_lightning.instrumentation import rollout\nwith rollout(session='me@example.org'): print("
    )
    assert agent(code, way="code", OTEL_SERVICE_NAME="session").code == 0
    found = rows("select distinct session_id from spans where service_name = 'session'")
    assert found == [("[masked]",)]
    assert rows("select content, len(choices) from spans where service_name = 'session' and capture = 'client'") == [
        (None, 1)
    ]


@pytest.mark.row(70)
@pytest.mark.parametrize("hook", ["raise ValueError(text)", "time.sleep(600)", "return None", "sys.exit(5)"])
def test_a_hook_that_raises_or_hangs_withholds_the_content(agent: Any, rows: Any, sidecar: Any, hook: str) -> None:
    service = f"hook-{hook.split('(')[0]}"
    ended = run(agent, service, "mask=[hook]", hook=hook, LIGHTNING_MASK_BUDGET_S="0.2")
    assert "a masking hook failed; the content of 2 items was withheld" in ended.err
    found = rows("select content, response_id is not null, parent_span_id is null, oi_kind from spans where service_name = ? order by 4", service)  # fmt: skip
    assert found == [("redacted", True, True, "LLM"), ("redacted", True, False, None)]  # the structure is there
    assert not leaks(sidecar.lake, service, SECRET, SECRET_ID)
    assert not leaks(sidecar.lake, service, CONTROL)
    assert not leaks(sidecar.lake, service, "22C")


@pytest.mark.parametrize(
    ("settings", "gone", "kept"),
    [
        ("hide_inputs=True", TEXT, "22C"),
        ("hide_outputs=True", "22C", TEXT),
        ("attributes={'*input*': 'drop'}", TEXT, "22C"),
    ],
)
def test_inputs_outputs_and_single_attributes_can_be_hidden(
    agent: Any, rows: Any, sidecar: Any, settings: str, gone: str, kept: str
) -> None:
    service = settings.split("=")[0]
    run(agent, service, settings)
    assert set(rows("select content from spans where service_name = ? and oi_kind = 'LLM'", service)) == {("redacted",)}
    assert not leaks(sidecar.lake, service, gone)
    assert leaks(sidecar.lake, service, kept)
    if service == "hide_inputs":
        assert not leaks(sidecar.lake, service, "nowhere", SECRET_ID)


@pytest.mark.row(73)
@pytest.mark.parametrize("by", ["switch", "option", "code"])
def test_content_is_on_when_started_and_off_by_one_switch_and_the_trace_says_so(
    agent: Any, begin: Callable[..., Any], rows: Any, sidecar: Any, by: str
) -> None:
    service = f"off-{by}"
    if by == "code":
        run(agent, service, "content=False")
    else:
        code = AGENT.replace("SETTINGS", "").replace("HOOK", "pass").replace("TEXT", repr(TEXT))
        code = code.replace("instrument(tokens=True, )", "")
        more = {"options": ("--no-content",)} if by == "option" else {"LIGHTNING_CAPTURE_CONTENT": "0"}
        ended = agent(code, OTEL_SERVICE_NAME=service, **more)
        assert (ended.code, ended.err) == (0, "")
    found = rows("select content, response_id is not null, input_tokens, attributes_int['llm.token_count.prompt'] > 0 from spans where service_name = ? and oi_kind = 'LLM'", service)  # fmt: skip
    assert found == [("off", True, None, True)]
    for text in (CONTROL, SECRET, "22C", "__REDACTED__"):
        assert not leaks(sidecar.lake, service, text, SECRET_ID)

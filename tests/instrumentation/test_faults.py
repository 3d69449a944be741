"""What may happen to an agent, its process and its sidecar: the agent never notices, and what is lost is counted."""

from __future__ import annotations

import http.server
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from agent_runs import end

CALL = """
import openai
client = openai.OpenAI()
def ask(text):
    return client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": text}])
"""
LOST = re.compile(r"otel-lightning: (\d+) of (\d+) spans did not reach \S+ \(([^)]*)\)")


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def bad_collector() -> Iterator[Callable[[str], str]]:
    """Collectors that accept and never answer (slow), or refuse for ever (503) or for good (400)."""
    servers: list[socketserver.BaseServer] = []

    def make(kind: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if kind == "slow":
                    time.sleep(120)
                self.send_response(int(kind))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield make
    for server in servers:
        server.shutdown()
        server.socket.close()


@pytest.mark.row(71)
@pytest.mark.parametrize("kind", ["down", "slow", "503", "400"])
def test_an_agent_sees_no_difference_when_its_collector_is_away(
    agent: Any, bad_collector: Any, closed_port: int, kind: str
) -> None:
    endpoint = f"http://127.0.0.1:{closed_port}" if kind == "down" else bad_collector(kind)
    code = CALL + "for n in range(3): print(ask(f'{n}').choices[0].message.content)\nimport sys; sys.exit(7)"
    # A slow collector would hold the agent for minutes: `agent` waits for two, so only the budget can end it.
    ended = agent(code, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, LIGHTNING_EXIT_BUDGET_S="1")
    assert ended.code == 7
    assert ended.out == "ANSWER turn 1: it is 22C in Paris.\n" * 3
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1 and (found := LOST.search(lines[0])), ended.err
    assert (found[1], found[2]) == ("3", "3")
    assert sum(int(part.split()[0]) for part in found[3].split(", ")) == 3


@pytest.mark.row(71)
def test_a_queue_that_is_full_drops_and_counts_and_never_blocks() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from otel_lightning.instrumentation.delivery import Delivery
    from otel_lightning.instrumentation.settings import read

    gate = threading.Event()

    class Exporter(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            gate.wait(60)
            return SpanExportResult.SUCCESS

    settings = read(
        {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5", "OTEL_BSP_SCHEDULE_DELAY": "0"}
    )
    delivery = Delivery(Exporter, settings)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(delivery)
    tracer = provider.get_tracer("test")
    for _ in range(100):
        tracer.start_span("span").end()
    assert delivery.ended == 100
    # Ten wait, at most five are with the exporter, the rest is counted.
    assert 85 <= delivery.dropped["queue_full"] <= 90
    gate.set()
    assert delivery.flush(60)
    assert delivery.delivered + delivery.lost == 100
    heavy = Delivery(Exporter, read({"LIGHTNING_QUEUE_BYTES": "3000", "OTEL_BSP_SCHEDULE_DELAY": "60000"}))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(heavy)
    for _ in range(3):
        provider.get_tracer("test").start_span("span", attributes={"text": "x" * 1500}).end()
    assert heavy.dropped["queue_full"] == 2
    heavy.finish(0)
    assert heavy.dropped["undelivered_at_exit"] == 1


def test_a_collector_that_comes_back_gets_what_waited() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from otel_lightning.instrumentation.delivery import Delivery
    from otel_lightning.instrumentation.settings import read

    answers = iter([SpanExportResult.FAILURE, SpanExportResult.SUCCESS])

    class Exporter(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return next(answers)

    delivery = Delivery(Exporter, read({}))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(delivery)
    provider.get_tracer("test").start_span("span").end()
    assert delivery.flush(60)
    assert (delivery.delivered, delivery.lost) == (1, 0)


@pytest.mark.row(72)
def test_a_forked_child_and_its_parent_both_arrive_and_nothing_twice(agent: Any, rows: Any) -> None:
    code = (
        CALL
        + """
import os, sys
from otel_lightning.instrumentation import rollout
with rollout(task="fork", id="fork-1"):
    ask("before")
    child = os.fork()
    ask("child" if child == 0 else "parent")
if child:
    os.waitpid(child, 0)
"""
    )
    ended = agent(code, OTEL_SERVICE_NAME="forked")
    assert (ended.code, ended.err) == (0, "")
    spans = rows(
        "select name, service_instance_id, span_id, span_seq, parent_span_id, span_count, "
        "attributes_str['llm.input_messages.0.message.content'], rollout_id from spans where service_name = 'forked'"
    )
    by_text = {text: (instance, span_id) for _, instance, span_id, *_, text, _ in spans if text}
    assert set(by_text) == {"before", "child", "parent"}
    assert by_text["before"][0] == by_text["parent"][0] != by_text["child"][0]
    assert len({row[2] for row in spans}) == len(spans) == 4  # the root once, though the child leaves the block too
    roots = [row for row in spans if row[4] is None]
    assert len(roots) == 1 and roots[0][1] == by_text["parent"][0] and roots[0][5] == 3
    assert {row[7] for row in spans} == {"fork-1"}


@pytest.mark.row(72)
def test_children_of_multiprocessing_send_what_they_have(agent: Any, rows: Any) -> None:
    code = (
        CALL
        + """
import multiprocessing
if __name__ == "__main__":
    ask("parent")
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=ask, args=(method,))
        process.start(); process.join()
        assert process.exitcode == 0
"""
    )
    ended = agent(code, OTEL_SERVICE_NAME="multi", OTEL_BSP_SCHEDULE_DELAY="60000")
    assert (ended.code, ended.err) == (0, "")
    spans = rows(
        "select attributes_str['llm.input_messages.0.message.content'] from spans where service_name = 'multi' order by 1"
    )
    assert spans == [("fork",), ("parent",), ("spawn",)]


@pytest.mark.row(72)
@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_an_agent_that_ends_without_a_word_leaves_a_trace_that_is_incomplete_not_wrong(
    agent: Any, rows: Any, how: str
) -> None:
    service = "gone-" + str(len(how))
    code = (
        CALL
        + f"""
import os, time
from otel_lightning.instrumentation import rollout
with rollout(task="gone"):
    ask("kept")
    from otel_lightning.instrumentation import provider
    provider.telemetry().delivery.flush(30)   # what the batch delay would have sent
    ask("lost")
    {how}
"""
    )
    ended = agent(code, OTEL_SERVICE_NAME=service, OTEL_BSP_SCHEDULE_DELAY="60000")
    assert ended.code in (0, -9)
    spans = rows("select attributes_str['llm.input_messages.0.message.content'], parent_span_id is null from spans where service_name = ?", service)  # fmt: skip
    assert spans == [("kept", False)]  # its parent, the root, never came: the rollout cannot count as complete


@pytest.mark.row(72)
def test_sigterm_ends_the_root_and_sends_what_is_queued(begin: Any, rows: Any) -> None:
    code = CALL + "ask('kept')\nprint('ready', flush=True)\nimport time; time.sleep(600)"
    process = begin(
        code, options=("--root", "process"), OTEL_SERVICE_NAME="terminated", OTEL_BSP_SCHEDULE_DELAY="60000"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert end(process).code == -signal.SIGTERM
    spans = rows(
        "select oi_kind, parent_span_id is null, span_count from spans where service_name = 'terminated' order by 2"
    )
    assert spans == [("LLM", False, None), (None, True, 2)]


def test_an_application_keeps_its_own_sigterm(begin: Any, rows: Any) -> None:
    code = (
        """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
"""
        + CALL
        + "ask('kept')\nprint('ready', flush=True)\nimport time; time.sleep(600)"
    )
    process = begin(code, OTEL_SERVICE_NAME="own-signal", OTEL_BSP_SCHEDULE_DELAY="60000")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert end(process).code == 3
    assert rows("select count(*) from spans where service_name = 'own-signal'") == [(1,)]


def test_a_failing_process_says_so_on_its_root(agent: Any, rows: Any) -> None:
    ended = agent(
        CALL + "ask('x')\nraise ValueError('secret words')", options=("--root", "process"), OTEL_SERVICE_NAME="failed"
    )
    assert ended.code == 1 and "ValueError: secret words" in ended.err
    spans = rows(
        "select status_code, status_message from spans where service_name = 'failed' and parent_span_id is null"
    )
    assert spans == [(2, "ValueError")]


def test_a_server_that_refuses_token_ids_is_asked_once(agent: Any, rows: Any, tmp_path: Any) -> None:
    from agent_runs import exchanges, scripted_model

    log = tmp_path / "strict.jsonl"
    server = scripted_model(log, "--refuse-token-ids")
    try:
        code = (
            CALL
            + """
import asyncio
for n in range(2): print(ask(f"{n}").choices[0].message.content)
async def stream():
    async with openai.AsyncOpenAI() as client:
        parts = await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "s"}], stream=True)
        async for _ in parts: pass
asyncio.run(stream())
"""
        )
        ended = agent(
            code, options=("--capture-tokens",), OPENAI_BASE_URL=f"{server.url}/v1", OTEL_SERVICE_NAME="refused"
        )
    finally:
        server.stop()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "ANSWER turn 1: it is 22C in Paris.\n" * 2
    asked = [(e["status"], "return_token_ids" in e["request"]) for e in exchanges(log)]
    assert asked == [(400, True), (200, False), (200, False), (200, False)]
    spans = rows("select oi_kind, status_code from spans where service_name = 'refused'")
    assert spans == [("LLM", 1)] * 3


def test_children_that_are_not_agents_pay_nothing(begin: Any) -> None:
    code = """
import sys
print(sorted(m for m in sys.modules if m.startswith("opentelemetry") or m in ("logging", "dataclasses", "openai")))
print(sorted(m for m in sys.modules if m.startswith("otel_lightning.")))
"""
    ended = end(begin(code))
    assert ended.out.splitlines() == [
        "[]",
        "['otel_lightning.instrumentation', 'otel_lightning.instrumentation.start', 'otel_lightning.instrumentation.watch']",
    ]

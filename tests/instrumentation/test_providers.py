"""An application that has OpenTelemetry of its own: extended, never replaced; its exporters see what they always saw."""

from __future__ import annotations

import json
from typing import Any

import pytest

OWN = """
import json, os
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
class Mine(SpanExporter):
    names = []
    def export(self, spans):
        self.names += [s.name for s in spans]
        return SpanExportResult.SUCCESS
def own():
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ["SERVICE"]}))
    provider.add_span_processor(SimpleSpanProcessor(Mine()))
    return provider
"""
ASK = """
import openai
def ask():
    messages = [{"role": "user", "content": str(n)} for n in range(60)]
    return openai.OpenAI().chat.completions.create(model="scripted", messages=messages)
def report():
    provider = trace.get_tracer_provider()
    provider.shutdown()
    print(json.dumps([type(provider).__name__, Mine.names]))
"""
# Where the application sets its provider: before the framework, after it, after the first call.
ORDERS = {
    "before": OWN + "trace.set_tracer_provider(own())\n" + ASK,
    "after": ASK + OWN + "trace.set_tracer_provider(own())\n",
    "early-tracer": OWN + ASK + "early = trace.get_tracer('early')\ntrace.set_tracer_provider(own())\n",
}
RUN = """
with trace.get_tracer("app").start_as_current_span("turn"):
    ask()
report()
"""


@pytest.mark.parametrize("order", list(ORDERS))
def test_an_applications_own_provider_wins_and_sees_every_span_and_so_does_the_lake(
    agent: Any, rows: Any, order: str
) -> None:
    ended = agent(ORDERS[order] + RUN, SERVICE=f"own-{order}")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == ["TracerProvider", ["ChatCompletion", "turn"]]
    spans = rows(
        "select name, parent_span_id is null, span_count, dropped_attributes_count from spans where service_name = ? order by 1",
        f"own-{order}",
    )
    # 60 messages are more than the SDK's 128 attributes: the limit of the application's provider was raised.
    assert spans == [("ChatCompletion", False, None, 0), ("turn", True, 2, 0)]


def test_instrument_after_the_provider_extends_it(agent: Any, rows: Any) -> None:
    code = (
        OWN
        + "trace.set_tracer_provider(own())\nfrom otel_lightning.instrumentation import instrument\ninstrument()\n"
        + ASK
        + RUN
    )
    ended = agent(code, way="code", SERVICE="extended")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == ["TracerProvider", ["ChatCompletion", "turn"]]
    assert rows("select count(*), max(span_count), sum(dropped_attributes_count) from spans where service_name = 'extended'") == [(2, 2, 0)]  # fmt: skip


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_exporter_to_the_same_collector_is_enough(agent: Any, rows: Any, order: str) -> None:
    add = "provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))\n"
    install = "trace.set_tracer_provider(provider)\n"
    code = (
        OWN
        + """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = own()
"""
        + (add + install if order == "before" else install + add)
        + ASK
        + RUN
    )
    ended = agent(code, SERVICE=f"same-{order}")
    assert (ended.code, ended.err) == (0, "")
    assert rows("select count(*), max(span_seq) from spans where service_name = ?", f"same-{order}") == [(2, 2)]


def test_an_applications_own_metrics_and_logs_go_on_too(agent: Any, rows: Any) -> None:
    code = (
        ASK
        + OWN
        + """
from opentelemetry import _logs, metrics
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader, kept = InMemoryMetricReader(), InMemoryLogRecordExporter()
meters, loggers = MeterProvider([reader]), LoggerProvider()
loggers.add_log_record_processor(SimpleLogRecordProcessor(kept))
metrics.set_meter_provider(meters)
_logs.set_logger_provider(loggers)
assert metrics.get_meter_provider() is meters and _logs.get_logger_provider() is loggers
metrics.get_meter("app").create_counter("turns").add(3)
_logs.get_logger("app").emit(_logs.LogRecord(event_name="said", body="hello"))
ask()
found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0]
print(found.name, found.data.data_points[0].value, len(kept.get_finished_logs()))
"""
    )
    ended = agent(code, OTEL_SERVICE_NAME="signals", OTEL_METRICS_EXPORTER="otlp", SERVICE="signals")
    assert (ended.code, ended.out, ended.err) == (0, "turns 3 1\n", "")
    assert rows("select event_name, body from events where service_name = 'signals'") == [("said", '"hello"')]


@pytest.mark.parametrize("globally", [True, False])
def test_an_application_that_instruments_its_provider_itself_is_not_doubled(
    agent: Any, rows: Any, globally: bool
) -> None:
    code = (
        OWN
        + ASK
        + """
from openinference.instrumentation.openai import OpenAIInstrumentor
provider = own()
GLOBALLY
OpenAIInstrumentor().instrument(tracer_provider=provider)
with provider.get_tracer("app").start_as_current_span("turn"):
    ask()
provider.shutdown()
print(Mine.names)
""".replace("GLOBALLY", "trace.set_tracer_provider(provider)" if globally else "")
    )
    ended = agent(code, SERVICE=f"itself-{globally}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "['ChatCompletion', 'turn']\n"
    assert rows("select count(*) from spans where service_name = ?", f"itself-{globally}") == [(2,)]


def test_a_module_of_the_agent_may_be_called_instrumentation_or_sitecustomize(
    agent: Any, rows: Any, tmp_path: Any
) -> None:
    (tmp_path / "instrumentation.py").write_text("def greet(): print('mine')\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import builtins; builtins.seen = 'theirs too'\n")
    code = (
        "import instrumentation, json\ninstrumentation.greet()\nprint(seen)\nfrom opentelemetry import trace\n"
        + ASK
        + "ask()\n"
    )
    ended = agent(code, PYTHONPATH=str(other), OTEL_SERVICE_NAME="names")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == ["mine", "theirs too"]
    assert rows("select count(*) from spans where service_name = 'names'") == [(1,)]


def test_a_stranger_called_agents_is_left_alone(agent: Any, rows: Any, tmp_path: Any) -> None:
    (tmp_path / "agents.py").write_text("def act(): print('acting')\n")
    ended = agent(
        "import json\nfrom opentelemetry import trace\nimport agents\nagents.act()\n" + ASK + "ask()\n",
        OTEL_SERVICE_NAME="stranger",
    )
    assert (ended.code, ended.out, ended.err) == (0, "acting\n", "")
    assert rows("select count(*) from spans where service_name = 'stranger'") == [(1,)]


def test_of_two_instrumentors_of_a_library_one_is_loaded(agent: Any, rows: Any, tmp_path: Any) -> None:
    info = tmp_path / "second" / "opentelemetry_instrumentation_openai-0.62.4.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: opentelemetry-instrumentation-openai\nVersion: 0.62.4\n"
    )
    (info / "entry_points.txt").write_text("[opentelemetry_instrumentor]\nopenai = second_instrumentor:Second\n")
    (tmp_path / "second" / "second_instrumentor.py").write_text("print('the second one is imported')\n")
    code = "import json\nfrom opentelemetry import trace\n" + ASK + "ask()\n"
    ended = agent(code, PYTHONPATH=str(tmp_path / "second"), OTEL_SERVICE_NAME="one-of-two")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert rows("select count(*) from spans where service_name = 'one-of-two'") == [(1,)]

"""The demo's bots, unchanged, under lightning-instrument with the environment that examples/support/driver.py gives them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_runs import clean_environment
from running import ROOT, SCRIPTS

SUPPORT = ROOT / "examples" / "support"
LOST = (SUPPORT / "demo" / "sql" / "lost_spans.sql").read_text()


@pytest.mark.parametrize("kind", ["langchain", "openai"])
def test_a_bot_of_the_demo_runs_as_it_is_and_loses_no_span(
    kind: str, request: pytest.FixtureRequest, model: Any, sidecar: Any, rows: Any, tmp_path: Path
) -> None:
    sys.path.insert(0, str(SUPPORT))
    try:
        from bot.store import Store
    finally:
        sys.path.remove(str(SUPPORT))
    store = Store(tmp_path / "shop.db")
    order = {
        "number": "A1",
        "item": "cup",
        "status": "sent",
        "tier": "basic",
        "stock": "yes",
        "age": "new",
        "paid": "card",
    }
    environment = clean_environment(
        OPENAI_BASE_URL=f"{model.url}/v1",
        OPENAI_MODEL="current",
        OPENAI_TEMPERATURE="1.0",
        SHOP_DB=str(tmp_path / "shop.db"),
        PYTHONPATH=str(SUPPORT),
        OTEL_SERVICE_NAME=f"support-{kind}",
        OTEL_EXPORTER_OTLP_ENDPOINT=sidecar.url,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_BSP_SCHEDULE_DELAY="200",
        OTEL_BSP_MAX_QUEUE_SIZE="65536",
        OTEL_LOGS_EXPORTER="none",
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="10000",
        OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED="true",
        OTEL_METRIC_EXPORT_INTERVAL="3600000",
        TOKENIZERS_PARALLELISM="false",
    )
    bot = subprocess.Popen(
        [str(SCRIPTS / "lightning-instrument"), sys.executable, "-m", f"bot.{kind}_bot"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=SUPPORT,
    )  # fmt: skip
    request.addfinalizer(lambda: (bot.kill(), bot.communicate()) if bot.poll() is None else None)
    assert bot.stdin is not None and bot.stdout is not None
    assert json.loads(bot.stdout.readline()) == {"ready": True}
    for conversation in ("c-1", "c-2"):
        store.open_account(conversation, conversation, order)
        bot.stdin.write(json.dumps({"conversation": conversation, "message": "Hello"}) + "\n")
    bot.stdin.flush()
    replies = [json.loads(bot.stdout.readline()) for _ in range(2)]
    assert sorted(reply["conversation"] for reply in replies) == ["c-1", "c-2"]
    assert all("error" not in reply for reply in replies), replies
    _, err = bot.communicate(timeout=60)
    assert (bot.returncode, err) == (0, "")
    counted = [row for row in rows(LOST) if row[1] == f"support-{kind}"]
    assert len(counted) == 1
    _, _, stored, ended = counted[0]
    assert stored == ended > 0
    llm = rows(
        "select count(*), count(distinct trace_id), count(response_id), bool_and(span_count is null) from spans "
        "where service_name = ? and oi_kind = 'LLM'",
        f"support-{kind}",
    )
    assert llm[0][2] == llm[0][0] >= 4
    # Two conversations at once stay apart: by the graph's traces, or call by call where the bot makes no root.
    assert llm[0][1] == (2 if kind == "langchain" else llm[0][0])

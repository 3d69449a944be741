"""Settings from every side, what a terminal shows, what Prometheus scrapes, and that the README knows all of it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.app.config import load_config, read_environment
from otel_lightning.app.errors import ConfigError
from otel_lightning.collector import cli
from otel_lightning.collector.config import ENVIRONMENT, CollectConfig, ConsentConfig, ForwardConfig, RedactConfig

README = (Path(__file__).parents[2] / "collector" / "README.md").read_text()
FREE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def body(number: int = 1) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n")
    return request.SerializeToString()


def test_variables_count_before_the_file_and_flags_before_variables(tmp_path: Path) -> None:
    path = tmp_path / "collect.yaml"
    path.write_text("roll_s: 1\nroll_bytes: 10\nlake: from-file\nredact: {rules: [email], drop: [a]}\n")
    variables = {
        f"{ENVIRONMENT}ROLL_S": "2.5", f"{ENVIRONMENT}LAKE": "from-variable", f"{ENVIRONMENT}REDACT__RULES": "[phone, card]",
        f"{ENVIRONMENT}TOKEN": "t", f"{ENVIRONMENT}INSECURE": "true", "PATH": "x",
        # What Kubernetes sets in every container when a service is called lightning-collect.
        f"{ENVIRONMENT}SERVICE_HOST": "10.0.0.1", f"{ENVIRONMENT}PORT": "tcp://10.0.0.1:4318", f"{ENVIRONMENT}PORT_4318_TCP_ADDR": "10.0.0.1",
        f"{ENVIRONMENT}SERVICE_PORT_OTLP": "4318",
    }  # fmt: skip
    overrides = read_environment(CollectConfig, ENVIRONMENT, variables, reserved=("TOKEN",))
    config = load_config(CollectConfig, path, {**overrides, "lake": Path("from-flag")})
    assert (config.roll_s, config.roll_bytes, config.lake, config.insecure) == (2.5, 10, Path("from-flag"), True)
    assert config.redact == RedactConfig(rules=("phone", "card"), drop=("a",))
    with pytest.raises(ConfigError, match="LIGHTNING_COLLECT_ROL_S; did you mean LIGHTNING_COLLECT_ROLL_S"):
        read_environment(CollectConfig, ENVIRONMENT, {f"{ENVIRONMENT}ROL_S": "2"})
    with pytest.raises(ConfigError, match="roll_s"):
        load_config(CollectConfig, None, read_environment(CollectConfig, ENVIRONMENT, {f"{ENVIRONMENT}ROLL_S": "soon"}))


def test_metrics_say_what_was_received_acknowledged_refused_and_what_is_left(collector: Any, post: Any) -> None:
    for number in range(3):
        post(collector.url, "/v1/traces", body(number + 1))
    post(collector.url, "/v1/traces", b"\xff")
    text = post(collector.url, "/metrics", None, None, method="GET").body.decode()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    named = {name.removeprefix("lightning_collect_"): value for name, value in values.items()}
    assert named['received_requests_total{signal="spans"}'] == 4
    assert named['received_bytes_total{signal="spans"}'] == 3 * len(body()) + 1
    assert named['acknowledged_total{signal="spans"}'] == 3 and named['refused_total{reason="http_400"}'] == 1
    assert named["wal_bytes"] >= 3 * len(body()) and named["pending_bytes"] == 3 * len(body())
    assert named["lag_seconds"] > 0 and named["disk_free_bytes"] > 0
    post(collector.url, "/flush")
    text = post(collector.url, "/metrics", None, None, method="GET").body.decode()
    assert "\nlightning_collect_wal_bytes 0\n" in text and "\nlightning_collect_lag_seconds 0.0\n" in text
    assert '\nlightning_collect_stored_total{signal="spans"} 3\n' in text
    # The text is what Prometheus reads: a HELP and a TYPE line for each name, labels quoted.
    for line in text.splitlines():
        assert re.fullmatch(
            r'# (HELP|TYPE) lightning_collect_[a-z_]+ .+|lightning_collect_[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? -?[0-9.e+-]+',
            line,
        ), line


def test_a_terminal_shows_one_live_line_and_a_log_file_none(start: Any, post: Any, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    script = Path(sys.executable).parent / "lightning-collect"
    process = subprocess.Popen(
        [str(script), "--lake", str(tmp_path / "lake"), *FREE], stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    os.close(terminal)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        for number in range(3):
            assert post(url, "/v1/traces", body(number + 1)).status == 200
        shown = b""
        for _ in range(100):
            if select.select([controller], [], [], 0.1)[0]:
                shown += os.read(controller, 65536)
            if b"3 spans" in shown:
                break
        assert b"3 spans" in shown and b"GB free" in shown and b"behind" in shown
        assert b"\n" not in shown and b"\r\x1b[K" in shown
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        os.close(controller)
    collector = start("lightning-collect", "--lake", str(tmp_path / "other"), *FREE)
    time.sleep(1.1)
    assert collector.stop() == 0
    assert not [line for line in collector.lines if "behind" in line or "\x1b" in line]


def test_json_logs_are_one_object_a_line(start: Any, post: Any, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    collector = start("lightning-collect", "--lake", str(lake), *FREE)
    post(collector.url, "/v1/traces", body())
    collector.kill()
    again = start("lightning-collect", "--lake", str(lake), "--log", "json", *FREE)
    assert again.stop() == 0
    (line,) = [json.loads(line) for line in again.lines if line.startswith("{")]
    assert line["level"] == "info" and line["logger"] == "lightning-collect"
    assert "recovered 1 rows" in line["message"]


def test_check_prints_json_and_a_running_collector_is_no_damage(
    collector: Any, post: Any, script: Any, tmp_path: Path
) -> None:
    post(collector.url, "/v1/traces", body())
    post(collector.url, "/flush")
    post(collector.url, "/v1/traces", body(2))
    done = script("lightning-collect", "check", "--lake", str(tmp_path / "lake"), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["damage"] == [] and found["rows"]["spans"] == 1 and found["log_segments"] == 1


@pytest.mark.parametrize("model", [CollectConfig, RedactConfig, ConsentConfig, ForwardConfig])
def test_the_readme_names_every_setting(model: Any) -> None:
    for name in model.model_fields:
        assert f"`{name}`" in README, name


def test_the_readme_names_every_command_and_promise() -> None:
    for command in ("check", "compact", "retain", "delete", "import"):
        assert f"lightning-collect {command}" in README
        assert cli.app[command] is not None
    for number in range(1, 11):
        assert f"**P{number} " in README

"""What the rules take out of a request, what they leave, and that their time stays linear."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_lightning.app.config import parse_config
from otel_lightning.app.errors import ConfigError
from otel_lightning.collector.check import check_protobuf
from otel_lightning.collector.config import CollectConfig, ConsentConfig, RedactConfig
from otel_lightning.collector.patterns import Finder, luhn
from otel_lightning.collector.redact import Rules
from otel_lightning.collector.serve import make_rules

ALL = ("email", "phone", "card", "secret")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("email", "bob@example.com"), ("email", "josé.neil+x@mail.exämple.co.uk"), ("email", "a_b%40x.org"),
        ("phone", "+49 170 1234567"), ("phone", "+1 (555) 123-4567"), ("phone", "(555) 123-4567"), ("phone", "555-123-4567"),
        ("phone", "030/1234567"), ("phone", "020 7946 0958"), ("phone", "0049 170 1234567"), ("phone", "+4917012345678"), ("phone", "1-800-555-1234"),
        ("card", "4111111111111111"), ("card", "4111 1111 1111 1111"), ("card", "5500-0000-0000-0004"), ("card", "378282246310005"),
        ("card", "6011111111111117"), ("card", "3530111333300000"),
        ("secret", "sk-proj-abcdefghijklmnop1234"), ("secret", "AKIAIOSFODNN7EXAMPLE"), ("secret", "ghp_" + "a1" * 18),
        ("secret", "xoxb-1234567890-abcdef"), ("secret", "AIza" + "b" * 35), ("secret", "hf_" + "c" * 30),
        ("secret", "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4"), ("secret", "Bearer abcdefghij1234567890"),
        ("secret", "password=hunter2hunter2"), ("secret", "api_key: abcd1234efgh"), ("secret", "sk_live_" + "d" * 24),
        ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"),
    ],
)  # fmt: skip
def test_a_named_rule_finds(rule: str, text: str) -> None:
    finder = Finder([rule])
    for around in ("{}", "before {} after", "({})", "<{}>", "ends with {}.", "{}\nnext line"):
        replaced = finder.replace(around.format(text))
        assert f"[{rule}]" in replaced, around
        assert text not in replaced
    document = json.dumps({"a": [{"b": f"so: {text}"}]})
    assert json.loads(finder.replace(document)) == {"a": [{"b": f"so: [{rule}]"}]}
    twice = json.dumps({"arguments": document})
    assert json.loads(json.loads(finder.replace(twice))["arguments"]) == {"a": [{"b": f"so: [{rule}]"}]}


@pytest.mark.parametrize(
    "text",
    [
        "meet @ noon", "run--01a202a3-0625-7505-b584-10e0c9a1b2c3", "ns:424ade51-618c-0517-3374-0794fcf3e1a2", "x@y", "1732570000123456789", "550e8400-e29b-41d4-a716-446655440000", "2026-11-25 22:15:43", "192.168.100.12",
        "4111111111111112", "1234567890123456", "4bf92f3577b34da6a3ce929d0e0e4736", "0.0123 4567", "v1.2.3", "12 345 678", "call 911",
        '{"token": "practical"}', "sk-short", "tokens: 12345", "the password is secret", "3.14159265358979", "00000000001",
    ],
)  # fmt: skip
def test_named_rules_leave_alone(text: str) -> None:
    assert Finder(ALL).replace(text) is text


def test_numbers_and_names_give_a_value_away() -> None:
    finder = Finder(ALL)
    assert json.loads(finder.replace('{"card": 4111111111111111, "n": 7}')) == {"card": "[card]", "n": 7}
    assert json.loads(finder.replace('{"db_password": "hunter2!x", "q": 1}')) == {"db_password": "[redacted]", "q": 1}
    assert not luhn("4111111111111112") and luhn("79927398713")


@given(
    st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and "[" not in text), st.integers(0, 3), st.data()
)
@settings(max_examples=200, deadline=None)
def test_a_literal_of_any_characters_is_found_however_deep_its_escapes(secret: str, depth: int, data: Any) -> None:
    import re2

    if any(0xD800 <= ord(char) <= 0xDFFF for char in secret):
        return
    finder = Finder(own={"own": re2.escape(secret)})
    text: str = f"~{secret}~"
    for _ in range(depth):
        text = json.dumps({"k": text}, ensure_ascii=data.draw(st.booleans()))
    replaced = finder.replace(text)
    for _ in range(depth):
        assert secret not in replaced or secret in '{"k": []}redactedown~'
        replaced = json.loads(replaced)["k"] if replaced.startswith("{") and '"k"' in replaced else replaced
    assert not finder.occurs(replaced.replace("[own]", "").replace("[redacted]", "")) or secret in "redacted[]own~"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [(r"(?=a)b", "linear time"), (r"(a)\1", "linear time"), ("a*", "empty text"), ("(", "linear time")],
)
def test_a_pattern_that_is_not_linear_or_matches_nothing_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"redact\.patterns\.mine.*{why}"):
        Finder(own={"mine": pattern})


@pytest.mark.row(59)
@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(.*a){12}", r"a+b|a"])
def test_patterns_that_ruin_other_engines_take_linear_time(pattern: str) -> None:
    # The test's own limit of time is what fails here: a backtracking engine needs 2^n steps for these.
    finder = Finder(own={"mine": pattern})
    for text in ("a" * 100_000 + "!", "a" * 100_000, "\\u0061" * 20_000 + "!", '{"k": "' + "a" * 100_000 + '!"}'):
        replaced = finder.replace(text)
        assert not finder.occurs(replaced.replace("[mine]", "").replace("[redacted]", ""))


@pytest.mark.row(59)
def test_a_span_with_a_hundred_thousand_keys_takes_no_longer_than_its_keys() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\1" * 8)
    for number in range(100_000):
        span.attributes.add(key=f"drop.{number}" if number % 2 else f"k{number}").value.int_value = number
    rules = Rules(RedactConfig(drop=("drop.*",), rules=ALL))
    after = _spans(rules, request)[0]
    assert len(after.attributes) == 50_001  # and one that says so


def _spans(rules: Rules, request: ExportTraceServiceRequest) -> list[Any]:
    accepted = rules.apply(check_protobuf("spans", request.SerializeToString()))
    after = ExportTraceServiceRequest.FromString(accepted.body)
    return [span for of in after.resource_spans for scope in of.scope_spans for span in scope.spans]


def request_of(*attributes: dict[str, Any], service: str = "bot", resource: dict[str, Any] | None = None) -> Any:
    request = ExportTraceServiceRequest()
    of = request.resource_spans.add()
    _put(of.resource, {"service.name": service, **(resource or {})})
    scope = of.scope_spans.add()
    for number, values in enumerate(attributes, 1):
        span = scope.spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="chat about bob")
        _put(span, values)
    return request


def _put(owner: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        target = owner.attributes.add(key=key).value
        if isinstance(value, bool):
            target.bool_value = value
        elif isinstance(value, int):
            target.int_value = value
        elif isinstance(value, list):
            for item in value:
                target.array_value.values.add().int_value = item
        else:
            target.string_value = value


def values(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


IDS = {"lightning.prompt.token_ids": [1, 2], "lightning.choice.0.token_ids": [3]}
TEXT = {"gen_ai.input.messages": "hello", "gen_ai.output.messages": "hi"}


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({**TEXT, **IDS}, True),
        ({**TEXT, "gen_ai.input.messages": "I am bob@x.com", **IDS}, False),
        ({**TEXT, "user.email": "bob@x.com", **IDS}, True),  # who asked is no part of what the model read
        ({**TEXT, "some.vendor.text": "bob@x.com", **IDS}, False),
        (IDS, False),  # nobody can say what they stand for
        ({"gen_ai.input.messages": "hello", **IDS}, False),
    ],
)
def test_token_ids_go_with_the_text_they_would_give_back(attributes: dict[str, Any], kept: bool) -> None:
    (span,) = _spans(Rules(RedactConfig(rules=("email",))), request_of(attributes))
    found = values(span)
    assert (IDS.keys() <= found.keys()) is kept and (IDS.keys() & found.keys() == set()) is not kept
    assert found.get("lightning.content") == (None if kept else "redacted")


def test_token_ids_inside_a_raw_response_go_as_well() -> None:
    raw = json.dumps(
        {
            "id": "x",
            "choices": [{"logprobs": {"content": [{"token": "bo"}]}, "token_ids": [1]}],
            "prompt_token_ids": [2],
        }
    )
    cut = raw[: raw.index("[2]")]
    (span,) = _spans(
        Rules(RedactConfig(rules=("email",))), request_of({"input.value": "bob@x.com", "output.value": raw, "cut": cut})
    )
    assert json.loads(values(span)["output.value"]) == {"id": "x", "choices": [{}]}
    assert values(span)["cut"] == "[redacted]"


def test_attributes_are_dropped_and_hashed_by_key_with_a_key_of_ones_own() -> None:
    rules = Rules(
        RedactConfig(drop=("user.email", "http.request.header.*"), hash=("user.id",), rules=("email",)), key=b"k" * 16
    )
    sent = {"user.email": "b@x.org", "http.request.header.cookie": "c", "user.id": "bob@x.com", "a": "b"}
    (span,), (again,) = (_spans(rules, request_of(sent)) for _ in range(2))
    (other,) = _spans(Rules(RedactConfig(hash=("user.id",)), key=b"j" * 16), request_of(sent))
    assert values(span).keys() == {"user.id", "a"}
    assert len(values(span)["user.id"]) == 32 and values(span) == values(again)
    assert values(other)["user.id"] != values(span)["user.id"]
    with pytest.raises(ConfigError, match=r"redact\.hash needs a key of at least 16 bytes"):
        make_rules(CollectConfig(redact=RedactConfig(hash=("user.id",))))


def test_hidden_services_keep_the_shape_of_an_episode_and_nothing_that_was_said() -> None:
    rules = Rules(RedactConfig(hide=("bot",)))
    sent = {
        **TEXT,
        **IDS,
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 7,
        "session.id": "s",
        "x": "y",
        "n": 4111,
    }
    request = request_of(sent, resource={"process.command_args": "ask bob"})
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.status.message, span.trace_state = "bob failed", "a=bob"
    _put(span.events.add(name="bob spoke", time_unix_nano=3), {"text": "bob"})
    _put(
        span.events.add(name="gen_ai.evaluation.result"),
        {"gen_ai.evaluation.name": "r", "gen_ai.evaluation.explanation": "bob"},
    )
    (after,) = _spans(rules, request)
    assert values(after) == {
        "gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7, "session.id": "s", "lightning.content": "redacted"
    }  # fmt: skip
    assert "bob" not in str(after) and after.name == "chat" and after.events[0].time_unix_nano == 3
    (untouched,) = _spans(rules, request_of(sent, service="other"))
    assert values(untouched).keys() == sent.keys()
    assert rules.counts.rows_hidden == 1


@pytest.mark.parametrize(("otherwise", "stored"), [("hide", 3), ("drop", 2)])
def test_without_a_yes_content_is_not_stored(otherwise: Any, stored: int) -> None:
    consent = ConsentConfig.model_validate({"attribute": "user.consent", "values": [True], "otherwise": otherwise})
    rules = Rules(RedactConfig(), consent)
    request = request_of(
        {"user.consent": True, "x": "1"}, {"user.consent": "yes", "x": "2"}, {"user.consent": "no", "x": "3"}
    )
    accepted = rules.apply(check_protobuf("spans", request.SerializeToString()))
    assert (accepted.rows, accepted.rejected) == (stored, 3 - stored)
    assert ("without consent" in accepted.reason) is (stored == 2)
    spans = _spans(rules, request)
    assert [values(span).get("x") for span in spans] == ["1", "2", None][:stored]
    # Silence is no; a resource may say yes for all that is silent, and a span may still say no.
    (silent,) = (_spans(rules, request_of({"x": "1"})) or [None]) if otherwise == "hide" else [None]
    assert silent is None or values(silent) == {"lightning.content": "redacted"}
    spans = _spans(rules, request_of({"x": "1"}, {"user.consent": "no", "x": "2"}, resource={"user.consent": "true"}))
    assert [values(span).get("x") for span in spans] == (["1", None] if otherwise == "hide" else ["1"])


def test_a_rule_that_fails_hides_the_request_instead_of_storing_it_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Rules(RedactConfig(rules=("email",)))
    monkeypatch.setattr(rules, "_apply", lambda signal, request: 1 // 0)
    (span,) = _spans(rules, request_of({**TEXT, **IDS}))
    assert values(span) == {"lightning.content": "redacted"} and rules.counts.failures == 1


def test_fields_that_no_version_knows_here_are_not_kept() -> None:
    unknown = b"\xf2\x7f\x0cbob@evil.com"  # field 2046 of ExportTraceServiceRequest
    accepted = Rules(RedactConfig(rules=("email",))).apply(
        check_protobuf("spans", request_of({"a": "b"}).SerializeToString() + unknown)
    )
    assert b"bob@" not in accepted.body


def test_log_records_lose_what_spans_lose() -> None:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(event_name="said")
    record.body.kvlist_value.values.add(key="content").value.string_value = "bob@x.com"
    _put(
        record, {"gen_ai.evaluation.explanation": "as bob@x.com wrote", "lightning.target.trace_id": "4111111111111111"}
    )
    rules = Rules(RedactConfig(rules=ALL))
    after = ExportLogsServiceRequest.FromString(rules.apply(check_protobuf("events", request.SerializeToString())).body)
    (record,) = after.resource_logs[0].scope_logs[0].log_records
    assert "bob@" not in str(record)
    assert values(record)["lightning.target.trace_id"] == "4111111111111111"  # an id, though it looks like a card
    assert values(record)["lightning.content"] == "redacted"


def test_nothing_to_do_leaves_the_bytes_as_they_came() -> None:
    body = request_of({**TEXT, **IDS, "n": 7}).SerializeToString()
    accepted = check_protobuf("spans", body)
    assert Rules(RedactConfig(rules=ALL)).apply(accepted) is accepted


def test_random_payloads_survive_every_rule() -> None:
    chance = random.Random(5)
    rules = Rules(RedactConfig(rules=ALL, patterns={"x": "x+"}, drop=("a*",), hash=("b",), hide=("h",)), key=b"k" * 16)
    for _ in range(300):
        request = request_of(
            {f"{chance.choice('abcd')}{n}": chance.choice(["x", "bob@x.com", "{", '{"a":', 7]) for n in range(5)}
        )
        body = bytearray(request.SerializeToString())
        body[chance.randrange(len(body))] = chance.randrange(256)
        try:
            accepted = check_protobuf("spans", bytes(body))
        except Exception:
            continue
        after = rules.apply(accepted)
        assert check_protobuf("spans", after.body).rows == after.rows
    assert rules.counts.failures == 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ({"redact": {"rules": ["emails"]}}, ("redact.rules.0", "did you mean 'email'?")),
        ({"redact": {"pattern": {}}}, ("unknown key 'redact.pattern'", "patterns")),
        ({"consent": {"values": ["x"]}}, ("consent.attribute", "missing")),
        ({"forward": [{"endpoint": "ftp://x"}]}, ("http://",)),
        ({"forward": [{"endpoint": "http://u:p@x"}]}, ("headers_file",)),
    ],
)
def test_a_mistake_in_the_rules_is_one_line(text: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(CollectConfig, text, "collect.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines

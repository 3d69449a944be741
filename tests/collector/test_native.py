"""The native decoder against the Python path: the same answer to the byte wherever both give one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from wire_noise import Request, nested

from otel_lightning.app.errors import SenderError
from otel_lightning.collector import native, parquet
from otel_lightning.collector.check import check_protobuf
from otel_lightning.collector.decode import spans_in_python
from otel_lightning.collector.parquet import parquet_bytes
from otel_lightning.collector.recovery import Origin
from otel_lightning.collector.schema import SHARED
from otel_lightning.collector.wal import Frame, encode_frames

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
COLLECTOR = "ab" * 8
BATCH = 50
# How far a run goes; `make sanitize` goes farther.
SEEDS = int(os.environ.get("WIRE_SEEDS", "4000"))

needs_library = pytest.mark.skipif(
    not native.available(), reason="needs the native decoder: install a C compiler (package 'gcc'), then reinstall"
)


def checked_by_python(body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, bytes] | None:
    with monkeypatch.context() as patch:
        patch.setattr(native, "_library", None)
        try:
            accepted = check_protobuf("spans", body)
        except SenderError:
            return None
    return accepted.rows, accepted.rejected, accepted.body


def assert_same_table(frames: list[Frame]) -> None:
    """Parquet of both is equal to the byte: values, types, nulls, order, NaN and all."""
    theirs, ours = spans_in_python(frames, COLLECTOR), native.spans_table(frames, COLLECTOR)
    assert ours is not None, "plain requests were declined"
    ours.validate(full=True)
    origin = Origin(COLLECTOR, 1, 1, 9)
    if parquet_bytes(theirs, origin) != parquet_bytes(ours, origin):
        for name in theirs.schema.names:
            for row, (a, b) in enumerate(zip(theirs[name].to_pylist(), ours[name].to_pylist(), strict=True)):
                assert repr(a) == repr(b), f"{name} of row {row}"
        raise AssertionError("equal values, other bytes")


def framed(bodies: list[tuple[bytes, int]]) -> list[Frame]:
    frames, seq = [], 1
    for body, rows in bodies:
        frames.append(Frame("spans", 10**18 + seq, seq, rows, body))
        seq += rows
    return frames


@needs_library
def test_every_captured_payload_is_plain_and_decodes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = []
    for path in sorted(FIXTURES.rglob("*traces*.pb")):
        body = path.read_bytes()
        rows = native.span_count(body)
        assert rows is not None, f"{path} is not plain"
        assert native.check(body) == (rows, google_crc32c.value(body))
        assert checked_by_python(body, monkeypatch) == (rows, 0, body)
        bodies.append((body, rows))
    assert sum(rows for _, rows in bodies) > 1000
    assert_same_table(framed(bodies))


@needs_library
@pytest.mark.row(47, 50, 51, 54)
@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.01])
def test_made_up_requests_are_judged_and_decoded_the_same(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: list[tuple[bytes, int]] = []
    declined = refused = taken = 0
    for seed in range(SEEDS):
        body = Request(seed, noise).body()
        rows, theirs = native.span_count(body), checked_by_python(body, monkeypatch)
        if rows is None:
            declined += 1
            refused += theirs is None
            continue
        assert theirs == (rows, 0, body), f"seed {seed}"
        taken += 1
        plain.append((body, rows))
        if len(plain) == BATCH:
            assert_same_table(framed(plain))
            plain.clear()
    assert taken > SEEDS // 20
    if noise:
        assert declined > refused > 0  # both kinds were there: what Python takes, and what nobody takes
    else:
        assert not declined


@needs_library
@pytest.mark.row(54)
def test_flipped_bytes_are_judged_and_decoded_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(11)
    seeds = [
        path.read_bytes()
        for path in sorted((FIXTURES / "otlp").rglob("*traces.pb"), key=lambda p: p.stat().st_size)[:6]
    ]
    seeds += [Request(seed).body() for seed in range(20)]
    plain: list[tuple[bytes, int]] = []
    taken = 0
    for _ in range(2 * SEEDS):
        body = bytearray(chance.choice(seeds) or b"\0")
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        rows = native.span_count(bytes(body))
        if rows is None:
            continue
        assert checked_by_python(bytes(body), monkeypatch) == (rows, 0, bytes(body))
        taken += 1
        plain.append((bytes(body), rows))
        if len(plain) == BATCH:
            assert_same_table(framed(plain))
            plain.clear()
    assert taken > SEEDS // 20


@needs_library
def test_bytes_that_were_never_checked_crash_nothing() -> None:
    """Decoding trusts no frame: whatever lies in a log is read within its bounds, or declined."""
    for seed in range(SEEDS):
        body = Request(seed, 0.02).body()
        native.spans_table([Frame("spans", 1, 1, 1, body)], COLLECTOR)


@needs_library
@pytest.mark.row(47)
def test_deep_nesting_is_left_to_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.span_count(nested(10)) == 1
    assert_same_table(framed([(nested(10), 1)]))
    for levels in (25, 40):
        assert native.span_count(nested(levels)) is None
        assert checked_by_python(nested(levels), monkeypatch) == (1, 0, nested(levels))
    assert native.span_count(nested(20_000)) is None
    assert native.spans_table(framed([(nested(20_000), 1)]), COLLECTOR) is None


@needs_library
@pytest.mark.parametrize(
    ("attributes", "length", "is_ordinary"),
    [(9_000, 10, True), (10_001, 10, False), (1, 1 << 20, True), (1, 2 << 20, False)],
)
def test_what_is_unusually_large_is_for_python_to_judge(attributes: int, length: int, is_ordinary: bool) -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    for number in range(attributes):
        span.attributes.add(key=str(number)).value.string_value = "x" * length
    body = request.SerializeToString()
    assert native.span_count(body) == (1 if is_ordinary else None)
    assert_same_table(framed([(body, 1)]))  # once accepted, it is decoded all the same


@needs_library
@pytest.mark.row(59)
def test_a_hundred_thousand_attributes_take_linear_time() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    for number in range(100_000):
        span.attributes.add(key=f"key.{number % 90_000}").value.int_value = number
        span.attributes.add(key="lightning.choice.0.token_ids").value.array_value.SetInParent()
    for number in range(3):  # what was known of so many keys is forgotten, and all is as before
        after = request.resource_spans[0].scope_spans[0].spans.add(trace_id=b"\3" * 16, span_id=b"\2" * 8)
        after.attributes.add(key=f"key.{number}").value.string_value = "here"
        after.attributes.add(key="key.0").value.int_value = 5
        after.attributes.add(key="lightning.choice.0.token_ids").value.array_value.SetInParent()
    assert_same_table(framed([(request.SerializeToString(), 4)]))


@needs_library
@pytest.mark.parametrize(("dictionary_bytes", "rows"), [(1, 1 << 16), (200, 1 << 16), (5_000, 1 << 16), (8 << 20, 30)])
def test_columns_that_outgrow_their_dictionary_are_the_same(
    dictionary_bytes: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Parquet gives up its dictionary in mid-column, and where a table has more than one group of rows."""
    for module in (native, parquet):
        monkeypatch.setattr(module, "DICTIONARY_BYTES", dictionary_bytes)
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", rows)
    for first in range(0, SEEDS // 8, BATCH):
        bodies = [Request(seed).body() for seed in range(first, first + BATCH)]
        assert_same_table(framed([(body, native.span_count(body) or 0) for body in bodies]))


@needs_library
def test_texts_of_every_length_are_shared_only_with_their_equals() -> None:
    chance = random.Random(5)
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number in range(400):
        span = spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), start_time_unix_nano=number)
        text = "".join(chance.choices("ab", k=number % 200))
        for place in range(6):  # equal but for one letter, anywhere
            at = chance.randrange(len(text) + 1)
            span.attributes.add(key=f"key.{place}").value.string_value = (
                text[:at] + chance.choice("abc") + text[at + 1 :]
            )
    spans[0].span_id = b"\1" * 8
    frames = framed([(request.SerializeToString(), 400)])
    assert_same_table(frames)
    table = native.spans_table(frames, COLLECTOR)
    assert table is not None and table.schema.field("name").type == SHARED
    assert len(table["attributes_str"].chunk(0).items.dictionary) == len(
        {text for row in table["attributes_str"].to_pylist() for _, text in row}
    )


@needs_library
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_checksums_are_googles_at_every_length_and_place(kind: Any) -> None:
    data = random.Random(3).randbytes(70_000)
    for length in (*range(40), 2047, 6143, 6144, 6145, 12_288, 12_300, 70_000):
        assert native.crc32c(kind(data[:length])) == google_crc32c.value(data[:length])
        assert native.crc32c(kind(data[length:]), native.crc32c(data[:length])) == google_crc32c.value(data)
        parts = google_crc32c.value(data[:length]), google_crc32c.value(data[length:])
        assert native.crc32c_behind(*parts, len(data) - length) == google_crc32c.value(data)


@needs_library
def test_a_frame_whose_checksum_was_found_on_the_way_is_the_same() -> None:
    for path in sorted(FIXTURES.rglob("*traces*.pb")):
        accepted = check_protobuf("spans", path.read_bytes())
        with_checksum, without = (
            encode_frames([Frame("spans", 10**18, 7, accepted.rows, accepted.body, crc)], b"\7" * 8)
            for crc in (accepted.crc, None)
        )
        assert accepted.crc is not None and with_checksum == without
        assert replace(accepted, body=accepted.body + b"").crc == accepted.crc
        assert replace(accepted, body=bytes(len(accepted.body))).crc is None, "what was redacted has another checksum"


def test_without_the_library_python_decodes() -> None:
    code = (
        "from otel_lightning.collector import native\n"
        "from otel_lightning.collector.check import check_protobuf\n"
        "from otel_lightning.collector.decode import decode\n"
        "from otel_lightning.collector.wal import Frame\n"
        "import sys, pathlib\n"
        "assert not native.available()\n"
        "accepted = check_protobuf('spans', pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(decode([Frame('spans', 1, 1, accepted.rows, accepted.body)], 'ab' * 8)['spans'].num_rows)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(FIXTURES / "js" / "traces.pb")],
        env={**os.environ, native.VARIABLE: "python"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr


def test_a_library_of_another_version_or_none_is_not_used(tmp_path: Path) -> None:
    assert native._load(tmp_path / "none.so") is None
    (tmp_path / "torn.so").write_bytes(b"\x7fELF")
    assert native._load(tmp_path / "torn.so") is None


@pytest.mark.slow
def test_fuzzing_under_sanitizers_reports_nothing(tmp_path: Path) -> None:
    """The tests above once more, with wire.c built for AddressSanitizer and UndefinedBehaviorSanitizer."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs a C compiler: install the package 'gcc'")
    library = tmp_path / "wire.so"
    flags = (
        "-std=c11 -g -O1 -shared -fPIC -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    )
    subprocess.run([gcc, *flags.split(), str(ROOT / "collector" / "wire.c"), "-o", str(library)], check=True)
    runtime = subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    code = (
        "import collections, ctypes, sys, pathlib, pytest\n"
        "from otel_lightning.collector import native\n"
        "kept = collections.deque(maxlen=1000)\n"
        "def exact(body):\n"  # an allocation of just its size, so that a byte read behind it is seen
        "    kept.append((ctypes.c_char * len(body)).from_buffer_copy(bytes(body)))\n"
        "    return ctypes.addressof(kept[-1])\n"
        "native._address = exact\n"
        "native._library = native._load(pathlib.Path(sys.argv[1]))\n"
        "assert native.available()\n"
        "sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', '-k', 'not sanitizers', sys.argv[2]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library), __file__],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": runtime.strip(),
            # CPython and Arrow keep memory to the end on purpose; what is asked here is whether accesses are sound.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
            "WIRE_SEEDS": os.environ.get("WIRE_SEEDS", "20000"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

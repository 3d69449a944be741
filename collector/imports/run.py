"""lightning-collect import: files through the same check, rules and log as what senders send, into the same tables.

A file that was imported is remembered by its hash and not sent again. A run that was cut short may be repeated: what it
sent before is then sent again as it was, and readers take equal spans and records for one.
"""

from __future__ import annotations

import http.client
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from otel_lightning.app.errors import BusyError, LightningError, SenderError, UsageError
from otel_lightning.app.progress import Progress, progress
from otel_lightning.collector.acceptance import Acceptance
from otel_lightning.collector.answers import RESPONSES
from otel_lightning.collector.check import Accepted
from otel_lightning.collector.config import CollectConfig
from otel_lightning.collector.forward import PATHS
from otel_lightning.collector.imports import otlp
from otel_lightning.collector.imports.build import Piece
from otel_lightning.collector.imports.langfuse import Langfuse, is_langfuse
from otel_lightning.collector.imports.phoenix import Phoenix, is_phoenix
from otel_lightning.collector.imports.source import Skipped, lines, parse, records, sha256
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import ParquetConverter, read_rows
from otel_lightning.collector.rewrite import maintenance
from otel_lightning.collector.serve import TOKEN_VARIABLE, make_rules
from otel_lightning.collector.settle import lock
from otel_lightning.store.files import disk_problem, write_json
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.manifest import live_files
from otel_lightning.store.tombstones import read_deleted

Form = Literal["auto", "otlp", "phoenix", "langfuse"]
T = TypeVar("T")
PROTOBUF_ENDINGS = (".pb", ".bin", ".binpb", ".protobuf")
IN_FLIGHT = 16  # requests that wait for one fsync together
BUSY_S, PATIENCE_S = 0.2, 300.0  # a full disk or a long backlog is waited for, but not for ever


@dataclass
class Imported:
    """What one command did."""

    files: int = 0
    known: int = 0
    rejected: int = 0
    rows: dict[str, int] = field(default_factory=lambda: {"spans": 0, "events": 0, "metrics": 0})
    skipped: dict[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Where pieces go."""

    def put(self, piece: Piece) -> None:
        """Send one; SenderError when it is nothing that can be stored."""
        ...

    def finish(self) -> None:
        """On return everything put is durable."""
        ...


def import_all(
    config: CollectConfig,
    files: Sequence[Path],
    *,
    form: Form = "auto",
    signal: str | None = None,
    endpoint: str | None = None,
    again: bool = False,
) -> Imported:
    """Import every file; LightningError in one line for what cannot be read or stored."""
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is no file; give files (a shell expands folder/*)")
    lake, done, skipped = Lake(config.lake), Imported(), Skipped()
    forms = {path: _form(path, form) for path in files}
    ledger = lake.wal / "imports"
    with _sink(config, lake, endpoint, done) as sink, progress("import", len(files)) as bar:
        reader = _Reader(lake, forms, signal, skipped)
        for path in files:
            note = ledger / f"{sha256(path)}.json"
            if note.exists() and not again:
                done.known += 1
                bar.advance()
                continue
            _import_one(reader.pieces(path), sink, skipped, bar, done)
            if lake.wal.is_dir():
                RealDisk().make_folder(ledger)
                write_json(note, {"rows": done.rows})
            done.files += 1
            bar.advance()
    done.skipped = skipped.reasons
    return done


def _import_one(pieces: Iterator[Piece], sink: Sink, skipped: Skipped, bar: Progress, done: Imported) -> None:
    for piece in pieces:
        try:
            sink.put(piece)
        except SenderError as error:
            skipped.count(f"requests of {piece.signal} that are no OTLP ({error})")
        bar.note(f"{sum(done.rows.values()):,} rows")
    sink.finish()


class _Reader:
    """The pieces of each file; Phoenix and Langfuse files of one command are read as belonging together."""

    def __init__(self, lake: Lake, forms: Mapping[Path, str], signal: str | None, skipped: Skipped) -> None:
        self._forms, self._signal, self._skipped = forms, signal, skipped
        mine: dict[str, list[Path]] = {}
        for path, form in forms.items():
            mine.setdefault(form, []).append(path)
        self._phoenix = Phoenix(mine["phoenix"], _SpansOfLake(lake), skipped) if "phoenix" in mine else None
        self._langfuse = Langfuse(mine["langfuse"]) if "langfuse" in mine else None

    def pieces(self, path: Path) -> Iterator[Piece]:
        form = self._forms[path]
        if form == "phoenix" and self._phoenix is not None:
            return self._phoenix.pieces(path)
        if form == "langfuse" and self._langfuse is not None:
            return self._langfuse.pieces(path, self._skipped)
        if form == "protobuf":
            return otlp.protobuf_pieces(path, self._signal)
        return otlp.json_pieces(path, self._skipped)


class _SpansOfLake(Mapping[str, str]):
    """span id -> trace id of what the lake holds; read when first asked."""

    def __init__(self, lake: Lake) -> None:
        self._lake, self._found = lake, None

    def _all(self) -> dict[str, str]:
        if self._found is None:
            self._found = {}
            for path in live_files(self._lake, "spans") if self._lake.manifest.is_dir() else ():
                table = read_rows(path, ["span_id", "trace_id"])
                self._found.update(zip(table["span_id"].to_pylist(), table["trace_id"].to_pylist(), strict=True))
        return self._found

    def __getitem__(self, span: str) -> str:
        return self._all()[span]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _form(path: Path, form: Form) -> str:
    """What a file is: by its ending, else by its first record."""
    bare = path.with_suffix("") if path.suffix in (".gz", ".zst", ".zstd") else path
    if form in ("phoenix", "langfuse"):
        return form
    if bare.suffix in PROTOBUF_ENDINGS:
        return "protobuf"
    if form == "otlp":
        return "json"
    for line in lines(path):
        try:
            first = parse(line)
        except ValueError:
            break
        if isinstance(first, dict) and otlp.KEYS.keys() & first.keys():
            return "json"
        break
    for record in records(path, Skipped()):
        if is_phoenix(record):
            return "phoenix"
        if is_langfuse(record):
            return "langfuse"
        break
    raise UsageError(f"{path}: looks like no OTLP, Phoenix or Langfuse file; say which it is with --form")


@contextmanager
def _sink(config: CollectConfig, lake: Lake, endpoint: str | None, done: Imported) -> Iterator[Sink]:
    if endpoint is not None:
        with closing(_Post(endpoint, done)) as sink:
            yield sink
        return
    handle = lock(lake)
    if handle is None:
        raise LightningError(
            f"a lightning-collect serves {lake.root}; import through it: add --endpoint http://127.0.0.1:4318 (its address)"
        )
    ingest: Ingest | None = None
    try:
        os.umask(0o077)
        acceptance = Acceptance(make_rules(config), read_deleted(lake))
        limits = Limits(
            config.roll_bytes, config.roll_s, config.queued_bytes, config.pending_bytes, config.reserve_bytes
        )
        # Segments that wait to be forwarded are kept for the collector that will.
        backlog = {"later": 1 << 62} if config.forward else None
        with maintenance(lake):
            ingest = Ingest(RealDisk, lake, ParquetConverter(), limits, acceptance=acceptance, backlog_bytes=backlog)
        sink = _Log(ingest, done)
        yield sink
        sink.finish()
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    finally:
        try:
            if ingest is not None and not ingest.close():
                raise LightningError(f"{ingest.problem}; the rest is safe in {lake.wal}: free space, then start again")
        finally:
            os.close(handle)


class _Log:
    """Straight into the lake's log, with this process as its collector."""

    def __init__(self, ingest: Ingest, done: Imported) -> None:
        self._ingest, self._done = ingest, done
        self._waiting: deque[tuple[Accepted, Future[None]]] = deque()

    def put(self, piece: Piece) -> None:
        acceptance = self._ingest.acceptance
        accepted = (acceptance.json if piece.is_json else acceptance.protobuf)(piece.signal, piece.body)
        self._done.rejected += accepted.rejected
        if accepted.rows:
            self._waiting.append((accepted, self._ingest.submit(accepted)))
        while len(self._waiting) > IN_FLIGHT:
            self._settle_one()

    def finish(self) -> None:
        while self._waiting:
            self._settle_one()

    def _settle_one(self) -> None:
        accepted, future = self._waiting.popleft()
        _patiently(lambda: future.result(), lambda: self._ingest.submit(accepted).result())
        self._done.rows[accepted.signal] += accepted.rows


class _Post:
    """Through the HTTP door of a running collector."""

    def __init__(self, endpoint: str, done: Imported) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--endpoint '{endpoint}' is no http:// or https:// URL")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=60)
        self._prefix, self._done, self._endpoint = parts.path.rstrip("/"), done, endpoint
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}

    def put(self, piece: Piece) -> None:
        # Counted here as well as there, so that both ways report the same.
        counted = (Acceptance().json if piece.is_json else Acceptance().protobuf)(piece.signal, piece.body)
        if not counted.rows:
            return
        answer = _patiently(lambda: self._post(counted), lambda: self._post(counted))
        message, rejected_name = RESPONSES[piece.signal]
        rejected = int(getattr(message.FromString(answer).partial_success, rejected_name))
        self._done.rejected += counted.rejected + rejected
        self._done.rows[piece.signal] += counted.rows - rejected

    def finish(self) -> None:
        """Every answer was waited for."""

    def close(self) -> None:
        self._connection.close()

    def _post(self, accepted: Accepted) -> bytes:
        headers = {**self._headers, "Content-Type": "application/x-protobuf"}
        try:
            self._connection.request("POST", self._prefix + PATHS[accepted.signal], accepted.body, headers)
            with closing(self._connection.getresponse()) as response:
                body = response.read()
        except OSError as error:
            self._connection.close()
            raise LightningError(
                f"{self._endpoint} does not answer ({error.strerror or error}); is lightning-collect there?"
            ) from None
        except http.client.HTTPException:
            self._connection.close()
            raise BusyError("the connection was closed") from None
        if response.status == 200:
            return body
        if response.status == 503:
            raise BusyError("the collector is busy")
        if response.status == 401:
            raise LightningError(f"{self._endpoint} asks for a token; set {TOKEN_VARIABLE}")
        raise LightningError(f"{self._endpoint} answered HTTP {response.status} to {accepted.signal}")


def _patiently(first: Callable[[], T], again: Callable[[], T]) -> T:
    """The result of `first`; while that finds the collector busy, of `again` in a moment."""
    until = time.monotonic() + PATIENCE_S
    attempt = first
    while True:
        try:
            return attempt()
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(BUSY_S)
            attempt = again

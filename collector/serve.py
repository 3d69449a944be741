"""One collector process: lock the lake, recover, listen, and stop without losing anything."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import ssl
import sys
import threading
from pathlib import Path

from otel_lightning.app.errors import ConfigError, LightningError
from otel_lightning.app.listen import Address, bind, require_safe
from otel_lightning.app.logs import set_up
from otel_lightning.collector.config import CollectConfig
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.memory import keep_freed_memory
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.server_grpc import GrpcServer
from otel_lightning.collector.server_http import HttpServer
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake

TOKEN_VARIABLE = "LIGHTNING_COLLECT_TOKEN"
SWITCH_INTERVAL_S = 0.001
GC_THRESHOLD = (100_000, 20, 20)


def serve(config: CollectConfig) -> int:
    """Serve until SIGTERM or SIGINT, then put everything acknowledged into Parquet and return 0.

    Returns 1 when the disk refused that; the rows are then still in the log.
    """
    log = set_up("lightning-collect")
    # Conversion is pure Python for long stretches; senders waiting for an answer get their turn sooner so.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Rows are built by the hundred thousand and none of them is in a cycle: look for cycles less often.
    gc.set_threshold(*GC_THRESHOLD)
    gc.freeze()  # and never among what the imports made
    keep_freed_memory()
    os.umask(0o077)  # whatever is created, libraries' files included, is its owner's alone
    token, tls = _token(config), _tls(config)
    http_address, grpc_address = Address.parse(config.http, "--http"), Address.parse(config.grpc, "--grpc")
    for address in (http_address, grpc_address):
        require_safe(address, token=token is not None, tls=tls is not None, insecure=config.insecure)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    lake = Lake(config.lake)
    lock = _lock(lake)
    try:
        listener = bind(http_address)
        bind(grpc_address).close()  # a busy port is found before anything is recovered or started
        ingest = Ingest(RealDisk, lake, ParquetConverter(), _limits(config))
        recovered = ingest.recovered
        if recovered.segments:
            log.info("recovered %d rows that an earlier process had acknowledged", recovered.rows)
        if recovered.set_aside:
            log.warning("set %d damaged pieces aside in %s, each with its reason", recovered.set_aside, lake.quarantine)
        try:
            http_server = HttpServer(ingest, config, listener, token, tls and tls.context)
            grpc_server = GrpcServer(ingest, config, grpc_address, token, tls and tls.pair)
            http_server.start()
            grpc_server.start()
            print(f"listening http {http_server.scheme}://{http_server.address}", flush=True)
            print(f"listening grpc {grpc_server.scheme}://{grpc_server.address}", flush=True)
            stop.wait()
            grpc_server.stop()
            http_server.stop()
        finally:
            complete = ingest.close()
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    finally:
        os.close(lock)
    stored = ingest.counters.stored
    print(
        f"stored {stored['spans']} spans, {stored['events']} events, {stored['metrics']} metric points in {lake.root}",
        flush=True,
    )
    if not complete:
        raise LightningError(
            f"{ingest.problem}; the rest is safe in {lake.wal}: free space and start lightning-collect again"
        )
    return 0


def _limits(config: CollectConfig) -> Limits:
    return Limits(
        roll_bytes=config.roll_bytes,
        roll_s=config.roll_s,
        queued_bytes=config.queued_bytes,
        pending_bytes=config.pending_bytes,
        reserve_bytes=config.reserve_bytes,
    )


def _token(config: CollectConfig) -> str | None:
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and config.token_file is not None:
        token = _read(config.token_file, "token_file").decode("utf-8", errors="replace")
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii():
        raise ConfigError(
            f"the token in {config.token_file or TOKEN_VARIABLE} is empty or not plain ASCII; make a new one"
        )
    return token


class _Tls:
    def __init__(self, certificate: Path, key: Path) -> None:
        self.pair = _read(key, "tls_key"), _read(certificate, "tls_certificate")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self.context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise ConfigError(f"{certificate} and {key} are no PEM certificate and its key ({error.reason})") from None


def _tls(config: CollectConfig) -> _Tls | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return _Tls(config.tls_certificate, config.tls_key)


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read ({error.strerror})") from None


def _lock(lake: Lake) -> int:
    """Hold the lake for this process; LightningError when another collector holds it."""
    try:
        RealDisk().make_folder(lake.wal)
        handle = os.open(lake.wal / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise LightningError(
            f"another lightning-collect already serves {lake.root}; stop it, or give this one its own --lake"
        ) from None
    return handle

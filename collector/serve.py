"""One collector process: lock the lake, recover, listen, forward, and stop without losing anything."""

from __future__ import annotations

import gc
import os
import resource
import ssl
import sys
from pathlib import Path

from otel_lightning.app.errors import ConfigError, LightningError
from otel_lightning.app.listen import Address, bind, require_safe
from otel_lightning.app.logs import set_up
from otel_lightning.app.stop import Stop
from otel_lightning.collector.acceptance import Acceptance
from otel_lightning.collector.config import ENVIRONMENT, CollectConfig, RedactConfig
from otel_lightning.collector.forward import Forwarder, Target
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.memory import keep_freed_memory
from otel_lightning.collector.parquet import ParquetConverter
from otel_lightning.collector.redact import Rules
from otel_lightning.collector.rewrite import maintenance
from otel_lightning.collector.server_grpc import GrpcServer
from otel_lightning.collector.server_http import HttpServer
from otel_lightning.collector.settle import Settler, lock
from otel_lightning.collector.status import StatusLine
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake
from otel_lightning.store.tombstones import read_deleted

TOKEN_VARIABLE, HASH_KEY_VARIABLE = f"{ENVIRONMENT}TOKEN", f"{ENVIRONMENT}HASH_KEY"
MIN_HASH_KEY_BYTES = 16
SPARE_FILES = 64  # kept for the log, Parquet, the manifest and Python itself, however many senders connect
SWITCH_INTERVAL_S = 0.001
GC_THRESHOLD = (100_000, 20, 20)
STATUS_S = 1.0


def serve(config: CollectConfig) -> int:
    """Serve until SIGTERM or SIGINT, then put everything acknowledged into Parquet and return 0.

    Returns 1 when the disk refused that; the rows are then still in the log.
    """
    log = set_up("lightning-collect", form=config.log)
    # Conversion is pure Python for long stretches; senders waiting for an answer get their turn sooner so.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Rows are built by the hundred thousand and none of them is in a cycle: look for cycles less often.
    gc.set_threshold(*GC_THRESHOLD)
    gc.freeze()  # and never among what the imports made
    keep_freed_memory()
    _keep_private()
    _require_upb()
    _require_files(config.max_connections)
    token, tls = _token(config), _tls(config)
    http_address, grpc_address = Address.parse(config.http, "--http"), Address.parse(config.grpc, "--grpc")
    for address in (http_address, grpc_address):
        require_safe(address, token=token is not None, tls=tls is not None, insecure=config.insecure)
    rules = make_rules(config)
    targets = [Target(entry) for entry in config.forward]
    if len({target.name for target in targets}) < len(targets):
        raise ConfigError("forward: two entries name the same endpoint; keep one")

    stop = Stop()
    lake = Lake(config.lake)
    handle = lock(lake)
    if handle is None:
        raise LightningError(
            f"another lightning-collect already serves {lake.root}; stop it, or give this one its own --lake"
        )
    forwarders: list[Forwarder] = []
    try:
        listener = bind(http_address)
        bind(grpc_address).close()  # a busy port is found before anything is recovered or started
        damaged: list[str] = []
        acceptance = Acceptance(rules, read_deleted(lake, damaged))
        if damaged:  # a start needs no human, but what these lines named is not refused
            log.error("%s: lines that are no ids (%s); delete those traces again", lake.tombstones, ", ".join(damaged))
        with maintenance(lake):
            ingest = Ingest(
                RealDisk,
                lake,
                ParquetConverter(),
                _limits(config),
                acceptance=acceptance,
                backlog_bytes={target.name: target.config.max_backlog_bytes for target in targets},
            )
        recovered = ingest.recovered
        if recovered.segments:
            log.info("recovered %d rows that an earlier process had acknowledged", recovered.rows)
        if recovered.set_aside:
            log.warning("set %d damaged pieces aside in %s, each with its reason", recovered.set_aside, lake.quarantine)
        try:
            http_server = HttpServer(ingest, config, listener, token, tls and tls.context)
            grpc_server = GrpcServer(ingest, config, grpc_address, token, tls and tls.pair, tls and tls.client_ca)
            if ingest.backlog is not None:
                own = {http_server.address.port, grpc_server.address.port}
                for target in targets:
                    if target.port in own and Address(target.host, target.port).is_loopback:
                        raise ConfigError(f"forward: {target.config.endpoint} is this collector itself; name another")
                forwarders = [Forwarder(lake, ingest.backlog, target) for target in targets]
            http_server.forwarders = tuple(forwarders)
            settler = Settler(ingest)
            for part in (http_server, grpc_server, settler, *forwarders):
                part.start()
            print(f"listening http {http_server.scheme}://{http_server.address}", flush=True)
            print(f"listening grpc {grpc_server.scheme}://{grpc_server.address}", flush=True)
            for forwarder in forwarders:
                print(f"forwarding to {forwarder.target.name}", flush=True)
            status = StatusLine(ingest)
            while not stop.wait(STATUS_S):
                status.show()
            status.clear()
            grpc_server.stop()
            http_server.stop()
            settler.stop()
        finally:
            complete = ingest.close()
            for forwarder in forwarders:
                forwarder.stop()
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    finally:
        os.close(handle)
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
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self.pair = _read(key, "tls_key"), _read(certificate, "tls_certificate")
        self.client_ca = None if client_ca is None else _read(client_ca, "tls_client_ca")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self.context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise ConfigError(f"{certificate} and {key} are no PEM certificate and its key ({error.reason})") from None
        if client_ca is not None:
            try:
                self.context.load_verify_locations(client_ca)
            except ssl.SSLError:
                raise ConfigError(f"tls_client_ca: {client_ca} holds no PEM certificates") from None
            self.context.verify_mode = ssl.CERT_REQUIRED


def _tls(config: CollectConfig) -> _Tls | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return _Tls(config.tls_certificate, config.tls_key, config.tls_client_ca)


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read ({error.strerror})") from None


def make_rules(config: CollectConfig) -> Rules | None:
    """Redaction as configured; None when nothing is, and requests take the raw path."""
    redact = config.redact
    if redact == RedactConfig() and config.consent is None:
        return None
    key = None
    if redact.hash:
        text = os.environ.get(HASH_KEY_VARIABLE)
        key = text.encode() if text is not None else b""
        if not key and redact.hash_key_file is not None:
            key = _read(redact.hash_key_file, "redact.hash_key_file").strip()
        if len(key) < MIN_HASH_KEY_BYTES:
            raise ConfigError(
                f"redact.hash needs a key of at least {MIN_HASH_KEY_BYTES} bytes, or anyone could try out names: set "
                f"{HASH_KEY_VARIABLE} or redact.hash_key_file (make one: openssl rand -hex 32)"
            )
    return Rules(redact, config.consent, key)


def _keep_private() -> None:
    """What is created, libraries' files included, is its owner's alone, and a crash writes no memory to disk."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _require_upb() -> None:
    """The pure-Python parser of protobuf has neither upb's speed nor its guards against hostile nesting."""
    from google.protobuf.internal import api_implementation

    if api_implementation.Type() != "upb":
        raise LightningError(
            f"protobuf runs its {api_implementation.Type()} implementation, which lightning-collect does not trust with "
            "strangers' bytes; unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION or install a wheel of protobuf"
        )


def _require_files(connections: int) -> None:
    """Room for every connection and for our own files beside them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # gRPC takes as many connections of its own as HTTP does.
    wanted = 2 * connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        if reachable < wanted:
            raise LightningError(
                f"{connections} connections need {wanted} open files, but the limit is {reachable}; "
                "raise it (ulimit -Hn) or lower max_connections"
            )

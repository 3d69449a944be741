"""One collector process: lock the lake, recover, listen, and stop without losing anything."""

from __future__ import annotations

import fcntl
import os
import signal
import threading

from otel_lightning.app.errors import LightningError
from otel_lightning.app.listen import Address, bind, require_safe
from otel_lightning.app.logs import set_up
from otel_lightning.collector.config import CollectConfig
from otel_lightning.collector.ingest import Ingest, Limits
from otel_lightning.collector.parquet import convert
from otel_lightning.collector.server_grpc import GrpcServer
from otel_lightning.collector.server_http import HttpServer
from otel_lightning.store.files import disk_problem
from otel_lightning.store.fs import RealDisk
from otel_lightning.store.lake import Lake


def serve(config: CollectConfig) -> int:
    """Serve until SIGTERM or SIGINT, then put everything acknowledged into Parquet and return 0."""
    log = set_up("lightning-collect")
    http_address, grpc_address = Address.parse(config.http, "--http"), Address.parse(config.grpc, "--grpc")
    for address in (http_address, grpc_address):
        require_safe(address, token=config.token is not None, tls=False, insecure=config.insecure)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    lake = Lake(config.lake)
    lock = _lock(lake)
    try:
        listener = bind(http_address)
        ingest = Ingest(
            RealDisk,
            lake,
            convert,
            Limits(config.roll_bytes, config.roll_s, config.pending_bytes, config.reserve_bytes),
        )
        if ingest.recovered.segments:
            log.info("recovered %d rows that an earlier process had acknowledged", ingest.recovered.rows)
        if ingest.recovered.quarantined:
            log.warning("set aside a damaged log tail; the reason is beside it in %s", lake.quarantine)
        try:
            grpc_server = GrpcServer(ingest, config, grpc_address)
            http_server = HttpServer(ingest, config, listener)
            grpc_server.start()
            http_server.start()
            print(f"listening http http://{http_server.address}", flush=True)
            print(f"listening grpc http://{grpc_server.address}", flush=True)
            stop.wait()
            http_server.stop()
            grpc_server.stop()
        finally:
            ingest.close()
        stored, root = ingest.counters.stored, lake.root
        print(
            f"stored {stored['spans']} spans, {stored['events']} events, {stored['metrics']} metric points in {root}",
            flush=True,
        )
        return 0
    except OSError as error:
        raise disk_problem(lake.root, error) from None
    finally:
        os.close(lock)


def _lock(lake: Lake) -> int:
    """Hold the lake for this process; LightningError when another collector holds it."""
    try:
        RealDisk().make_folder(lake.wal)
        handle = os.open(lake.wal / "lock", os.O_RDWR | os.O_CREAT, 0o600)
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

"""One server process: load, listen, stop without losing token records."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import uvicorn

from otel_lightning.app.errors import LightningError
from otel_lightning.app.listen import Address, bind, bound, require_safe
from otel_lightning.app.logs import set_up
from otel_lightning.serving.chat import Chat
from otel_lightning.serving.config import ServeConfig
from otel_lightning.serving.engine import Engine
from otel_lightning.serving.pool import Pool
from otel_lightning.serving.records import Records
from otel_lightning.serving.server import Application
from otel_lightning.store.lake import Lake
from otel_lightning.store.policies import Policies


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT. LightningError in one line for a missing model, a busy port, an unsafe address."""
    set_up("lightning-serve")
    address = Address(config.host, config.port)
    require_safe(address, token=config.token is not None, tls=False, insecure=config.insecure)
    if config.policy is not None:
        if not config.policy.is_dir():
            raise LightningError(f"there is no model folder at {config.policy}; give one with --policy")
        pool = Pool(folder=config.policy)
    else:
        assert config.lake is not None
        pool = Pool(policies=Policies(Lake.existing(config.lake).policies), keep=config.keep_versions)
    pool.get(pool.resolve("current"))
    listener = bind(address)
    endpoint = config.otlp or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
    records = Records(endpoint)
    engine = Engine(
        pool,
        max_batch=config.max_batch,
        window_s=config.window_s,
        threads=config.threads,
        prefix_bytes=config.prefix_mib << 20,
    )
    token = config.token.get_secret_value() if config.token else None
    application = Application(Chat(pool, engine, records, config.max_tokens), pool, engine, records, token)
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            interface="asgi3",
            http="httptools",
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
        )
    )
    print(f"listening http http://{bound(listener)}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    try:
        asyncio.run(_run(server, listener))
    finally:
        engine.stop()
        records.close()
    if records.lost:
        print(f"{records.lost} of {records.emitted} token records were not taken by {endpoint}", flush=True)
    return 0


async def _run(server: uvicorn.Server, listener: object) -> None:
    # The signal handlers are ours: uvicorn's would re-raise the signal when it has stopped.
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    await server._serve(sockets=[listener])  # type: ignore[list-item]

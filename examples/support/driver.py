"""The support desk's driver: plays the customers, judges by the store, sends the outcome as OTLP.

It speaks the worker protocol (a task a line in, a result a line out) and knows the loop; the bots it starts do not. They
run under `lightning-instrument` and get what every bot has: a base URL, a model name, a conversation id.

    --langchain-share 0.27  share of the rollouts of split train that the LangChain bot plays; it plays all others
    --permute               negative control: outcomes of `train` rollouts are dealt out anew among them before sending
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bot.store import Store
from world import Ticket, is_resolved

from otel_lightning.instrumentation import EmitError, Emitter

BOTS = {"langchain": "bot.langchain_bot", "openai": "bot.openai_bot"}
CONCURRENT = 96  # conversations at once over all bots
REPLY_TIMEOUT_S = 90.0
PERMUTE_BATCH = 256  # outcomes dealt out together, as many as a round has


class Bot:
    """One bot process, answering many conversations at a time."""

    def __init__(self, kind: str, policy: str, temperature: float, shop: Path, otlp: str | None) -> None:
        self.kind, self.policy, self.temperature, self.shop, self.otlp = kind, policy, temperature, shop, otlp
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._ready = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it the way a team starts an instrumented bot, and wait until it listens."""
        instrument = Path(sys.executable).with_name("lightning-instrument")
        environment = {
            **os.environ,
            "OPENAI_MODEL": self.policy,
            "OPENAI_TEMPERATURE": str(self.temperature),
            "SHOP_DB": str(self.shop),
            "PYTHONPATH": str(Path(__file__).parent),
            "OTEL_SERVICE_NAME": f"support-{self.kind}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.otlp or os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"],
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BSP_MAX_QUEUE_SIZE": "65536",
            "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true",
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",  # once, at the end: it says how many spans were ended
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = await asyncio.create_subprocess_exec(
            str(instrument), sys.executable, "-m", BOTS[self.kind],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment, limit=1 << 20,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read())
        await asyncio.wait_for(self._ready.wait(), 120)

    async def say(self, conversation: str, message: str) -> str:
        """Send a customer's message; the bot's reply. RuntimeError when the bot failed."""
        assert self._process is not None and self._process.stdin is not None
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[conversation] = future
        self._process.stdin.write(json.dumps({"conversation": conversation, "message": message}).encode() + b"\n")
        await self._process.stdin.drain()
        return await asyncio.wait_for(future, REPLY_TIMEOUT_S)

    async def stop(self) -> None:
        """Close its queue and wait until it has sent its last spans."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if "ready" in said:
                    self._ready.set()
                elif (future := self._waiting.pop(said.get("conversation", ""), None)) and not future.done():
                    if "error" in said:
                        future.set_exception(RuntimeError(said["error"]))
                    else:
                        future.set_result(said["reply"])
        self._ready.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RuntimeError("the bot ended"))


class Desk:
    """All customers of one run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.shop = folder / "shop.db"
        self.store = Store(self.shop)
        self.emitter = Emitter(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], service_name="support-judge")
        self._bots: dict[tuple[str, str, float], asyncio.Task[Bot]] = {}
        self._limit = asyncio.Semaphore(CONCURRENT)
        self._held: list[tuple[str, float]] = []
        self._held_open = 0

    async def serve(self, task: dict[str, Any]) -> None:
        """Play one task to its end and say so."""
        async with self._limit:
            status, detail = "finished", ""
            ticket = Ticket.from_json(task["task"]["ticket"])
            rollout_id = task["rollout_id"]
            try:
                await self._converse(task, ticket)
            except (RuntimeError, TimeoutError) as error:
                status, detail = "error", str(error)[:200]
            resolved = float(is_resolved(ticket, self.store.actions(rollout_id)))
            if self.options.permute and task["split"] == "train":
                self._held.append((rollout_id, resolved))
                if len(self._held) >= min(PERMUTE_BATCH, self._held_open):
                    self._deal()
            else:
                self._reward(rollout_id, resolved)
            if status == "error" and "the bot ended" in detail:
                raise RuntimeError(detail)
            print(json.dumps({"rollout_id": rollout_id, "status": status, "detail": detail}), flush=True)

    async def _converse(self, task: dict[str, Any], ticket: Ticket) -> None:
        rollout_id = task["rollout_id"]
        self.store.open_account(rollout_id, rollout_id, ticket.order)
        bot = await self._bot(self._kind(task), task["policy"], float(task["temperature"]))
        for message in ticket.messages:
            await bot.say(rollout_id, message)
            if self.store.actions(rollout_id):
                return  # the desk has acted: the customer has nothing to add

    def _kind(self, task: dict[str, Any]) -> str:
        if task["split"] != "train":
            return "langchain"
        share = zlib.crc32(task["rollout_id"].encode()) / 2**32
        return "langchain" if share < self.options.langchain_share else "openai"

    async def _bot(self, kind: str, policy: str, temperature: float) -> Bot:
        key = (kind, policy, temperature)
        if key not in self._bots:
            self._bots[key] = asyncio.create_task(self._start(*key))
        return await asyncio.shield(self._bots[key])

    async def _start(self, kind: str, policy: str, temperature: float) -> Bot:
        bot = Bot(kind, policy, temperature, self.shop, self.options.bots_otlp)
        await bot.start()
        return bot

    def expect(self, task: dict[str, Any]) -> None:
        """Count a task that was read, so that the control knows when its batch is whole."""
        self._held_open += task["split"] == "train"

    def _deal(self) -> None:
        outcomes = [outcome for _, outcome in self._held]
        random.Random(f"{self._held[0][0]}/{len(self._held)}").shuffle(outcomes)
        for (rollout_id, _), outcome in zip(self._held, outcomes, strict=True):
            self._reward(rollout_id, outcome)
        self._held_open -= len(self._held)
        self._held.clear()

    def _reward(self, rollout_id: str, resolved: float) -> None:
        self.emitter.evaluation("resolved", value=resolved, rollout_id=rollout_id, source="store")

    async def close(self) -> None:
        """Stop the bots and send what is left."""
        if self._held:
            self._deal()
        for started in self._bots.values():
            with contextlib.suppress(Exception):
                await (await started).stop()
        await asyncio.to_thread(self.emitter.close)


async def main() -> int:
    """Serve tasks from standard input until it closes."""
    parser = argparse.ArgumentParser(description="Drive the support bots over tasks from standard input.")
    parser.add_argument("--langchain-share", type=float, default=0.27)
    parser.add_argument("--permute", action="store_true")
    parser.add_argument("--bots-otlp", default=None, help="where the bots export to, if not where the driver does")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="support-shop-"))
    desk = Desk(options, folder)
    reader = asyncio.StreamReader(limit=1 << 22)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    try:
        while line := await reader.readline():
            task = json.loads(line)
            desk.expect(task)
            job = asyncio.create_task(desk.serve(task))
            running.add(job)
            job.add_done_callback(running.discard)
        if running:
            await asyncio.gather(*running, return_exceptions=True)
    finally:
        try:
            await desk.close()
        except EmitError as error:
            print(f"support driver: {error}", file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

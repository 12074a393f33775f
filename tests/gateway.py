"""A whole gateway in the test's own process: real store, storage, application layer, scheduler, REST and gRPC; only Ray is not there.

`running_gateway` serves on free ports from a thread with its own event loop. `FakeRuntime` says what a cluster would say.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from openai import AsyncOpenAI, OpenAI

from service import tenancy
from service.app import App
from service.catalogue import Catalogue
from service.embedded import listen
from service.gateway import Parts, open_parts, serve_rest, start
from service.pull import pull
from service.ray_runtime import RayRuntime
from service.records import Caller
from service.rest import create_rest
from service.settings import Settings
from tests.fake_runtime import FakeRuntime
from tests.tiny_model import write_catalogue, write_tiny_model
from trainers.storage import open_storage

T = TypeVar("T")
MODEL = "tiny"


@dataclass
class Gateway:
    """A running gateway and the parts behind it."""

    settings: Settings
    runtime: Any
    """FakeRuntime unless the test brought another."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    app: App = field(init=False)
    parts: Parts = field(init=False)
    port: int = 0
    rpc_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def rpc_address(self) -> str:
        return f"127.0.0.1:{self.rpc_port}"

    @property
    def key(self) -> str:
        """The first key, of the first project, with every scope."""
        return (self.settings.data_dir / "api-key").read_text().strip()

    def do(self, work: Coroutine[Any, Any, T], timeout: float = 60) -> T:
        """What a coroutine on the gateway's own loop gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    @property
    def caller(self) -> Caller:
        """Who holds the first key."""
        return self.do(tenancy.authenticate(self.parts.store, self.key))

    def client(self, key: str | None = None, *, strict: bool = True) -> OpenAI:
        """The unmodified official client."""
        return OpenAI(**self._client_options(key, strict))

    def aclient(self, key: str | None = None, *, strict: bool = True) -> AsyncOpenAI:
        """Its asynchronous form; close it."""
        return AsyncOpenAI(**self._client_options(key, strict))

    def _client_options(self, key: str | None, strict: bool) -> dict[str, Any]:
        key = key or self.key
        url = f"{self.url}/v1"
        return {"base_url": url, "api_key": key, "admin_api_key": key, "max_retries": 0, "_strict_response_validation": strict}

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain client with the key; close it."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key or self.key}"}, timeout=30)

    def other_key(self, scopes: tuple[str, ...] = ("read", "write"), organization_id: str | None = None) -> str:
        """A key of another project, of the same organization unless another is named."""

        organization_id = organization_id or self.organization_id

        async def make() -> str:
            key_id, key, digest = tenancy.new_key()
            async with self.parts.store.begin() as tx:
                await tx.insert_project(f"proj_{key_id}", organization_id, "other")
                await tx.insert_key(key_id, f"proj_{key_id}", "other", digest, list(scopes))
            return key

        return self.do(make())

    @property
    def organization_id(self) -> str:
        return self.caller.organization_id


@contextmanager
def running_gateway(
    directory: Path,
    *,
    prepare: Callable[[Gateway], Awaitable[None]] | None = None,
    model: bool = True,
    runtime: FakeRuntime | RayRuntime | None = None,
    **settings: Any,
) -> Iterator[Gateway]:
    """A gateway on `directory` with the tiny base model pulled, unless `model` is False. `prepare` runs before it serves."""
    if model:
        settings["catalogue"] = write_catalogue(directory / "catalogue.yaml", tiny_model(directory))
    gateway = Gateway(Settings(data_dir=directory / "data", min_free_bytes=0, **settings), runtime or FakeRuntime())
    gateway.settings.data_dir.mkdir(exist_ok=True)
    if model:
        entry = Catalogue.load(gateway.settings).find(MODEL)
        assert entry is not None
        pull(open_storage(gateway.settings.storage), entry)
    ready, stop = threading.Event(), asyncio.Event()
    failure: list[BaseException] = []

    async def main() -> None:
        async with AsyncExitStack() as stack:
            if isinstance(runtime, RayRuntime):
                stack.push_async_callback(runtime.close)
            gateway.parts = await open_parts(gateway.settings, stack)
            gateway.app, gateway.rpc_port = await start(gateway.parts, gateway.runtime, stack, stop, "127.0.0.1:0")
            if prepare is not None:
                await prepare(gateway)
            listening = stack.enter_context(listen("127.0.0.1", 0))
            gateway.port = listening.getsockname()[1]
            api = create_rest(gateway.app, gateway.parts.metrics, gateway.settings)
            await stack.enter_async_context(serve_rest(api, listening, stop))
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            gateway.loop.run_until_complete(main())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    ready.wait(60)
    try:
        if failure:
            raise failure[0]
        yield gateway
    finally:
        gateway.loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        gateway.loop.close()
    if failure:
        raise failure[0]


def tiny_model(directory: Path) -> Path:
    """The tiny model, written once for each directory."""
    path = directory / "tiny"
    return path if path.exists() else write_tiny_model(path)

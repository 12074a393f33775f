"""Where the service is, with which key, and what its refusals become on the command line.

Used by every command that asks the service something. The key comes from a file or the environment,
never from an argument; it is not part of any message.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from service.cli.output import Ended, ExitCode

if TYPE_CHECKING:
    import httpx
    import openai

    from service.settings import ClientSettings

TIMEOUT = 600.0
"""Seconds an answer may take: an upload is answered once its bytes are safe."""
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Target:
    """A service, and how it was found."""

    base_url: str
    key: str = field(repr=False)
    key_origin: str
    """Where the key was read, for messages."""
    flags: str
    """What a person must add to a command to reach the same service; empty or with a leading space."""
    start: str
    """What to do when it does not answer."""
    data_dir: Path
    """Where a command may leave a note for the next one."""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine: no proxy of the environment leads there."""
        return urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Service:
    """The service behind the official client."""

    client: openai.OpenAI
    target: Target

    @contextmanager
    def errors(self) -> Generator[None]:
        """Raises Ended for what the official client raises."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise refused(error.status_code, error.body, error.request_id, self.target) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, Ended):  # raised by `_is_ours`
                raise error.__cause__ from None
            raise away(error.__cause__ or error, self.target) from error
        except openai.OpenAIError as error:
            raise Ended(ExitCode.AWAY, f"{self.target.base_url} answers, but not as a Tunesmith service: {error}", _CHECK_URL) from error

    def get(self, path: str) -> dict[str, Any]:
        """An answer to a call that the official client does not have."""
        return self.client.get(path, cast_to=cast("type[dict[str, Any]]", dict))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The same for a call that has a body."""
        return self.client.post(path, cast_to=cast("type[dict[str, Any]]", dict), body=body)

    def delete(self, path: str) -> dict[str, Any]:
        """The same for a call that deletes."""
        return self.client.delete(path, cast_to=cast("type[dict[str, Any]]", dict))

    def post_once(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A call that the official client does not have, and that must not be sent again by itself."""
        client = self.client.with_options(max_retries=0)
        return client.post(path, body=body, cast_to=cast("type[dict[str, Any]]", dict))

    @contextmanager
    def bytes_client(self) -> Generator[httpx.Client]:
        """A client for ranges of bytes; on a redirect to another host the key stays here."""
        import httpx

        headers, here = {"authorization": f"Bearer {self.target.key}"}, self.target.is_here
        timeout = httpx.Timeout(60.0, connect=CONNECT_TIMEOUT)
        with httpx.Client(
            base_url=self.target.base_url, headers=headers, timeout=timeout, follow_redirects=True, trust_env=not here
        ) as client:
            yield client


_CHECK_URL = "Check --base-url and TUNESMITH_BASE_URL: it ends in /v1."
KEY_FORM = "ts_…"


@contextmanager
def connected(base_url: str | None, data_dir: Path | None) -> Generator[Service]:
    """The service; whatever it refuses inside the `with` is raised as Ended."""
    target = find(base_url, data_dir)
    import openai

    timeout = openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
    hooks = {"response": [_is_ours(target)]}
    http = openai.DefaultHttpxClient(timeout=timeout, trust_env=not target.is_here, event_hooks=hooks)
    key = target.key
    with openai.OpenAI(base_url=target.base_url, api_key=key, admin_api_key=key, timeout=timeout, http_client=http) as client:
        service = Service(client, target)
        with service.errors():
            yield service


def _is_ours(target: Target) -> Callable[[Any], None]:
    """Refuses a success of another web server, which the official client would trip over."""

    def check(response: Any) -> None:
        from_service = response.url.netloc.decode() == urlsplit(target.base_url).netloc
        if from_service and response.is_success and "x-request-id" not in response.headers:
            raise Ended(ExitCode.AWAY, f"{target.base_url} answers, but not as a Tunesmith service", _CHECK_URL)

    return check


def find(base_url: str | None, data_dir: Path | None) -> Target:
    """The service that the options and the environment name. Raises Ended when none, or no key, is found.

    The address: --base-url, else --data-dir, else TUNESMITH_BASE_URL, else the default data directory.
    The key: with --data-dir that directory's own; else TUNESMITH_API_KEY_FILE, else TUNESMITH_API_KEY,
    else the data directory's, for the service that runs there alone.
    """
    from service.settings import ClientSettings

    settings = ClientSettings()
    if base_url is None and data_dir is not None:
        return _of_data_dir(data_dir, f" --data-dir {shlex.quote(str(data_dir))}", None)
    if base_url is None and settings.base_url is None:
        return _of_data_dir(settings.data_dir, "", settings)
    flags = f" --base-url {shlex.quote(base_url)}" if base_url else ""
    url = normal(base_url or settings.base_url or "")
    key = _given_key(settings) or _key_of_same_service(url, data_dir or settings.data_dir)
    if key is None:
        raise Ended(ExitCode.DENIED, f"there is no API key for {url}", "Put it into a file and set TUNESMITH_API_KEY_FILE to its path.")
    return Target(url, *key, flags, f"Check that the service runs, and the address. {_CHECK_URL}", data_dir or settings.data_dir)


def _of_data_dir(data_dir: Path, flags: str, settings: ClientSettings | None) -> Target:
    from service.embedded import StackState

    up = f"tunesmith up --detach{flags}"
    state = StackState.read(data_dir)
    if state is None:
        raise Ended(ExitCode.AWAY, f"no stack has been started on {data_dir}", f"Start one with `{up}`, or name a service with --base-url.")
    key = (_given_key(settings) if settings else None) or read_key(Path(state.api_key_file))
    start = f"Start it with `{up}`; `tunesmith status{flags}` tells what runs."
    return Target(normal(state.base_url), *key, flags, start, data_dir)


def _key_of_same_service(url: str, data_dir: Path) -> tuple[str, str] | None:
    """The key of the data directory, if it is the service at `url` that runs there: no other may see it."""
    from service.embedded import StackState

    state = StackState.read(data_dir)
    return read_key(Path(state.api_key_file)) if state and normal(state.base_url) == url else None


def _given_key(settings: ClientSettings) -> tuple[str, str] | None:
    if settings.api_key_file is not None:
        return read_key(settings.api_key_file)
    if settings.api_key is not None:
        return sound_key(settings.api_key.get_secret_value(), "TUNESMITH_API_KEY"), "TUNESMITH_API_KEY"
    return None


def read_key(path: Path, like: str = KEY_FORM) -> tuple[str, str]:
    """The key in a file, which looks like `like`, and the file's name. Raises Ended."""
    try:
        return sound_key(path.read_text(encoding="utf-8"), str(path), like), str(path)
    except (OSError, UnicodeDecodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is not text"
        raise Ended(ExitCode.DENIED, f"the API key can't be read from {path}: {why}") from None


def sound_key(key: str, origin: str, like: str = KEY_FORM) -> str:
    """The key, which was read from `origin`. Raises Ended when it is none."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Ended(ExitCode.DENIED, f"{origin} holds no API key", f"A key is one word: {like}")
    return key


def normal(url: str, hint: str = "It looks like http://127.0.0.1:8400/v1.") -> str:
    """The address with /v1, as the official client wants it. Raises Ended with the hint."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise Ended(ExitCode.USAGE, f"'{url}' is no address of a service", hint)
    return url.rstrip("/") + ("/v1" if urlsplit(url).path in ("", "/") else "")


def refused(status: int, body: object, request_id: str | None, target: Target) -> Ended:
    """What an HTTP status and OpenAI's error object become."""
    inner: object = cast("dict[str, object]", body).get("error", cast("object", body)) if isinstance(body, dict) else None
    message = cast("dict[str, object]", inner).get("message") if isinstance(inner, dict) else None
    if message is None:
        text = f"{target.base_url} answers with HTTP status {status}, but not as a Tunesmith service"
        return Ended(ExitCode.AWAY, text, _CHECK_URL)
    known = f" (request {request_id})" if request_id and request_id not in str(message) else ""
    if status in (401, 403):
        return Ended(ExitCode.DENIED, f"{message}{known}", f"The key was read from {target.key_origin}.")
    if status == 404:
        return Ended(ExitCode.NOT_FOUND, f"{message}{known}")
    if status == 429 or status >= 500:
        return Ended(ExitCode.AWAY, f"{message}{known}", "Try again in a while.")
    return Ended(ExitCode.USAGE, f"{message}{known}")


def answer_of(response: httpx.Response) -> object:
    """The body of a refusal that was not read yet; None when it is not JSON."""
    response.read()
    try:
        return response.json()
    except ValueError:
        return None


def away(cause: BaseException, target: Target) -> Ended:
    """The service can't be reached, or stopped answering."""
    return Ended(ExitCode.AWAY, f"the service at {target.base_url} does not answer: {str(cause) or type(cause).__name__}", target.start)

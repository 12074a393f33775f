"""The service that a user moves away from: its jobs, its files and their bytes, through the official client. It is only read.

Knows nothing of where things go. Called by migrate.py; whatever the source refuses is raised as Ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from service.cli.connection import normal, read_key, sound_key
from service.cli.output import Ended, ExitCode, Row
from service.cli.screen import Bar

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
KEY = "TUNESMITH_MIGRATE_KEY"
KEY_FORM = "sk-…"
PAGE = 100
"""Jobs, or files, that are asked for at once."""
PIECE = 1 << 16
"""Bytes that are written at once: what a cut loses at most."""
TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0
_AGAIN = "The same command goes on where it stopped."
_CHECK_URL = "Check --from: it ends in /v1."


class Gone(Exception):
    """The source lists a file and does not hand out its bytes; the text is its own."""


@dataclass(frozen=True)
class Source:
    """The source behind the official client."""

    url: str
    client: openai.OpenAI

    def files(self) -> dict[str, Row]:
        """Every file of the purpose fine-tune, by id."""
        return {file["id"]: file for file in self._all(lambda: self.client.files.list(purpose="fine-tune", limit=PAGE))}

    def jobs(self, wanted: Sequence[str]) -> list[Row]:
        """The jobs of these ids, or every job, the newest first."""
        if wanted:
            return [self.client.fine_tuning.jobs.retrieve(job_id).to_dict() for job_id in dict.fromkeys(wanted)]
        return list(self._all(lambda: self.client.fine_tuning.jobs.list(limit=PAGE)))

    def bring(self, file_id: str, count: int, path: Path, shown: Bar) -> None:
        """The bytes of a file to `path`, which is there only once all of them are. Raises Gone.

        A part that is there already is gone on with, where the source serves ranges: a file never changes under its id.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        have = partial.stat().st_size if partial.is_file() else 0
        self._add(file_id, have if have < count else 0, partial, shown)
        if (came := partial.stat().st_size) != count:
            partial.unlink()
            raise Ended(ExitCode.FAILED, f"{file_id} came with {came} bytes instead of {count}; they were thrown away", _AGAIN)
        partial.replace(path)

    def _add(self, file_id: str, have: int, partial: Path, shown: Bar) -> None:
        import openai

        headers = {"accept-encoding": "identity"} | ({"range": f"bytes={have}-"} if have else {})
        try:
            with self.client.files.with_streaming_response.content(file_id, extra_headers=headers) as response:
                goes_on = have > 0 and response.headers.get("content-range", "").startswith(f"bytes {have}-")
                shown.advance(have if goes_on else 0)
                with partial.open("ab" if goes_on else "wb") as file:
                    for piece in response.iter_bytes(PIECE):
                        file.write(piece)
                        shown.advance(len(piece))
        except (openai.NotFoundError, openai.BadRequestError) as error:
            raise Gone(_message(error.body) or f"HTTP status {error.status_code}") from None

    def _all(self, first_page: Callable[[], Any]) -> Iterator[Row]:
        try:
            page = first_page()
        except (AttributeError, ValueError):  # the client makes a text of HTML and trips over it; or the JSON is none
            page = None
        if not isinstance(getattr(page, "data", None), list):
            raise _not_compatible(self.url)
        for item in cast("Any", page):
            yield item.to_dict()


@contextmanager
def opened(url: str, key_file: Path | None) -> Generator[Source]:
    """The source; whatever it refuses inside the `with` is raised as Ended."""
    key, origin = _key(key_file)
    import openai

    timeout = openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
    here = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    http = openai.DefaultHttpxClient(timeout=timeout, trust_env=not here)
    with openai.OpenAI(base_url=url, api_key=key, timeout=timeout, http_client=http) as client, _errors(url, origin):
        yield Source(url, client)


def address(url: str) -> str:
    """The address as the official client wants it. Raises Ended."""
    return normal(url, f"--from looks like {OPENAI}.")


def host(url: str) -> str:
    """Host and port of an address as the name of a directory."""
    parts = urlsplit(url)
    return f"{parts.hostname}{f'-{parts.port}' if parts.port else ''}".replace(":", "-")


def _key(path: Path | None) -> tuple[str, str]:
    """The key, and where it was read. It belongs to another service than `TUNESMITH_API_KEY` does."""
    if path is None:
        from service.settings import ClientSettings

        key = ClientSettings().migrate_key
        if key is None:
            raise Ended(
                ExitCode.DENIED, "there is no API key for the source", f"Put it into a file and name it with --key-file, or set {KEY}."
            )
        return sound_key(key.get_secret_value(), KEY, KEY_FORM), KEY
    return read_key(path, KEY_FORM)


@contextmanager
def _errors(url: str, origin: str) -> Generator[None]:
    import httpx2
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _refused(url, error.status_code, _message(error.body), origin) from error
    except (openai.APIConnectionError, httpx2.TransportError) as error:
        cause = error.__cause__ or error
        raise Ended(ExitCode.AWAY, f"{url} does not answer: {str(cause) or type(cause).__name__}", f"{_AGAIN} {_CHECK_URL}") from error


def _refused(url: str, status: int, message: str | None, origin: str) -> Ended:
    if status in (401, 403):
        return Ended(ExitCode.DENIED, f"{url} refuses the key: {message or status}", f"The key was read from {origin}.")
    if status == 429 or status >= 500:
        return Ended(ExitCode.AWAY, f"{url} answers with HTTP status {status}: {message or 'no reason given'}", _AGAIN)
    if message is None:
        return _not_compatible(url)
    return Ended(ExitCode.NOT_FOUND if status == 404 else ExitCode.USAGE, f"{url}: {message}")


def _not_compatible(url: str) -> Ended:
    return Ended(ExitCode.AWAY, f"{url} answers, but not as OpenAI's API does", _CHECK_URL)


def _message(body: object) -> str | None:
    """The text of OpenAI's error object, which the client has unwrapped."""
    message = cast("dict[str, object]", body).get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else None

"""`tunesmith webhooks …`: endpoints that are told when jobs end."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli.connection import Service, connected
from service.cli.options import BaseUrl, DataDir, Limit, Output
from service.cli.output import Column, Format, epilog, say, show_one, show_rows
from service.cli.times import seconds_of, when

app = typer.Typer(help="Endpoints that are told when jobs end.", no_args_is_help=True)
WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id of the webhook, we_…")]
COLUMNS: list[Column] = [
    ("ID", lambda one: one["id"]),
    ("NAME", lambda one: one["name"]),
    ("URL", lambda one: one["url"]),
    ("EVENTS", lambda one: ",".join(event.rpartition(".")[2] for event in one["event_types"])),
    ("CREATED", lambda one: when(one["created_at"])),
]
MADE: list[Column] = [(name, lambda one, name=name: one[name]) for name in ("id", "name", "url", "signing_secret")]
TESTED: list[Column] = [("EVENT", lambda one: one["event_type"]), ("ANSWER", lambda one: one["status_code"])]
DELIVERIES: list[Column] = [
    ("ID", lambda one: one["id"]),
    ("EVENT", lambda one: one["event_type"]),
    ("STATUS", lambda one: one["status"]),
    ("ATTEMPTS", lambda one: one["attempts"]),
    ("ANSWER", lambda one: one["response_status"] or "-"),
    ("NEXT", lambda one: when(one["next_attempt_at"])),
    ("ERROR", lambda one: one["error"]),
]


@app.command(
    epilog=epilog("tunesmith webhooks create https://example.com/hook", "tunesmith webhooks create https://example.com/hook --event failed")
)
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="https address of a public host.")],
    name: Annotated[str, typer.Option(help="For people.")] = "",
    event: Annotated[
        list[str] | None, typer.Option(help="succeeded, failed or cancelled; may be repeated.  [default: all]", show_default=False)
    ] = None,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Register an endpoint. Its secret is shown this once."""
    body: dict[str, Any] = {"url": url, "name": name}
    if event:
        body["event_types"] = [f"fine_tuning.job.{one}" for one in event]
    with connected(base_url, data_dir) as service:
        made = service.post("/webhook_endpoints", body)
    say("The secret is shown this once.")
    show_one(made, MADE, output)


@app.command("list", epilog=epilog("tunesmith webhooks list"))
def list_webhooks(limit: Limit = 100, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """List the project's endpoints, newest first."""
    with connected(base_url, data_dir) as service:
        show_rows(list(islice(_pages(service, "/webhook_endpoints"), limit)), COLUMNS, output)


@app.command(epilog=epilog("tunesmith webhooks delete we_abc123"))
def delete(webhook: WebhookId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Forget an endpoint. What waits for it is given up."""
    columns: list[Column] = [("ID", lambda row: row["id"]), ("DELETED", lambda row: "yes" if row["deleted"] else "no")]
    with connected(base_url, data_dir) as service:
        show_rows([service.delete(_path(webhook))], columns, output)


@app.command(epilog=epilog("tunesmith webhooks rotate we_abc123 --grace 1d"))
def rotate(
    webhook: WebhookId,
    grace: Annotated[str, typer.Option(metavar="DURATION", help="How long deliveries are signed with the old secret too.")] = "1d",
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Give an endpoint another secret, which is shown this once."""
    seconds = seconds_of(grace, "--grace")
    with connected(base_url, data_dir) as service:
        made = service.post(f"{_path(webhook)}/rotate_secret", {"tunesmith": {"grace_seconds": seconds}})
    say("The secret is shown this once.")
    show_one(made, MADE, output)


@app.command("test", epilog=epilog("tunesmith webhooks test we_abc123 && tunesmith webhooks deliveries we_abc123"))
def send_test(webhook: WebhookId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Send an endpoint a test event."""
    with connected(base_url, data_dir) as service:
        show_rows([service.post(f"{_path(webhook)}/test", {})], TESTED, output)


@app.command(epilog=epilog("tunesmith webhooks deliveries we_abc123"))
def deliveries(
    webhook: WebhookId, limit: Limit = 20, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None
) -> None:
    """List what was sent to an endpoint, or waits, newest first."""
    with connected(base_url, data_dir) as service:
        show_rows(list(islice(_pages(service, f"{_path(webhook)}/deliveries"), limit)), DELIVERIES, output)


def _pages(service: Service, path: str) -> Any:
    page = service.get(f"{path}?limit=100")
    while True:
        yield from page["data"]
        if not page["has_more"]:
            return
        page = service.get(f"{path}?limit=100&after={page['last_id']}")


def _path(webhook: str) -> str:
    return f"/webhook_endpoints/{quote(webhook, safe='')}"

"""What the routes ask for: the application, who is calling, and ids in a form that may go further.

An id that no thing of ours could have is answered like the id of a thing that is not there, before
it gets near a database or a path.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service import names
from service.app import App
from service.app.context import require
from service.errors import ErrorCode, RateExceeded, TunesmithError, invalid
from service.metrics import Metrics
from service.records import Caller, Rate, Scope
from service.settings import Settings

ADMINISTRATION = ("/v1/organization/", "/v1/fine_tuning/checkpoints/")
"""Routes below these are for admin keys: who may do, and may use, what."""
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_bearer = HTTPBearer(auto_error=False, description="An API key, as `Authorization: Bearer …`.")


def get_app(request: Request) -> App:
    """The application layer behind this transport."""
    return request.app.state.app


def get_metrics(request: Request) -> Metrics:
    """The process's metrics."""
    return request.app.state.metrics


def get_settings(request: Request) -> Settings:
    """How the gateway is configured."""
    return request.app.state.settings


AppDep = Annotated[App, Depends(get_app)]
MetricsDep = Annotated[Metrics, Depends(get_metrics)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def get_caller(request: Request, app: AppDep, credentials: Credentials) -> Caller:
    """Who asks; UNAUTHENTICATED without a key that is known, PERMISSION_DENIED before the body is read when its scopes can't do."""
    if credentials is None or not credentials.credentials:
        raise TunesmithError(ErrorCode.UNAUTHENTICATED, "You did not provide an API key: send it as 'Authorization: Bearer YOUR_KEY'.")
    caller = await _admitted(request, app, names.api_key(credentials.credentials))
    require(caller, _needed_scope(request))
    return caller


async def _admitted(request: Request, app: App, key: str) -> Caller:
    """Who holds the key; where their project stands within its rate is left for `RateHeaders`."""
    try:
        caller = await app.authenticate(key, request.state.request_id)
    except RateExceeded as error:
        request.state.rate = Rate(error.limit, 0, error.wait.total_seconds())
        raise
    request.state.rate = caller.rate
    return caller


def _needed_scope(request: Request) -> Scope:
    """The application layer asks each use case's own scope again; this one holds for every route there will be."""
    if request.scope["path"].startswith(ADMINISTRATION):
        return "admin"
    return "read" if request.method in ("GET", "HEAD") else "write"


CallerDep = Annotated[Caller, Depends(get_caller)]


def get_file_id(file_id: Annotated[str, Path(description="Id of a file: file-…")]) -> str:
    """A file id of the right form."""
    return names.thing_id("file", file_id, "file_id")


def get_upload_id(upload_id: Annotated[str, Path(description="Id of an upload: upload_…")]) -> str:
    """An upload id of the right form."""
    return names.thing_id("upload", upload_id, "upload_id")


def get_job_id(fine_tuning_job_id: Annotated[str, Path(description="Id of a job: ftjob-…")]) -> str:
    """A job id of the right form."""
    return names.thing_id("fine-tuning job", fine_tuning_job_id, "fine_tuning_job_id")


def get_model_id(model: Annotated[str, Path(description="Name of a model; may hold / and :.")]) -> str:
    """A model name of the right form."""
    return names.model_name(model)


def get_checkpoint_name(
    fine_tuned_model_checkpoint: Annotated[str, Path(description="Name of a tuned model or of a checkpoint; may hold / and :.")],
) -> str:
    """A model name of the right form."""
    return names.model_name(fine_tuned_model_checkpoint, "fine_tuned_model_checkpoint")


def get_permission_id(permission_id: Annotated[str, Path(description="Id of a permission: cp_…")]) -> str:
    """A permission id of the right form."""
    return names.thing_id("permission", permission_id, "permission_id")


def get_artifact_name(name: Annotated[str, Path(description="Name of an artifact, e.g. adapter/adapter_config.json.")]) -> str:
    """A relative path without steps upwards."""
    return names.artifact_name(name)


def get_project_id(project_id: Annotated[str, Path(description="Id of a project: proj_…")]) -> str:
    """A project id of the right form."""
    return names.thing_id("project", project_id, "project_id")


def get_api_key_id(api_key_id: Annotated[str, Path(description="Id of an API key, the part of it after ts_.")]) -> str:
    """A key id of the right form."""
    return names.thing_id("API key", api_key_id, "api_key_id")


def get_webhook_endpoint_id(webhook_endpoint_id: Annotated[str, Path(description="Id of a webhook endpoint: we_…")]) -> str:
    """A webhook endpoint's id of the right form."""
    return names.thing_id("webhook", webhook_endpoint_id, "webhook_endpoint_id")


def get_metadata_filter(request: Request) -> dict[str, str] | None:
    """The pairs of `metadata[key]=value` in the query; None for `metadata=null`, which asks for jobs without metadata."""
    pairs: list[tuple[str, str]] = []
    nulls = [value for name, value in request.query_params.multi_items() if name == "metadata"]
    if any(value != "null" for value in nulls):
        raise invalid("Filter by metadata[key]=value, or by metadata=null for jobs without metadata.", "metadata")
    for name, value in request.query_params.multi_items():
        if (match := _METADATA.fullmatch(name)) is not None:
            pairs.append((match[1], value))
    if nulls and pairs:
        raise invalid("'metadata=null' asks for jobs without metadata; leave the pairs out.", "metadata")
    return None if nulls else names.metadata_filter(pairs)


def get_idempotency_key(request: Request) -> str | None:
    """The client's own key for this request: posting again under it gives the first answer."""
    return names.idempotency_key(request.headers.get("idempotency-key"))


def get_retried(request: Request) -> bool:
    """Whether the official client says that it sends this for a second time."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return count.isascii() and count.isdigit() and count.strip("0") != ""


FileId = Annotated[str, Depends(get_file_id)]
UploadId = Annotated[str, Depends(get_upload_id)]
JobId = Annotated[str, Depends(get_job_id)]
ModelId = Annotated[str, Depends(get_model_id)]
CheckpointName = Annotated[str, Depends(get_checkpoint_name)]
PermissionId = Annotated[str, Depends(get_permission_id)]
ArtifactName = Annotated[str, Depends(get_artifact_name)]
ProjectId = Annotated[str, Depends(get_project_id)]
ApiKeyId = Annotated[str, Depends(get_api_key_id)]
WebhookEndpointId = Annotated[str, Depends(get_webhook_endpoint_id)]
MetadataFilter = Annotated[dict[str, str] | None, Depends(get_metadata_filter)]
IdempotencyKey = Annotated[str | None, Depends(get_idempotency_key)]
Retried = Annotated[bool, Depends(get_retried)]
After = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,128}$", description="Id of the last item of the page before this one.")]

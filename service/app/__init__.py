"""The application layer: one method per use case. Knows permissions and rules, no transport and no SQL.

REST and gRPC call these methods and nothing else. Every method raises `TunesmithError` for what a
caller did wrong, and UNAVAILABLE when a part behind it is away. Each resource has its own module.
"""

from __future__ import annotations

from service.app.artifacts import ArtifactUses
from service.app.audit import AuditUses
from service.app.estimates import EstimateUses
from service.app.graders import GraderUses
from service.app.imports import ImportUses
from service.app.keys import KeyUses
from service.app.models import ModelUses
from service.app.operation import OperationUses
from service.app.permissions import PermissionUses
from service.app.streams import StreamUses
from service.app.uploads import UploadUses
from service.app.webhooks import WebhookUses

__all__ = ["App"]


class App(
    ImportUses,
    UploadUses,
    EstimateUses,
    ArtifactUses,
    StreamUses,
    ModelUses,
    PermissionUses,
    KeyUses,
    AuditUses,
    WebhookUses,
    GraderUses,
    OperationUses,
):
    """What Tunesmith can do for a caller."""

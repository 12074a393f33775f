"""The tables. Changed only together with a migration beside them; a test compares both.

Times are seconds since 1970 by the database's clock. `n` numbers rows in the order of creation and
is what lists are paged by; ids are opaque.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _n() -> sa.Column[int]:
    return sa.Column("n", RowNumber, primary_key=True, autoincrement=True)


projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("archived_at", sa.Float(53)),
    sa.Column("quotas", Json),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("project_id", sa.String(64), sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("scopes", Json, nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("expires_at", sa.Float(53)),
    sa.Column("revoked_at", sa.Float(53)),
    sa.Column("last_used_at", sa.Float(53)),
    sa.Column("previous_sha256", sa.String(64)),
    sa.Column("previous_expires_at", sa.Float(53)),
)

files = sa.Table(
    "files",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("filename", sa.String(512), nullable=False),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("key", sa.String(512), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("deleted_at", sa.Float(53)),
    sa.Column("expires_at", sa.Float(53)),
    sa.Index(None, "project_id", "n"),
    sa.Index(None, "expires_at"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("spec", Json, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("base_model", Json, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("infra_failures", sa.Integer, nullable=False),
    sa.Column("not_before", sa.Float(53), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("dataset", Json),
    sa.Column("validation", Json),
    sa.Column("resolved", Json),
    sa.Column("progress", Json, nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("queued_at", sa.Float(53)),
    sa.Column("started_at", sa.Float(53)),
    sa.Column("finished_at", sa.Float(53)),
    sa.Column("trained_tokens", sa.BigInteger),
    sa.Column("tuned_model", sa.String(512)),
    sa.Column("result_files", Json, nullable=False),
    sa.Column("error", Json),
    sa.Column("lease_owner", sa.String(64)),
    sa.Column("lease_expires_at", sa.Float(53), nullable=False),
    sa.Column("event_seq", sa.Integer, nullable=False),
    sa.Column("deadline_at", sa.Float(53)),
    sa.Index(None, "project_id", "n"),
    sa.Index(None, "status", "priority", "queued_at"),
    sa.Index("ix_jobs_lines", "status", "project_id", "priority", "queued_at", "not_before"),
    sa.Index(None, "status", "not_before"),
    sa.Index(None, "status", "queued_at"),
    sa.Index(None, "status", "deadline_at"),
    sa.Index(None, "project_id", "fingerprint"),
)

submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("type", sa.String(8), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", Json, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("token_sha256", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("reported_at", sa.Float(53)),
    sa.Column("last_seq", sa.Integer, nullable=False),
    sa.Column("resumed_step", sa.Integer),
    sa.Column("last_step", sa.Integer, nullable=False),
    sa.Column("outcome", Json),
    sa.Column("ended_at", sa.Float(53)),
    sa.Column("held", Json),
    # Why the run was asked to write a checkpoint and leave (a `jobs.Departure`), and whether its job had waited too long.
    sa.Column("leaving", sa.String(64)),
    sa.Column("out_of_turn", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("micro_batch", sa.Integer),
    sa.Index(None, "ended_at"),
)

# One row, held by whoever decides what starts.
queue = sa.Table(
    "queue",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("reserved", sa.String(64)),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("prefix", sa.String(512), nullable=False),
    sa.Column("model_name", sa.String(512), nullable=False),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Index(None, "model_name"),
)

tuned_models = sa.Table(
    "tuned_models",
    metadata,
    _n(),
    sa.Column("id", sa.String(512), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("deleted_at", sa.Float(53)),
    sa.Index(None, "project_id", "id"),
)

checkpoint_permissions = sa.Table(
    "checkpoint_permissions",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("model", sa.String(512), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.UniqueConstraint("model", "project_id"),
    sa.Index(None, "project_id"),
)
uploads = sa.Table(
    "uploads",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("filename", sa.String(512), nullable=False),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("mime_type", sa.String(255), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("file_expires_after", sa.Float(53)),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("part_count", sa.Integer, nullable=False),
    sa.Column("received_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("expires_at", sa.Float(53), nullable=False),
    sa.Column("parts_sha256", sa.String(64)),
    sa.Column("file_id", sa.String(64)),
    sa.Index(None, "status", "expires_at"),
)

upload_parts = sa.Table(
    "upload_parts",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("upload_id", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("key", sa.String(512), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Index(None, "upload_id", "n"),
)

# Keys of the object store whose bytes go at `due_at`; 0 once a sweep has begun with them.
removals = sa.Table(
    "removals",
    metadata,
    sa.Column("key", sa.String(512), primary_key=True),
    sa.Column("due_at", sa.Float(53), nullable=False),
    sa.Index(None, "due_at"),
)
organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
)

audit_logs = sa.Table(
    "audit_logs",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64)),
    sa.Column("key_id", sa.String(64)),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("object_id", sa.String(512), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("effective_at", sa.Float(53), nullable=False),
    sa.Column("details", Json, nullable=False),
    sa.Index(None, "organization_id", "n"),
)

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("events", Json, nullable=False),
    sa.Column("secret", sa.String(128), nullable=False),
    sa.Column("previous_secret", sa.String(128)),
    sa.Column("previous_expires_at", sa.Float(53)),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("deleted_at", sa.Float(53)),
    sa.Index(None, "project_id", "n"),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    _n(),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("endpoint_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("event_id", sa.String(64), nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("due_at", sa.Float(53)),
    sa.Column("claimed_until", sa.Float(53), nullable=False),
    sa.Column("attempted_at", sa.Float(53)),
    sa.Column("response_status", sa.Integer),
    sa.Column("error", sa.String(512)),
    sa.Index(None, "endpoint_id", "n"),
    sa.Index(None, "due_at"),
)

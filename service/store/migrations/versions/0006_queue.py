"""the queue's reservation; runs that are asked to leave or are out of turn; deadlines of jobs"""

import sqlalchemy as sa
from alembic import op

revision = "0006_queue"
down_revision = "0005_permissions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    queue = op.create_table(
        "queue",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("reserved", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue")),
    )
    op.bulk_insert(queue, [{"id": 1, "reserved": None}])
    op.add_column("jobs", sa.Column("deadline_at", sa.Float(precision=53), nullable=True))
    op.create_index("ix_jobs_lines", "jobs", ["status", "project_id", "priority", "queued_at", "not_before"])
    op.create_index("ix_jobs_status_not_before", "jobs", ["status", "not_before"])
    op.create_index("ix_jobs_status_queued_at", "jobs", ["status", "queued_at"])
    op.create_index("ix_jobs_status_deadline_at", "jobs", ["status", "deadline_at"])
    op.add_column("runs", sa.Column("leaving", sa.String(length=64), nullable=True))
    op.add_column("runs", sa.Column("out_of_turn", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index("ix_runs_ended_at", "runs", ["ended_at"])

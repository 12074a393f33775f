"""most rows of one forward pass of a run"""

import sqlalchemy as sa
from alembic import op

revision = "0007_micro_batch"
down_revision = "0006_queue"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("micro_batch", sa.Integer(), nullable=True))

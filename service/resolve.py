"""Every "auto" of a job becomes a number here, once its dataset is known. Pure."""

from __future__ import annotations

import math

from service.jobs import JobSpec
from trainers.spec import AUTO, DatasetRef, EngineName, Resolved


def auto_epochs(rows: int) -> int:
    """Passes over the data: small files are read more often, at most three times."""
    return 3 if rows < 2_000 else 2 if rows < 10_000 else 1


def auto_batch_size(rows: int) -> int:
    """Rows of a step: 0.4 % of the file, between 8 and 64, so that small files still get enough steps."""
    return min(64, max(8, 2 ** round(math.log2(max(1.0, rows * 0.004)))), max(1, rows))


def resolve(spec: JobSpec, dataset: DatasetRef, engine: EngineName) -> Resolved:
    """What the job will be run with; `engine` is what `trainers.plan.choose_engine` chose."""
    asked = spec.method.hyperparameters
    n_epochs = auto_epochs(dataset.rows) if asked.n_epochs == AUTO else asked.n_epochs
    batch_size = auto_batch_size(dataset.rows) if asked.batch_size == AUTO else asked.batch_size
    multiplier = 1.0 if asked.learning_rate_multiplier == AUTO else asked.learning_rate_multiplier
    return Resolved(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        learning_rate=spec.tunesmith.training.learning_rate * multiplier,
        engine=engine,
        steps=n_epochs * math.ceil(dataset.rows / batch_size),
    )

"""The only reader of the environment. Every setting is `TUNESMITH_<NAME>`; docs/settings.md lists them.

The embedded defaults need no other service: SQLite and a local directory below `data_dir`, a local
Ray head. Production sets `database_url`, `storage_url` and `ray_address`.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _words(given: object) -> object:
    """Words separated by commas as a tuple."""
    return tuple(word.strip() for word in given.split(",") if word.strip()) if isinstance(given, str) else given


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]


Amount = Annotated[int, Field(ge=0)] | Literal["unlimited"]


class Settings(BaseSettings):
    """How this gateway is configured."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", extra="ignore", frozen=True)

    data_dir: Path = Field(default=Path(".tunesmith"), description="Everything the embedded stack keeps: database, objects, keys, logs.")
    host: str = Field(default="127.0.0.1", description="Address REST and gRPC listen on.")
    port: int = Field(default=8400, ge=0, le=65535, description="REST port; 0 takes a free one. Unless set, that of the last start.")
    grpc_port: int = Field(default=8401, ge=0, le=65535, description="gRPC port; 0 takes a free one. Unless set, that of the last start.")
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy address, e.g. postgresql+psycopg://…; SQLite in data_dir unless set.",
    )
    storage_url: str | None = Field(default=None, description="file:///… or s3://bucket/prefix; data_dir/objects unless set.")
    ray_address: str | None = Field(
        default=None,
        description="Dashboard address of an existing Ray cluster, http://host:8265; a local head is started unless set.",
    )
    ray_token: SecretStr | None = Field(default=None, description="Token of that cluster.")
    allow_open_ray: bool = Field(
        default=False,
        description="Use a Ray cluster that answers without a token: whoever reaches it runs code on it.",
    )
    report_address: str | None = Field(
        default=None,
        description="host:port under which workers reach the gRPC port; by default the listening address.",
    )
    catalogue: Path | None = Field(default=None, description="A YAML file of further base models.")
    max_upload_bytes: int = Field(default=512 * 2**20, ge=1, description="Largest file of one upload.")
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024, description="Largest body of a request that is not an upload.")
    min_free_bytes: int = Field(default=2 * 2**30, ge=0, description="`tunesmith up` refuses to start with less free disk.")
    lease_ttl: timedelta = Field(default=timedelta(seconds=15), description="A scheduler that is silent this long loses its jobs.")
    heartbeat: timedelta = Field(default=timedelta(seconds=3), description="How often leases are renewed and runs report.")
    run_silence: timedelta = Field(
        default=timedelta(seconds=60),
        description="A run that has not reported this long is stopped and started again.",
    )
    start_timeout: timedelta = Field(
        default=timedelta(minutes=5),
        description="A run that has not reported at all this long after its launch is started again.",
    )
    cancel_grace: timedelta = Field(
        default=timedelta(seconds=10),
        description="What a run may take to leave by itself once told to stop; then it is killed.",
    )
    pause_grace: timedelta = Field(
        default=timedelta(minutes=5),
        description="What a run may take to write a checkpoint and leave once its job is paused; then it is killed.",
    )
    max_retries: int = Field(default=3, ge=0, description="Runs a job may lose to infrastructure before it fails.")
    quarantine_after: int = Field(
        default=3, ge=1, description="Runs in a row lost without a further step or checkpoint, after which a job is not tried again."
    )
    max_preemptions: int = Field(
        default=20, ge=0, description="Runs in a row that a job may lose to nodes that go away, none of which got any further."
    )
    max_running_jobs: int | None = Field(
        default=None, ge=1, description="Jobs of the whole service that run at the same time; no limit unless set."
    )
    queue_patience: timedelta = Field(
        default=timedelta(days=1), description="A job that has waited longer may be next whatever its priority, one such job at a time."
    )
    fair_share_half_life: timedelta = Field(
        default=timedelta(hours=6), gt=timedelta(0), description="Use that is this old counts half when projects take turns."
    )
    max_outranked: int = Field(
        default=3, ge=0, description="Times that a job may have to make room for one of higher priority; 0 turns preemption off."
    )
    nearly_done: timedelta = Field(
        default=timedelta(minutes=10),
        description="A run that is expected to need no longer than this is left to finish: it makes no room, nor grows.",
    )
    grow_after: timedelta = Field(
        default=timedelta(minutes=10),
        description="How long a run with fewer workers than asked for lasts before it may leave to go on with more, where there is room.",
    )
    retry_backoff: timedelta = Field(
        default=timedelta(seconds=5),
        description="Wait before the second run; doubles with each further one, with jitter.",
    )
    validation_memory_bytes: int = Field(default=4 * 2**30, ge=256 * 2**20, description="Address space of the data check's process.")
    validation_timeout: timedelta = Field(default=timedelta(minutes=30), description="Longest data check.")
    max_unpacked_ratio: int = Field(
        default=200, ge=1, description="How many times its size a training file may become when it is unpacked, above 16 MiB."
    )
    max_unpacked_bytes: int = Field(default=16 * 2**30, ge=1, description="How large a training file may become when it is unpacked.")
    import_https_hosts: Words = Field(
        default=(),
        description="Hosts that files may be imported from over https: exact names or *.suffix, each with :port unless it is 443; "
        "separated by commas. Off unless set.",
    )
    import_s3_buckets: Words = Field(
        default=(),
        description="Buckets that files may be imported from with the service's own credentials: bucket or bucket/prefix, separated "
        "by commas. Off unless set.",
    )
    max_import_bytes: int = Field(default=8 * 2**30, ge=1, description="Largest file of one import.")
    import_timeout: timedelta = Field(default=timedelta(minutes=10), description="Longest import.")
    import_allow_private: bool = Field(
        default=False,
        description="Import also from hosts in loopback and private networks. Link-local and metadata addresses are refused always.",
    )
    job_checks: int = Field(default=2, ge=1, le=256, description="Files of jobs that are checked at the same time.")
    client_checks: int = Field(
        default=2, ge=1, le=64, description="Files checked at one time for clients (estimates, checks); those of jobs come besides."
    )
    price_per_gpu_hour: float | None = Field(default=None, ge=0, description="Price of a GPU for an hour; estimates then tell costs.")
    price_per_cpu_hour: float | None = Field(default=None, ge=0, description="Price of a processor core for an hour.")
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$", description="Currency of the prices, as ISO 4217 has it.")
    cpu_gflops: float | None = Field(
        default=None, gt=0, description="Float32 GFLOP/s of one core, for estimates; measured on the gateway's machine unless set."
    )
    gpu_tflops: float | None = Field(default=None, gt=0, description="Bfloat16 TFLOP/s of one GPU, for estimates; by its type unless set.")
    gpu_memory_bytes: int | None = Field(default=None, ge=2**30, description="Memory of one GPU, for estimates; by its type unless set.")
    max_streams: int = Field(default=1000, ge=1, description="Streams of events and logs that one gateway serves at a time.")
    run_log_bytes: int = Field(
        default=8 * 2**20, ge=2**20, description="Bytes that are kept of each worker's log; of a longer one the middle goes."
    )
    metrics_public: bool = Field(default=False, description="Serve /metrics without a key, for a scraper that cannot send one.")
    wandb_enabled: bool = Field(
        default=False,
        description="The nodes have the `wandb` library and WANDB_API_KEY, so jobs may send their metrics to Weights & Biases.",
    )
    webhook_allow_private: bool = Field(
        default=False, description="Let webhooks go to loopback and private addresses too; link-local and metadata addresses never."
    )
    log_level: str = Field(default="info", description="debug, info, warning or error.")
    tls_cert_file: Path | None = Field(default=None, description="PEM file with the certificate chain of REST and gRPC; no TLS unless set.")
    tls_key_file: Path | None = Field(default=None, description="PEM file with its key.")
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authority that signs workers' certificates: with it, runs report to a port that asks for one.",
    )
    runs_port: int = Field(default=8402, ge=0, le=65535, description="That port; 0 takes a free one.")
    grader_base_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="OpenAI-compatible endpoint that model graders ask, e.g. http://host:8000/v1; they are off unless set.",
    )
    grader_api_key: SecretStr | None = Field(default=None, description="API key of that endpoint.")
    grader_models: Words = Field(default=(), description="Models that graders may name there, separated by commas; none unless set.")
    grader_embedding_model: str | None = Field(
        default=None, description="Model there that makes embeddings, for the metric cosine; it is off unless set."
    )
    grader_timeout: timedelta = Field(
        default=timedelta(seconds=30), gt=timedelta(0), le=timedelta(minutes=10), description="Longest time for grading one sample."
    )
    grader_memory_bytes: int = Field(
        default=512 * 2**20, ge=128 * 2**20, description="Address space of a python grader's process, the interpreter's own included."
    )
    grader_concurrency: int = Field(default=4, ge=1, le=256, description="Graders that run at a time; another is answered 429.")
    grader_allow_unisolated: bool = Field(
        default=False,
        description="Run python graders where the kernel gives them no namespaces: any key holder can then read the service's files.",
    )

    max_chunked_bytes: int = Field(default=8 * 2**30, ge=1, description="Largest file that is uploaded in parts.")
    max_part_bytes: int = Field(default=64 * 2**20, ge=1, description="Largest part of such an upload.")
    upload_life: timedelta = Field(
        default=timedelta(hours=1), description="An upload in parts that is not complete this long after it was begun expires."
    )
    sweep_interval: timedelta = Field(
        default=timedelta(minutes=1),
        gt=timedelta(0),
        description="How often the bytes of what was deleted or has expired are removed.",
    )

    quota_running_jobs: Amount = Field(
        default="unlimited",
        description="Jobs of a project that run at the same time, unless the project has a quota of its own; so with all six.",
    )
    quota_queued_jobs: Amount = Field(default="unlimited", description="Jobs of a project that are being checked, wait or are paused.")
    quota_gpu_hours: Annotated[float, Field(ge=0)] | Literal["unlimited"] = Field(
        default="unlimited", description="GPU-hours of a project's runs in a calendar month (UTC)."
    )
    quota_stored_bytes: Amount = Field(default="unlimited", description="Bytes of a project's files.")
    quota_requests_per_minute: Annotated[int, Field(ge=1)] | Literal["unlimited"] = Field(
        default=6000, description="Requests of a project in any 60 seconds, counted by each gateway for itself."
    )
    quota_priority: Annotated[int, Field(ge=-100, le=100)] | Literal["unlimited"] = Field(
        default="unlimited", description="Highest priority that a job of a project may have."
    )

    @property
    def database(self) -> str:
        """The database's address, the embedded one unless set."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'tunesmith.db'}"

    @property
    def storage(self) -> str:
        """The object store's address, the embedded one unless set."""
        return self.storage_url or (self.data_dir.absolute() / "objects").as_uri()

    @property
    def spool_dir(self) -> Path:
        """Where uploads wait until the object store has them."""
        return self.data_dir.absolute() / "spool"


class ClientSettings(BaseSettings):
    """Where the `tunesmith` command finds the service; options on the command line come first."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_ignore_empty=True, extra="ignore", frozen=True)

    data_dir: Path = Field(
        default=Path(".tunesmith"),
        description="Data directory of an embedded stack, which knows its address and its key.",
    )
    base_url: str | None = Field(default=None, description="Address of the service, e.g. https://tunesmith.example.com/v1.")
    api_key: SecretStr | None = Field(default=None, description="API key.")
    api_key_file: Path | None = Field(default=None, description="File that holds the API key; comes before the key itself.")
    migrate_key: SecretStr | None = Field(default=None, description="API key of the service that `tunesmith migrate` reads from.")

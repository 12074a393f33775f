"""The entry point of a run on Ray: `python -m trainers.worker --storage-url URL --spec KEY`.

This process is the driver: it reads the RunSpec, builds a TorchTrainer and waits. Each worker calls `train_rank`. When
the workers end without a result the driver sorts their errors and says the run's last word.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.capture import FORMAT, captured, speak
from trainers.failure import Stopped, TrainingFailed, chain_of, classify, traceback_tail
from trainers.integrations import with_integrations
from trainers.leaving import Leaving
from trainers.redact import redactor
from trainers.report import GatewayReporter, Reporter, Silent, acknowledged, last_word
from trainers.run_log import DRIVER, rank_writer
from trainers.spec import ResourceSpec, RunSpec
from trainers.storage import open_storage

if TYPE_CHECKING:
    from ray.train import ScalingConfig

PLACEMENT_SECONDS = 60
"""How long the workers may wait for their places; longer, and the cluster is not what the gateway took it for."""
PLACEMENT_LIMIT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Ray Train's own name for it; a node's environment may say otherwise."""
COLLECTIVE_SECONDS = 120
"""A collective that takes longer has lost a peer."""
EXIT_FAILED, EXIT_STOPPED = 1, 3
# By name: this module is `__main__` where the driver runs it.
log = logging.getLogger("trainers.worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the run has finished, 1 when it failed, 3 when it was asked to leave."""
    parser = argparse.ArgumentParser(prog="python -m trainers.worker", description=__doc__)
    parser.add_argument("--storage-url", required=True)
    parser.add_argument("--spec", required=True, help="key of the run's spec.json in storage")
    given = parser.parse_args(arguments)
    storage = open_storage(given.storage_url)
    spec = RunSpec.model_validate_json(storage.get(given.spec))
    token = storage.get(f"{spec.run_prefix}/token").decode()
    with captured(storage, spec, DRIVER, [token]):
        try:
            _fit(spec)
        except BaseException as error:
            return _ended(spec, token, error)
        return 0


def _fit(spec: RunSpec) -> None:
    """Run `train_rank` on every worker. Raises ray.train.TrainingFailedError, and TrainingFailed when the gang finds no place."""
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault(PLACEMENT_LIMIT, str(PLACEMENT_SECONDS))
    ray.init(address="auto", log_to_driver=True, logging_level=logging.WARNING)
    _share_coordinator()
    backend = "nccl" if spec.tunesmith.resources.gpus_per_worker else "gloo"
    with tempfile.TemporaryDirectory(prefix="tunesmith-ray-") as scratch:
        # Retries are the scheduler's: Ray's have no backoff, and would go on under the epoch that has failed.
        once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
        trainer = TorchTrainer(
            train_rank,
            train_loop_config={"spec": spec.model_dump_json()},
            torch_config=TorchConfig(backend=backend, timeout_s=COLLECTIVE_SECONDS),
            scaling_config=_scaling(spec.tunesmith.resources),
            run_config=RunConfig(name=spec.run_id, storage_path=scratch, failure_config=once),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            raise _unplaced(error, spec.tunesmith.resources.workers) or error from error


def _scaling(resources: ResourceSpec) -> ScalingConfig:
    """The gang as Ray Train's placement group, which Ray gives whole or not at all."""
    from ray.train import ScalingConfig

    per_worker: dict[str, float] = {"CPU": float(resources.cpus_per_worker or 1)}
    if resources.gpus_per_worker:
        per_worker["GPU"] = float(resources.gpus_per_worker)
    return ScalingConfig(
        num_workers=resources.workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=per_worker,
        placement_strategy=resources.placement.upper(),
        accelerator_type=resources.accelerator_type,
        label_selector=dict(resources.labels) or None,
    )


def _unplaced(error: Exception, workers: int) -> TrainingFailed | None:
    """What to say when Ray had no place for the gang, which the gateway could only guess; None for any other error."""
    names = {type(link).__name__ for link in chain_of(error)}
    if not names & {"WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"}:
        return None
    message = f"Ray had no place for {workers} worker{'' if workers == 1 else 's'} at once within {os.environ[PLACEMENT_LIMIT]} s"
    return TrainingFailed("gang_not_placed", message, "infrastructure")


def _share_coordinator() -> None:
    """Ray Train makes an actor for the whole cluster and leaves it there: made here first, it bears no run's name.

    Otherwise it would be taken for a process of the run that happened to come first, which would so never be over.
    """
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

    name = "AutoscalingCoordinator"
    ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_AutoscalingCoordinatorActor).options(
        name=name, namespace=name, lifetime="detached", get_if_exists=True, runtime_env={"env_vars": {"TUNESMITH_RUN_ID": ""}}
    ).remote()


def train_rank(config: dict[str, Any]) -> None:
    """What each worker of the TorchTrainer runs."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from trainers.run import Place, execute

    spec = RunSpec.model_validate_json(config["spec"])
    context = ray.train.get_context()
    threads = spec.tunesmith.resources.cpus_per_worker
    if threads:
        torch.set_num_threads(threads)
    storage = open_storage(spec.storage_url)
    leaving = Leaving(node_drained)
    leaving.listen()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device(), node_cache(), leaving, node_nvme())
    token = storage.get(f"{spec.run_prefix}/token").decode() if place.rank == 0 else ""
    with ExitStack() as stack:
        stack.enter_context(captured(storage, spec, rank_writer(place.rank), [token]))
        speak()
        log.info("run %s, rank %d of %d on %s, process %d", spec.run_id, place.rank, place.world_size, place.device, os.getpid())
        reporter: Reporter = Silent()
        if place.rank == 0:
            reporter = with_integrations(spec, _gateway(spec, token, stack), stack)
        _logged(lambda: execute(spec, storage, reporter, place), place.rank)


def node_drained() -> str:
    """Why Ray is about to take a node of the run away; empty while it is not."""
    # Not ray.train.get_preemption_info, which all ranks meet in: once a step that costs, and the loop's own signal does it.
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return "" if info is None else f"Ray drains the node of rank {', '.join(map(str, info.preempted_ranks))}"


def _logged(work: Callable[[], None], rank: int) -> None:
    """Do it, and leave its end in this worker's own log, where its owner can read it. A failure learns its place here."""
    try:
        work()
    except Stopped as stopped:
        log.info("left before the end: %s", stopped)
        raise
    except Exception as error:
        log.exception("the worker failed")
        raise classify(error).at(rank, platform.node()) from error
    log.info("done")


def node_cache() -> Path:
    """Directory on this node for copies of base models and datasets; its owner's alone."""
    path = Path(os.environ.get("TUNESMITH_CACHE_DIR") or Path(tempfile.gettempdir()) / f"tunesmith-cache-{os.getuid()}")
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.getuid():
        raise TrainingFailed("cache_not_ours", f"{path} belongs to another user; set TUNESMITH_CACHE_DIR on the nodes", "config")
    return path


def node_nvme() -> Path | None:
    """Directory on this node for optimizer state that is to lie on NVMe; None where the operator named none."""
    named = os.environ.get("TUNESMITH_NVME_DIR")
    return Path(named) if named else None


def _gateway(spec: RunSpec, token: str, stack: ExitStack) -> Reporter:
    reporter = GatewayReporter(spec.report_address, token, spec.job_id, spec.epoch)
    stack.callback(reporter.close)
    return reporter


def _ended(spec: RunSpec, token: str, error: BaseException) -> int:
    """Say why the run ended without a result, unless it was asked to leave or nobody wants to know any more."""
    errors = _by_rank(error)
    if any(isinstance(link, Stopped) for failure in errors.values() for link in chain_of(failure)):
        log.warning("the run was asked to leave")
        return EXIT_STOPPED
    rank, failed = _telling(errors)
    log.error("rank %d: %s", rank, failed)
    redact = redactor(secrets=[token])
    word = last_word(failed, rank=rank, trace=traceback_tail(errors[rank]), redact=redact)
    with suppress(Stopped, TrainingFailed):
        last = acknowledged(spec.report_address, token, spec.job_id, spec.epoch)
        reporter = GatewayReporter(spec.report_address, token, spec.job_id, spec.epoch, last_seq=last)
        reporter.tell(word)
        reporter.deliver()
        reporter.close()
    return EXIT_FAILED


def _by_rank(error: BaseException) -> dict[int, BaseException]:
    failures: dict[int, BaseException] | None = getattr(error, "worker_failures", None)
    return failures or {0: error}


def _telling(errors: dict[int, BaseException]) -> tuple[int, TrainingFailed]:
    """The rank whose error says most: a lost peer is mostly the echo of another rank's own fault."""
    sorted_out = {rank: classify(error) for rank, error in errors.items()}
    return min(sorted_out.items(), key=lambda item: (item[1].cause == "infrastructure", item[1].cause == "service", item[0]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    sys.exit(main())

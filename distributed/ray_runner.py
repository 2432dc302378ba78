"""The run's parts as Ray actors, and the Ray they live in."""

import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import ray
from ray._private import ray_constants
from ray.job_config import JobConfig

from mneme.distributed.blueprint import Blueprint
from mneme.distributed.fleet import RolloutFleet
from mneme.distributed.lasting_learner import LastingLearner
from mneme.distributed.ray_access import (
    apart_from_our_signals,
    check_address,
    keep_token_private,
    saying_that_it_goes_on,
    sigterm_kept,
)
from mneme.distributed.runners import (
    Arrival,
    Condition,
    FragmentRef,
    PendingUpdate,
    RunState,
    ServiceError,
    ServiceLost,
)
from mneme.distributed.settings import ServiceSettings
from mneme.distributed.stragglers import Stragglers
from mneme.learner import UpdateReport
from mneme.rollout_workers import Evaluation

LOOPBACK = "127.0.0.1"
_TOKEN = "; if the cluster asks for a token, set RAY_AUTH_MODE=token, with its token in ~/.ray/auth_token"


def start_ray(service: ServiceSettings, workers: int) -> bool:
    """Join the cluster that the settings or RAY_ADDRESS name, or start a Ray of our own on loopback.

    Returns:
        Whether a Ray was started here, which `RayRunner.close` then stops.

    Raises:
        ServiceLost: nothing answers there, or Ray took too long to start.
        ServiceError: that is no address, or Ray cannot be started.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.getcwd() not in map(os.path.abspath, sys.path):
        # Ray puts the present folder in front of the workers' path, though this process itself does not look there.
        quiet["job_config"] = JobConfig()
        quiet["job_config"]._py_driver_sys_path = _NoFolders()
    if ray.is_initialized():
        return False
    address, reached, mode_given = service.cluster(), False, "RAY_AUTH_MODE" in os.environ
    # Ray prints the traceback of every result that nobody fetches, such as a failed worker's fragment; we say it once.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        if address:
            check_address(address, "service.address" if service.address else "RAY_ADDRESS")
            reached = True
            with saying_that_it_goes_on(f"joining the Ray cluster at {address}"), sigterm_kept():
                ray.init(address=address, **quiet)
            return False
        keep_token_private()
        # Ray's own switch to loopback for machines that are no cluster. Without it Ray listens on every address of the
        # machine, and even `_node_ip_address="127.0.0.1"` is turned into the machine's outward one.
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ.setdefault("RAY_worker_niceness", "0")  # training is what this Ray is for, not a background chore
        cpus = max(os.cpu_count() or 1, math.ceil(workers * service.worker_cpus))
        with saying_that_it_goes_on("starting Ray"), apart_from_our_signals(), sigterm_kept():
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=service.dashboard, dashboard_host=LOOPBACK, **quiet
            )  # fmt: skip
        return True
    except Exception as error:  # Ray raises Exception itself where it takes too long
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = _remedy(error) if not address else _TOKEN if reached and not mode_given else ""
        away = not isinstance(error, ValueError) if address else "timed out" in str(error).lower()
        kind = ServiceLost if away else ServiceError
        raise kind(f"cannot {where}: {reason}{remedy}; or train without Ray: --local") from None


def _remedy(error: Exception) -> str:
    if "timed out" in str(error).lower():
        return " The machine is busy or short of memory: try again when it is less so, with fewer rollout.num_workers"
    if isinstance(error, OSError) and error.filename is not None:
        return "; Ray writes to /tmp/ray: name another folder that can be written, with a short path, in RAY_TMPDIR"
    return ""


class _NoFolders(list[str]):
    def extend(self, folders: Iterable[str]) -> None:
        """Leave them out."""


class RayRunner:
    """A `Runner` whose workers are Ray actors, with the calls that overlap collection and learning besides."""

    def __init__(self, blueprint: Blueprint) -> None:
        service = blueprint.config.service
        self.level = 0
        self._owns_ray = start_ray(service, blueprint.config.rollout.num_workers)
        self.learner = LastingLearner(blueprint)
        self.fleet = RolloutFleet(blueprint)
        self._stragglers = Stragglers()
        if self._owns_ray:
            self._check_resources({**self.learner.demand, **self.fleet.demand})

    def _check_resources(self, demand: Mapping[str, float]) -> None:
        """Refuse what this machine alone will never have; an autoscaler may bring it."""
        present = ray.cluster_resources()
        for name, wanted in demand.items():
            if wanted > present.get(name, 0.0):
                self.close()
                raise ServiceError(
                    f"the run asks for {wanted:g} {name} and Ray has {present.get(name, 0.0):g}; lower "
                    f"service.learner_gpus, service.learner_resource or learner.replicas, or join a cluster"
                )

    @property
    def version(self) -> int:
        return self.learner.version

    def condition(self) -> Condition:
        return Condition(
            self.fleet.num_present,
            self.fleet.restarts,
            self.learner.restarts,
            self.learner.unlearned,
            self.fleet.waits.taken() | self.learner.waits.taken(),
        )

    @property
    def idle(self) -> list[int]:
        return self.fleet.idle

    @property
    def workers(self) -> int:
        return self.fleet.num_present

    def request(self, worker: int) -> None:
        self.fleet.request(worker, self.learner.weights, self.level)

    def wait(self, update: PendingUpdate | None) -> list[Arrival]:
        if update is None:
            self.fleet.muster()
        return self.fleet.wait(*self.learner.pending(update) if update else [])

    def start(self) -> None:
        with saying_that_it_goes_on("starting the actors"):
            self.learner.wait()
            self.fleet.muster(all_of_them=True)

    def collect(self) -> list[Arrival]:
        self.fleet.muster()
        for worker in self.fleet.idle:
            self.request(worker)
        arrivals: list[Arrival] = []
        began, took = monotonic(), dict[int, float]()
        while self.fleet.busy:
            arrivals += self.fleet.wait()
            for arrival in arrivals[len(took) :]:
                took[arrival.delivery.worker] = monotonic() - began
        self._stragglers.look(took)
        return sorted(arrivals, key=lambda arrival: arrival.delivery.worker)

    def learn(self, fragments: Sequence[FragmentRef]) -> UpdateReport:
        return self.learn_end(self.learn_begin(fragments))

    def learn_begin(self, fragments: Sequence[FragmentRef]) -> PendingUpdate:
        return self.learner.begin(fragments)

    def learn_ready(self, update: PendingUpdate) -> bool:
        return self.learner.ready(update)

    def learn_end(self, update: PendingUpdate) -> UpdateReport:
        return self.learner.end(update)

    def next_mode(self) -> None:
        self.learner.next_mode()

    def evaluate(self, episodes: int, seed: int) -> Evaluation:
        return self.fleet.evaluate(self.learner.weights, episodes, seed)

    def state(self) -> RunState:
        return RunState(self.learner.state(), self.fleet.states())

    def set_state(self, state: RunState) -> None:
        self.learner.set_state(state.learner)
        self.fleet.set_states(state.workers, self.learner.version)

    def close(self) -> None:
        if self._owns_ray:
            ray.shutdown()
        else:
            self.learner.close()

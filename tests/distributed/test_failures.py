"""Ray's own end is told from that of an actor."""

import subprocess

import psutil
import pytest

from mneme.distributed import failures
from mneme.distributed.failures import check_daemons, daemons_of_own_ray
from mneme.distributed.runners import ServiceLost


def test_who_has_started_no_ray_has_no_daemons() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        names = {child.name() for child in psutil.Process().children()}
        assert daemons_of_own_ray().keys() == names & {"gcs_server", "raylet"}
        other.kill()
    check_daemons({})


def test_a_daemon_that_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_LATE", 0.2)
    with subprocess.Popen(["sleep", "60"]) as raylet:
        daemons = {"raylet": psutil.Process(raylet.pid)}
        check_daemons(daemons)
        raylet.kill()
        with pytest.raises(ServiceLost, match="its raylet ended"):
            check_daemons(daemons)

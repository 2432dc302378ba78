"""What contestants report arrives, and seconds of the processor are those of the whole family."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measurement import WARM_UP, Measurement, Stopwatch, processor_seconds

BUSY = "from time import process_time, sleep\nwhile process_time() < 0.5: pass\nprint(flush=True)\nsleep(60)"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere descendants count once they have ended")
def test_the_seconds_of_a_child_count_while_it_lives() -> None:
    before = processor_seconds().total()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = processor_seconds().total() - before
        assert processor_seconds()[Path(sys.executable).name] >= 0.4
        child.kill()
    assert alive >= 0.4
    assert processor_seconds().total() - before >= 0.4


def test_a_measurement_is_read_as_it_was_reported(capsys: pytest.CaptureFixture[str]) -> None:
    stopwatch = Stopwatch()
    for update in range(WARM_UP + 2):
        stopwatch.update(100, 4, float(update), {"env": 1.0})
    measurement = stopwatch.measurement({"lanes": 4})
    print("something else")
    measurement.report()
    assert Measurement.read(capsys.readouterr().out) == measurement
    assert measurement.steps == 200
    assert measurement.mean_return == WARM_UP + 0.5
    assert measurement.spent == {"env": 2.0}
    assert measurement.processor_seconds == pytest.approx(sum(measurement.processes.values()))
    with pytest.raises(ValueError, match="no measurement"):
        Measurement.read("nothing of the kind")

"""Who takes part, and how one of them is run: each in a process of its own, nothing shared but the machine."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measurement import HIDDEN, LONG, SHORT, Measurement, Work

ROOT = Path(__file__).parent.parent
OURS = ROOT / ".venv" / "bin" / "python"
PEERS = ROOT / ".venv-bench" / "bin" / "python"
_TIMEOUT = 1800.0  # seconds after which a contestant counts as stuck


class ContestantError(RuntimeError):
    """A contestant could not be measured; the message is for the user."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table."""

    key: str  # for --only and in the JSON
    name: str
    module: str
    arguments: tuple[str, ...] = ()
    peer: bool = False
    work: Work = SHORT
    steps_factor: int = 1  # the fast ones train on more, so that all are timed for about as long

    def measure(self, steps: int, seed: int) -> Measurement:
        """Run once, timing at least `steps * steps_factor` environment steps.

        Raises:
            ContestantError: it failed, hung, or its environment is not set up.
        """
        python = PEERS if self.peer else OURS
        if not python.exists():
            target = "bench-setup" if self.peer else "setup"
            raise ContestantError(f"{python.relative_to(ROOT)} is missing; create it with: make {target}")
        size = ["--steps", str(steps * self.steps_factor), "--seed", str(seed), *["--long"] * (self.work == LONG)]
        try:
            done = subprocess.run(
                [python, "-m", self.module, *self.arguments, *size],
                cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ContestantError(f"{self.name} did not finish within {_TIMEOUT:.0f} s") from None
        try:
            return Measurement.read(done.stdout)
        except ValueError as error:
            last = (done.stderr.strip() or "nothing on standard error").splitlines()[-1]
            raise ContestantError(f"{self.name} ended with status {done.returncode}: {error} ({last})") from None


def _environment() -> dict[str, str]:
    """Ours, with every contestant on the CPU and in a Ray of its own."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    quiet = {"PYTHONWARNINGS": "ignore", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return inherited | quiet | {"CUDA_VISIBLE_DEVICES": ""}


CONTESTANTS = (
    Contestant(
        key="sb3-stock",
        name=f"sb3-contrib RecurrentPPO as documented (LSTM {HIDDEN})",
        module="benchmarks.peers.sb3_recurrent_ppo",
        arguments=("--stock",),
        peer=True,
    ),
    Contestant(
        key="sb3",
        name=f"sb3-contrib RecurrentPPO, our batched task (LSTM {HIDDEN})",
        module="benchmarks.peers.sb3_recurrent_ppo",
        peer=True,
    ),
    Contestant(
        key="rllib",
        name=f"RLlib PPO, our batched task (LSTM {HIDDEN})",
        module="benchmarks.peers.rllib_ppo",
        peer=True,
    ),
    *(
        Contestant(
            key=f"jax-{kind}",
            name=f"JAX, one compiled update ({kind.upper()} {HIDDEN})",
            module="benchmarks.peers.jax_ppo",
            arguments=("--controller", kind),
            peer=True,
            steps_factor=2,
        )
        for kind in ("gru", "lstm")
    ),
    Contestant(
        key="bare-gru",
        name=f"mneme, bare loop (GRU {HIDDEN})",
        module="benchmarks.ours",
        arguments=("--runner", "bare"),
        steps_factor=4,
    ),
    Contestant(
        key="ray-gru",
        name=f"mneme (Ray, GRU {HIDDEN})",
        module="benchmarks.ours",
        steps_factor=4,
    ),
    Contestant(
        key="ray-async-gru",
        name=f"mneme (Ray, asynchronous, GRU {HIDDEN})",
        module="benchmarks.ours",
        arguments=("--mode", "async"),
        steps_factor=4,
    ),
    Contestant(
        key="bare-lstm",
        name=f"mneme, bare loop (LSTM {HIDDEN})",
        module="benchmarks.ours",
        arguments=("--runner", "bare", "--controller", "lstm"),
        steps_factor=2,
    ),
    Contestant(
        key="ray-lstm",
        name=f"mneme (Ray, LSTM {HIDDEN})",
        module="benchmarks.ours",
        arguments=("--controller", "lstm"),
        steps_factor=2,
    ),
    *(
        Contestant(
            key=f"floor-{kind}",
            name=f"the matrix products alone ({kind.upper()} {HIDDEN})",
            module="benchmarks.products_alone",
            arguments=("--controller", kind),
            steps_factor=8,
        )
        for kind in ("gru", "lstm")
    ),
    Contestant(
        key="bare-gru-1",
        name=f"mneme, bare loop (GRU {HIDDEN}), one thread",
        module="benchmarks.ours",
        arguments=("--runner", "bare", "--threads", "1"),
        steps_factor=2,
    ),
    Contestant(
        key="floor-gru-1",
        name=f"the matrix products alone (GRU {HIDDEN}), one thread",
        module="benchmarks.products_alone",
        arguments=("--threads", "1"),
        steps_factor=4,
    ),
    *(
        contestant
        for kind in ("gru", "mingru", "lru", "mamba2")
        for contestant in (
            Contestant(
                key=f"jax-long-{kind}",
                name=f"JAX, one compiled update ({kind} {HIDDEN}, T = {LONG.episode:,})",
                module="benchmarks.peers.jax_ppo",
                arguments=("--controller", kind),
                peer=True,
                work=LONG,
            ),
            Contestant(
                key=f"bare-long-{kind}",
                name=f"mneme, bare loop ({kind} {HIDDEN}, T = {LONG.episode:,})",
                module="benchmarks.ours",
                arguments=("--runner", "bare", "--controller", kind),
                work=LONG,
            ),
        )
    ),
)

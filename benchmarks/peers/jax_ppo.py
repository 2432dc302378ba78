"""Recurrent PPO in JAX, a whole update in one compiled program, in the manner of PureJaxRL (Lu et al. 2022).

Run as `python -m benchmarks.peers.jax_ppo`. Environment, collecting, returns and all epochs are compiled together, and
the lanes are shared out over devices of the host, whose gradients are summed: no Python runs within an update. Task,
network, initial weights, loss and optimizer are those of Mneme's preset.

Axis letters: T steps, B lanes of a device, H hidden units, G gates.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks import measurement as m
from benchmarks.peers import jax_cells, jax_linear
from benchmarks.peers.jax_core import Carry, Core, Parameters
from benchmarks.peers.threads import ThreadChoice
from mneme.experiments.machine import cores

GAMMA, GAE_LAMBDA = 0.99, 0.0
CLIP, VF_COEF, ENT_COEF, MAX_GRAD_NORM = 0.2, 0.5, 0.01, 0.5
NORM_EPSILON, ADAM_EPSILON = 1e-5, 1e-5
AXIS = "lanes"

CORES = jax_cells.CORES | jax_linear.CORES
OPTIMIZER = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adam(m.LEARNING_RATE, eps=ADAM_EPSILON))


class Trial(NamedTuple):
    """What is trained, and on how much."""

    core: Core
    work: m.Work


class Lanes(NamedTuple):
    """Where the lanes are."""

    cue_B: Array
    step_B: Array
    reset_B: Array  # the next step is an episode's first
    carry: Carry


class Learned(NamedTuple):
    """What is trained, and how."""

    parameters: Parameters
    optimizer: optax.OptState
    key: Array


class Steps(NamedTuple):
    """What was collected, [T, B, ...]."""

    observation: Array
    reset: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    done: Array


class Batch(NamedTuple):
    """What a loss depends on, [T, B, ...]."""

    observation: Array
    reset: Array
    action: Array
    log_prob: Array
    advantage: Array
    target: Array


def observe(horizon: int, cue_B: Array, step_B: Array) -> Array:
    """The cue at an episode's first step, the flag at its last, and nothing in between."""
    cue = jax.nn.one_hot(cue_B, m.CUES) * (step_B == 0)[:, None]
    return jnp.concatenate([cue, (step_B == horizon)[:, None]], -1, dtype=jnp.float32)


def initial_parameters(trial: Trial, key: Array) -> Parameters:
    """Weights that are drawn as Mneme draws them."""
    k_core, k_policy, k_value = jax.random.split(key, 3)
    hidden, orthogonal = m.HIDDEN, jax.nn.initializers.orthogonal
    return trial.core.initial(k_core, m.CUES + 1, trial.work.horizon) | {
        "gain": jnp.ones(hidden),
        "bias": jnp.zeros(hidden),
        "w_policy": orthogonal(0.01)(k_policy, (hidden, m.CUES)),
        "b_policy": jnp.zeros(m.CUES),
        "w_value": orthogonal()(k_value, (hidden, 1)),
        "b_value": jnp.zeros(1),
    }


def heads(p: Parameters, y: Array) -> tuple[Array, Array]:
    """Log-probabilities of the actions, and the value, from outputs [..., H]."""
    y = jax.nn.standardize(y, epsilon=NORM_EPSILON) * p["gain"] + p["bias"]
    return jax.nn.log_softmax(y @ p["w_policy"] + p["b_policy"]), (y @ p["w_value"] + p["b_value"])[..., 0]


def of_action(log_probs: Array, action: Array) -> Array:
    """The log-probability of each action that was taken."""
    return (log_probs * jax.nn.one_hot(action, m.CUES)).sum(-1)


def collect(trial: Trial, p: Parameters, lanes: Lanes, key: Array) -> tuple[Lanes, Steps, Array]:
    """An episode's length of steps, and the values of what follows them."""
    noise_key, cue_key = jax.random.split(key)
    horizon, size = trial.work.horizon, (trial.work.episode, *lanes.step_B.shape)
    noise_TB = jax.random.uniform(noise_key, size)
    cue_TB = jax.random.randint(cue_key, size, 0, m.CUES)  # of episodes that begin after a step

    def act(lanes: Lanes) -> tuple[Array, Array, Array, Carry]:
        observation = observe(horizon, lanes.cue_B, lanes.step_B)
        y, carry = trial.core.step(p, observation, lanes.reset_B, lanes.carry)
        return observation, *heads(p, y), carry

    def one(lanes: Lanes, drawn: tuple[Array, Array]) -> tuple[Lanes, Steps]:
        noise_B, next_cue_B = drawn
        observation, log_probs, value, carry = act(lanes)
        below = jnp.cumsum(jnp.exp(log_probs), -1)[:, :-1] <= noise_B[:, None]
        action = below.sum(-1)
        done = lanes.step_B == horizon
        reward = (done & (action == lanes.cue_B)).astype(jnp.float32)
        seen = Steps(observation, lanes.reset_B, action, of_action(log_probs, action), value, reward, done)
        after = Lanes(jnp.where(done, next_cue_B, lanes.cue_B), jnp.where(done, 0, lanes.step_B + 1), done, carry)
        return after, seen

    lanes, steps = lax.scan(one, lanes, (noise_TB, cue_TB))
    return lanes, steps, act(lanes)[2]


def estimated(steps: Steps, last_value_B: Array) -> Batch:
    """Generalised advantage estimation; advantages are normalised over the batches of all devices."""
    after = jnp.concatenate([steps.value[1:], last_value_B[None]])
    delta = steps.reward + GAMMA * jnp.where(steps.done, 0.0, after) - steps.value
    decay = GAMMA * GAE_LAMBDA * ~steps.done

    def back(later_B: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        total_B = now[0] + now[1] * later_B
        return total_B, total_B

    _, advantage = lax.scan(back, jnp.zeros_like(last_value_B), (delta, decay), reverse=True)
    mean = lax.pmean(advantage.mean(), AXIS)
    deviation = jnp.sqrt(lax.pmean(jnp.square(advantage - mean).mean(), AXIS))
    normalised = (advantage - mean) / (deviation + 1e-8)
    return Batch(*steps[:4], normalised, advantage + steps.value)


def loss_of(core: Core, p: Parameters, batch: Batch, carry: Carry) -> Array:
    """PPO's loss of whole sequences, a mean over their steps."""
    log_probs, value = heads(p, core.scan(p, batch.observation, batch.reset, carry))
    ratio = jnp.exp(of_action(log_probs, batch.action) - batch.log_prob)
    policy = -jnp.minimum(ratio * batch.advantage, ratio.clip(1 - CLIP, 1 + CLIP) * batch.advantage)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
    return (policy + VF_COEF * 0.5 * jnp.square(value - batch.target) - ENT_COEF * entropy).mean()


def update(trial: Trial, learned: Learned, lanes: Lanes) -> tuple[Learned, Lanes, Array]:
    """Collect and learn, on one of the devices; returns the mean reward of an episode too."""
    key, noise_key, *order_keys = jax.random.split(learned.key, 2 + m.EPOCHS)
    here = jax.random.fold_in(noise_key, lax.axis_index(AXIS))
    before = lanes.carry
    lanes, steps, last_value_B = collect(trial, learned.parameters, lanes, here)
    batch = estimated(steps, last_value_B)
    count = lanes.step_B.size

    def minibatch(state: tuple[Any, Any], rows: Array) -> tuple[tuple[Any, Any], None]:
        p, optimizer = state
        part = Batch(*(x.take(rows, 1) for x in batch))
        gradients = jax.grad(partial(loss_of, trial.core))(p, part, tuple(c[rows] for c in before))
        changes, optimizer = OPTIMIZER.update(lax.pmean(gradients, AXIS), optimizer)
        return (optax.apply_updates(p, changes), optimizer), None

    rows = jnp.concatenate([jax.random.permutation(k, count).reshape(m.MINIBATCHES, -1) for k in order_keys])
    (p, optimizer), _ = lax.scan(minibatch, (learned.parameters, learned.optimizer), rows)
    episodes = lax.psum(steps.done.sum(), AXIS)
    return Learned(p, optimizer, key), lanes, lax.psum(steps.reward.sum(), AXIS) / episodes


class Trainer:
    """Makes updates on as many devices as it is told.

    Args:
        trial: what it trains, and on how much.
        seed: of everything.
    """

    def __init__(self, trial: Trial, seed: int) -> None:
        lanes = trial.work.lanes
        step_B = jnp.zeros(lanes, jnp.int32)
        first, cues, key = jax.random.split(jax.random.key(seed), 3)
        p = initial_parameters(trial, first)
        self.parameters = sum(x.size for x in p.values())
        cue_B = jax.random.randint(cues, (lanes,), 0, m.CUES)
        self._state = Learned(p, OPTIMIZER.init(p), key), Lanes(cue_B, step_B, step_B == 0, trial.core.carry(lanes))
        self._updates = {devices: self._compiled(trial, devices) for devices in {1, cores()}}

    def use(self, devices: int) -> None:
        """Go on with so many devices."""
        self._update, self._state = self._updates[devices], self._placed(devices)

    def update(self) -> float:
        """Collect and learn once; returns the mean return of the episodes."""
        *self._state, reward = self._update(*self._state)
        return float(reward)

    def _compiled(self, trial: Trial, devices: int) -> Callable[..., tuple[Learned, Lanes, Array]]:
        """An update on so many devices, compiled and run once, so that neither counts in a trial."""
        of_all, of_lanes = PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.shard_map(
            partial(update, trial), mesh=self._mesh(devices), check_vma=False,
            in_specs=(of_all, of_lanes), out_specs=(of_all, of_lanes, of_all),
        )  # fmt: skip
        state = self._placed(devices)
        compiled = jax.jit(mapped).lower(*state).compile()
        jax.block_until_ready(compiled(*state))
        return compiled

    def _placed(self, devices: int) -> tuple[Learned, Lanes]:
        mesh = self._mesh(devices)
        specs = PartitionSpec(), PartitionSpec(AXIS)
        return tuple(jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(self._state, specs, strict=True))

    @staticmethod
    def _mesh(devices: int) -> Mesh:
        return Mesh(np.array(jax.devices()[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def main() -> None:
    """Train for `--steps` timed environment steps and print a measurement."""
    parser = m.contestant_parser(__doc__)
    parser.add_argument("--controller", choices=tuple(CORES), default="gru")
    m.add_work(parser)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", cores())
    work: m.Work = args.work
    trainer = Trainer(Trial(CORES[args.controller], work), args.seed)
    stopwatch, devices = m.Stopwatch(), ThreadChoice(trainer.use)
    for _ in range(m.updates_for(args.steps, work.batch)):
        mean_return = trainer.update()
        stopwatch.update(work.batch, work.lanes, mean_return)
        devices.update_done()
    configuration = {
        "controller": args.controller, "hidden_size": m.HIDDEN, "horizon": work.horizon, "lanes": work.lanes,
        "epochs": m.EPOCHS, "minibatches": m.MINIBATCHES, "learning_rate": m.LEARNING_RATE, "gae_lambda": GAE_LAMBDA,
        "devices": devices.threads, "parameters": trainer.parameters,
    }  # fmt: skip
    stopwatch.measurement(configuration, "jax", "jaxlib", "optax", "numpy").report()


if __name__ == "__main__":
    main()

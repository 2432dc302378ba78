"""The matrix products of Mneme's updates alone, as a contestant. Run as `python -m benchmarks.products_alone`.

As many steps per second would be trained on, with as many threads as there are cores, if collecting and all else of
learning took no time; see `benchmarks.floor`.
"""

from collections import Counter

import torch

from benchmarks import measurement as m
from benchmarks.floor import GATES, products_of, repeater
from mneme.experiments.machine import cores


def main() -> None:
    """Make the products of `--steps` timed environment steps and print a measurement."""
    parser = m.contestant_parser(__doc__)
    parser.add_argument("--controller", choices=tuple(GATES), default="gru")
    parser.add_argument("--threads", type=int, default=cores())
    args = parser.parse_args()
    torch.set_num_threads(1)  # recording is not timed, and the products have threads of their own
    epoch = products_of(args.controller, "full", m.SHORT.episode, m.HIDDEN)
    update = repeater(Counter({product: m.EPOCHS * count for product, count in epoch.items()}), args.threads)
    stopwatch = m.Stopwatch()
    for _ in range(m.updates_for(args.steps)):
        update()
        stopwatch.update(m.SHORT.batch)
    multiplications = m.EPOCHS * sum(product.work * count for product, count in epoch.items())
    configuration = {"controller": args.controller, "threads": args.threads, "multiplications": multiplications}
    stopwatch.measurement(configuration, "torch").report()


if __name__ == "__main__":
    main()

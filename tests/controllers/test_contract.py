"""What every controller must be, run over the registry, with zero and learned start, one layer and two."""

import pytest
from torch import Generator

from mneme.controllers import CONTROLLERS, Controller, ControllerSettings, build_controller
from mneme.controllers.contract import CHECKS, Check

CASES = [
    (kind, start, layers, "auto")
    for kind in CONTROLLERS
    for start, layers in (("zero", 1), ("learned", 1), ("learned", 2))
]
# what runs where numba is not installed
CASES += [(kind, "learned", 1, "torch") for kind, made in CONTROLLERS.items() if "numba" in made.backends]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "-"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_controller_keeps_the_contract(case: tuple[str, str, int, str], check: Check) -> None:
    kind, start, layers, backend = case
    settings = ControllerSettings(
        kind=kind,
        hidden_size=6,
        initial_carry=start,
        num_layers=layers,
        backend=backend,  # type: ignore[arg-type]
    )

    def build(input_size: int, generator: Generator) -> Controller:
        return build_controller(settings, input_size, 10, generator)

    finding = check.run(build)
    assert finding.passed, finding

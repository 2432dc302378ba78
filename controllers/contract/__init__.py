"""The contract of controllers as checks that can be run on any of them, and the figures that they are compared by."""

from collections.abc import Iterator

from mneme.controllers.contract import agreement, arguments, isolation, traces
from mneme.controllers.contract.figures import Figures, measure
from mneme.controllers.contract.finding import Build, Check, Finding

__all__ = ["CHECKS", "Build", "Check", "Figures", "Finding", "findings", "measure"]

CHECKS: tuple[Check, ...] = (
    arguments.results_have_their_shapes,
    agreement.scan_is_the_loop_in_float64,
    agreement.scan_is_the_loop_in_float32,
    agreement.scan_is_the_loop_at_any_width,
    agreement.cut_scan_is_the_detached_loop,
    agreement.acting_is_learning,
    agreement.steps_are_the_scan,
    agreement.split_is_the_whole,
    traces.traces_are_the_gradient_of_the_past,
    agreement.gradients_are_finite_differences,
    agreement.parts_have_their_own_gradients,
    agreement.a_second_backward_is_the_first,
    isolation.a_reset_cuts_the_gradient,
    isolation.a_reset_starts_afresh,
    agreement.prepared_steps_are_steps,
    agreement.a_step_touches_no_carry,
    agreement.lanes_may_be_permuted,
    isolation.lanes_are_apart,
    isolation.the_initial_carry_is_learned_or_zero,
    isolation.nothing_is_kept_between_calls,
    isolation.nothing_passed_in_is_touched,
    agreement.memory_layout_does_not_matter,
    arguments.weights_come_from_the_generator,
    arguments.wrong_arguments_are_refused,
)


def findings(build: Build) -> Iterator[Finding]:
    """Run every check; where not even the shapes are right, the others have nothing to compare and are left out."""
    for check in CHECKS:
        finding = check.run(build)
        yield finding
        if check is CHECKS[0] and not finding.passed:
            return

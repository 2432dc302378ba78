"""The check that traces are what they are for: the gradient of the steps before."""

from collections.abc import Iterator

import torch

from mneme.controllers.contract.finding import TIGHT, Build, Deviation, check, deviations
from mneme.controllers.contract.trial import LANES, draw, loss_of, subject
from mneme.controllers.traces import no_traces, traced, traces_after

_SPANS = (1, 2, 31)  # steps that the traces are of
_MORE = 2  # steps after them; few, as much of what went before may be forgotten soon


@check("traces are the past", "where it has traces, they give the gradient of the steps before", TIGHT)
def traces_are_the_gradient_of_the_past(build: Build) -> Iterator[Deviation]:
    controller = subject(build)
    parameters = dict(controller.named_parameters())
    has_some = bool(controller.elementwise())
    for at in _SPANS if has_some else ():
        x, reset, carry = draw(controller, at + _MORE, resets=0.05)
        given = {name: value.detach() for name, value in carry.items()}
        cells = controller.elementwise()
        with torch.no_grad():
            _, middle = controller.scan(x[:at], reset[:at], given)
            runs = controller.elementwise_runs(x[:at].detach(), reset[:at], given)
            traces = traces_after(cells, runs, reset[:at], no_traces(cells, LANES))
        entering = traced(cells, middle, traces)
        after, last = (controller.scan(x[s:], reset[s:], c)[1] for s, c in ((at, entering), (0, given)))
        for part in cells:  # its own parameters alone: those of the layers below reach it by its inputs too
            own = torch.autograd.grad(
                entering[part].sum(), list(parameters.values()), retain_graph=True, allow_unused=True
            )
            names = [name for name, gradient in zip(parameters, own, strict=True) if gradient is not None]
            found, expected = (
                torch.autograd.grad(loss_of(c[part], {}), [parameters[n] for n in names], retain_graph=True)
                for c in (after, last)
            )
            where = f"of carry {part}, with traces over {at} of {at + _MORE} steps"
            yield from deviations(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)), where)
    yield Deviation(0.0, "nowhere" if has_some else "there are none")

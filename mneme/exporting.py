"""One step of a trained agent as a file for other runtimes: ONNX, or a program of torch.export.

Axis letters: B environments, A parameters of the action distribution.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from mneme.controllers import Carry, Controller, Observation, Policy
from mneme.controllers.scans.backends import REFERENCE

ENDINGS = (".onnx", ".pt2")
_BATCH = "num_envs"


class Step(nn.Module):
    """A policy's most probable action as a pure function of tensors: its step by the controller's `cell`, which is
    plain operations on them."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = deepcopy(policy).cpu().eval().requires_grad_(False)
        for module in self.policy.modules():
            if isinstance(module, Controller):
                module.backend = REFERENCE

    def forward(self, observation: Observation, reset: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry]:
        """The action [B, ...], the parameters [B, A] of its distribution, and the carry [B, ...] for the next step.

        Args:
            observation: the policy's parts, [B, ...] a name.
            reset: bool [B], where an episode begins with this observation, so that the carry does not count.
            carry: what the last step returned, [B, ...] a name.
        """
        parameters_BA, _, after = self.policy.step(observation, reset, carry)
        action_B = self.policy.action_distribution.mode(parameters_BA)
        return action_B, parameters_BA, {name: after[name] for name in carry}

    def example(self, num_envs: int = 2) -> tuple[Observation, Tensor, Carry]:
        """Arguments of the right shapes and types, for so many environments that all begin."""
        with torch.no_grad():
            parts = {name: part[0] for name, part in self.policy.blank(1, num_envs).items()}
            return parts, torch.ones(num_envs, dtype=torch.bool), self.policy.initial_carry(num_envs)


def export_policy(policy: Policy, path: Path) -> Sequence[str]:
    """Write one step of a policy, for any number of environments: ONNX where the file ends in .onnx, a program of
    torch.export where it ends in .pt2. The file is whole or absent.

    `Step.forward` says what goes in and out. In ONNX the inputs are the parts of the observation by their own names,
    `reset` and `carry.NAME`, and the outputs `action`, `parameters` and `next_carry.NAME`.

    Returns:
        The names of the inputs.

    Raises:
        ValueError: the file has another ending, a package is missing, or the policy cannot be exported; one sentence.
        OSError: the file cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"the file is {path}; it must end in {' or '.join(ENDINGS)}, which decides what is written")
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder, so {path.name} cannot be written there; make it first")
    step = Step(policy)
    observation, _, carry = step.example()
    inputs = [*observation, "reset", *(f"carry.{name}" for name in carry)]
    outputs = ["action", "parameters", *(f"next_carry.{name}" for name in carry)]
    if taken := [name for name in observation if [*inputs, *outputs].count(name) > 1]:
        raise ValueError(f"a part of the observation is named {taken[0]!r}, as something else is; rename the part")
    program = _traced(step)
    try:
        if path.suffix == ".onnx":
            _save_as_onnx(program, inputs, outputs, step, part)
        else:
            torch.export.save(program, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return inputs


def _traced(step: Step) -> torch.export.ExportedProgram:
    example = step.example()
    batch = torch.export.Dim(_BATCH, min=1)
    shapes = ({name: {0: batch} for name in example[0]}, {0: batch}, {name: {0: batch} for name in example[2]})
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(step, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        controller = type(step.policy.controller).__name__
        raise ValueError(
            f"{controller} cannot be exported, as torch.export cannot follow its cell ({_first_line(error)}); write "
            f"the cell in operations on tensors whose values decide nothing about the code that runs"
        ) from error


def _save_as_onnx(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], step: Step, path: Path
) -> None:
    try:
        from onnxscript import optimizer
    except ImportError as error:
        raise ValueError(
            f"ONNX needs the package {error.name}, which is not installed: pip install mneme-rl[export]; a file that "
            f"ends in .pt2 needs none"
        ) from None
    try:
        with _quiet():
            # Not rewritten: onnxscript 0.7 gives two clips of one value one name, and runtimes fuse by themselves.
            onnx = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, input_names=inputs, output_names=outputs
            )
            assert onnx is not None
            onnx.rename_axes({onnx.model.graph.inputs[0].shape[0]: _BATCH})
            optimizer.inline(onnx.model)
            optimizer.fold_constants(onnx.model)
            optimizer.remove_unused_nodes(onnx.model)
    except Exception as error:
        controller = type(step.policy.controller).__name__
        raise ValueError(
            f"{controller} cannot be said in ONNX ({_first_line(error)}); export it into a file that ends in .pt2"
        ) from error
    onnx.save(path)


def _first_line(error: BaseException) -> str:
    """What the cause of an error says first; exporters explain themselves over pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of themselves, which is about their own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

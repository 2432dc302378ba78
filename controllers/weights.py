"""The versioned record in which weights travel from the learner to whoever acts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Weights:
    """All parameters and buffers of a module at one version; the arrays are read-only copies."""

    version: int
    """The number of learner updates that made these weights."""

    arrays: Mapping[str, np.ndarray]
    """Name to array, each of the shape and type that it has in the module."""

    @classmethod
    def from_module(cls, module: nn.Module, version: int) -> "Weights":
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}
        for array in arrays.values():
            array.flags.writeable = False
        return cls(version, arrays)

    def load_into(self, module: nn.Module) -> None:
        """Copy the arrays into `module`, all or nothing.

        Raises:
            ValueError: a parameter is missing, unexpected, or of another shape or type.
        """
        state = module.state_dict()
        remedy = "build the policy with the settings these weights were made with"
        for name in sorted(state.keys() | self.arrays.keys()):
            if name not in self.arrays:
                raise ValueError(f"weights version {self.version} lack parameter {name!r}; {remedy}")
            if name not in state:
                raise ValueError(f"weights version {self.version} hold unexpected parameter {name!r}; {remedy}")
            ours, theirs = state[name], torch.tensor(self.arrays[name])
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                raise ValueError(
                    f"parameter {name!r} is {theirs.dtype} {list(theirs.shape)} "
                    f"in weights version {self.version} but {ours.dtype} {list(ours.shape)} in the policy; {remedy}"
                )
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(torch.tensor(self.arrays[name]))

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and values, whatever their order; the version does not count."""
        sha = hashlib.sha256()
        for name in sorted(self.arrays):
            array = self.arrays[name]
            sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

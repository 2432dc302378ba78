"""Parameters side by side in one vector, so that what is done to all of them is done at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_ALIGNED = 16  # numbers; what numpy, complex views and vector instructions ask of where an array begins


class FlatParameters:
    """A vector of which parameters become parts, and another of which their gradients do.

    To pickle one of the parameters is to pickle the vector.

    Args:
        groups: parameters by name, all of one type on one device, none of them twice.
    """

    gradient: Tensor
    """[numbers of all], group by group, with zeros in between so that every part begins at a multiple of 16 numbers."""
    vectors: list[nn.Parameter]
    """One a group, each with its part of `gradient`; a group without parameters has one without numbers."""
    names: list[list[str]]
    """The parameters of each group."""

    def __init__(self, groups: Sequence[Mapping[str, nn.Parameter]]) -> None:
        self._parameters = {name: parameter for group in groups for name, parameter in group.items()}
        self.names = [list(group) for group in groups]
        self._places = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in self._parameters.values()]
        self._zeros = next(iter(self._parameters.values())).detach().new_zeros(_ALIGNED)
        vector = self.joined({name: parameter.detach() for name, parameter in self._parameters.items()})
        self.gradient = torch.zeros_like(vector)
        ends = [sum(self._places[: sum(map(len, groups[: i + 1]))]) for i in range(len(groups))]
        self._vector = vector
        self.vectors = [nn.Parameter(part) for part in vector.tensor_split(ends[:-1])]
        for own, part in zip(self.vectors, self.gradient.tensor_split(ends[:-1]), strict=True):
            own.grad = part
        values, gradients = self.named(vector), self.named(self.gradient)
        for name, parameter in self._parameters.items():
            parameter.data, parameter.grad = values[name], gradients[name]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector such as `gradient`: views, each of its parameter's shape."""
        places = zip(vector.split(self._places), self._parameters.items(), strict=True)
        return {name: place[: parameter.numel()].view(parameter.shape) for place, (name, parameter) in places}

    def read(self, vector: Tensor) -> None:
        """Copy the parameters into a vector such as `gradient`."""
        vector.copy_(self._vector)

    def write(self, vector: Tensor) -> None:
        """Let the parameters be what such a vector says."""
        self._vector.copy_(vector)

    def joined(self, parts: Mapping[str, Tensor | None], out: Tensor | None = None) -> Tensor:
        """The vector that has these parts, and zeros where there is none; a new one, or `out`."""
        pieces: list[Tensor] = []
        for place, (name, parameter) in zip(self._places, self._parameters.items(), strict=True):
            part = parts.get(name)
            pieces.append((torch.zeros_like(parameter) if part is None else part).reshape(-1))
            if gap := place - parameter.numel():
                pieces.append(self._zeros[:gap])
        return torch.cat(pieces, out=out)

"""A controller's auxiliary loss, for windows that see parts of the sequences over which its signals' means are taken.

Its gradient is that of the signals' sums times its own by them, at the sums over whole sequences: a sum over steps like
any other loss, whatever is worked on at once.

Legend: B sequences, K window steps, W windows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Controller


class SignalSums(NamedTuple):
    """Sums of signals over the valid steps of B sequences, or of a part of them; of packed ones, of B episodes."""

    signals: Mapping[str, Tensor]  # name -> [B]
    steps: Tensor  # [B] how many they are

    @classmethod
    def of(
        cls, signals_KW: Mapping[str, Tensor], mask_KW: Tensor, sequences: int, episode_KW: Tensor | None
    ) -> "SignalSums":
        """The sums over windows that lie sequence by sequence, equally many of each; or those over the steps of each of
        so many episodes."""

        def summed(x_KW: Tensor) -> Tensor:
            if episode_KW is None:
                return x_KW.sum(0).view(sequences, -1).sum(1)
            return x_KW.new_zeros(sequences).index_add(0, episode_KW.flatten(), x_KW.flatten())

        signals = {name: summed(torch.where(mask_KW, s, 0.0)) for name, s in signals_KW.items()}
        return cls(signals, summed(mask_KW.long()))

    @classmethod
    def joined(cls, parts: "Sequence[SignalSums]") -> "SignalSums":
        """The sums over several parts of the same sequences."""
        signals = {name: torch.stack([part.signals[name] for part in parts]).sum(0) for name in parts[0].signals}
        return cls(signals, torch.stack([part.steps for part in parts]).sum(0))


class AuxiliaryLoss(NamedTuple):
    """The auxiliary loss of some sequences, summed over their valid steps, and its gradient in each signal's sum."""

    total: Tensor  # its gradient is that of what the auxiliary loss itself may learn
    gradients: Mapping[str, Tensor]  # name -> [B]

    @classmethod
    def at(cls, controller: Controller, whole: SignalSums) -> "AuxiliaryLoss":
        """The auxiliary loss of sequences with these sums."""
        leaves = {name: s.detach().requires_grad_() for name, s in whole.signals.items()}
        steps = whole.steps.clamp(min=1)
        added_B = controller.auxiliary_loss({name: s / steps for name, s in leaves.items()})
        total = torch.zeros((), device=steps.device) if added_B is None else (added_B * whole.steps).sum()
        if not leaves or not total.requires_grad:
            return cls(total, {})
        gradients = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, materialize_grads=True)
        return cls(total, dict(zip(leaves, gradients, strict=True)))

    def counted(self) -> "AuxiliaryLoss":
        """The same for a further part of the sequences, as the total counts once."""
        return self._replace(total=torch.zeros_like(self.total))

    def through(self, part: SignalSums) -> Tensor:
        """A term of value 0 whose gradient is the auxiliary loss's by way of the signals in a part of the sequences."""
        sums = {name: part.signals[name] for name in self.gradients}
        terms = [(self.gradients[name] * (x - x.detach())).sum() for name, x in sums.items()]
        return torch.stack(terms).sum() if terms else torch.zeros_like(self.total)

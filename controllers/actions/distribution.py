"""The interface of every family of action distributions.

Axis letters: B environments (any leading axes), A parameters of one distribution.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

BELOW_ONE = 1 - 2.0**-24  # the last float32 below 1: times any total it rounds to less than that total


class ActionDistribution(ABC):
    """One family of distributions. Leading axes of all arguments agree and are free.

    A subclass is a frozen dataclass, and its methods are pure functions of their arguments.
    """

    @property
    @abstractmethod
    def parameter_size(self) -> int:
        """The number of parameters that the network gives for one action."""

    @property
    @abstractmethod
    def action_shape(self) -> tuple[int, ...]:
        """Trailing shape of one action: () or (n,)."""

    @property
    @abstractmethod
    def action_dtype(self) -> torch.dtype:
        """int64 or float32."""

    @property
    def noise_size(self) -> int:
        """The number of uniform draws in [0, 1) for one sample, on the trailing axis: one per number of the action."""
        return math.prod(self.action_shape)

    @property
    def mask_size(self) -> int:
        """The number of mask flags for one action; 0 where nothing can be masked."""
        return 0

    @property
    def feature_size(self) -> int:
        """The number of features by which an action enters a network."""
        return math.prod(self.action_shape)

    @abstractmethod
    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        """An action from noise: [B, A], [B, noise_size] -> [B, *action_shape]. The same noise, the same action."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable action: [B, A] -> [B, *action_shape]."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability or log-density, in nats: [B, A], [B, *action_shape] -> [B]."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """In nats: [B, A] -> [B]."""

    @abstractmethod
    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q), in nats: [B, A], [B, A] -> [B]."""

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        """Parameters under which what the mask forbids is impossible: [B, A], bool [B, mask_size] -> [B, A].

        True allows. A row that allows nothing is taken for padding and left as it is.
        """
        return parameters

    @abstractmethod
    def features(self, action: Tensor) -> Tensor:
        """The action as float32 for a network to read: [B, *action_shape] -> [B, feature_size]."""

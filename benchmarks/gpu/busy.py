"""The busy share of a GPU, as the driver counts it."""

from statistics import fmean
from threading import Event, Thread
from typing import Any, Self

import torch

_EVERY = 0.05  # seconds between two looks
_LOOKING_BACK = 1.0  # seconds at most that the driver's figure is about


class BusyShare:
    """The share of the time in which a kernel ran on the device, while this is entered.

    Args:
        device: any; only NVIDIA's are looked at.
    """

    share: float | None = None
    """From 0 to 1; None where the driver does not say, nvidia-ml-py is missing, or the time was too short."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._over, self._seen = device, Event(), list[float]()
        self._looking = Thread(target=self._look)

    def _look(self) -> None:
        if self._device.type != "cuda" or self._over.wait(_LOOKING_BACK):
            return
        try:
            while not self._over.wait(_EVERY):
                self._seen.append(torch.cuda.utilization(self._device) / 100)
        except Exception:  # of the driver's library, whose errors have no name where it is not installed
            self._seen.clear()

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._over.set()
        self._looking.join()
        self.share = fmean(self._seen) if self._seen else None

"""The interface of a vector environment that can be saved and continued exactly."""

import numpy as np

State = dict[str, np.ndarray]


class Resumable:
    """Base class for vector environments, in addition to Gymnasium's, that lets a run resume exactly.

    Having methods of these names is not enough: many simulators mean something else by their state.
    """

    def get_state(self) -> State:
        """Copies of all that the future depends on besides actions: arrays by name, which a checkpoint keeps."""
        raise NotImplementedError

    def set_state(self, state: State) -> None:
        """Continue exactly where `get_state` was called, in this or another environment of the same settings.

        Raises:
            ValueError: the state does not fit.
        """
        raise NotImplementedError

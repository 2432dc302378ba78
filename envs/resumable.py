"""What a vector environment is that can be saved and continued exactly."""

import numpy as np

State = dict[str, np.ndarray]


class Resumable:
    """A vector environment derives from this besides, to let a run resume exactly.

    Methods of these names alone are not taken for it: many simulators call something else their state.
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

"""Collecting experience: vectorised environments and a policy in, trajectory fragments out. Knows nothing of Ray."""

from mneme.controllers.on_demand import offered

__getattr__, __dir__, __all__ = offered(__name__)

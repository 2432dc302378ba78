"""Learning from fragments: returns, windows, losses and the learner. Knows nothing of Ray."""

from mneme.controllers.on_demand import offered

__getattr__, __dir__, __all__ = offered(__name__)

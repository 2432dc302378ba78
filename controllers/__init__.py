"""The agent's network: sequence models behind one contract, and the policy around them."""

from mneme.controllers.on_demand import offered

__getattr__, __dir__, __all__ = offered(__name__)

"""Reinforcement learning for agents that must remember.

`run = mneme.train("delayed_cue", controller="gru")`, `agent = mneme.load(run.folder)`, `mneme.evaluate(agent)`,
`mneme.resume(run)`. What is offered here is loaded when it is first used, as torch and its friends take seconds.
"""

from mneme.controllers.on_demand import offered

__getattr__, __dir__, __all__ = offered(__name__)

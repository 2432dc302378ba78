"""The share of each setting in how much a sweep's configurations differ, by Optuna's fANOVA (Hutter et al. 2014)."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from mneme.experiments.sweep.results import Configuration

_LEAST = 4  # configurations, of which something can be said


def importances(found: Sequence[Configuration], metric: str, space: Mapping[str, Any]) -> dict[str, float]:
    """Shares by setting, the largest first, whose sum is 1; empty where nothing can be said, as of one setting alone.

    Args:
        found: configurations and what came of them.
        metric: in which they differ.
        space: that they are of, as the sweep's file has it.
    """
    known = [(c.point, c.value(metric)) for c in found if math.isfinite(c.value(metric))]
    if len(space) < 2 or len(known) < _LEAST or len({value for _, value in known}) < 2 or find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution(given, [point[key] for point, _ in known]) for key, given in space.items()}
    study = optuna.create_study()
    for point, value in known:
        params = {key: given.index(point[key]) if _lists(given) else point[key] for key, given in space.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _lists(given: Any) -> bool:
    return isinstance(given, list | tuple)


def _distribution(given: Any, values: Sequence[Any]) -> Any:
    """The distribution of a setting's values; bounds that are whole numbers do not say that what lies between is."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if _lists(given):
        return CategoricalDistribution(range(len(given)))
    low, high, log = given["low"], given["high"], given.get("log", False)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)

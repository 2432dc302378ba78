"""docs/grafana.json: a dashboard of what is really exported."""

import json
import re
from pathlib import Path

from mneme.distributed.ray_metrics import GAUGES, exported_name

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana.json").read_text())
EXPORTED = {f"ray_{exported_name(key)}" for key in GAUGES}


def test_every_panel_shows_what_is_exported_and_of_the_runs_that_are_chosen() -> None:
    for panel in DASHBOARD["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            (metric,) = re.findall(r'(\w+)\{run=~"\$run"\}', target["expr"])
            assert metric in EXPORTED, panel["title"]


def test_whatever_is_counted_for_operation_has_its_place() -> None:
    shown = set(re.findall(r"ray_mneme_\w+", json.dumps(DASHBOARD)))
    assert shown <= EXPORTED
    assert EXPORTED - shown == {"ray_mneme_steps_trained"}  # steps per second says as much


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_run_is_chosen_among_those_that_export() -> None:
    (run,) = [variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "run"]
    assert re.findall(r"label_values\((\w+), run\)", run["query"])[0] in EXPORTED

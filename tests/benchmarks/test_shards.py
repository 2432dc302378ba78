import json
from pathlib import Path

import pytest

from benchmarks.shards import SIZES, WAYS, main
from mneme.learner.shared_memory import AVAILABLE


@pytest.mark.skipif(not AVAILABLE, reason="processes share memory that this system does not have")
def test_every_way_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", (8, 5, 8))
    output = tmp_path / "shards.json"
    main(["--kinds", "gru", "--sizes", "tiny", "--rounds", "1", "--seconds", "0.05", "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    assert row["kind"] == "gru" and set(row["milliseconds"]) == set(WAYS)
    assert all(milliseconds > 0 for milliseconds in row["milliseconds"].values())

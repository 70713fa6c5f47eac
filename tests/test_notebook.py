"""docs/notebook.ipynb: its cells run in their order, on a run of the tests and on a run of its own."""

import json

import matplotlib
import matplotlib.pyplot as plt
import pytest
from runs import ROOT, environment

pytest_plugins = ["run_fixtures"]


@pytest.fixture
def cells(monkeypatch, tmp_path):
    """The code of its cells, to be executed in an empty folder, where nothing opens a window."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plt, "show", lambda: None)
    matplotlib.use("Agg")
    content = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert not [cell for cell in content["cells"] if cell.get("outputs") or cell.get("execution_count")]
    yield ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    plt.close("all")


def execute(cells):
    """The variables after all cells."""
    variables = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), variables)
    return variables


def test_it_looks_at_a_run(cells, finished):
    (place,) = (number for number, cell in enumerate(cells) if "RUN = None" in cell)
    cells[place] = cells[place].replace("RUN = None", f"RUN = {str(finished.folder)!r}")
    found = execute(cells)
    assert len(found["images"]) == 1000
    assert len(plt.get_fignums()) == 3
    assert all(found["predicted"][index] != found["labels"][index] for index in found["worst"])
    assert all(row[0] == query for row, query in zip(found["similar"], found["queries"], strict=True))


def test_it_trains_a_network_of_its_own(cells, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # as fast as for anyone
    found = execute(cells)
    assert found["correct"] > 200  # of 1,000; a tenth would be chance

"""The writers for MLflow and Weights & Biases in docs/parts.md."""

import contextlib
import sys
import types

import pytest
from runs import ROOT

from imgclf_jax import components
from imgclf_jax import config as configs
from imgclf_jax.workdir.own_writers import OwnWriters


class Files:
    """In the place of the metrics files."""

    def write(self, **values):
        return values

    def close(self):
        pass


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """Returns a function: name of a module of the page -> the workdir of a run that wrote with it, and was resumed."""
    page = (ROOT / "docs/parts.md").read_text()
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = configs.to_json(configs.default())

    def write(name):
        code = page.partition(f"```python\n# {name}.py\n")[2].partition("```")[0]
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / f"{name}.py").write_text(code)
        components.look_in([tmp_path / "parts"])
        folder = tmp_path / "run"
        folder.mkdir()
        for steps in ((2, 4), (4, 6)):
            writers = OwnWriters(Files(), [f"{name}:Writer"], folder, config)
            for step in steps:
                for split in ("train", "valid"):
                    writers.write(step=step, epoch=step / 2, split=split, loss=1 / step, accuracy=None)
            writers.close()
        sys.modules.pop(name)
        return folder

    yield write
    components.look_in([])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_mlflow_goes_on_in_the_same_run(sessions, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # A database would need more packages.
    sessions("my_mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["optim.learning_rate"] == str(configs.default().optim.learning_rate)
    history = client.get_metric_history(run.info.run_id, "valid/loss")
    assert {one.step: one.value for one in history} == {2: 1 / 2, 4: 1 / 4, 6: 1 / 6}
    assert "train/loss" in run.data.metrics and "train/accuracy" not in run.data.metrics


def test_wandb_goes_on_in_the_same_run(sessions, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(
        define_metric=lambda name, step_metric: logged.append((name, step_metric)),
        log=logged.append,
        finish=lambda: started.append("finished"),
    )

    def init(*, project, name, id, resume, config, dir, reinit):
        started.append((name, id, resume, config["model"]["name"]))
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    folder = sessions("my_wandb")
    once = ("run", (folder / "wandb.txt").read_text(), "allow", configs.default().model.name)
    assert started == [once, "finished", once, "finished"]
    assert logged[0] == ("*", "step") and {"step": 6, "valid/loss": 1 / 6} in logged


def test_wandb_offline(sessions, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = sessions("my_wandb")
    kept = (folder / "wandb.txt").read_text()
    offline = [path for path in (folder / "wandb").glob("offline-run-*") if path.is_dir()]
    assert offline and all(path.name.endswith(kept) for path in offline)
    with contextlib.suppress(KeyError):
        del sys.modules["wandb"]

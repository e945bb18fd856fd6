"""Runs on images and with objectives of the reader's own: what is refused before any training, and what is recorded."""

import multiprocessing
import pickle
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess

import numpy as np
import pytest

from jointvae import checkpoints, cluster, data, objectives, own, results, runs, training
from jointvae.errors import JointVAEError
from jointvae.latents import LatentSpec
from jointvae.objectives import Capacity, SplitCapacity, SplitInformation


@dataclass(frozen=True)
class Held(objectives.Own):
    """The squares of the distances to two capacities, of which it keeps one inside another objective."""

    name: str = "held"
    gamma: float = 3.0
    C_z: Capacity = field(default_factory=lambda: Capacity(end=2.0, steps=10))
    inner: SplitCapacity = field(default_factory=SplitCapacity)

    def capacities(self, step):
        return {"C_z": self.C_z(step)}

    def __call__(self, reconstruction, kl_z, kl_c, step):
        z, c = kl_z.sum() - self.C_z(step), kl_c.sum() - self.inner.C_c(step)
        return {"reconstruction": reconstruction, "z": self.gamma * z**2, "c": self.gamma * c**2}


@dataclass(frozen=True)
class Elbo(objectives.Own):
    """Takes a name of the package."""

    name: str = "elbo"


@dataclass(frozen=True)
class Listed(objectives.Own):
    """Has a setting that is no number or word."""

    name: str = "listed"
    weights: tuple[float, ...] = (1.0, 2.0)


@dataclass(frozen=True)
class Softer(SplitInformation):
    """Changes an objective of the package."""


def made(seed: int = 0, name: str = "mine", **changes) -> runs.Datasets:
    """A data set of 40 random images."""
    images = np.random.default_rng(seed).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    return own.datasets(name, images, **changes)


@pytest.fixture
def mine(quick) -> training.Config:
    """One epoch on images of one's own."""
    return replace(quick, recipe="mine", dataset="mine", epochs=1)


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained in this test."""
    for where, name in ((training, "train"), (runs, "_start"), (runs, "_train_together"), (cluster, "_ray")):
        monkeypatch.setattr(where, name, lambda *_: pytest.fail("it was begun"))


def ignore(*news: object) -> None:
    """Nobody listens."""


def forced(instance, **values):
    """A dataclass with values that only a reader's Python accepts: it does not check types, the tests do."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance


# --- What can't be recorded ------------------------------------------------------------------------------------------

ENGINES = {
    "run": lambda config, folder: runs.run(config, folder, "cpu", datasets=made()),
    "sweep": lambda config, folder: runs.sweep([config], folder, "cpu", 1, ignore, made()),
    "sweep together": lambda config, folder: runs.sweep_together([config], folder, "cpu", ignore, made()),
    "cluster": lambda config, folder: cluster.sweep([config], str(folder), "cpu", 1, ignore),
}
UNRECORDABLE = {
    "a name of the package": ({"objective": Elbo()}, "needs a name of its own, none of .*, elbo, "),
    "an objective of the package, changed": ({"objective": Softer()}, "derive your objective Softer from"),
    "a list": ({"objective": Listed()}, "the setting 'weights' of an objective is made of more than"),
    "no JSON": ({"objective": Held(gamma=np.ones(1))}, "ndarray is not JSON"),
    "infinity": ({"objective": Held(gamma=float("inf"))}, "JSON compliant"),
    "half a step": (
        {"objective": SplitCapacity(C_z=forced(Capacity(), steps=2.5))},
        "C_z.steps: input should be a valid integer",
    ),
    "a number of NumPy": ({"latents": forced(LatentSpec(), z=np.int64(4))}, "int64 is not JSON"),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(("changes", "named"), UNRECORDABLE.values(), ids=UNRECORDABLE)
def test_what_can_not_be_recorded_is_refused_before_it_is_trained(mine, tmp_path, untrained, engine, changes, named):
    with pytest.raises(JointVAEError, match=rf"^The config can't be recorded: .*{named}.*(?<!\.)\.$"):
        engine(replace(mine, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_objective_that_is_a_name_alone_is_refused_before_it_is_trained(mine, tmp_path, untrained, engine):
    """A sweep file may misspell one, and a record does not have the code of one's own."""
    with pytest.raises(JointVAEError, match=r"^The package has no objective 'split_capcity': "):
        engine(replace(mine, objective=objectives.Remembered("split_capcity", {"gamma": 1.0})), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("epochs", 2.5), ("batch_size", 32.0), ("seed", np.int64(3))])
def test_counts_are_whole_numbers_of_python(mine, name, value):
    with pytest.raises(JointVAEError, match=f"{name} must be a whole number"):
        forced(mine, **{name: value}).__post_init__()


def test_settings_may_hold_capacities_and_they_are_recorded(mine, tmp_path):
    config = replace(mine, objective=Held(gamma=2))
    runs.run(config, tmp_path / "runs", "cpu", datasets=made())
    path = tmp_path / "runs" / f"{config.run_name}.json"
    read = results.read(path)
    assert isinstance(read.config.objective, objectives.Remembered)
    assert read.config.objective.name == "held"
    assert read.config.objective.settings["gamma"] == 2
    assert Capacity(**read.config.objective.settings["C_z"]) == Held().C_z
    assert Capacity(**read.config.objective.settings["inner"]["C_c"]) == Held().inner.C_c
    assert read.curves["C_z"] == [Held().C_z(1)]
    (copy,) = results.collect([path], tmp_path / "results")
    assert results.read(copy) == read


def test_a_file_can_not_nest_settings_without_end(mine):
    deep: dict = {}
    for _ in range(900):
        deep = {"deeper": deep}
    with pytest.raises(ValueError, match="the setting 'x' of an objective is made of more than"):
        objectives.remember({"name": "deep", "x": deep})


# --- Images of one's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", list(ENGINES)[:3])
def test_images_of_another_name_are_refused(mine, tmp_path, untrained, engine):
    """They would be recorded as the data set of the config."""
    with pytest.raises(JointVAEError, match="for the data set 'mnist', these images are 'mine'"):
        ENGINES[engine](replace(mine, dataset="mnist"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_test_set_is_looked_at_too(mine, tmp_path, untrained):
    train, test = made()
    for other, named in (
        (made(name="theirs")[1], "these images are 'theirs'"),
        (made(image_size=64)[1], "'mine' has 1 x 64 x 64"),
    ):
        with pytest.raises(JointVAEError, match=named):
            runs.run(mine, tmp_path, "cpu", datasets=(train, other))
    assert test.name == "mine"


def stopped(config: training.Config, folder, datasets: runs.Datasets) -> None:
    """Leave the state of a run whose second epoch was interrupted."""

    def interrupt(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(config, folder, "cpu", interrupt, datasets=datasets)


@pytest.mark.parametrize("engine", ["run", "sweep together"])
def test_an_interrupted_run_does_not_go_on_with_other_images(mine, tmp_path, monkeypatch, engine):
    longer = replace(mine, epochs=2)
    stopped(longer, tmp_path, made(seed=1))
    state = tmp_path / f"{longer.run_name}.training"
    before = state.read_bytes()
    with pytest.raises(JointVAEError, match=r"\.training is of other images: give yours another name, or delete"):
        ENGINES[engine](longer, tmp_path)
    assert state.read_bytes() == before
    state.unlink()
    ENGINES[engine](longer, tmp_path)
    record = results.read(tmp_path / f"{longer.run_name}.json")
    assert (record.data, len(record.provenance)) == (made()[0].checksums, 1)


def test_a_state_that_does_not_say_its_images_goes_on(mine, tmp_path, monkeypatch):
    """So were they written before they said it."""
    longer = replace(mine, epochs=2)
    save = checkpoints.save_training

    def of_old(path, model, optimizer, noise, state):
        del state["data"]
        save(path, model, optimizer, noise, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_training", of_old)
        stopped(longer, tmp_path, made())
    assert len(runs.run(longer, tmp_path, "cpu", datasets=made()).provenance) == 2


class Call(BaseProcess):
    """Stands in for a process of a sweep, which takes seconds to start: does the same here and now."""

    def start(self):
        *given, pipe = self._args
        self._target(*pickle.loads(pickle.dumps(given)), pipe)

    def join(self, timeout=None):
        pass


@pytest.mark.parametrize("engine", ["sweep", "sweep together"])
def test_sweeps_take_images_of_ones_own(mine, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", Call)
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("the images were given"))
    (record,) = ENGINES[engine](mine, tmp_path)
    assert record.data == made()[0].checksums
    assert record.config == mine
    with pytest.raises(JointVAEError, match=r"\.json is of other images"):
        runs.sweep_together([mine], tmp_path, "cpu", ignore, made(seed=1))


def test_seeds_of_an_objective_of_ones_own_train_together_as_alone(mine, tmp_path):
    config = replace(mine, objective=Held(), seed=1)
    record = runs.sweep_together(runs.seeds(config, 0, 2), tmp_path / "together", "cpu", ignore, made())[1]
    alone = ENGINES["run"](config, tmp_path / "alone")
    assert record.curves["reconstruction"] == pytest.approx(alone.curves["reconstruction"], rel=1e-4)
    assert record.curves["C_z"] == alone.curves["C_z"]

"""A sweep on a cluster of Ray: the records of the local engine, also when a node dies, and in a folder behind a URL."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import yaml

from jointvae import __main__ as cli
from jointvae import cluster, data, results, runs, training
from jointvae.errors import JointVAEError

PATIENCE = 300  # seconds, on a machine that is busy with something else


@pytest.fixture
def tiny(monkeypatch, digits) -> training.Config:
    """One epoch of one step; a sweep sends these 32 images to its nodes."""
    few = replace(digits, images=digits.images[:32], labels=digits.labels[:32])
    monkeypatch.setattr(data, "load", lambda name, split, size=32: replace(few, split=split))
    return replace(training.recipe("digits"), epochs=1)


def of_the_training(record: results.Record) -> dict[str, object]:
    """All of a record but times and places."""
    return {**vars(record), "provenance": None, "seconds": None, "images_per_second": None}


def both() -> tuple[data.Dataset, data.Dataset]:
    """The training and the test set."""
    return data.load("digits", "train"), data.load("digits", "test")


def ignore(*news: object) -> None:
    """Nobody listens."""


# --- With or without Ray ----------------------------------------------------------------------------------------------

BAD = {
    "engine": "--engine nope",
    "GPUs, one machine": "--gpus-per-run 1",
    "URL, one machine": "--out memory://somewhere",
    "less than no GPU": "--engine ray --gpus-per-run -1",
    "no number of GPUs": "--engine ray --gpus-per-run nan",
    "jobs": "--engine ray --jobs 0",
    "no Ray": "--engine ray",
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence_and_changes_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "digits", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert ("pip install '.[cluster]'" in error) == (arguments == "--engine ray")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["nope://bucket/runs", "/dev/null/runs"])
def test_a_place_that_can_not_be_used_is_named(out):
    with pytest.raises(JointVAEError, match=f"^{out} can't be used .*: name a folder that all machines share"):
        cluster._open(out)


def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
    storage, folder = cluster._open(str(tmp_path))
    (tmp_path / "here.json").touch()
    cluster._check_shared(storage, f"{folder}/here.json", folder)
    with pytest.raises(JointVAEError, match="recorded on another machine"):
        cluster._check_shared(storage, f"{folder}/elsewhere.json", folder)


@pytest.fixture
def bucket(request) -> tuple[fsspec.AbstractFileSystem, str]:
    """An empty folder behind a URL, in memory."""
    storage, folder = fsspec.url_to_fs(f"memory://{request.node.name}")
    storage.makedirs(folder)
    return storage, folder


def test_at_a_url_the_record_comes_last_and_the_state_goes(tiny, bucket, monkeypatch):
    storage, folder = bucket
    sent = []
    put = storage.put_file
    monkeypatch.setattr(
        storage, "put_file", lambda here, there: sent.append(there.rpartition(".")[2]) or put(here, there)
    )
    longer = replace(tiny, epochs=3)
    record = cluster._run_by_url(longer, storage, folder, "cpu", ignore, both())
    # The state of an epoch goes when the next one reports, so that of the last is never sent.
    assert sent == ["training", "training", "safetensors", "json"]
    names = {path.rpartition("/")[2] for path in storage.ls(folder, detail=False)}
    assert names == {f"{record.name}.json", f"{record.name}.safetensors"}
    again = cluster._run_by_url(longer, storage, folder, "cpu", ignore, both())
    assert again == record
    assert len(sent) == 4


def test_at_a_url_an_interrupted_run_goes_on(tiny, bucket, tmp_path):
    longer = replace(tiny, epochs=3)

    def interrupt(progress):
        if progress.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster._run_by_url(longer, *bucket, "cpu", interrupt, both())
    epochs = []
    record = cluster._run_by_url(longer, *bucket, "cpu", lambda progress: epochs.append(progress.epoch), both())
    assert epochs == [3]
    assert len(record.provenance) == 2
    assert of_the_training(record) == of_the_training(runs.run(longer, tmp_path, "cpu"))


class DeniedError(Exception):
    """Storages have errors of their own, which are no OSError."""


@pytest.mark.parametrize("operation", ["exists", "put_file"])
def test_a_storage_that_fails_is_one_sentence_and_the_run_goes_on_later(tiny, bucket, monkeypatch, operation):
    storage, folder = bucket
    longer = replace(tiny, epochs=2)

    def deny(*paths, **options):
        raise DeniedError("403\nForbidden.")

    with monkeypatch.context() as patch:
        patch.setattr(storage, operation, deny)
        place = re.escape(storage.unstrip_protocol(folder))
        with pytest.raises(
            JointVAEError, match=rf"^The files of digits-\S+ can't be kept in {place} \(403 Forbidden\): "
        ):
            cluster._run_by_url(longer, storage, folder, "cpu", ignore, both())
    record = cluster._run_by_url(longer, storage, folder, "cpu", ignore, both())
    assert storage.exists(f"{folder}/{record.name}.safetensors")


def test_what_could_not_be_sent_is_sent_the_next_time(bucket, tmp_path, monkeypatch):
    storage, folder = bucket
    send = cluster._mirror(storage, folder, tmp_path, "run")
    (tmp_path / "run.training").write_bytes(b"state")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_file", lambda *_: (_ for _ in ()).throw(DeniedError))
        with pytest.raises(JointVAEError, match=r"can't be kept in .* \(DeniedError\)"):
            send()
    send()
    assert storage.cat_file(f"{folder}/run.training") == b"state"


def test_at_a_url_a_failed_run_leaves_its_record(tiny, bucket):
    storage, folder = bucket
    for _ in range(2):  # the second time the record is found; its place in the sentence is the URL
        with pytest.raises(
            training.NonFiniteLossError, match=rf"recorded in memory://{folder}/digits-.*\.json: delete"
        ):
            cluster._run_by_url(replace(tiny, learning_rate=1e9, epochs=9), storage, folder, "cpu", ignore, both())
    (path,) = storage.glob(f"{folder}/*.json")
    assert b'"failed"' in storage.cat_file(path)


# --- The page ---------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "book" / "cluster.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_ones_that_there_are():
    commands = re.findall(r"python -m jointvae ([^`\n]+)", PAGE)
    assert len(commands) > 5
    for command in commands:
        assert cli.parser().parse_args(re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", command).split()).recipe == "mnist"


def test_the_scripts_of_the_page_can_be_read(tmp_path):
    scripts = re.findall(r"^```bash\n(#!.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(scripts) == 2
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    (job,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    spec = yaml.safe_load(job.replace("{{", "{").replace("}}", "}"))["spec"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]


# --- With Ray ---------------------------------------------------------------------------------------------------------

try:
    import ray
    from ray.cluster_utils import Cluster
except ModuleNotFoundError:
    ray = None
needs_ray = pytest.mark.skipif(
    ray is None, reason="RAY IS NOT INSTALLED: `make test-cluster` installs it and runs this"
)


@pytest.fixture(scope="module")
def head():
    """A cluster whose first node has one core."""
    patient = {"worker_register_timeout_seconds": PATIENCE}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "_system_config": patient},
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def two_nodes(head, monkeypatch):
    """That cluster with a second node of one core; sweeps find it."""
    if len(head.list_all_nodes()) < 2:
        head.add_node(num_cpus=1, num_gpus=0)
        head.wait_for_nodes(PATIENCE)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    return head


@pytest.mark.cluster
@needs_ray
class TestCluster:
    def test_the_records_are_those_of_the_local_engine_seed_by_seed(self, two_nodes, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # where no node was started
        configs = runs.seeds(replace(training.recipe("digits"), epochs=1), 3, 2)
        said = []
        swept = cluster.sweep(configs, "ray", "auto", None, lambda name, news: said.append((name, news)))
        local = runs.sweep(configs, tmp_path / "local", "cpu", 2, ignore)
        assert [record.config.seed for record in swept] == [3, 4]
        assert list(map(of_the_training, swept)) == list(map(of_the_training, local))
        assert [record.checkpoint.sha256 for record in swept] == [record.checkpoint.sha256 for record in local]
        assert results.records(tmp_path / "ray") == swept
        assert said[0] == ("ray", "2 nodes, 2 cores, 0 GPUs")
        assert {name for name, news in said if news == "done"} == {config.run_name for config in configs}
        assert {name for name, news in said if isinstance(news, training.Progress)} <= {c.run_name for c in configs}

    def test_when_a_node_dies_its_run_goes_on_elsewhere(self, two_nodes, tiny, tmp_path):
        configs = runs.seeds(replace(tiny, epochs=80), 0, 2)
        (second,) = two_nodes.worker_nodes
        held = []

        def kill_the_second_node(name, news):
            if name == "ray":  # the sweep begins; hold the core of the first node, so that the second gets the run
                head = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    ray.get_runtime_context().get_node_id(), soft=False
                )
                core = ray.remote(lambda: time.sleep(PATIENCE)).options(scheduling_strategy=head, max_retries=0)
                held.append(core.remote())
            elif held and list(tmp_path.glob("*.training")):
                two_nodes.remove_node(second, allow_graceful=False)  # kill -9
                ray.cancel(held.pop(), force=True)

        swept = cluster.sweep(configs, str(tmp_path), "cpu", None, kill_the_second_node)
        assert held == []
        assert [len(record.provenance) for record in swept] == [2, 1]
        assert of_the_training(swept[0]) == of_the_training(runs.run(configs[0], tmp_path / "alone", "cpu"))
        assert list(tmp_path.glob("*.training")) == []

    def test_a_folder_behind_a_url_gathers_the_results_and_the_states(self, two_nodes, tiny, tmp_path):
        config = replace(tiny, epochs=80)
        out = f"dir://runs::file://{tmp_path}"  # to fsspec no local folder, but all processes reach it
        folder = tmp_path / "runs"

        def interrupt(name, news):
            if list(folder.glob("*.training")):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cluster.sweep([config], out, "cpu", None, interrupt)
        assert [path.suffix for path in folder.iterdir()] == [".training"]
        (swept,) = cluster.sweep([config], out, "cpu", None, ignore)
        assert results.records(folder) == [swept]
        assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
        assert len(swept.provenance) == 2
        assert of_the_training(swept) == of_the_training(runs.run(config, tmp_path / "alone", "cpu"))

    def test_a_failed_run_is_recorded_and_the_others_are_kept(self, two_nodes, tiny, tmp_path):
        configs = [replace(tiny, learning_rate=1e9, epochs=9), tiny]
        with pytest.raises(training.NonFiniteLossError, match="lower the learning rate"):
            cluster.sweep(configs, str(tmp_path), "cpu", 1, ignore)
        assert {record.status for record in results.records(tmp_path)} == {"failed", "finished"}

    def test_ctrl_c_is_quiet_and_frees_the_cluster(self, two_nodes, tmp_path):
        command = [sys.executable, "-m", "jointvae", "sweep", "digits", "--epochs", "500", "--seeds", "2"]
        process = subprocess.Popen(
            [*command, "--engine", "ray", "--out", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            # A shell starts its background jobs with Ctrl-C ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            wait_until(lambda: process.poll() is not None or len(list(tmp_path.glob("*.training"))) == 2)
            os.killpg(process.pid, signal.SIGINT)
            _, error = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode == 130
        assert error.strip() == "Interrupted; the same command goes on from the last finished epoch."
        ray.init(logging_level="error")
        try:
            wait_until(lambda: ray.available_resources().get("CPU") == 2)
        finally:
            ray.shutdown()
        before = states(tmp_path)
        time.sleep(2)
        assert states(tmp_path) == before

    def test_a_cluster_that_is_not_there_gets_one_sentence(self, monkeypatch, tmp_path):
        monkeypatch.setenv("RAY_ADDRESS", "nowhere")
        with pytest.raises(JointVAEError, match=r"Ray can't reach its cluster .*: check RAY_ADDRESS"):
            cluster.sweep([training.recipe("digits")], str(tmp_path), "cpu", None, ignore)


def states(folder: Path) -> dict[str, int]:
    """When each state was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.training")}


def wait_until(true) -> None:
    """Until something is true, or patience ends."""
    for _ in itertools.takewhile(lambda start: time.monotonic() - start < PATIENCE, itertools.repeat(time.monotonic())):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("it did not come true")

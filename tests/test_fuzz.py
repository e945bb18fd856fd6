"""Hostile input: whatever a file or an option holds is taken, or refused in one sentence, in bounded time and memory.

Each test starts from something valid and spoils it. `make test` tries a thousand cases, the same ones every time;
`make fuzz` tries FUZZ new ones.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as tensors_to_bytes
from test_checkpoints import authors_layers

from jointvae import __main__ as cli
from jointvae import book, checkpoints, claims, data, films, own, results, runs, sweeps, training
from jointvae.errors import JointVAEError
from jointvae.files import sha256
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE

ROOT = Path(__file__).parent.parent
CASES = int(os.environ.get("FUZZ", "1000"))
TESTS = 14  # of this module that try cases; the last one counts them
MEMORY = 1 << 30  # bytes that the whole module may take on top of what the process has when it starts
SECONDS = 5  # of processor time that one case may take
LONGEST_SENTENCE = 1000  # characters

fuzz = settings(
    max_examples=-(-CASES // TESTS),
    derandomize="FUZZ" not in os.environ,
    deadline=None,  # see in_time
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """A file that promises terabytes must be refused before anybody asks the system for them."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder for the file under test, overwritten by every case."""
    return tmp_path_factory.mktemp("fuzz")


def taken_or_refused(act: Callable[[], Any], *documented: type[Exception]) -> Any:
    """What `act` returns, or None if it refuses in one short sentence; every other exception is a bug."""
    try:
        with in_time():
            return act()
    except (JointVAEError, *documented) as error:
        check_sentence(str(error))
        return None


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Processor time, since a busy machine is no fault of the code; a refusal must not take long either."""
    started = time.process_time()
    try:
        yield
    finally:
        assert time.process_time() - started < SECONDS


def check_sentence(sentence: str) -> None:
    assert 0 < len(sentence) <= LONGEST_SENTENCE
    assert sentence.isprintable()


def command(*words: str) -> int:
    """The exit status of the command line, which must be 0 or 2 and, for 2, come with one sentence."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), in_time():
        try:
            status = cli.main(list(words))
        except SystemExit as leave:  # argparse, of what is no number
            status = int(leave.code)
    assert status in (0, 2)
    if status == 2:
        check_sentence(err.getvalue().removesuffix("\n"))
    return status


# --- What spoils a file ----------------------------------------------------------------------------------------------

MORSELS = [
    b"\x00" * 8, b"\xff" * 8, b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b"}", b"[" * 20_000, b'{"a":' * 20_000,
    b"9" * 5000, b"NaN", b"-Infinity", b"1e999", b"\xc3\xa9",
]  # fmt: skip
ODD = [
    None, True, 0, -1, 1, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "", "0",
    "[/red]", "a\nb", "\ud800", "\x1b[2J", "../up", "x" * 5000, [], [[]], [0], [0.5, None], {}, {"": 0}, {"a\nb": 1},
    reduce(lambda inner, _: [inner], range(40), 0),
]  # fmt: skip


WAYS = ("flip", "cut", "drop", "again", "insert", "overwrite")
Edit = tuple[str, int, int, int, bytes]  # one of these, where, how many bytes, from where, and what is put there


def edits(size: int, morsels: list[bytes] = MORSELS) -> st.SearchStrategy[list[Edit]]:
    """What to do to a file of that size. Hypothesis keeps all that was drawn, so large files are spoilt afterwards."""
    place = st.integers(0, size)
    edit = st.tuples(st.sampled_from(WAYS), place, st.integers(1, 64), place, st.sampled_from(morsels))
    return st.lists(edit, min_size=1, max_size=3)


def mangle(content: bytes, done: list[Edit]) -> bytes:
    """The bytes with some of them flipped, cut off, dropped, said twice or mixed with others."""
    out = bytearray(content)
    for how, at, length, start, morsel in done:
        if how == "flip":
            out[at : at + 1] = bytes(byte ^ length for byte in out[at : at + 1])
        elif how == "cut":
            del out[at:]
        elif how == "drop":
            del out[at : at + length]
        elif how == "again":
            out[at:at] = out[start : start + length]
        else:
            out[at : at + (len(morsel) if how == "overwrite" else 0)] = morsel
    return bytes(out)


def mangled(content: bytes, morsels: list[bytes] = MORSELS) -> st.SearchStrategy[bytes]:
    """A small file, spoilt."""
    return edits(len(content), morsels).map(partial(mangle, content))


def spots(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside some decoded JSON."""
    if at:
        yield at
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from spots(child, (*at, key))


@st.composite
def twisted(draw: Any, tree: Any, odd: list[Any] = ODD) -> Any:
    """Decoded JSON with some values of another kind, gone, unheard of, or from another place in it."""
    tree = deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        ways = list(spots(tree))
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        parent, value = reduce(getitem, way, tree), deepcopy(draw(st.sampled_from(odd)))
        how = draw(st.sampled_from(("change", "change", "remove", "add", "elsewhere")))
        if how == "remove":
            del parent[last]
        elif how == "add":
            parent.append(value) if isinstance(parent, list) else parent.update(unheard_of=value)
        elif how == "elsewhere":
            parent[last] = deepcopy(reduce(getitem, draw(st.sampled_from(ways)), tree))
        else:
            parent[last] = value
    return tree


def spoilt_json(tree: Any) -> st.SearchStrategy[bytes]:
    """The tree as a file, spoilt as text or as a tree."""
    text = json.dumps(tree)
    return st.one_of(mangled(text.encode()), twisted(tree).map(lambda odd: json.dumps(odd).encode()))


# --- Options ---------------------------------------------------------------------------------------------------------

NUMBERS = [
    "0", "-1", "1", "2", "7", "0.5", "nan", "inf", "-inf", "1e308", "1e-320", "-0.0", "2147483648", "9" * 25,
    "9" * 5000, "", "x", "٣", "1_0", "\ud800", "a\nb",
]  # fmt: skip
OPTIONS = [
    "--epochs", "--batch-size", "--learning-rate", "--tau", "--gamma", "--c-z", "--c-c", "--z", "--categories",
    "--image-size", "--precision", "--dataset", "--device", "--seed", "--seeds", "--first-seed", "--jobs",
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped_before_training() -> Iterator[list[training.Config]]:
    """The configs that would have been trained."""
    asked: list[training.Config] = []

    def stop(configs: Any, *rest: Any, **options: Any) -> None:
        asked.extend([configs] if isinstance(configs, training.Config) else list(configs)[:2])
        raise JointVAEError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "run", stop)
        patch.setattr(runs, "sweep", stop)
        yield asked


def words() -> st.SearchStrategy[list[str]]:
    values = st.lists(st.sampled_from([*NUMBERS, "mnist", "digits", "cpu"]), min_size=1, max_size=2)
    changes = st.lists(st.tuples(st.sampled_from(OPTIONS), values), max_size=4)
    return changes.map(lambda found: [word for option, given in found for word in (option, *given)])


@fuzz
@given(command_name=st.sampled_from(("train", "sweep")), recipe=st.sampled_from(("digits", "mnist", "x")), rest=words())
def test_options_of_training_and_of_sweeps(stopped_before_training, command_name, recipe, rest):
    stopped_before_training.clear()
    assert command(command_name, recipe, *rest) == 2
    for config in stopped_before_training:  # a config that is accepted can be recorded
        content = json.loads(json.dumps(asdict(config), allow_nan=False))
        assert results.parse(content, training.Config, Path(config.run_name)) == config


@fuzz
@given(found=twisted(json.loads(json.dumps(asdict(training.recipe("mnist"))))))
def test_configs(found):
    config = taken_or_refused(lambda: results.parse(found, training.Config, Path("config")))
    if config:
        assert config.run_name.isprintable()
        JointVAE(config.latents, config.image)


# --- Records, films, claims ------------------------------------------------------------------------------------------


CLAIMS = [
    {"id": "a", "claim": "c", "source": "s", "criterion": "k", "recipe": "mnist", "metric": "accuracy"},
    {"id": "b", "claim": "c", "source": "s", "criterion": "k", "recipe": "mnist", "metric": ["nmi", "kl_z"],
     "statistic": "rank_correlation", "min_runs": 2},
    {"id": "d", "claim": "c", "source": "s", "criterion": "k", "reference": "authors-mnist", "metric": "majority",
     "statistic": "max", "paper": 0.5, "unit": "nats", "reproduced": {"at_least": 0.1}, "partly": {"at_most": 1}},
    {"id": "e", "claim": "c", "source": "s", "criterion": "k", "recipe": "mnist", "metric": "seven_nine_overlap"},
    {"id": "f", "claim": "c", "source": "s", "criterion": "k", "recipe": "mnist", "metric": "classes_with_styles"},
]  # fmt: skip


@pytest.fixture(scope="module")
def store(place) -> Path:
    """A results folder with one run, one reference and the ledger of the book."""
    folder = place / "results"
    for part in ("runs", "reference"):
        (folder / part).mkdir(parents=True)
    (folder / "claims.yml").write_text(json.dumps(CLAIMS))
    return folder


RECORD = json.loads((results.RESULTS / "runs" / "mnist-seed0.json").read_text())
RECORD["curves"] = {name: values[:2] for name, values in RECORD["curves"].items()}
RECORD["config"]["epochs"] = 2
REFERENCE = json.loads((results.RESULTS / "reference" / "authors-mnist.json").read_text())


def looked_at(folder: Path) -> None:
    """All that the package does with a results folder, apart from drawing."""
    status = command("claims", "--results", str(folder))
    found = taken_or_refused(lambda: claims.facts(folder))
    assert (status == 0) == (found is not None)
    mine, complaints = book.your_records(folder / "runs")
    assert len(mine) + len(complaints) == len(list((folder / "runs").glob("*.json")))
    book.provenance_table(mine)
    book.runs_table([(record.name, record.test) for record in mine])
    for complaint in complaints:
        check_sentence(complaint)


@fuzz
@given(content=spoilt_json(RECORD))
def test_records(store, content):
    (store / "runs" / "r.json").write_bytes(content)
    looked_at(store)
    (store / "runs" / "r.json").unlink()


NAMED = RECORD | {"name": results.parse(RECORD, results.Record, Path("record")).config.run_name}


@fuzz
@given(content=spoilt_json(NAMED))
def test_what_is_made_of_a_record(place, content):
    path, out = place / "named.json", place / "made"
    path.write_bytes(content)
    command("collect", str(path), "--results", str(out))
    assert command("partition", str(path), "--results", str(out)) == 2  # there are no weights beside it
    assert command("film", str(path), "--out", str(out / "films")) == 2  # nor pictures
    shutil.rmtree(out, ignore_errors=True)


@fuzz
@given(content=spoilt_json(REFERENCE))
def test_references(store, content):
    (store / "reference" / "r.json").write_bytes(content)
    looked_at(store)
    (store / "reference" / "r.json").unlink()


FILM = json.loads((results.RESULTS / "films" / "mnist-seed2.json").read_text())


@fuzz
@given(content=spoilt_json(FILM))
def test_films(place, content):
    folder = place / "films"
    if not folder.exists():
        folder.mkdir()
        for picture in (results.RESULTS / "films").glob("*.webp"):
            (folder / picture.name).symlink_to(picture)
    (folder / "mnist-seed2.json").write_bytes(content)
    found = taken_or_refused(lambda: films.read("mnist-seed2", folder))
    if found:
        taken_or_refused(lambda: films.player_data(*found))


YAML_MORSELS = [
    *MORSELS, b"!!timestamp x", b"2001-99-99", b"!!bool x", b"!!int x", b"!!float [1]", b"? [a]\n: b\n", b"&a [*a]",
    b"!!python/object/apply:os.system ['touch sprung']", b"!!binary x", b"0o9", b"1:99:99", b"\t", b"- ",
    b"&a [*b, *b]", b"<<: *a\n", b"%YAML 9.9\n",
]  # fmt: skip
LEDGER = yaml.safe_dump(CLAIMS).encode()
METRICS = [*ODD, *claims.METRICS, *claims.STATISTICS, "rank_correlation", "fashion", "digits"]


@fuzz
@given(
    content=st.one_of(
        mangled(LEDGER, YAML_MORSELS), twisted(CLAIMS, METRICS).map(lambda found: json.dumps(found).encode())
    )
)
def test_ledgers(place, content):
    folder = place / "ledger"
    if not folder.exists():
        for name, whole in {"runs/r.json": RECORD, "reference/r.json": REFERENCE}.items():
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text(json.dumps(whole))
    (folder / "claims.yml").write_bytes(content)
    looked_at(folder)


SWEEP = {
    "question": "q",
    "recipe": "mnist-short",
    "seeds": [0, 1],
    "settings": {
        "recipe": {},
        "beta": {"objective": {"name": "beta_vae", "beta": 2.0}},
        "shared": {
            "objective": {
                "name": "annealed_capacity",
                "gamma": 30.0,
                "C": {"start": 0.0, "end": 7.0, "steps": 80, "ceiling": None},
            }
        },
        "wide": {"latents": {"z": 4, "c": [3, 2]}, "epochs": 1, "objective": {"C_c": {"ceiling": 1.8}}},
    },
}


@fuzz
@given(
    content=st.one_of(
        mangled(yaml.safe_dump(SWEEP).encode(), YAML_MORSELS),
        twisted(SWEEP).map(lambda found: json.dumps(found).encode()),
    )
)
def test_sweep_files(place, content):
    path = place / "sweep.yml"
    path.write_bytes(content)
    found = taken_or_refused(lambda: sweeps.read(path))
    if found:
        for config in found.configs():
            assert config.run_name.isprintable()
        assert found.records(place / "none").keys() == found.settings.keys()


# --- Data ------------------------------------------------------------------------------------------------------------

SIZES = {"train": 3, "test": 2}


@pytest.fixture(scope="module")
def published(place) -> Iterator[dict[str, bytes]]:
    """A small MNIST whose checksums count as the published ones: its files."""
    raw = place / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = {}
    for split, n in SIZES.items():
        for file, shape in zip(data.FILES[split], ((n, 28, 28), (n,)), strict=True):
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            files[file] = header + bytes(int(np.prod(shape)))
            (raw / file).write_bytes(files[file])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SHA256, "mnist", {file: sha256(raw / file) for file in files})
        patch.setenv("JOINTVAE_DATA", str(place / "data"))
        yield files


@fuzz
@given(choice=st.data())
def test_idx_files(published, place, choice):
    file = choice.draw(st.sampled_from(sorted(published)))
    content = choice.draw(mangled(published[file]))
    path = place / "data" / "MNIST" / "raw" / file
    path.write_bytes(content)
    split = "train" if file.startswith("train") else "test"
    found = taken_or_refused(lambda: data.load("mnist", split))
    assert (found is not None) == (content == published[file])
    path.write_bytes(published[file])


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A picture that says it is that large, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


ARRAY = npy(np.zeros((12, 8, 8), np.uint8))
SHAPES = [
    "(12, 8, 8)",
    "(10000000000000, 8, 8)",
    "(12, 8)",
    "(0, 8, 8)",
    "(12, 0, 0)",
    "(-1, 8, 8)",
    "()",
    "(12, 1, 1)",
]
HEADERS = [ARRAY.replace(b"(12, 8, 8), ", f"({shape.strip('()')}), ".encode()) for shape in SHAPES]
PICTURE = png(Image.new("L", (8, 8)))
PICTURES = [PICTURE, png_of(8, 8), png_of(2_000, 2_000), png_of(60_000, 60_000), png_of(2**31 - 1, 2**31 - 1)]


@fuzz
@given(
    suffix=st.sampled_from((".npy", ".png", ".gif")),
    content=st.one_of(st.sampled_from([*HEADERS, *PICTURES]), mangled(ARRAY), mangled(PICTURE), mangled(PICTURES[1])),
    size=st.sampled_from((32, 64, 0, -1, 2**40)),
)
def test_images_of_ones_own(place, suffix, content, size):
    folder = place / "images"
    folder.mkdir(exist_ok=True)
    if suffix == ".npy":
        path = folder / "a.npy"
        path.write_bytes(content)
        source = path
    else:
        if not (folder / "00.png").exists():
            for n in range(11):
                (folder / f"{n:02}.png").write_bytes(PICTURE)
        path = folder / f"11{suffix}"
        path.write_bytes(content)
        source = folder
    taken_or_refused(lambda: own.datasets("mine", source, image_size=size))
    path.unlink()


# --- Checkpoints -----------------------------------------------------------------------------------------------------

SPEC = LatentSpec(2, (3,))


def model_file() -> tuple[bytes, dict[str, torch.Tensor], dict[str, Any]]:
    """A file of weights, the weights and the layout that it names."""
    tensors = {name: tensor.contiguous() for name, tensor in JointVAE(SPEC).state_dict().items()}
    layout = {"latents": asdict(SPEC), "image": [1, 32]}
    return tensors_to_bytes(tensors, {"jointvae": json.dumps(layout)}), tensors, layout


MODEL, WEIGHTS, LAYOUT = model_file()
HEADER = json.loads(MODEL[8 : 8 + int.from_bytes(MODEL[:8], "little")])


def with_header(header: Any) -> bytes:
    """The weights under another header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + MODEL[8 + int.from_bytes(MODEL[:8], "little") :]


def odd_tensors(choice: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with one of another shape, kind or name, or gone."""
    tensors = dict(tensors)
    name = choice.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    how = choice.draw(st.sampled_from(("kind", "shape", "name", "gone", "nan", "scalar")))
    if how == "kind":
        kinds = (torch.int64, torch.bool, torch.float64, torch.float16, torch.complex64, torch.uint8)
        tensors[name] = tensor.to(choice.draw(st.sampled_from(kinds)))
    elif how == "shape":
        tensors[name] = tensor.new_zeros(choice.draw(st.lists(st.integers(0, 4), max_size=4)))
    elif how == "name":
        tensors[
            choice.draw(st.sampled_from(("", "optimizer.x.exp_avg", "optimizer.99.step", "optimizer.0", name + "s")))
        ] = tensor
    elif how == "nan":
        tensors[name] = torch.full_like(tensor.float(), float("nan"))
    elif how == "scalar":
        tensors[name] = torch.zeros(())
    return tensors


@fuzz
@given(choice=st.data())
def test_checkpoints(place, choice):
    path = place / "m.safetensors"
    how = choice.draw(st.sampled_from(("bytes", "header", "layout", "tensors")))
    if how == "bytes":
        content = mangle(MODEL, choice.draw(edits(len(MODEL))))
    elif how == "header":
        content = with_header(choice.draw(twisted(HEADER)))
    elif how == "layout":
        layout = choice.draw(twisted(LAYOUT, [*ODD, 10**9, 10**6, [2] * 10**5]))
        content = with_header(HEADER | {"__metadata__": {"jointvae": json.dumps(layout)}})
    else:
        content = tensors_to_bytes(odd_tensors(choice, WEIGHTS), {"jointvae": json.dumps(LAYOUT)})
    path.write_bytes(content)
    model = taken_or_refused(lambda: checkpoints.load_model(path))
    if model:
        assert model.encode(torch.zeros(1, *[model.image.channels, *[model.image.size] * 2])).mu.shape == (
            1,
            model.spec.z,
        )


AUTHORS = dict(authors_layers(SPEC, ImageShape()).state_dict())


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


LEGACY = {zipped: saved(AUTHORS, _use_new_zipfile_serialization=zipped) for zipped in (True, False)}
HUGE = torch.zeros(1).expand(256, 2**40)  # a shape that takes no room in a file, and terabytes when it is copied
ODD_CONTENT = [
    *ODD,
    {1: 2},
    {"fc_mean.weight": HUGE},
    AUTHORS | {"fc_mean.weight": HUGE},
    AUTHORS | {1: torch.zeros(1)},
]


@fuzz
@given(choice=st.data())
def test_state_dicts_of_others(place, choice):
    path, sprung = place / "model.pt", place / "sprung"
    zipped = choice.draw(st.booleans())
    how = choice.draw(st.sampled_from(("bytes", "bytes", "content", "tensors", "trap", "pickle")))
    if how == "bytes":
        content = mangle(LEGACY[zipped], choice.draw(edits(len(LEGACY[zipped]))))
    elif how == "content":
        content = saved(choice.draw(st.sampled_from(ODD_CONTENT)), _use_new_zipfile_serialization=zipped)
    elif how == "tensors":
        content = saved(odd_tensors(choice, AUTHORS), _use_new_zipfile_serialization=zipped)
    elif how == "trap":
        name = choice.draw(st.sampled_from(sorted(AUTHORS)))
        content = saved(AUTHORS | {name: Trap(sprung)}, _use_new_zipfile_serialization=zipped)
    else:
        content = choice.draw(mangled(pickle.dumps({"fc_mean.weight": Trap(sprung)})))
    path.write_bytes(content)
    taken_or_refused(lambda: checkpoints.load_authors(path))
    assert not sprung.exists()


SMALL = replace(training.recipe("digits"), latents=SPEC, epochs=3)


@pytest.fixture(scope="module")
def state(place, digits) -> tuple[dict[str, torch.Tensor], dict[str, Any], bytes]:
    """What an unfinished run leaves: tensors, the rest, and the file."""
    trainer = training.Trainer(SMALL)
    trainer.train_epoch(digits)
    trainer.save(place / "whole.training")
    return *checkpoints._unpack(place / "whole.training"), (place / "whole.training").read_bytes()


@fuzz
@given(choice=st.data())
def test_states_of_unfinished_runs(state, place, choice):
    tensors, rest, whole = state
    how = choice.draw(st.sampled_from(("bytes", "rest", "tensors")))
    if how == "bytes":
        content = mangle(whole, choice.draw(edits(len(whole))))
    elif how == "rest":
        content = tensors_to_bytes(tensors, {"jointvae": json.dumps(choice.draw(twisted(rest)))})
    else:
        content = tensors_to_bytes(odd_tensors(choice, tensors), {"jointvae": json.dumps(rest)})
    path = place / "r.training"
    path.write_bytes(content)
    trainer = training.Trainer(SMALL)
    if taken_or_refused(lambda: trainer.resume(path) or True):
        assert 0 <= trainer.epoch <= SMALL.epochs
        assert {len(curve) for curve in trainer.curves.values()} <= {trainer.epoch}
        if trainer.epoch < SMALL.epochs:
            trainer.append_means([0.0] * 4)  # what the next epoch does first with the state


# --- Parameters of the notebooks --------------------------------------------------------------------------------------

CELL = b'TIER = "smoke"\nSEED: int = 0\n'


@fuzz
@given(
    tier=st.one_of(st.sampled_from([*ODD, *book.TIERS]), st.text()),
    seed=st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), st.text()),
    cell=st.one_of(mangled(CELL), st.just(CELL)),
    tags=st.sampled_from((["parameters"], [], ["parameters", "x"])),
)
def test_parameters_of_notebooks(tier, seed, cell, tags):
    if taken_or_refused(lambda: book.check_parameters(tier, seed) or True):
        assert tier in book.TIERS
        assert 0 <= seed <= training.LARGEST_SEED
    sys.path.insert(0, str(ROOT / "book" / "_tools"))
    import execute

    source = cell.decode("utf-8", errors="replace")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, metadata={"tags": tags})])
    taken_or_refused(lambda: execute.check_parameters(notebook, {"TIER": tier, "SEED": seed}), execute.ChapterError)


def test_what_is_not_spoilt_is_taken(store, place, state, published):
    """The control: a test above would be blind if what it starts from were refused as well."""
    assert command("claims", "--results", str(store)) == 0
    for name, content in {"runs/r.json": RECORD, "reference/r.json": REFERENCE}.items():
        (store / name).write_text(json.dumps(content))
    looked_at(store)
    assert command("claims", "--results", str(store)) == 0
    for name in ("runs/r.json", "reference/r.json"):
        (store / name).unlink()
    (place / "m.safetensors").write_bytes(with_header(HEADER))
    assert checkpoints.load_model(place / "m.safetensors").spec == SPEC
    for content in LEGACY.values():
        (place / "model.pt").write_bytes(content)
        assert checkpoints.load_authors(place / "model.pt").spec == SPEC
    trainer = training.Trainer(SMALL)
    trainer.resume(place / "whole.training")
    assert trainer.epoch == 1
    (place / "a.npy").write_bytes(ARRAY)
    assert len(own.datasets("mine", place / "a.npy")[0]) > 0
    assert len(data.load("mnist", "train")) == SIZES["train"]
    assert films.read("mnist-seed2")[0].name == "mnist-seed2"
    book.check_parameters("smoke", 0)


def test_there_are_as_many_cases_as_promised():
    tried = [
        test._hypothesis_internal_use_settings.max_examples
        for name, test in globals().items()
        if name.startswith("test_") and hasattr(test, "_hypothesis_internal_use_settings")
    ]
    assert len(tried) == TESTS
    assert sum(tried) >= CASES

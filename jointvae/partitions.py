"""Which category each test image falls into, for every recorded run: so runs can be compared without their weights.

A file per data set holds the partitions of its test set, in the order of the images; a character stands for a category.
"""

import json
import string
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jointvae import data, results, runs
from jointvae.errors import JointVAEError
from jointvae.evaluation import encode
from jointvae.files import alone, write_atomic
from jointvae.results import RESULTS, Record

FOLDER = RESULTS / "partitions"
CHARACTERS = string.digits + string.ascii_letters


@dataclass(frozen=True)
class Partitions:
    """The partitions of one data set's test images, by the name of the run.

    Raises:
        JointVAEError: if two are not of the same images, or one has a character that stands for no category.
    """

    dataset: str
    runs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({len(characters) for characters in self.runs.values()}) > 1:
            raise JointVAEError("Partitions are of the same images.")
        if not set().union(*self.runs.values()) <= set(CHARACTERS):
            raise JointVAEError("A category is a digit or a letter.")

    def categories(self, name: str) -> Int[np.ndarray, " n"]:
        """The category of every test image in the run of that name.

        >>> Partitions("digits", {"digits-seed0": "0120"}).categories("digits-seed0")
        array([0, 1, 2, 0])
        """
        return np.array([CHARACTERS.index(character) for character in self.runs[name]])


def read(dataset: str, folder: Path = FOLDER) -> Partitions:
    """The partitions that are kept of a data set; without a file there are none.

    Raises:
        JointVAEError: if the file is no such file.
    """
    path = _path(dataset, folder)
    if not path.exists():
        return Partitions(dataset)
    found: Partitions = results.parse(results.read_json(path), Partitions, path)
    if found.dataset != dataset:
        raise JointVAEError(f"{path} calls itself partitions of '{found.dataset}'.")
    return found


def _path(dataset: str, folder: Path) -> Path:
    return folder / f"{dataset}.json"


def add(records: Iterable[Path], folder: Path = FOLDER) -> list[str]:
    """Keep the partitions of runs whose weights lie beside their records; returns the names of those that are new.

    Raises:
        JointVAEError: if a run has no weights, no c or too many categories, or another partition is kept; then nothing
            is changed.
    """
    made: list[tuple[str, str, str]] = []  # data set, run, partition
    for path in records:
        record: Record = results.read(path)
        results.check_named(record, path)
        read(record.config.dataset, folder)  # a damaged file says so before the work, not after it
        made.append((record.config.dataset, record.name, _partition(record, path.parent)))
    with alone(folder / ".lock", wait=True, refusal=""):  # another process may add its own meanwhile
        return _merge(made, folder)


def _merge(made: list[tuple[str, str, str]], folder: Path) -> list[str]:
    """Add partitions to the files, or nothing if one of them disagrees with what is kept."""
    kept: dict[str, dict[str, str]] = {}
    new: list[str] = []
    changed: set[str] = set()
    for dataset, name, partition in made:
        of_data = kept.setdefault(dataset, dict(read(dataset, folder).runs))
        if of_data.get(name, partition) != partition:
            raise JointVAEError(f"Another partition of {name} is kept in {folder}: nothing was changed.")
        if name not in of_data:
            new.append(name)
            changed.add(dataset)
        of_data[name] = partition
    for dataset in changed:  # a file that stays as it is keeps its date, or `make` would run every page again
        of_data = kept[dataset]
        content = json.dumps(asdict(Partitions(dataset, dict(sorted(of_data.items())))), indent=1) + "\n"
        write_atomic(_path(dataset, folder), content.encode())
    return new


def _partition(record: Record, folder: Path) -> str:
    if record.test is None or record.test.unit is None:
        raise JointVAEError(f"{record.name} has no partition: it has failed, or has no discrete unit.")
    unit = record.test.unit
    if record.config.latents.c[unit] > len(CHARACTERS):
        raise JointVAEError(f"{record.name} has more than {len(CHARACTERS)} categories.")
    model = runs.load(record, folder)
    images = data.load(record.config.dataset, "test", record.config.image.size)
    categories = encode(model, images).logits[unit].argmax(-1).tolist()
    return "".join(CHARACTERS[category] for category in categories)


def check(partitions: Partitions, records: Iterable[Record]) -> None:
    """Every partition is that of a recorded run: its categories are as full as the record says.

    Raises:
        JointVAEError: with the first that is not.
    """
    usage = {record.name: record.test.usage for record in records if record.test is not None}
    for name in partitions.runs:
        categories, expected = partitions.categories(name), usage.get(name)
        if expected is None:
            raise JointVAEError(f"The partition of {name} has no record beside it: `jointvae collect` its record.")
        if not np.array_equal(np.bincount(categories, minlength=len(expected)) / len(categories), np.array(expected)):
            raise JointVAEError(
                f"The partition of {name} does not go with a record: make it again with `jointvae partition`."
            )

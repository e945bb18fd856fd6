"""Sweep files: one question, the settings of a recipe that answer it, and the seeds that each of them is trained with.

A sweep file is YAML with four fields: `question`, `recipe`, `seeds` (a list), and `settings`, which gives every setting
a name and its changes to the recipe, nested as in a run record. `{}` is the recipe as it is. An objective of another
kind is written out whole. Sweeps that ask for the same run share its record.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from jointvae import results, training
from jointvae.data import DATASETS
from jointvae.errors import JointVAEError
from jointvae.files import read_yaml
from jointvae.latents import LatentSpec
from jointvae.results import RESULTS, Record
from jointvae.training import Config

FILES = (".yml", ".yaml")  # how the name of a sweep file ends


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Sweep:
    """A question, and the runs that answer it.

    Raises:
        ValueError: if there is no setting or no seed, two of them are the same, or a change makes no sense.
    """

    question: str
    recipe: str
    seeds: list[StrictInt]
    settings: dict[str, dict[str, Any]]  #: a setting's name and its changes to the recipe

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be different numbers, at least one")
        if not 0 <= min(self.seeds) <= max(self.seeds) <= training.LARGEST_SEED:
            raise ValueError(f"every seed must be from 0 to {training.LARGEST_SEED:,}")
        if not self.settings:
            raise ValueError("there is no setting")
        names: dict[str, str] = {}  # of runs
        for setting in self.settings:
            name = self.config(setting, self.seeds[0]).run_name
            if name in names:
                raise ValueError(f"'{names[name]}' and '{setting}' are the same setting")
            names[name] = setting

    def config(self, setting: str, seed: int) -> Config:
        """The config of one run.

        Raises:
            ValueError: if there is no such setting, or its changes make no sense.
        """
        if setting not in self.settings:
            raise ValueError(f"there is no setting '{setting}', but {', '.join(self.settings)}")
        changes = self.settings[setting]
        if "seed" in changes:
            raise ValueError(f"setting '{setting}': its seeds stand in `seeds`, for all settings")
        if changes.get("dataset", "mnist") not in DATASETS:
            raise ValueError(
                f"setting '{setting}': there is no data set '{changes['dataset']}', but {', '.join(DATASETS)}"
            )
        try:
            recipe = training.recipe(self.recipe)
            if isinstance(latents := changes.get("latents"), dict):
                spec = results.validate(_changed(training.as_fields(recipe)["latents"], latents), LatentSpec)
                recipe = training.with_latents(recipe, spec)  # a ceiling of C_c in the file comes after it
            config: Config = results.validate(_changed(training.as_fields(recipe), changes), Config)
            return replace(config, seed=seed)
        except (JointVAEError, ValueError) as error:
            raise ValueError(f"setting '{setting}': {error}".rstrip(".")) from None

    def configs(self) -> list[Config]:
        """All runs: every setting with the first seed, then with the second, so that they can be compared early."""
        return [self.config(setting, seed) for seed in self.seeds for setting in self.settings]

    def records(self, folder: Path = RESULTS / "runs") -> dict[str, list[Record]]:
        """What is recorded so far of each setting, in the order of the seeds; failed runs are among it."""
        return {
            setting: [results.read(path) for path in self._paths(setting, folder) if path.exists()]
            for setting in self.settings
        }

    def _paths(self, setting: str, folder: Path) -> list[Path]:
        return [folder / f"{self.config(setting, seed).run_name}.json" for seed in self.seeds]


def _changed(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested fields with nested changes; another kind of objective takes the place of the one before."""
    if changes.get("name", fields.get("name")) != fields.get("name"):
        return changes
    changed = dict(fields)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(fields.get(name), dict)
        changed[name] = _changed(fields[name], value) if both else value
    return changed


def read(path: Path) -> Sweep:
    """A sweep from its file.

    Raises:
        JointVAEError: if the file is missing, not YAML, or has a field too few, too many or wrong.
    """
    try:
        sweep: Sweep = TypeAdapter(Sweep).validate_python(read_yaml(path))
    except FileNotFoundError:
        raise JointVAEError(f"There is no sweep file {path}.") from None
    except ValidationError as error:
        raise JointVAEError(f"{path} is not a valid sweep file ({results.first_error(error)}).") from None
    return sweep


def files(folder: Path = RESULTS / "sweeps") -> list[Path]:
    """The sweep files of a folder."""
    return sorted(path for path in folder.glob("*") if path.suffix in FILES)


def read_all(folder: Path = RESULTS / "sweeps") -> dict[str, Sweep]:
    """All sweeps of a folder, by the names of their files."""
    return {path.stem: read(path) for path in files(folder)}

"""The film of a training, small enough to commit: from the sheets that `train --film` kept to what the book plays.

A film shows the rows of c and of the most used units of z, a frame per epoch. Its pictures stand on sprite sheets in
lossy WebP: the same tiles without loss take four times the room, as JPEG half as much again, and a video can't be
stepped through exactly. Losses and capacities are not stored again: the player draws them from the record's curves.
"""

import glob
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any

from PIL import Image

from jointvae import results
from jointvae.errors import JointVAEError
from jointvae.files import sha256, write_atomic
from jointvae.results import RESULTS, Record
from jointvae.traversals import SHEET_COLUMNS, frame_path

FILMS = RESULTS / "films"
Z_ROWS = 4
MOST_FRAMES = 101  # of 100 epochs and the model before them; a longer training leaves epochs out, evenly
SHEETS = 4  # so that the player has the first pictures before the last ones
LARGEST_SHEET, LARGEST_FILM = 300 * 1024, 580 * 1024  # bytes
QUALITIES = (80, 75, 70, 65, 60, 50, 40, 30, 20, 10)
WIDEST = 4096  # pixels; a phone's browser draws no wider picture
GAP = 2  # pixels between the tiles of the poster, and of the player


@dataclass(frozen=True)
class Picture:
    """An image file beside the film, and how many frames stand on it, from left to right, then down."""

    file: str
    sha256: str
    frames: int


@dataclass(frozen=True)
class Film:
    """What a film shows, and where: square tiles, the rows of c first, then those of z, the most used unit on top."""

    name: str  # the run's
    record: str  # SHA-256 of the record that it belongs to
    side: int  # pixels of a tile
    columns: int  # tiles in a row
    gap: int  # pixels between the tiles of the poster; on the sheets there is none
    c: list[int]  # tiles in the row of each discrete unit
    z: list[int]  # units, counted from 0
    epochs: list[int]  # of each frame; 0 is the model before training
    steps: list[int]  # of each frame
    across: int  # frames side by side on a sheet
    sheets: list[Picture]
    poster: Picture  # the last frame
    schema: int = field(default=results.SCHEMA)


def make(record_path: Path, out: Path = FILMS) -> Path:
    """Make the film of a recorded run from the folder `NAME.film` beside its record; returns the path of its JSON.

    The JSON comes last and names its images by their content, so that a film is whole at every moment.

    Raises:
        JointVAEError: if the record has no test evaluation, a frame is missing or not one of this run's, or the
            pictures don't fit.
    """
    record = results.read(record_path)
    results.check_named(record, record_path)
    if record.test is None:
        raise JointVAEError(f"{record.name} has no test evaluation, and a film needs one to choose its rows.")
    epochs = shown_epochs(len(record.curves["step"]))
    order = sorted(range(record.config.latents.z), key=lambda unit: -record.test.kl_z[unit])
    units = order[:Z_ROWS]
    frames = read_frames(record, record_path.parent / f"{record.name}.film", epochs, units)
    across = max(1, min(WIDEST // frames[0].width, math.isqrt(len(frames) // SHEETS)))
    side, columns = record.config.image.size, sheet_columns(record)
    contents, last = encode(frames, across), poster(frames[-1], side)
    film = Film(
        name=record.name,
        record=sha256(record_path),
        side=side,
        columns=columns,
        gap=GAP,
        c=list(record.config.latents.c),
        z=units,
        epochs=epochs,
        steps=[record.curves["step"][epoch - 1] if epoch else 0 for epoch in epochs],
        across=across,
        sheets=[_picture(record.name, content, n) for content, n in contents],
        poster=_picture(record.name, last, 1),
    )
    return _write(out, film, [*(content for content, _ in contents), last])


def shown_epochs(epochs: int) -> list[int]:
    """The epochs that a film of a training shows: from 0 to the last one, at most `MOST_FRAMES`, in even steps."""
    stride = math.ceil(epochs / (MOST_FRAMES - 1))
    return [*range(0, epochs, stride), epochs]


def sheet_columns(record: Record) -> int:
    """How many tiles the widest row of a run's sheets has."""
    return max(SHEET_COLUMNS, *record.config.latents.c, 0)


def read_frames(record: Record, folder: Path, epochs: Sequence[int], units: Sequence[int]) -> list[Image.Image]:
    """The picture of each epoch, cut to the rows of c and of the given units of z.

    Raises:
        JointVAEError: if the folder, or the picture of an epoch, is not there.
    """
    if not folder.is_dir():
        raise JointVAEError(f"There is no folder {folder}: only a run that was trained with --film can become a film.")
    paths = [frame_path(folder, epoch) for epoch in epochs]
    if missing := [path.name for path in paths if not path.exists()]:
        raise JointVAEError(
            f"{folder} lacks {len(missing)} of {len(paths)} frames, the first of them {missing[0]}: "
            f"train the run anew with --film."
        )
    latents, side = record.config.latents, record.config.image.size
    size = (sheet_columns(record) * side, (len(latents.c) + latents.z) * side)
    rows = [*range(len(latents.c)), *(len(latents.c) + unit for unit in units)]
    mode = "L" if record.config.image.channels == 1 else "RGB"
    return [_cut(path, size, rows, side).convert(mode) for path in paths]


def _cut(path: Path, size: tuple[int, int], rows: Sequence[int], side: int) -> Image.Image:
    try:
        with Image.open(path) as sheet:
            sheet.load()
    except (OSError, ValueError, SyntaxError):  # what Pillow raises of a damaged PNG
        raise JointVAEError(f"{path} is not a readable picture: train the run anew with --film.") from None
    if sheet.size != size:
        raise JointVAEError(
            f"{path} has {sheet.width} × {sheet.height} pixels, and a sheet of this run has {size[0]} × {size[1]}: "
            "the folder belongs to another run."
        )
    frame = Image.new(sheet.mode, (sheet.width, len(rows) * side))
    for place, row in enumerate(rows):
        frame.paste(sheet.crop((0, row * side, sheet.width, (row + 1) * side)), (0, place * side))
    return frame


def encode(frames: Sequence[Image.Image], across: int) -> list[tuple[bytes, int]]:
    """The frames on sprite sheets: the bytes of each, and how many frames it holds.

    The quality is the best with which no sheet is above `LARGEST_SHEET` and all together are not above `LARGEST_FILM`.

    Raises:
        JointVAEError: if no quality is low enough.
    """
    per_sheet = math.ceil(len(frames) / SHEETS)
    groups = [frames[start : start + per_sheet] for start in range(0, len(frames), per_sheet)]
    sheets = [_tile(group, across) for group in groups]
    for quality in QUALITIES:
        contents = [_webp(sheet, quality) for sheet in sheets]
        sizes = [len(content) for content in contents]
        if max(sizes) <= LARGEST_SHEET and sum(sizes) <= LARGEST_FILM:
            return [(content, len(group)) for content, group in zip(contents, groups, strict=True)]
    raise JointVAEError(
        f"The film does not fit into {LARGEST_FILM // 1024} KiB at any quality: its pictures have "
        f"{frames[0].width} × {frames[0].height} pixels."
    )


def _tile(frames: Sequence[Image.Image], across: int) -> Image.Image:
    width, height = frames[0].size
    sheet = Image.new(frames[0].mode, (across * width, math.ceil(len(frames) / across) * height))
    for i, frame in enumerate(frames):
        sheet.paste(frame, (i % across * width, i // across * height))
    return sheet


def _webp(image: Image.Image, quality: int) -> bytes:
    content = io.BytesIO()
    try:
        image.save(content, "WEBP", quality=quality, method=6)
    except (OSError, ValueError) as error:
        raise JointVAEError(f"A sheet of {image.width} × {image.height} pixels can't be a WebP: {error}.") from None
    return content.getvalue()


def poster(frame: Image.Image, side: int) -> bytes:
    """One frame as a picture of its own, with transparent gaps between the tiles: what is seen without JavaScript."""
    columns, rows = frame.width // side, frame.height // side
    step = side + GAP
    image = Image.new("RGBA", (columns * step - GAP, rows * step - GAP))
    for i in range(rows * columns):
        x, y = i % columns, i // columns
        tile = frame.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
        image.paste(tile.convert("RGBA"), (x * step, y * step))
    return _webp(image, 90)


def _picture(name: str, content: bytes, frames: int) -> Picture:
    checksum = digest(content).hexdigest()
    return Picture(f"{name}.{checksum[:8]}.webp", checksum, frames)


def _write(out: Path, film: Film, contents: Sequence[bytes]) -> Path:
    """Write the images, then the JSON that names them, then remove the images of an earlier film of this run."""
    pictures = [*film.sheets, film.poster]
    for picture, content in zip(pictures, contents, strict=True):
        write_atomic(out / picture.file, content)
    path = out / f"{film.name}.json"
    write_atomic(path, (json.dumps(asdict(film), indent=1) + "\n").encode())
    for old in set(out.glob(f"{glob.escape(film.name)}.*.webp")) - {out / picture.file for picture in pictures}:
        old.unlink()
    return path


def read(name: str, folder: Path = FILMS, runs: Path = RESULTS / "runs") -> tuple[Film, Record]:
    """A film and the record of its run.

    Raises:
        JointVAEError: if there is no such film, a file of it is damaged, or it was made from another record.
    """
    path, record_path = folder / f"{name}.json", runs / f"{name}.json"
    if not path.exists():
        raise JointVAEError(f"There is no film {path}: make it with `python -m jointvae film`.")
    film = results.read(path, Film)
    for picture in [*film.sheets, film.poster]:
        image = folder / picture.file
        if not _is_whole(image, picture.sha256):
            raise JointVAEError(f"{image} is missing or damaged: restore it or make the film again.")
    record = results.read(record_path)
    if sha256(record_path) != film.record:
        raise JointVAEError(f"The film {path} was made from another record than {record_path}: make it again.")
    latents = record.config.latents
    if film.c != list(latents.c) or not set(film.z) <= set(range(latents.z)):
        raise JointVAEError(f"The film {path} shows latents that its run has not: make it again.")
    return film, record


def _is_whole(image: Path, checksum: str) -> bool:
    """Whether the file is there as it was written; a damaged film may name what is no file, or can't be one."""
    try:
        return sha256(image) == checksum
    except (OSError, ValueError):
        return False


def player_data(film: Film, record: Record) -> dict[str, Any]:
    """All that the player needs besides the pictures, ready for JSON.

    `curves` and the `nats` of each row have an entry per epoch of the training, so that epoch e stands at e - 1; they
    are means over the images of that epoch, in nats per image.
    """
    curves = record.curves
    sums = {name: [sum(units) for units in curves[name]] for name in ("kl_z", "kl_c") if curves[name][0]}
    shown = {"reconstruction": curves["reconstruction"], **sums}
    shown |= {name: curves[name] for name in ("C_z", "C_c") if name in curves and f"kl_{name[-1]}" in sums}
    several = len(film.c) > 1
    rows = [
        {"symbol": "c", "index": str(i + 1) if several else "", "tiles": n, "nats": _column(curves["kl_c"], i)}
        for i, n in enumerate(film.c)
    ]
    rows += [
        {"symbol": "z", "index": str(unit + 1), "tiles": SHEET_COLUMNS, "nats": _column(curves["kl_z"], unit)}
        for unit in film.z
    ]
    return {
        "name": film.name,
        "side": film.side,
        "columns": film.columns,
        "gap": film.gap,
        "across": film.across,
        "rows": rows,
        "epochs": film.epochs,
        "steps": film.steps,
        "sheets": [{"file": sheet.file, "frames": sheet.frames} for sheet in film.sheets],
        "curves": {"step": curves["step"], **{name: _rounded(values) for name, values in shown.items()}},
    }


def _column(rows: Sequence[Sequence[float]], unit: int) -> list[float]:
    return _rounded([row[unit] for row in rows])


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]  # finer than a line on a screen

"""What a stranger might put into files and folders: names that lead outside, wrong types, devices, code."""

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from astra_gym.ssl_core.models.checkpoint import save_checkpoint

DECOY = "decoy"
"""The module that must not be imported: it leaves a mark."""
LONG = {"epochs", "probe_epochs", "steps", "seeds", "jobs", "probe_batch_size", "width", "image_size", "planned_plays"}
"""Keys whose large values only make for much work, which is no mistake of a reader."""


def hostile_values(victim: Path) -> tuple[Any, ...]:
    """Values that stand in no honest file."""
    return (
        *("../../victim", "../victim", "../../../victim/precious.txt", str(victim), str(victim / "precious.txt")),
        *("a/../../../victim", "..", ".", "", "/", "/etc/passwd", "~/x", "~root", "-", "--resume", "../" * 40 + "etc"),
        *(
            "a\x00b",
            "a\nb",
            "a\rb",
            "\x1b[31m\x1b]0;title\x07",
            "\u202e",
            "x" * 100_000,
            "[/red][link=file:///]",
            "<script>",
        ),
        *(
            f"{DECOY}:Build",
            f"{DECOY}:Build.inner",
            f"{DECOY}.x:Build",
            "os:system",
            "$(touch marker)",
            "; touch marker",
        ),
        *(10**400, -1, 0, 1.5, -(2**63), 2**64, 1e308, float("nan"), float("inf"), True, None),
        *([], {}, [[]], [None], {"a": {"b": [1]}}, "2", "0", "1e9", ["x"] * 1000, {"x" * 300: 1}),
    )


def aims(victim: Path) -> dict[Any, tuple[str, ...]]:
    """What a stranger would try first, by the name of the value."""
    away = ("../../mine", "../../victim", "../../../victim", "../victim", str(victim), "/../../../victim")
    code = (f"{DECOY}:Build", f"{DECOY}:nothing")
    flags = (f"--agent {DECOY}:Build", f"--method {DECOY}:Build", "--run_dir ../victim", f"--cache_dir {victim}")
    places = (
        "label",
        "suffix",
        "name",
        "run_dir",
        "cache_dir",
        "data_dir",
        "arm",
        "checkpoint",
        "teacher",
        "init_from",
    )
    known = dict.fromkeys(places, away) | dict.fromkeys(("agent", "method"), code)
    return known | {"flags": flags, "command": (*away, *flags)}


def leaves(document: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a document."""
    yield where
    if isinstance(document, dict):
        for key, value in document.items():
            yield from leaves(value, (*where, key))
    elif isinstance(document, list | tuple):
        for index, value in enumerate(document):
            yield from leaves(value, (*where, index))


def mutated(draw: random.Random, document: Any, victim: Path) -> tuple[Any, str]:
    """The document with one value replaced, one left out, or one added; and what was done."""
    places = [place for place in leaves(document) if place]
    if not places or draw.random() < 0.03:
        value = draw.choice(hostile_values(victim))
        return value, f"all of it is {_short(value)}"
    shallow = [place for place in places if len(place) <= 2]
    place = draw.choice(shallow if shallow and draw.random() < 0.5 else places)
    value = draw.choice(hostile_values(victim))
    aimed = aims(victim)
    worth = [place for place in places if place[-1] in aimed]
    if worth and draw.random() < 0.35:
        place = draw.choice(worth)
        value = draw.choice(aimed[place[-1]])
    if LONG & {part for part in place if isinstance(part, str)} and isinstance(value, int) and value > 1:
        value = -1
    holder = document
    for part in place[:-1]:
        holder = holder[part]
    if isinstance(holder, tuple):
        return document, "nothing"
    way = draw.random()
    name = "/".join(map(str, place))[:120]
    if way < 0.08:
        del holder[place[-1]]
        return document, f"{name} is left out"
    if way < 0.16 and isinstance(holder, dict):
        holder[draw.choice(("../../victim", "unknown", "a\x00b", "\x1b[31m", "__class__"))] = value
        return document, f"something is added beside {name}"
    holder[place[-1]] = value
    return document, f"{name} is {_short(value)}"


def _short(value: Any) -> str:
    return ascii(value)[:60]


def mutate_file(draw: random.Random, file: Path, victim: Path) -> str:
    """Changes what a file says, in its own language; returns what was done."""
    if file.suffix == ".json":
        document, what = mutated(draw, json.loads(file.read_text("utf-8")), victim)
        file.write_text(json.dumps(document), encoding="utf-8")
    elif file.suffix == ".yaml":
        document, what = mutated(draw, yaml.safe_load(file.read_text("utf-8")), victim)
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    elif file.suffix == ".jsonl":
        lines = file.read_text("utf-8").splitlines()
        number = draw.randrange(len(lines))
        document, what = mutated(draw, json.loads(lines[number]), victim)
        lines[number] = json.dumps(document)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif file.suffix in (".pt", ".zip"):
        what = mutate_tensors(draw, file, victim)
    else:
        file.write_bytes(draw.choice((b"", b"\x00" * 100, b"\xff" * 100, b"../../victim\n", b"x" * 1_000_000)))
        what = "other bytes"
    return f"{file.name}: {what}"


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch marker",)


def mutate_tensors(draw: random.Random, file: Path, victim: Path) -> str:
    """A checkpoint that asks for code, or is well sealed and says something else than it should."""
    way = draw.choice(("pickle", "torch.save", "zip", "value", "value", "value", "tensor", "tensor"))
    if way == "pickle":
        file.write_bytes(pickle.dumps({"format": "astra-gym", "schema": 1, "kind": "run", "network": _Evil()}))
        return "a pickle with code"
    if way == "torch.save":
        torch.save({"format": "astra-gym", "schema": 1, "kind": "run", "network": _Evil()}, file)
        return "code within torch's format"
    if way == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../victim/precious.txt", "hostile")
            archive.writestr("archive/data.pkl", pickle.dumps(_Evil()))
            archive.writestr("archive/data/0", bytes(50_000_000))
        return "a zip archive with names that lead outside"
    try:
        payload = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        # it was made hostile before
        file.write_bytes(pickle.dumps(_Evil()))
        return "a pickle with code"
    head = {name: payload.pop(name, None) for name in ("format", "schema", "kind")}
    for name in [name for name in payload if "digest" in name or "seal" in name]:
        # whoever writes the file can seal it, too
        del payload[name]
    if way == "value":
        payload, what = mutated(draw, payload, victim)
        if not isinstance(payload, dict):
            payload = {"network": payload}
    else:
        places = [place for place in leaves(payload) if isinstance(_at(payload, place), torch.Tensor)]
        place = draw.choice(places)
        holder = _at(payload, place[:-1])
        if isinstance(holder, tuple):
            return "nothing"
        holder[place[-1]], what = _tensor(draw, holder[place[-1]])
        what = f"{'/'.join(map(str, place))[:100]} is {what}"
    save_checkpoint(file, str(head["kind"]), payload)
    return f"sealed anew, {what}"


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for part in place:
        document = document[part]
    return document


def _tensor(draw: random.Random, good: torch.Tensor) -> tuple[Any, str]:
    ways: dict[str, Callable[[], Any]] = {
        "empty": lambda: torch.empty(0),
        "larger than memory": lambda: torch.zeros(1, dtype=good.dtype).expand(10**12),
        "NaN": lambda: torch.full(good.shape, torch.nan),
        "infinite": lambda: torch.full(good.shape, torch.inf),
        "complex": lambda: torch.zeros(good.shape, dtype=torch.complex64),
        "of booleans": lambda: torch.zeros(good.shape, dtype=torch.bool),
        "sparse": lambda: torch.zeros(max(1, good.numel())).to_sparse(),
        "of another shape": lambda: torch.zeros(3, 5, 7),
        "on no device": lambda: torch.empty(good.shape, device="meta"),
        "transposed": lambda: good.T if good.ndim == 2 else good.unsqueeze(0),
        "a number": lambda: 3,
        "nothing": lambda: None,
    }
    name = draw.choice(list(ways))
    return ways[name](), name


def replace_entry(draw: random.Random, path: Path, victim: Path) -> str:
    """Puts something else in the place of a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    ways: dict[str, Callable[[], Any]] = {
        "a pipe": lambda: os.mkfifo(path),
        "a link to a folder outside": lambda: path.symlink_to(victim),
        "a link to a file outside": lambda: path.symlink_to(victim / "precious.txt"),
        "a link to an endless device": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing outside": lambda: path.symlink_to(victim / "new"),
        "a folder": path.mkdir,
        "an empty file": path.touch,
    }
    name = draw.choice(list(ways))
    ways[name]()
    return f"{path.name} is {name}"


def mutate_pictures(draw: random.Random, root: Path, victim: Path) -> str:
    """Something in a folder of images that no camera has made."""
    folder = draw.choice((root, root / "cats"))
    good = (root / "cats" / "00.png").read_bytes()

    def bomb() -> None:
        # a header that promises more pixels than any memory holds
        header = bytearray(good)
        header[16:24] = b"\x00\x0f\xff\xff\x00\x0f\xff\xff"
        (folder / "a.png").write_bytes(bytes(header))

    def large() -> None:
        Image.new("1", (20_000, 20_000)).save(folder / "a.png")

    ways: dict[str, Callable[[], Any]] = {
        "a pipe as an image": lambda: os.mkfifo(folder / "a.png"),
        "a device as an image": lambda: (folder / "a.png").symlink_to("/dev/zero"),
        "a link to a file outside": lambda: (folder / "a.png").symlink_to(victim / "precious.txt"),
        "a link to a folder outside": lambda: (folder / "outside").symlink_to(victim),
        "a link to itself": lambda: (folder / "a.png").symlink_to(folder / "a.png"),
        "a link to its own folder": lambda: (folder / "again").symlink_to(root),
        "a folder with an image's name": lambda: (folder / "a.png").mkdir(),
        "a name with a line break": lambda: (folder / "a\nb.png").write_bytes(good),
        "a name with escape codes": lambda: (folder / "\x1b[31mred.png").write_bytes(b"no image"),
        "a name of other bytes": lambda: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(good),
        "a class of other bytes": lambda: _class(root, os.fsdecode(b"\xff\xfe"), good),
        "a class with a line break": lambda: _class(root, "a\nb", good),
        "a class with markup": lambda: _class(root, "[link=file:x]<script>", good),
        "a long name": lambda: (folder / ("x" * 250 + ".png")).write_bytes(good),
        "a bomb": bomb,
        "a large image": large,
        "half an image": lambda: (folder / "a.png").write_bytes(good[: len(good) // 2]),
        "an empty image": lambda: (folder / "a.png").touch(),
        "text as an image": lambda: (folder / "a.png").write_text("<svg onload='x'/>"),
        "a pickle as an image": lambda: (folder / "a.png").write_bytes(pickle.dumps(_Evil())),
        "noise behind a good header": lambda: (folder / "a.png").write_bytes(good[:60] + os.urandom(500)),
        "a number where bytes were": lambda: (folder / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100)),
    }
    name = draw.choice(list(ways))
    with suppress(FileExistsError):
        # something hostile is there already
        ways[name]()
    return name


def _class(root: Path, name: str, image: bytes) -> None:
    (root / name).mkdir()
    for number in range(3):
        (root / name / f"{number}.png").write_bytes(image)

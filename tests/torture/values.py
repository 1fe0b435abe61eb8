"""Values for flags, files and calls: valid ones, those at a border, and absurd ones."""

import json
import random
from pathlib import Path
from typing import Any

from astra_gym.agents import AGENTS
from astra_gym.envs.actions import ACTION_KINDS
from astra_gym.envs.observations import OBSERVATIONS
from astra_gym.experiments.config.devices import DEVICES
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.sections import ENVS, PROGRESS
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.attacks.pgd import STARTS
from astra_gym.ssl_core.attacks.settings import STOPS
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.models.backbones.resnet import ARCHITECTURES, STEMS
from astra_gym.ssl_core.models.target_network import NORMALIZATIONS, PRECISIONS, PROJECTORS
from astra_gym.ssl_core.settings.records import leaves
from astra_gym.ssl_core.training.optim import OPTIMIZERS

NAMES: dict[str, list[str]] = {
    "dataset": list(DATASETS),
    "method": list(METHODS),
    "agent": list(AGENTS),
    "preset": list(PRESETS),
    "arch": list(ARCHITECTURES),
    "stem": list(STEMS),
    "projector": list(PROJECTORS),
    "normalization": list(NORMALIZATIONS),
    "precision": list(PRECISIONS),
    "optimizer": list(OPTIMIZERS),
    "device": ["auto", "cpu"],
    "env": list(ENVS),
    "observation": list(OBSERVATIONS),
    "actions": list(ACTION_KINDS),
    "progress": list(PROGRESS),
    "attack_start": list(STARTS),
    "attack_stop": list(STOPS),
    "reward_scope": ["view", "batch"],
    "coreset": ["none", "rcs", "random"],
    "perspective": ["none", "moebius", "lcm"],
    "interpolation": ["bicubic", "bilinear"],
    "lr_interval": ["update", "epoch"],
    "mixed_reading": ["pairs", "views"],
    "keep_data": ["auto", "host", "device"],
}
"""Settings that are names, and what they may be; devices without a GPU's, which a machine may have or not."""
assert set(NAMES["device"]) <= set(DEVICES)
ODD_TEXTS = (
    "",
    " ",
    "-",
    "--",
    "none",
    "null",
    "~",
    "True",
    "off",
    "ünïcödé",
    "\u202egnp.exe",
    "a\nb",
    "a\tb",
    "\x1b[31mred\x1b[0m",
    "a\x00b",
    "\udcff",
    "{}",
    "{",
    "[1, 2",
    "!!python/object/apply:os.system ['touch marker']",
    "*anchor",
    "&a [*a]",
    "my_module:Nothing",
    "os:system",
    "a:b:c",
    "x" * 5000,
    "%s%n{0}",
    "[/red]",
    "'",
    '"',
    "$(touch marker)",
    "١٢",
)
INTEGERS = ("1", "2", "3")
ODD_INTEGERS = (
    *(
        "0",
        "-1",
        "-99999999999999999999",
        "1.0",
        "1.5",
        "1e3",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "010",
        "0o10",
        "1_000",
        "1:30",
    ),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "1" + "0" * 400,
        "two",
        "",
        "true",
        "null",
        "[1]",
        "{}",
        "1 2",
        "+1",
    ),
)
NUMBERS = ("0.5", "0.25", "8/255", "1e-3")
ODD_NUMBERS = (
    *("0", "1", "-0.0", "-1", "8", "1e400", "-1e400", "nan", ".nan", ".inf", "inf", "1/0", "0/0", "8/-255", "1e-400"),
    *("0x1p3", "1_0.5", "half", "", "true", "null", "[0.5]", "{}", "1,5", "1:30", "--1", "1e", ".5.", "9" * 400),
)
BOOLEANS = ("true", "false")
ODD_BOOLEANS = ("True", "yes", "no", "on", "off", "y", "1", "0", "", "null", "[]", "maybe", "truefalse")
LISTS = ("[0.1,0.2]", "[8/255]", "[0.5, 1.0]")
ODD_LISTS = (
    "[]",
    "[0]",
    "[nan]",
    "[.inf]",
    "[1e999]",
    "[8]",
    "8/255",
    "[",
    "[[0.1]]",
    "[a]",
    "{}",
    "[0.1,0.1]",
    "null",
    "",
)
MAPPINGS = ("{}", "null", '{"learning_rate": 0.001}', '{"gamma": 0.5}')
ODD_MAPPINGS = (
    "[]",
    "{",
    "a",
    "{1: 2}",
    '{"a": {"b": {"c": 1}}}',
    "{null: 1}",
    "{a: 1, a: 2}",
    '{"x\\u0000": 1}',
    "1",
    "",
)


def kinds() -> dict[str, str]:
    """The type of every setting of a run, as text."""
    return {
        leaf.name: leaf.hint.__name__ if isinstance(leaf.hint, type) else str(leaf.hint) for leaf in leaves(Settings)
    }


def text_for(draw: random.Random, name: str, kind: str, odd: float = 0.5) -> str:
    """A value for a setting, as a command line or a file gives it.

    Args:
        draw: what chooses.
        name: of the setting.
        kind: its type as text.
        odd: probability of one that is at a border or absurd.
    """
    strange = draw.random() < odd
    if strange and draw.random() < 0.2:
        return draw.choice(ODD_TEXTS)
    for word, good, bad in (
        ("bool", BOOLEANS, ODD_BOOLEANS),
        ("tuple", LISTS, ODD_LISTS),
        ("dict", MAPPINGS, ODD_MAPPINGS),
        ("float", NUMBERS, ODD_NUMBERS),
        ("int", INTEGERS, ODD_INTEGERS),
    ):
        if kind.startswith(word):
            return draw.choice(bad if strange else good)
    if name in NAMES:
        good = tuple(NAMES[name])
        near = draw.choice(good)
        misspelt = (near.upper(), near[:-1], near + "x", near + " ", f"{near},{draw.choice(good)}")
        return draw.choice(misspelt if strange else good)
    return path_for(draw)


def make_paths(folder: Path) -> None:
    """Things of many kinds in a folder, for paths to lead to."""
    (folder / "empty").mkdir()
    (folder / "full" / "inner").mkdir(parents=True)
    (folder / "full" / "inner" / "notes.txt").write_text("notes\n", encoding="utf-8")
    (folder / "nothing").touch()
    (folder / "text.yaml").write_text("agent: fixed\n", encoding="utf-8")
    (folder / "text.json").write_text('{"schema": 1}', encoding="utf-8")
    (folder / "list.json").write_text("[1, 2]", encoding="utf-8")
    (folder / "noise.pt").write_bytes(bytes(random.Random(0).randrange(256) for _ in range(2000)))
    (folder / "noise.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "gone").symlink_to(folder / "nowhere")


PATHS = (
    *("empty", "full", "full/inner", "nothing", "text.yaml", "text.json", "list.json", "noise.pt", "noise.zip"),
    *("loop", "gone", "absent", "absent/inner", "nothing/inner", "full/..", ".", "..", "/", "./absent", "run", "run/"),
    *("run/checkpoints", "run/checkpoints/last.pt", "run/config.yaml", "run/metrics.jsonl", "run/results"),
    *("a\x00b", "a\nb", "~", "~nobody/x", "x" * 300, "d/" * 2000 + "x", "-", "", " ", "\udcff", "{}", "*", "/dev/null"),
    *("ünï", "\x1b[31m", "a'b", "[/red]", "/proc/1/mem", "/proc/self/environ"),
)


def path_for(draw: random.Random) -> str:
    """A path to something in a folder that `make_paths` has filled, to nothing, or to no place at all."""
    return draw.choice(PATHS)


def value_for(draw: random.Random, name: str, kind: str, odd: float = 0.5) -> Any:
    """The same for a call of the interface: mostly of the right type."""
    text = text_for(draw, name, kind, odd)
    if draw.random() < 0.1 * odd:
        return draw.choice((None, [], {}, 1.5, -1, "x", object, float("nan"), b"x", True, (1, 2), {"a": 1}, Path("x")))
    try:
        return json.loads(text) if "str" not in kind else text
    except ValueError:
        return text

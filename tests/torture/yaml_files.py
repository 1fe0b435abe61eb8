"""YAML files: traps with a known answer, and random ones."""

import random
from collections.abc import Callable

import yaml

from tests.torture.values import ODD_TEXTS, kinds, text_for

REFUSED = "refused"
Trap = tuple[str | bytes, Callable[[int, str], bool] | str | None]


def _says(*lines: str) -> Callable[[int, str], bool]:
    """Whether the settings that are printed have one of these lines, or the file is refused."""
    return lambda status, out: status == 2 or any(line in out.splitlines() for line in lines)


TRAPS: tuple[Trap, ...] = (
    ("epochs: 2\nepochs: 3\n", REFUSED),
    ("epochs: 2\n'epochs': 3\n", REFUSED),
    ("agent_kwargs: {gamma: 0.1, gamma: 0.2}\n", REFUSED),
    ("agent_kwargs:\n  gamma: 0.1\n  gamma: 0.1\n", REFUSED),
    ("evaluate: off\n", REFUSED),
    ("evaluate: yes\n", REFUSED),
    ("download: no\n", REFUSED),
    ("recompute: ON\n", REFUSED),
    ("epochs: 1:30\n", REFUSED),
    ("lr: 1:30.5\n", REFUSED),
    ("epochs: 010\n", _says("epochs: 10")),
    ("seed: 0777\n", _says("seed: 777")),
    ("seed: 0o10\n", _says("seed: 8")),
    ("seed: 0x10\n", _says("seed: 16")),
    ("seed: 0b11\n", REFUSED),
    ("seed: 1_000\n", REFUSED),
    ("lr: 1_0.5\n", REFUSED),
    ("lr: 1e-3\n", _says("lr: 0.001")),
    ("lr: .5\n", _says("lr: 0.5")),
    ("lr: .nan\n", REFUSED),
    ("lr: .inf\n", REFUSED),
    ("temperature: -.inf\n", REFUSED),
    ("run_dir: 2024-01-01\n", _says("run_dir: '2024-01-01'", "run_dir: 2024-01-01")),
    ("run_dir: no\n", _says("run_dir: 'no'", "run_dir: no")),
    ("run_dir: 010\n", None),
    ("data_dir: ~\n", _says("data_dir: null")),
    ("preset: !!str digits\n", _says("preset: digits")),
    ("!!python/object/apply:os.system ['touch marker']\n", REFUSED),
    ("agent: !!python/name:os.system\n", REFUSED),
    ("agent: !!python/object/new:os.system [touch marker]\n", REFUSED),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n", REFUSED),
    (
        "agent_kwargs:\n  l0: &l0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10)),
        REFUSED,
    ),
    ("&a [*a]\n", REFUSED),
    ("agent_kwargs: &a {self: *a}\n", REFUSED),
    ("base: &b {epochs: 3}\n<<: *b\n", REFUSED),
    ("[" * 3000 + "]" * 3000, REFUSED),
    ("{a: " * 3000 + "1" + "}" * 3000, REFUSED),
    ("agent_kwargs: " + "{a: " * 800 + "1" + "}" * 800, REFUSED),
    ("agent: fix\x00ed\n", REFUSED),
    ("agent: fix\x07ed\n", REFUSED),
    (b"agent: \xff\xfe\n", REFUSED),
    ("agent: fixed\n".encode("utf-16"), None),
    ("\ufeffagent: fixed\n", None),
    ("agent: fixed\r\nepochs: 3\r\n", _says("epochs: 3")),
    ("", _says("agent: reinforce")),
    ("# nothing\n", _says("agent: reinforce")),
    ("---\nagent: fixed\n---\nagent: random\n", REFUSED),
    ("- agent: fixed\n", REFUSED),
    ("fixed\n", REFUSED),
    ("agent:\tfixed\n", None),
    ("\tagent: fixed\n", REFUSED),
    ("null: 1\n", REFUSED),
    ("1: 2\n", REFUSED),
    ("? [agent]\n: fixed\n", REFUSED),
    ("? {a: 1}\n: fixed\n", REFUSED),
    ("? !!set {a}\n: fixed\n", REFUSED),
    ("agent: [fixed]\n", REFUSED),
    ("agent: {fixed: 1}\n", REFUSED),
    ("eval_epsilons: 8/255\n", None),
    ("eval_epsilons: [8/255, 8/255]\n", REFUSED),
    ("epochs: " + "9" * 5000 + "\n", None),
    ("agent: " + "x" * 100_000 + "\n", REFUSED),
    ("x" * 100_000 + ": 1\n", REFUSED),
    ("%YAML 1.1\n---\nevaluate: off\n", REFUSED),
    ("agent: *nothing\n", REFUSED),
    ('agent: "\\x1b[31m"\n', REFUSED),
    ("epochs: !!int '3'\n", None),
    ("seed: !!float 1\n", None),
    ("agent_kwargs: !!binary aGVsbG8=\n", REFUSED),
    ("agent_kwargs: !!omap [a: 1]\n", REFUSED),
)
"""Files, and what the command has to make of them: refuse them, say something, or (None) either, in good order."""


def document(draw: random.Random) -> bytes:
    """A random file: settings, some of them unknown, with values of all kinds; sometimes broken."""
    known = kinds()
    lines = []
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        name = draw.choice(list(known))
        value = text_for(draw, name, known[name], odd=0.35)
        if draw.random() < 0.1:
            name = draw.choice((name + "s", name.upper(), f"{name}.x", " ".join(name), draw.choice(ODD_TEXTS)[:200]))
        if draw.random() < 0.5:
            lines.append(f"{name}: {value}")
        else:
            lines.append(yaml.safe_dump({name: value.encode("utf-8", "replace").decode()}, allow_unicode=True).rstrip())
    text = "\n".join(lines) + "\n"
    data = text.encode("utf-8", "replace")
    if draw.random() < 0.15:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 3, 10))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        data = bytes(changed)
    return data

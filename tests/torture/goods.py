"""Good folders and files, made by the commands themselves, once; cases damage copies of them."""

import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from astra_gym.agents import REINFORCE, Exp3Bandit, RandomAgent, Sb3Agent
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.sb3_env import Sb3ViewVecEnv
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.utils.provenance import ROOT
from tests.torture.calling import Answer, command
from tests.torture.processes import run

SIZES = "--limit=26 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --projector_hidden=8 --projector_dim=8"
TINY = [*SIZES.split(), "--probe_epochs=1", "--progress=off", "--precision=fp32"]
"""Flags of the smallest training that has all parts: 6 updates an epoch."""
FIXTURES = ROOT / "tests" / "fixtures" / "v0_1"
STOPPED_AT = 13
"""Updates of the run `stopped`, of 18."""


def without(flags: Sequence[str], words: Sequence[str]) -> list[str]:
    """The flags whose names are not among the words."""
    names = {word.partition("=")[0] for word in words}
    return [flag for flag in flags if flag.partition("=")[0] not in names]


class GoodsError(RuntimeError):
    """A good thing could not be made: the harness has nothing to work with."""


class Goods:
    """What cases begin with, by name; made when it is asked for, by one process, for all that share the folder.

    Args:
        room: the folder in which everything happens.
    """

    def __init__(self, room: Path) -> None:
        self.room = room
        self.folder = room / "goods"
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str) -> Path:
        """The folder of a thing that `MAKERS` makes; not to be changed."""
        path = self.folder / name
        if not path.exists():
            with (self.folder / f".{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                failed = self.folder / f".{name}.failed"
                if failed.exists():
                    raise GoodsError(failed.read_text(encoding="utf-8"))
                if not path.exists():
                    shutil.rmtree(self.folder / f".{name}", ignore_errors=True)
                    made = self.folder / f".{name}"
                    made.mkdir()
                    try:
                        with within(made):
                            MAKERS[name](self, made)
                    except GoodsError as error:
                        # it would fail in every case, and may have taken long
                        failed.write_text(str(error), encoding="utf-8")
                        raise
                    made.rename(path)
        return path

    def copy(self, name: str, to: Path) -> Path:
        """A copy to be damaged, with the times of its files."""
        return Path(shutil.copytree(self(name), to, symlinks=True))

    def call(self, name: str, *words: str, status: int = 0) -> Answer:
        """A command that has to end with this status."""
        answer = command(name, words, allowed=[self.room], limit=300)
        if answer.status != status or answer.crash:
            raise GoodsError(f"{name} {' '.join(words)}: status {answer.status} {answer.crash}: {answer.text[-500:]}")
        return answer


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Makes the folder the present one, for a while."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def at_update(step: int, act: Callable[[Any], None]) -> Iterator[None]:
    """Does something with the engine after its update number `step`, as soon as it is made."""
    play = AttackEngine.play

    def watched(engine: AttackEngine, budget: Any) -> Any:
        record = play(engine, budget)
        if record.step == step:
            act(engine)
        return record

    AttackEngine.play = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        AttackEngine.play = play  # type: ignore[method-assign]


def _stopped(goods: Goods, folder: Path) -> None:
    words = ["--agent=reinforce", "--epochs=3", "--evaluate=false", "--keep_every=1", "--run_dir=run"]
    # with progress, since what is to be reported may be among its lines
    words = [*without(TINY, ["--progress"]), *words, "--progress=lines"]
    with at_update(STOPPED_AT, lambda engine: os.kill(os.getpid(), signal.SIGINT)):
        goods.call("train", *words, status=130)


def _resumed(goods: Goods, folder: Path) -> None:
    shutil.copytree(goods("stopped") / "run", folder / "run")
    goods.call("train", "--resume", "run")


def _finished(goods: Goods, folder: Path) -> None:
    words = ["--agent=reinforce", "--epochs=2", "--keep_every=1", "--eval_epsilons=[8/255]", "--run_dir=run"]
    goods.call("train", *TINY, *words)


def _comparison(goods: Goods, folder: Path) -> None:
    words = ["--agents", "fixed", "random", "--seeds", "1", "--jobs", "1", "--dir", "comparison"]
    sizes = [word for word in TINY if not word.startswith("--progress")]
    # as a process: its fork server must not live in this one
    ended = run("compare", [*words, *sizes, "--epochs=1", "--eval_epsilons=[8/255]"], folder)
    if ended.status != 0:
        raise GoodsError(f"compare: status {ended.status}: {ended.text[-500:]}")


EVALUATION = "--protocols slf knn --attacks pgd20 --epsilons 8/255 --epochs 1 --limit 20 --test_limit 12 --progress off"


def _evaluation(goods: Goods, folder: Path) -> None:
    shutil.copytree(goods("finished") / "run", folder / "run")
    goods.call("evaluate", "run", *EVALUATION.split(), "--out", "evaluation")


ATTACKED = "--protocols knn --attacks autoattack-quick --limit 20 --test_limit 12 --progress off"


def _attacked(goods: Goods, folder: Path) -> None:
    """An evaluation that was interrupted within an AutoAttack, which has left its state."""
    shutil.copytree(goods("finished") / "run", folder / "run")
    for _ in range(5):
        _interrupted_attack(goods, folder)
        if any((folder / "evaluation" / "states").rglob("*.json")):
            return
        # on a busy machine the attack may end before it is told to
        shutil.rmtree(folder / "evaluation")
    raise GoodsError("no evaluation could be interrupted within its attack")


def _interrupted_attack(goods: Goods, folder: Path) -> None:
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(0.002):
            if any((folder / "evaluation" / "states").rglob("*.json")):
                signal.raise_signal(signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        goods.call("evaluate", "run", *ATTACKED.split(), "--out", "evaluation", status=130)
    finally:
        over.set()
        watcher.join()


def _exports(goods: Goods, folder: Path) -> None:
    run = str(goods("finished") / "run")
    goods.call("export", run, "--out", "torchvision.pt")
    goods.call("export", run, "--out", "ours.pt", "--layout", "ours")


def _agents(goods: Goods, folder: Path) -> None:
    sizes = {"limit": 26, "test_limit": 30, "batch_size": 4, "image_size": 8, "width": 2, "epochs": 1}
    settings = WorldSettings.of(projector_hidden=8, projector_dim=8, **sizes)
    engine = AttackEngine(settings, 0, torch.device("cpu"))
    env = TorchViewEnv(engine, "factored", "features")
    REINFORCE(env, planned_plays=6).save(folder / "reinforce.zip")
    RandomAgent(env).save(folder / "random.zip")
    Exp3Bandit(env).save(folder / "bandit.zip")
    vector = Sb3ViewVecEnv(engine=engine, actions="factored", observation="features")
    Sb3Agent("ppo", vector, planned_plays=6, gamma=0.0).save(folder / "ppo.zip")


def draw_pictures(folder: Path, names: list[str], seed: int = 0, side: int = 12) -> None:
    """Image files of noise, all different."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / name)


def _pictures(goods: Goods, folder: Path) -> None:
    draw_pictures(folder, [f"{label}/{number:02}.png" for label in ("cats", "dogs") for number in range(14)])


PICTURE_FLAGS = [flag for flag in TINY if "limit" not in flag] + ["--dataset=folder", "--method=simclr"]


def _cache(goods: Goods, folder: Path) -> None:
    flags = [f"--data_dir={goods('pictures')}", "--cache_dir=cache", "--epochs=1", "--evaluate=false"]
    goods.call("train", *PICTURE_FLAGS, *flags, "--run_dir=run")


def _old(goods: Goods, folder: Path) -> None:
    shutil.copytree(FIXTURES, folder / "v0_1")


MAKERS: dict[str, Callable[[Goods, Path], None]] = {
    "stopped": _stopped,
    "resumed": _resumed,
    "finished": _finished,
    "comparison": _comparison,
    "evaluation": _evaluation,
    "attacked": _attacked,
    "exports": _exports,
    "agents": _agents,
    "pictures": _pictures,
    "cache": _cache,
    "old": _old,
}

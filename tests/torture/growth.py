"""Growth: a long tiny run whose memory and open files must not grow."""

import itertools
import os
from pathlib import Path
from statistics import median
from typing import Any

from astra_gym.envs.engine import AttackEngine
from tests.torture.calling import command, faults
from tests.torture.cases import Case
from tests.torture.goods import PICTURE_FLAGS, TINY

UPDATES = 2000
EVERY = 20
"""Updates between two looks."""
MOST_BYTES = 24 << 20
"""That the resident memory may grow by, from the second quarter of a run to the last: far less than a batch, a row of
metrics or an event an update would add up to over a long training."""
MOST_FILES = 0
"""That the open files may grow by over the same time."""
RUNS = (
    "--agent=fixed --steps=3 --epsilon=8/255 --step_size=4/255",
    "--method=simclr",
    "--agent=reinforce --reward_progress=0.5",
    "--agent=ppo --env=batch",
    "--agent=dqn",
    "--method=acl --agent=lints",
    "--agent=bandit --keep_every=5",
)


def grow(case: Case, updates: int = UPDATES) -> None:
    """A run of so many updates."""
    # the first needs least time, so that even a short torture has one whole
    words = RUNS[case.number % len(RUNS)].split()
    cached = case.number % 2 == 1 and "--method=simclr" in words
    flags = [flag for flag in (PICTURE_FLAGS if cached else TINY) if flag.partition("=")[0] not in _names(words)]
    if cached:
        flags += [f"--data_dir={case.goods('pictures')}", "--cache_dir=cache"]
    per_epoch = 5 if cached else 6
    words = [*flags, *words, f"--epochs={-(-updates // per_epoch)}", f"--seed={case.draw.randrange(1000)}"]
    words += ["--evaluate=false", "--images_every=50", "--run_dir=run"]
    case.tried[f"{updates} updates"] += 1
    memory, files = _watched(case, words)
    if len(memory) < 8:
        return
    quarter = len(memory) // 4
    grown = median(memory[3 * quarter :]) - median(memory[quarter : 2 * quarter])
    if grown > MOST_BYTES:
        case.fail("memory grows", f"by {grown / 2**20:.1f} MiB in {updates // 2} updates: {' '.join(words)}")
    opened = median(files[3 * quarter :]) - median(files[quarter : 2 * quarter])
    if opened > MOST_FILES:
        case.fail("open files grow", f"by {opened:g} in {updates // 2} updates: {' '.join(words)}")


def _names(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words}


def _watched(case: Case, words: list[str]) -> tuple[list[int], list[int]]:
    """Resident memory in bytes and open files, every few updates."""
    memory: list[int] = []
    files: list[int] = []
    play, count = AttackEngine.play, itertools.count(1)

    def watched(engine: AttackEngine, budget: Any) -> Any:
        record = play(engine, budget)
        if next(count) % EVERY == 0:
            memory.append(_resident())
            files.append(len(os.listdir("/proc/self/fd")))
        return record

    AttackEngine.play = watched  # type: ignore[method-assign]
    try:
        answer = command("train", words, allowed=[case.goods.room], limit=840)
    finally:
        AttackEngine.play = play  # type: ignore[method-assign]
    case.fail_all(faults(answer), " ".join(words))
    if answer.status != 0:
        case.fail("not trained", f"status {answer.status}: {' '.join(words)}: {answer.err}")
    return memory, files


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

"""Run folders with a log, and what TensorBoard shows of them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_gym.envs.records import StepRecord
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import RunLog
from astra_gym.ssl_core.attacks.pgd import Budget

ARGV = ["experiments/train_agent.py", "--run_dir", "a folder"]


def record(step: int, n: int = 6, attacked: bool = True) -> StepRecord:
    """A target update made from its number alone."""
    generator = torch.Generator().manual_seed(step)
    views = torch.rand(n, 3, 8, 8, generator=generator)
    budget = Budget(
        epsilon=torch.randint(3, 16, (n,), generator=generator) / 255,
        step_size=torch.randint(1, 6, (n,), generator=generator) / 255,
        steps=torch.randint(3, 15, (n,), generator=generator),
    )
    terms = {name: torch.rand(n, generator=generator) for name in ("adversarial", "clean")}
    return StepRecord(
        step=step,
        epoch=step / 4,
        reward=terms["adversarial"] - terms["clean"] if attacked else torch.zeros(0),
        terms=terms if attacked else {},
        budget=budget if attacked else None,
        strength=budget.epsilon if attacked else torch.zeros(0),
        losses={"clean": 2.5, "total": 5.0 / step},
        lr=0.1,
        views=views,
        adversarial=(views + 8 / 255).clamp(0, 1) if attacked else None,
        end_of_epoch=step % 4 == 0,
    )


def new_folder(path: Path) -> RunFolder:
    return RunFolder.create(path, Settings.of(device="cpu", precision="fp32"), ARGV)


def write(log: RunLog, steps: Iterable[int]) -> None:
    """What a run with an SB3 agent writes: every update, the agent's figures every third, images every fourth."""
    agent = Logger(folder=None, output_formats=[log.agent_writer(lambda timesteps: timesteps // 6)])
    for step in steps:
        update = record(step)
        log.step(update)
        if step % 4 == 0:
            log.images(update)
        if step % 3 == 0:
            agent.record("train/entropy", 1 / step)
            agent.record("train/explained_variance", float("nan"))
            agent.record("time/fps", os.getpid())
            agent.dump(6 * step)


def curves(path: Path) -> dict[str, Any]:
    """All that TensorBoard would show but for wall-clock and memory figures."""
    events = EventAccumulator(str(path), size_guidance=dict.fromkeys(("scalars", "histograms", "images"), 0))
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, repr(e.value)) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    histograms = {tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags["histograms"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    shown = scalars | {f"{tag}/histogram": values for tag, values in histograms.items()} | images
    return {tag: values for tag, values in shown.items() if not tag.startswith(("time/", "memory/"))}

"""One run: the world, the agent that chooses its attacks, the records, stopping and resuming."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from astra_gym.agents import Agent, Sb3Agent, describe, make_agent
from astra_gym.agents.warm_start import FrozenAgent
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.records import describe_budget
from astra_gym.envs.sb3_env import Sb3BatchVecEnv, Sb3ViewVecEnv
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.console import Interrupt, RunProgress
from astra_gym.experiments.runs.run_folder import NO_DIGESTS, RunFolder
from astra_gym.experiments.runs.run_log import RunLog
from astra_gym.experiments.runs.seen_images import check_unseen, run_images
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.downstream.online_probe import OnlineProbe
from astra_gym.ssl_core.downstream.postprocessing import post_process
from astra_gym.ssl_core.models.checkpoint import (
    CheckpointError,
    describe_network,
    encoder_name,
    load_checkpoint,
    load_network,
)
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.clock import Clock
from astra_gym.ssl_core.utils.finite import NonFiniteError, not_finite
from astra_gym.ssl_core.utils.messages import brief, few
from astra_gym.ssl_core.utils.rng import Streams

DISCOUNT = {"view": 0.0, "batch": 0.9}
"""Discounts: a view's episode is one step; in the batch environment an action's effect on later batches counts."""
PAPER_INTERVAL = 10
"""ASTrA's strategy network learns in every tenth step; its warm-up is as long as the target's, in its own updates."""
HPARAM_METRICS = ("loss/total", "reward/mean")


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class OffPlan(RuntimeError):
    """The agent has ended without making exactly the planned target updates."""


class Run:
    """A world and an agent, made from settings; `restore` returns both to the state of a checkpoint.

    Args:
        settings: settings of the run.
        device: device of the target network.
        data: the data set, if it is already loaded.
        begins: whether it is a new run; false if `restore` follows, which needs no file of `init_from`.
    """

    def __init__(
        self, settings: Settings, device: torch.device, data: Split | None = None, begins: bool = True
    ) -> None:
        self.settings = settings
        self.engine = AttackEngine(settings.world, settings.run.seed, device, data, begins)
        self.post = settings.run.make_post()
        """Settings of the method's post-processing, if it has one."""
        if self.engine.method.post_processed:
            train = self.engine.data.train
            self.post = self.post.for_classes(len(train.classes))
            if self.post.clusters > len(train):
                raise ValueError(
                    f"the post-processing makes {self.post.clusters} clusters of {len(train)} training images: lower "
                    "--post_kwargs.clusters, or raise --limit"
                )
        self.env: TorchViewEnv | TorchBatchEnv
        chosen, seed = settings.agent, settings.run.seed
        entry = describe(chosen.agent)
        played: Any
        if entry.vec_env and chosen.env == "batch":
            played = Sb3BatchVecEnv(self.engine, chosen.actions, chosen.observation)
            self.env = played.torch_env
        elif entry.vec_env:
            played = Sb3ViewVecEnv(engine=self.engine, actions=chosen.actions, observation=chosen.observation)
            self.env = played.torch_env
        elif chosen.env == "batch":
            played = self.env = TorchBatchEnv(self.engine, chosen.actions, observation=chosen.observation)
        else:
            played = self.env = TorchViewEnv(self.engine, chosen.actions, chosen.observation)
        self.agent: Agent | Sb3Agent = make_agent(
            chosen.agent,
            played,
            seed=seed,
            device=device,
            gamma=DISCOUNT[chosen.env],
            planned_plays=settings.planned_plays(self.engine.planned_updates),
            fixed_action=self._fixed_action(),
            schedule_actions=[self.env.table.encode(budget) for budget in settings.listed_budgets],
            updates_warmup=settings.optimizer.warmup_updates(self.engine.steps_per_epoch) // PAPER_INTERVAL,
            precision=settings.optimizer.precision,
            overrides=chosen.agent_kwargs,
        )
        if not chosen.agent_learns:
            self.agent = FrozenAgent(played, self.agent)
        probed = self.engine.data.probe_train
        labeled = probed.labels is not None
        self.probe = OnlineProbe(probed, seed) if settings.probe.probe_every and labeled else None
        self._kept_epochs = 0
        self.saved_step: int | None = None
        """The update after which the run was last saved, or at which it was resumed."""
        self.processed: TargetNetwork | None = None
        """The encoder after its method's post-processing; None before, and for a method without one."""

    def _fixed_action(self) -> Any:
        budget = self.settings.fixed_budget
        return None if budget is None else self.env.table.encode(budget)

    @property
    def encoder(self) -> TargetNetwork:
        """The network that is evaluated and saved."""
        return self.engine.learner.encoder if self.processed is None else self.processed

    def post_process(self, folder: RunFolder, note: Callable[[str], None]) -> None:
        """Run the method's post-processing of the trained encoder (DynACL++), and save a checkpoint of the result.

        Does nothing if the method has none, or it is done already. It draws from separate streams: an interrupted one
        starts again when the run resumes, with the same result.
        """
        engine, settings = self.engine, self.settings
        if not engine.method.post_processed or self.processed is not None:
            return
        note("post-processing: pseudo labels by k-means, then adversarial fine-tuning on them")
        self.processed = post_process(
            engine.learner.encoder,
            (engine.method.routes.clean, engine.method.routes.attack),
            engine.data.train.images,
            self.post,
            Streams(settings.run.seed, engine.device),
        )
        self.save(folder)

    @cached_property
    def images(self) -> RunImages:
        """Digests of the data and of what the encoder has seen before, computed once."""
        return run_images(self.settings, self.engine.data)

    def check_held_out(self) -> list[str]:
        """Check that no test image is trained on.

        Returns:
            What must be reported about the images beside values that are measured on them.

        Raises:
            TrainedOnError: with the number, examples, and a remedy.
        """
        return check_unseen(self.settings, self.engine.data, self.images)

    def check_images(self, folder: RunFolder) -> list[str]:
        """Check that the data are those with which the run in a folder began, wherever they are now.

        Returns:
            A note if that cannot be checked.

        Raises:
            ValueError: if they are different, or in another order.
        """
        kept = folder.images()
        if kept is None:
            return [NO_DIGESTS]
        if difference := kept.difference(self.images):
            place = self.settings.data.data_dir
            raise ValueError(
                f"{place or self.settings.data.dataset} does not hold the images that {folder.path} began with "
                f"({difference}): restore them{', or give the --data_dir where they are now' if place else ''}"
            )
        # the teacher may have moved, and the file of init_from
        self.images = replace(self.images, taught=kept.taught)
        return []

    @property
    def checkpoint_name(self) -> str:
        """Return the name of the present state in results."""
        return f"step-{self.engine.step}"

    def begin(self, folder: RunFolder) -> None:
        """Write what a new run's folder needs to be resumed: the digests of its images, and the first checkpoint."""
        self.images.write(folder.digests)
        self.save(folder)

    def check_finite(self) -> None:
        """Raise a NonFiniteError if agent, optimizers or world hold a number that is NaN or infinite."""
        processed = None if self.processed is None else self.processed.state_dict()
        held = {"agent": self.agent.numbers(), "world": self.engine.numbers(), "post-processed": processed}
        if bad := not_finite(held):
            last = self.engine.last
            played = "no attack yet" if last is None else describe_budget(last.budget)
            # only one is named, because soon after one NaN all values of an agent are NaN
            raise NonFiniteError(f"NaN or infinite after update {self.engine.step}: {few(bad, most=1)}; last {played}")

    def save(self, folder: RunFolder) -> None:
        """Write `checkpoints/last.pt`: all that is needed to resume exactly, and the encoder for `load_network`.

        Raises:
            NonFiniteError: as `check_finite`; the previous checkpoint is kept.
        """
        self.check_finite()
        payload = self._encoder() | {
            "post_processed": self.processed is not None,
            "agent_name": self.settings.agent.agent,
            "circumstances": self._circumstances,
            "world": self.env.state_dict(),
            "agent": self.agent.state_dict(),
        }
        folder.save("last.pt", "run", payload)
        self.saved_step = self.engine.step

    def _encoder(self) -> dict[str, Any]:
        """Return what `load_network` needs, with step and epoch."""
        engine = self.engine
        return {
            "step": engine.step,
            "epoch": engine.epoch,
            "evaluation_route": engine.method.routes.evaluation,
            "network": describe_network(self.encoder),
        }

    def keep_encoders(self, folder: RunFolder) -> None:
        """Write `checkpoints/epoch-N.pt` for every N that has been reached since the last call: the multiples of
        `keep_every`, and the last epoch.

        Call this at every rollout boundary (between two rollouts), before `save`, so that a run which resumes from a
        checkpoint lacks no file. The file is named after the epoch. Since a rollout may end later than the epoch, it
        holds the encoder of the first boundary at or after the epoch's end, with the `step` and the `epoch` (a
        fraction) of that boundary. So files of epochs that end within one rollout are the same.

        Raises:
            NonFiniteError: as `check_finite`, if an encoder is due.
        """
        before, self._kept_epochs = self._kept_epochs, int(self.engine.epoch)
        every, last = self.settings.run.keep_every, self.settings.optimizer.epochs
        reached = range(before + 1, self._kept_epochs + 1)
        due = [epoch for epoch in reached if every and (epoch % every == 0 or epoch == last)]
        if due:
            self.check_finite()
        for epoch in due:
            folder.save(encoder_name(epoch), "encoder", self._encoder())

    def restore(self, folder: RunFolder) -> list[str]:
        """Return to the state of `checkpoints/last.pt`.

        Returns:
            What makes the continuation differ from an uninterrupted run, in words; empty if it is exact.

        Raises:
            CheckpointError: if there is no checkpoint, or it is damaged, does not fit the settings or is not finite.
        """
        payload = load_checkpoint(folder.checkpoints / "last.pt", "run")
        try:
            restarted = self.env.load_state_dict(payload["world"])
            # the agent last, since a Stable-Baselines3 agent's state ends with that of the global generators
            self.agent.load_state_dict(payload["agent"])
            self._kept_epochs = int(self.engine.epoch)
            # checkpoints of before this setting are of runs without it
            before = {"compile_blocks": False, "ranks": 1} | payload["circumstances"]
        except Exception as error:  # a state that was edited fails in many ways, a user's agent in any
            # torch lists every tensor that differs, one per line; the first few words are enough
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise CheckpointError(
                f"{folder.checkpoints / 'last.pt'} does not fit config.yaml ({kind}{brief(error, 160)}): one of the "
                "two was edited, restore it from a copy"
            ) from error
        if payload.get("post_processed"):
            self.processed = load_network(folder.path, self.engine.device, checks_images=False)[0]
        try:
            self.check_finite()
        except NonFiniteError as error:
            raise CheckpointError(f"{folder.checkpoints / 'last.pt'} cannot be resumed: {error}") from error
        self.saved_step = self.engine.step
        notes = [f"the random stream {name!r} starts anew on this device" for name in restarted]
        both = ((name, before.get(name), now) for name, now in self._circumstances.items())
        return notes + [f"{name} was {then} and is {now}" for name, then, now in both if then != now]

    @cached_property
    def _circumstances(self) -> dict[str, Any]:
        """What may change between a checkpoint and its continuation, which is then no longer exact."""
        # once, since after the training this process leaves the other ranks
        return {
            "device": self.engine.device.type,
            "precision": self.settings.optimizer.precision,
            "compile_blocks": self.settings.optimizer.compile_blocks,
            "threads": torch.get_num_threads(),
            "ranks": self.engine.learner.ranks.size,
        }

    def train(
        self, folder: RunFolder, log: RunLog, progress: RunProgress, interrupt: Interrupt, shares: dict[str, float]
    ) -> None:
        """Make the remaining target updates.

        Args:
            folder, log, progress, interrupt: parts of the run.
            shares: dict that gets the seconds spent on the `world` (observing, attacking, updating the target), on the
                `agent` (choosing, learning, and its library's own work) and on `writing` (metrics, checkpoints); also
                if training stops early.

        Raises:
            Stopped: if the run was interrupted; its state after the last rollout is saved.
            OffPlan: if the agent made fewer or more target updates than planned; they are saved.
            NonFiniteError: if a value in an update or its result is not finite, or agent, optimizers or world are not
                when they are about to be saved; the previous checkpoint is kept.
        """
        agent, env, engine = self.agent, self.env, self.engine
        agent.set_logger(Logger(None, [log.agent_writer(lambda timesteps: timesteps // env.num_envs)]))
        left = engine.planned_updates - engine.step
        if not engine.finished:
            callback = RunCallback(self, folder, log, progress, interrupt)
            start, world = time.perf_counter(), engine.clock.seconds
            try:
                agent.learn(left * env.num_envs, callback, reset_num_timesteps=False)
            except (RuntimeError, ValueError):
                # a library's message about a NaN takes pages; this names the values that are not finite in one line
                self.check_finite()
                raise
            finally:
                shares["world"], shares["writing"] = engine.clock.seconds - world, callback.clock.seconds
                shares["agent"] = time.perf_counter() - start - shares["world"] - shares["writing"]
        folder.check()
        log.flush()
        self.keep_encoders(folder)
        stop = interrupt.settle()
        self.save(folder)
        if stop is not None:
            raise Stopped(stop)
        if not engine.finished or engine.step > engine.planned_updates:
            raise OffPlan(
                f"the agent {self.settings.agent.agent} made {engine.step} of {engine.planned_updates} planned "
                "updates: its learn has to make them all, and no more"
            )


class RunCallback(BaseCallback):
    """Record every target update; between two rollouts keep encoders, save checkpoints and heed interrupts."""

    def __init__(self, run: Run, folder: RunFolder, log: RunLog, progress: RunProgress, interrupt: Interrupt) -> None:
        super().__init__()
        self.run = run
        self.folder = folder
        self.log = log
        self.progress = progress
        self.interrupt = interrupt
        self.saved = self._due()
        self.told = False
        self.clock = Clock()

    def _due(self) -> int:
        """Return how many checkpoints are due after the epochs so far."""
        return int(self.run.engine.epoch) // self.run.settings.run.checkpoint_every

    def _on_rollout_start(self) -> None:
        with self.clock.running():
            self._keep()

    def _keep(self) -> None:
        self.folder.check()
        stop = self.interrupt.settle()
        self.run.keep_encoders(self.folder)
        if self._due() > self.saved or stop is not None:
            self.saved = self._due()
            self.log.flush()
            self.run.save(self.folder)
        if stop is not None:
            raise Stopped(stop)

    def _on_step(self) -> bool:
        with self.clock.running():
            self._write()
        # what ends a run of a number of passes; the agent counts the updates of any other
        return self.run.settings.optimizer.passes is None or not self.run.engine.finished

    def _write(self) -> None:
        engine, settings = self.run.engine, self.run.settings
        record = engine.last
        if record is None:
            raise RuntimeError("a step was reported before any was played")
        row = self.log.step(record)
        if record.end_of_epoch and (round(record.epoch) - 1) % settings.run.images_every == 0:
            self.log.images(record)
        every = settings.probe.probe_every
        if self.run.probe is not None and record.end_of_epoch and round(record.epoch) % every == 0:
            found = self.run.probe.measure(self.run.encoder, engine.method.routes.evaluation)
            self.log.scalars({f"accuracy/{name}": value for name, value in found.items()}, record.step)
        self.progress.update(row, self.log.images_per_second, settings.optimizer.batch_size)
        if self.interrupt.asked and not self.told:
            self.told = True
            self.progress.note(f"{self.interrupt.asked}: stopping at the end of this rollout")

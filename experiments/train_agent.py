"""Train a target network whose attacks an agent chooses, and evaluate it.

python experiments/train_agent.py --agent reinforce
python experiments/train_agent.py --agent ppo --dataset cifar10 --data_dir DIR --epochs 5 --limit 2000
python experiments/train_agent.py --resume runs/NAME
"""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file (entry 0) hides nobody's module
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from rich.console import Console

from astra_gym.experiments.config.cli import Invocation, parse
from astra_gym.experiments.config.commands import called, program, typed
from astra_gym.experiments.config.settings import default_run_dir, resolve_device
from astra_gym.experiments.console import Decoding, Interrupt, RunProgress
from astra_gym.experiments.runs.peak_memory import described, peak_memory
from astra_gym.experiments.runs.run import HPARAM_METRICS, OffPlan, Run, Stopped
from astra_gym.experiments.runs.run_folder import RunFolder, RunLog
from astra_gym.ssl_core.models.checkpoint import CheckpointError
from astra_gym.ssl_core.training.learner import NonFiniteLossError


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    words = [*called("train"), *(sys.argv[1:] if argv is None else argv)]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(parse(argv, program("train")), words, Console())
    except (ValueError, CheckpointError) as error:
        return _fail(2, error)
    except KeyboardInterrupt:
        return _fail(130, "interrupted before training began")
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(status: int, message: object) -> int:
    print(f"{program('train')}: error: {message}", file=sys.stderr)
    return status


def _run(invocation: Invocation, words: Sequence[str], console: Console) -> int:
    settings = invocation.settings
    path = Path(settings.run_dir or default_run_dir(settings))
    if invocation.resume is None:
        # before the data are read, or downloaded
        RunFolder(path).check_new()
    with Decoding(kind=settings.progress, console=console) as decoding:
        data = settings.load_data(decoding.update)
    run = Run(settings, resolve_device(settings.device), data)
    with RunProgress(run.engine.plan, kind=settings.progress, console=console) as progress:
        resumed_step = None
        if invocation.resume is None:
            folder = RunFolder.create(path, settings, words, first=run.save)
        else:
            folder = RunFolder.open(invocation.resume)
            for note in run.restore(folder):
                progress.note(f"not bit for bit the uninterrupted run: {note}")
            folder.note_resume(settings, words)
            resumed_step = run.engine.step
        progress.note(_headline(run, folder))
        with RunLog(folder, settings.batch_size, resumed_step=resumed_step) as log:
            if resumed_step is None:
                log.hparams(settings, HPARAM_METRICS)
            status = _train(run, folder, log, progress)
    if status == 0:
        status = _post_process(run, folder, console)
    return _conclude(run, folder, console) if status == 0 and settings.evaluate else status


def _headline(run: Run, folder: RunFolder) -> str:
    settings, engine = run.settings, run.engine
    left = engine.planned_updates - engine.step
    chunks = settings.update_chunks
    how = f" in {chunks} chunks each (ghost batch norm)" if chunks > 1 else ""
    return (
        f"{settings.method} on {settings.dataset} ({len(engine.data.train)} images), attacks by {settings.agent}: "
        f"{left} of {engine.planned_updates} updates to make{how}, into {folder.path}"
    )


def _resume(folder: RunFolder) -> str:
    return typed("train", "--resume", str(folder.path), *folder.trusting)


def _train(run: Run, folder: RunFolder, log: RunLog, progress: RunProgress) -> int:
    first, start = run.engine.step, time.perf_counter()
    shares: dict[str, float] = {}

    def note_time() -> None:
        seconds = time.perf_counter() - start
        if run.engine.step > first:
            peak = peak_memory(run.engine.device)
            folder.note_training(first, run.engine.step, seconds, shares, peak)
            facts = [f"trained {run.engine.step - first} updates in {seconds:.0f} s", *described(peak)]
            progress.note(", ".join(facts))

    try:
        with Interrupt() as interrupt:
            run.train(folder, log, progress, interrupt, shares)
    except Stopped as name:
        note_time()
        where = f"{run.engine.step} of {run.engine.planned_updates}"
        progress.note(f"{name}: saved at step {where}; go on by {_resume(folder)}")
        return 130
    except KeyboardInterrupt:
        progress.note(f"stopped at once; go on from the last checkpoint by {_resume(folder)}")
        return 130
    except OffPlan as error:
        note_time()
        return _fail(1, f"{error}; what is trained is saved in {folder.path}")
    except NonFiniteLossError as error:
        return _fail(1, f"{error}; the last good checkpoint is {folder.checkpoints / 'last.pt'}")
    note_time()
    return 0


def _post_process(run: Run, folder: RunFolder, console: Console) -> int:
    try:
        run.post_process(folder, lambda text: _note(run, console, text))
    except KeyboardInterrupt:
        _note(run, console, f"stopped; training is done and saved: post-process by {_resume(folder)}")
        return 130
    except (RuntimeError, ValueError) as error:
        return _fail(1, f"the post-processing failed: {error}; training is done and saved in {folder.path}")
    return 0


def _note(run: Run, console: Console, text: str) -> None:
    if run.settings.progress != "off":
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _conclude(run: Run, folder: RunFolder, console: Console) -> int:
    # matplotlib and scipy take a second to import: nobody waits for them before training
    from astra_gym.experiments.evaluation.end_of_run import conclude

    def note(text: str) -> None:
        _note(run, console, text)

    try:
        table = conclude(run, folder, note)
    except KeyboardInterrupt:
        note(f"stopped; training is done and saved: evaluate it by {_resume(folder)}")
        return 130
    except RuntimeError as error:
        return _fail(1, f"the evaluation failed: {error}; training is done and saved in {folder.path}")
    if table is not None:
        console.print(table)
    note(f"results, figures, checkpoints and TensorBoard events lie in {folder.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train a target network whose attacks an agent chooses, and evaluate it; see `astra_gym.experiments.config.cli`."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from rich.console import Console

from astra_gym.agents.warm_start import start_from
from astra_gym.experiments.config.cli import Invocation
from astra_gym.experiments.config.commands import called, program, typed
from astra_gym.experiments.config.devices import arithmetic, on_repeating, resolve_device
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.console import Decoding, Interrupt, RunProgress
from astra_gym.experiments.runs.claims import claimed, held
from astra_gym.experiments.runs.peak_memory import described, peak_memory
from astra_gym.experiments.runs.run import HPARAM_METRICS, OffPlan, Run, Stopped
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import RunLog
from astra_gym.experiments.runs.silent import SilentFolder, SilentLog
from astra_gym.experiments.runs.together import begun, check_alike, check_supported, ranks_console
from astra_gym.ssl_core.data.summary import summary
from astra_gym.ssl_core.distributed.helping import help_first, led
from astra_gym.ssl_core.distributed.ranks import RankLostError, current, joined
from astra_gym.ssl_core.evaluation.sanity import TrainedOnError
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_checkpoint
from astra_gym.ssl_core.safety.disk import is_full
from astra_gym.ssl_core.utils.finite import NonFiniteError
from astra_gym.ssl_core.utils.import_path import located
from astra_gym.ssl_core.utils.messages import amount, said
from astra_gym.ssl_core.utils.stopping import status_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 failed, 2 bad input, 128 + N if signal N stopped it."""
    return framed("train", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    ending.stopped = "interrupted before training began"
    try:
        with joined():
            return _reported(argv, ending)
    except RankLostError as error:
        return _fail(1, error)
    except ValueError as error:
        if is_full(error):
            raise
        return _fail(2, located(error))


def _reported(argv: list[str], ending: Ending) -> int:
    """Run the command, and report what ends it while the other ranks can still be told."""
    try:
        with ranks_console() as console:
            invocation, argv = begun(argv, program("train"))
            return _run(invocation, [*called("train"), *argv], console, ending)
    except KeyboardInterrupt as stop:
        # torchrun sends its signal to all ranks, and also to those that another one's error has left
        if (status := current().noted_end()) is None and current().first:
            raise
        return status_of(stop) if status is None else status
    except RankLostError as error:
        if (status := current().noted_end()) is not None:
            # that rank has reported it
            return status
        kept = ending.kept if isinstance(ending.kept, str) else ending.kept()
        return _fail(1, f"{error}; {kept}; {ending.after}")
    except (ValueError, CheckpointError) as error:
        if is_full(error):
            raise
        return _fail(2, located(error))
    except NonFiniteError as error:
        return _fail(1, f"{error}; training has not begun")


def _fail(status: int, message: object) -> int:
    _print_once(said(program("train"), message))
    current().note_end(status)
    return status


def _print_once(text: str) -> None:
    """Print a line on the standard error, which of several ranks may all have to say."""
    if current().is_first_to_say(text):
        print(text, file=sys.stderr)


def _run(invocation: Invocation, words: Sequence[str], console: Console, ending: Ending) -> int:
    settings, ranks = invocation.settings, current()
    check_supported(settings)
    kind = RunFolder if ranks.first else SilentFolder
    with ExitStack() as hold:
        hold.enter_context(arithmetic(settings.optimizer.precision, settings.run.deterministic))
        if invocation.resume is not None:
            folder = hold.enter_context(held(kind.open(invocation.resume)))
            _keep_in_mind(folder, ending)
        elif settings.run.run_dir is not None:
            # before the data are read, or downloaded
            kind(Path(settings.run.run_dir)).check_new()
        with Decoding(kind=settings.run.progress, console=console) as decoding:
            data = settings.data.load(decoding.update)
        run = Run(settings, resolve_device(settings.run.device), data, begins=invocation.resume is None)
        ranks.check_same("settings", settings.to_yaml().encode())
        ranks.check_same("views of the first batch", run.engine.all_views.cpu().numpy().tobytes())
        origin = run.engine.learner.origin
        if invocation.resume is None and settings.probe.evaluate:
            # if the evaluation would be refused, stop before the training and not after it
            try:
                run.check_held_out()
            except TrainedOnError as error:
                raise ValueError(f"{error}, or train with --evaluate false") from error
        with RunProgress(run.engine.plan, kind=settings.run.progress, console=console) as progress:
            resumed_step, damage = None, list[str]()
            if invocation.resume is None:
                if settings.agent.agent_from is not None:
                    start_from(run.agent, settings.agent.agent_from)
                run.check_finite()
                check_alike(run)
                folder = hold.enter_context(claimed(settings))
                ending.place = folder.path
                facts = None if origin is None else {"init_from": origin.record()}
                folder.begin(settings, words, first=run.begin, facts=facts)
                _keep_in_mind(folder, ending)
            else:
                for note in run.check_images(folder):
                    progress.note(note)
                for note in run.restore(folder):
                    progress.note(f"not bit for bit the uninterrupted run: {note}")
                check_alike(run)
                if invocation.accept_edited_config:
                    folder.accept_config()
                damage = folder.note_resume(settings, words)
                resumed_step = run.engine.step
            if folder.lock is not None and not folder.lock.has_locks:
                _warn(f"{folder.path} lies on a file system without locks: start no second process in it")
            progress.note(_headline(run, folder))
            for sentence in () if origin is None else origin.sentences():
                progress.note(sentence)
            if settings.probe.probe_every and run.probe is None:
                progress.note("no curves of the probe (--probe_every): the images have no labels")
            log_kind = RunLog if folder.writes else SilentLog
            with log_kind(folder, settings.optimizer.batch_size, resumed_step=resumed_step) as log:
                for sentence in (*damage, *log.damage):
                    _warn(f"{folder.path}/{sentence}; the run resumes from its checkpoint, and a report marks this")
                if resumed_step is None:
                    log.hparams(settings, HPARAM_METRICS)
                status = _train(run, folder, log, progress)
        if status:
            return status
        if not ranks.first:
            return help_first(ranks)
        with led(ranks.leave()):
            status = _post_process(run, folder, console)
            return _conclude(run, folder, console) if status == 0 and settings.probe.evaluate else status


def _keep_in_mind(folder: RunFolder, ending: Ending) -> None:
    """Set what the command reports from now on if the run ends early."""

    def kept() -> str:
        try:
            step = load_checkpoint(folder.checkpoints / "last.pt", "run")["step"]
        except CheckpointError as error:
            return f"its checkpoint is lost ({error})"
        return f"the checkpoint of step {step} is whole"

    ending.place, ending.kept = folder.path, kept
    ending.after = f"resume by {_resume(folder)}"
    ending.stopped = f"interrupted; {ending.after}"


def _warn(text: object) -> None:
    """Print a note on the standard error, whatever the display shows."""
    _print_once(said(program("train"), text, "note"))


def _headline(run: Run, folder: RunFolder) -> str:
    settings, data, engine = run.settings, run.settings.data, run.engine
    left, passes = engine.planned_updates - engine.step, settings.optimizer.passes
    chunks = settings.optimizer.update_chunks
    how = f" in {chunks} chunks each (ghost batch norm)" if chunks > 1 else ""
    work = f"{left} of {amount(engine.planned_updates, 'update')}"
    if passes is not None:
        work = f"updates for {passes - (engine.plan.spent(engine.step) or 0):g} of {passes:g} passes"
    return (
        f"{settings.method.method} on {data.dataset} ({len(engine.data.train)} images), attacks by "
        f"{settings.agent.agent}: {work} to make{how}, into {folder.path}\n"
        f"{data.data_dir or data.dataset}: {summary(engine.data)}"
        f"{on_repeating(engine.device, settings.run.deterministic)}"
    )


def _resume(folder: RunFolder) -> str:
    return typed("train", "--resume", str(folder.path), *folder.moved, *folder.trusting)


def _train(run: Run, folder: RunFolder, log: RunLog, progress: RunProgress) -> int:
    first, start = run.engine.step, time.perf_counter()
    shares: dict[str, float] = {}
    together = True

    def note_time() -> None:
        seconds = time.perf_counter() - start
        if not current().alone:
            shares["exchange"] = current().clock.seconds
        if run.engine.step > first:
            peak = peak_memory(run.engine.device)
            for sentence in folder.note_training(first, run.engine.step, seconds, shares, peak):
                _warn(f"{folder.path}/{sentence}; a report marks this")
            facts = [f"trained {amount(run.engine.step - first, 'update')} in {seconds:.0f} s", *described(peak)]
            if not current().alone:
                facts.append(f"{100 * shares['exchange'] / seconds:.0f} % of the time between ranks")
            progress.note(", ".join(facts))

    try:
        with Interrupt() as interrupt:
            run.train(folder, log, progress, interrupt, shares)
            stop = interrupt.settle()
        together = stop is not None
        if (stop := stop or interrupt.asked) is not None:
            # the request came after the run's last check, when everything was saved
            raise Stopped(stop)
    except Stopped as name:
        note_time()
        planned = "" if run.settings.optimizer.passes is not None else f" of {run.engine.planned_updates}"
        where = f"{run.engine.step}{planned}"
        _say(run, progress.console, f"{name}: saved at step {where}; resume by {_resume(folder)}")
        if together:
            # else rank 0 goes on and may need this rank: leaving tells it
            current().await_last_word()
        return interrupt.status
    except KeyboardInterrupt as stop:
        _say(run, progress.console, f"stopped at once; go on from the last checkpoint by {_resume(folder)}")
        return status_of(stop)
    except OffPlan as error:
        note_time()
        return _fail(1, f"{error}; what is trained is saved in {folder.path}")
    except NonFiniteError as error:
        return _fail(1, f"{error}; {_last_good(run, folder)}")
    note_time()
    return 0


def _last_good(run: Run, folder: RunFolder) -> str:
    return f"the last good checkpoint, of update {run.saved_step}, is {folder.checkpoints / 'last.pt'}"


def _post_process(run: Run, folder: RunFolder, console: Console) -> int:
    try:
        run.post_process(folder, lambda text: _note(run, console, text))
    except KeyboardInterrupt as stop:
        _say(run, console, f"stopped; training is done and saved: post-process by {_resume(folder)}")
        return status_of(stop)
    except (RuntimeError, ValueError, NonFiniteError) as error:
        if is_full(error):
            raise
        return _fail(1, f"the post-processing failed: {located(error)}; training is done and saved in {folder.path}")
    return 0


def _note(run: Run, console: Console, text: str) -> None:
    if run.settings.run.progress != "off":
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _say(run: Run, console: Console, text: str) -> None:
    """Print how a run was stopped, even if the display is off."""
    if run.settings.run.progress == "off":
        _warn(text)
    else:
        _note(run, console, text)


def _conclude(run: Run, folder: RunFolder, console: Console) -> int:
    # matplotlib and scipy take a second to import, and training need not wait for them
    from astra_gym.experiments.evaluation.end_of_run import conclude

    def note(text: str) -> None:
        folder.check()
        _note(run, console, text)

    try:
        table = conclude(run, folder, note)
    except KeyboardInterrupt as stop:
        _say(run, console, f"stopped; training is done and saved: evaluate it by {_resume(folder)}")
        return status_of(stop)
    except RankLostError as error:
        return _fail(1, f"{error}; training is done and saved: evaluate it by {_resume(folder)}")
    except RuntimeError as error:
        if is_full(error):
            raise
        return _fail(1, f"the evaluation failed: {located(error)}; training is done and saved in {folder.path}")
    if table is not None:
        console.print(table)
    note(f"results, figures, checkpoints and TensorBoard events lie in {folder.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

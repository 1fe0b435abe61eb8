"""What a run on several ranks needs before it begins: one voice, one command line, and what cannot be divided."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from rich.console import Console
from torch import nn

from astra_gym.experiments.config.cli import Invocation, parse
from astra_gym.experiments.config.commands import called
from astra_gym.experiments.config.devices import check_own_gpus
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.trust import trusting
from astra_gym.experiments.runs.claims import held
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.distributed.ranks import current
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.hashing import digest


@contextmanager
def ranks_console() -> Iterator[Console]:
    """Open the console of the standard output; of a rank that prints nothing, one that leads nowhere."""
    if current().first:
        yield Console(emoji=False)
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        yield Console(emoji=False, file=nowhere)


def begun(argv: list[str], program: str) -> tuple[Invocation, list[str]]:
    """Parse the command line of training, and return it with the words that gave it.

    After a failure torchrun starts all ranks again with the first command line. The run that this has begun then
    resumes.

    Raises:
        ValueError: if torchrun may restart the ranks, but the command line names no folder to find the run in.
    """
    ranks, invocation = current(), _parsed(argv, program)
    place = invocation.settings.run.run_dir
    if invocation.resume is not None or ranks.alone:
        return invocation, argv
    if place is None:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
            raise ValueError(
                "torchrun restarts the ranks (--max_restarts) with this command line, which names no folder to resume: "
                "give --run_dir"
            )
        return invocation, argv
    if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        return invocation, argv
    folder = RunFolder(expanded(place))
    # rank 0 looks for all, since it may begin the run while another is still looking; what others have left in the
    # folder is refused once more
    own = ranks.first and folder.is_begun_by(invocation.settings, [*called("train"), *argv])
    if ranks.largest(int(own and folder.config.is_file())):
        argv = ["--resume", str(folder.path), *trusting(invocation.settings.flat())]
        return _parsed(argv, program), argv
    if own:
        with held(folder):
            folder.discard()
    return invocation, argv


def check_supported(settings: Settings) -> None:
    """Raise a ValueError that names what several ranks cannot do, if the settings have it."""
    ranks = current()
    if ranks.alone:
        return
    if settings.optimizer.compile_blocks:
        raise ValueError(
            "compile_blocks is for one process, since batch norm over ranks is not compiled: leave it out, or torchrun"
        )
    check_own_gpus(settings.run.device, ranks.size)


def check_alike(run: Run) -> None:
    """Check that all ranks have read the same images, and the same networks at the same update.

    Every machine reads its own copy of a file, and what the ranks tell each other later does not show whose it was.

    Raises:
        RanksDifferError: if they have not.
    """
    ranks, learner = current(), run.engine.learner
    if ranks.alone:
        return
    ranks.check_same("images", run.images.train.values + run.images.test.values)
    networks = nn.ModuleList([learner.network, learner.heads, learner.others])
    ranks.check_same("networks", f"{learner.step} {digest(networks)}".encode())


def _parsed(argv: list[str], program: str) -> Invocation:
    """Parse a command line; what all ranks would print is printed once."""
    ranks = current()
    if ranks.alone:
        return parse(argv, program)
    output, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            return parse(argv, program)
    except SystemExit as end:
        if end.code:
            ranks.note_end(int(end.code))
        raise
    finally:
        for text, stream in ((output.getvalue(), sys.stdout), (errors.getvalue(), sys.stderr)):
            if text and ranks.is_first_to_say(text):
                print(text, end="", file=stream)

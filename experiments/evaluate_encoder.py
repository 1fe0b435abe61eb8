"""Evaluate an encoder by the published protocols: probes, fine-tuning, attacks, corruptions, health of its features.

# SLF, ALF, AFF and kNN, under PGD-20 and AutoAttack
python experiments/evaluate_encoder.py runs/NAME
# less of it, with 1 % and 10 % of the labels too
python experiments/evaluate_encoder.py runs/NAME --protocols slf knn --attacks pgd20 --labels 0.01 0.1 1.0
# corruptions, perspective and health, too
python experiments/evaluate_encoder.py runs/NAME --everything
# along the run: the encoders that --keep_every kept
python experiments/evaluate_encoder.py runs/NAME --every 5
# several encoders, in one table and one figure
python experiments/evaluate_encoder.py runs/A runs/B --protocols slf --landscape
# what robust accuracy loses from training to test images
python experiments/evaluate_encoder.py runs/NAME --train_images 1000
# another project's checkpoint
python experiments/evaluate_encoder.py CHECKPOINT.pt --format dynacl --route pgd --dataset cifar10 --data_dir DIR
# a network of your own
python experiments/evaluate_encoder.py --model my_module:build --dataset cifar10 --data_dir DIR --image_size 32

By default data, image size and flips are those of the encoder's run. Repeat a command that was stopped or killed to
resume it: finished parts, trained classifiers and finished batches of AutoAttack are kept in the evaluation's folder.
Every row that departs from the published protocol is marked as not standard, with the reason.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from rich.console import Console

from astra_gym.experiments.config.commands import program, recorded, typed
from astra_gym.experiments.config.devices import check_own_gpus, resolve_device
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.evaluation.along_run import evaluate_along
from astra_gym.experiments.evaluation.flags import EvaluationFlags, evaluation_parser
from astra_gym.experiments.evaluation.several import evaluate_one, evaluate_several
from astra_gym.experiments.reports.evaluation_tables import remarks, tables
from astra_gym.experiments.reports.rendering import for_terminal
from astra_gym.ssl_core.distributed.helping import help_first, led
from astra_gym.ssl_core.distributed.ranks import RankLostError, Ranks, joined
from astra_gym.ssl_core.models.checkpoint import CheckpointError
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.utils.import_path import located
from astra_gym.ssl_core.utils.messages import said


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a value would be void, 2 bad input, 128 + N if signal N
    stopped it."""
    return framed("evaluate", argv, _main)


def _main(words: list[str], ending: Ending) -> int:
    try:
        with joined() as ranks:
            return _led(words, ending, ranks) if ranks.first else help_first(ranks)
    except (RankLostError, ValueError) as error:
        if disk_error(error):
            raise
        # of the ranks or their environment: what the evaluation raises is reported in `_led`
        print(said(program("evaluate"), error), file=sys.stderr)
        return 1 if isinstance(error, RankLostError) else 2


def _led(words: list[str], ending: Ending, ranks: Ranks) -> int:
    parser = evaluation_parser(__doc__)
    given = parser.read(words)
    command = shlex.join([*recorded("evaluate"), *words])
    ending.kept = "what is finished is kept"
    ending.after = f"resume by {typed('evaluate', *words)}"
    ending.stopped = f"interrupted; {ending.kept}: {ending.after}"
    try:
        check_own_gpus(given.work.device, ranks.size)
        with led(ranks.leave()):
            return _run(given, command, ending)
    except (ValueError, CheckpointError, OSError) as error:
        if disk_error(error):
            raise
        parser.error(located(error))
    except RankLostError as error:
        print(said(program("evaluate"), f"{error}; {ending.kept}; {ending.after}"), file=sys.stderr)
        return 1
    except RuntimeError as error:
        if disk_error(error):
            raise
        print(said(program("evaluate"), f"the evaluation failed: {located(error)}"), file=sys.stderr)
        return 1


def _run(given: EvaluationFlags, command: str, ending: Ending) -> int:
    console, device = Console(emoji=False), resolve_device(given.work.device)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    def begin(folder: Path) -> None:
        ending.place = folder

    if given.measures.every is not None:
        ending.place = given.work.out or given.source.encoder or ending.place
        rows, facts, store = evaluate_along(given, console, device)
    elif len(given.source.encoders) > 1:
        rows, facts, store = evaluate_several(given, console, device, begin, command)
    else:
        _, rows, facts, store = evaluate_one(given, console, device, begin)
    store.conclude(rows, facts | {"command": command})
    for table in tables(rows):
        console.print(for_terminal(table))
    for what, sentence in remarks(rows, facts["notes"]):
        say(f"{what}: {sentence}")
    say(f"results lie in {store.path}; as a page, with intervals: {typed('report', str(store.path))}")
    for name, reason in facts["void"].items():
        print(said(program("evaluate"), f"no figure for {name}: {reason}"), file=sys.stderr)
    return 1 if facts["void"] else 0


if __name__ == "__main__":
    sys.exit(main())

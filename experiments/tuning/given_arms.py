"""The arms of a search by `--tune arms`: whole settings that train on the same images, and are scored alike."""

from collections.abc import Sequence
from dataclasses import fields

from astra_gym.experiments.comparison.arms import SAME_TEST, own_arm, settings_of
from astra_gym.experiments.config.cli import settings_given
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.tuning.candidates import Candidate, Chosen, arms


def check_searchable(settings: Settings) -> None:
    """Raise a ValueError if a search cannot train with the settings of a world or an arm."""
    if settings.method.make().post_processed:
        raise ValueError(f"the method {settings.method.method} ends with a post-processing, which a search leaves out")
    if settings.coreset.coreset != "none" or settings.optimizer.passes is not None:
        raise ValueError("a search trains on all images for passes of its own: leave coreset and passes out")


def given_arms(texts: Sequence[str], worlds: Sequence[Settings], trust: bool | None) -> list[Candidate]:
    """Return arms as candidates.

    Args:
        texts: the arms as `LABEL=FLAGS`.
        worlds: the settings of each world.
        trust: see `astra_gym.experiments.config.cli.parse`.

    Raises:
        ValueError: if a label or a flag is wrong, two arms have a label or settings in common, or one has its own
            images or its own test, or cannot be trained by a search.
    """
    world = worlds[0]
    shared = ["--preset", world.run.preset, "--device", "cpu"]
    if world.data.data_dir is not None:
        shared += ["--data_dir", str(world.data.data_dir)]
    base, found = settings_of(shared).flat(), dict[str, Chosen]()
    for text in texts:
        label, words = own_arm(text)
        if label in found:
            raise ValueError(f"two arms have the label {label}: expected a label for each")
        try:
            settings = settings_of([*shared, *words], trust)
            check_searchable(settings)
        except ValueError as error:
            raise ValueError(f"{error} (in the arm {label})") from error
        found[label] = Chosen(settings.flat(), settings_given(words))
    candidates = arms(base, [each.flat() for each in worlds], list(found.values()))
    common = {*SAME_TEST, *(field.name for part in (world.data, world.probe) for field in fields(part))}
    for label, candidate in zip(found, candidates, strict=True):
        if own := sorted(common & {name for name, _ in candidate.settings}):
            raise ValueError(
                f"the arm {label} sets {', '.join(own)}: all arms share their images and their test, give it beside "
                "--arm"
            )
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"{len(candidates)} arms, {len(set(candidates))} different ones: expected all different")
    return candidates

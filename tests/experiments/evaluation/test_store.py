import json

import pytest
import torch
from PIL import Image

from astra_gym.experiments.evaluation.store import FIGURES, EvaluationPart, EvaluationStore
from astra_gym.ssl_core.evaluation.results import Origin, read_results
from astra_gym.ssl_core.models.checkpoint import CheckpointError

ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="abc")
FACTS = {
    **{"name": "x", "notes": {"data": ["a note"]}, "data": {"name": "digits", "train": 3, "test": 4}, "commit": "abc"},
    **{
        "versions": {"torch": "2"},
        "device": "cpu",
        "threads": 1,
        "command": "python experiments/evaluate_encoder.py x",
    },
}
KEY = {"part": "attacks", "encoder": "0" * 64, "fraction": 0.1}


def test_a_part_comes_back_under_its_own_key_only(tmp_path) -> None:
    store = EvaluationStore(tmp_path)
    right = torch.tensor([True, False, True, True])
    part = EvaluationPart([ORIGIN.accuracy("SA", 3, 4)], ["a note"], {"clean": right})
    assert store.part(KEY) is None
    store.keep_part(KEY, part)
    found = store.part(dict(reversed(KEY.items())))
    assert found is not None
    assert (list(found.rows), list(found.notes)) == (part.rows, part.notes)
    assert torch.equal(found.outcomes["clean"], right)
    for change in ({"part": "corruptions"}, {"encoder": "1" * 64}, {"fraction": 0.2}, {"seed": 1}):
        assert store.part(KEY | change) is None


def test_a_part_that_was_cut_short_is_not_there(tmp_path) -> None:
    store = EvaluationStore(tmp_path)
    store.keep_part(KEY, EvaluationPart([ORIGIN.accuracy("SA", 3, 4)]))
    [mark] = tmp_path.glob("parts/*/part.json")
    mark.unlink()
    assert store.part(KEY) is None


def test_classifiers_are_kept_as_plain_tensors(tmp_path) -> None:
    store = EvaluationStore(tmp_path)
    key = KEY | {"part": "training"}
    assert store.classifier(key, torch.device("cpu")) is None
    store.keep_classifier(key, {"head": {"weight": torch.ones(2, 3)}})
    found = store.classifier(key, torch.device("cpu"))
    assert found is not None and torch.equal(found["head"]["weight"], torch.ones(2, 3))
    [file] = tmp_path.glob("classifiers/*.pt")
    assert json.loads(torch.load(file, weights_only=True)["key"]) == key
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        store.classifier(key, torch.device("cpu"))


def test_the_conclusion_holds_rows_and_facts(tmp_path) -> None:
    store = EvaluationStore(tmp_path)
    with pytest.raises(ValueError, match="repeat the evaluation"):
        store.facts()
    store.conclude([ORIGIN.accuracy("SA", 3, 4)], FACTS)
    assert read_results(store.file) == [ORIGIN.accuracy("SA", 3, 4)]
    assert store.facts() == {"schema": 1, **FACTS}


def test_a_conclusion_removes_the_figures_of_an_earlier_one_and_nothing_else(tmp_path) -> None:
    folder, row = tmp_path / "out", ORIGIN.accuracy("SA", 3, 4)
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "thesis.png").write_text("mine")
    parts = [tmp_path / "tsne.png", tmp_path / "spectrum.png"]
    for part in parts:
        Image.new("RGB", (2, 2)).save(part)

    def shown(*figures) -> set[str]:
        store = EvaluationStore(folder)
        store.begin()
        store.show(figures)
        before = {path.name for path in (folder / "figures").iterdir()}
        # nothing is touched until it concludes
        assert before >= {"thesis.png"} and all((folder / "figures" / name).is_file() for name in before)
        store.conclude([row], FACTS)
        return {path.name for path in (folder / "figures").iterdir()}

    assert shown(*parts) == {"thesis.png", "tsne.png", "spectrum.png"}
    assert shown(parts[0]) == {"thesis.png", "tsne.png"}
    assert shown() == {"thesis.png"}
    # a figure that is drawn, and one by an older version, which kept no list
    EvaluationStore(folder).draws("accuracy_along_the_run.png").touch()
    (folder / ".figures.json").unlink()
    assert shown(parts[1]) == {"thesis.png", "spectrum.png"}


def test_before_anything_is_computed_the_folder_is_looked_at(tmp_path) -> None:
    store = EvaluationStore(tmp_path / "out")
    store.begin()
    assert not store.path.exists()
    for name in FIGURES:
        (store.figures / name).parent.mkdir(parents=True, exist_ok=True)
        (store.figures / name).write_text("mine")
        with pytest.raises(ValueError, match=f"{name} would be replaced, and is not of this project"):
            store.begin()
        (store.figures / name).unlink()
    for name in ("parts", "classifiers", "states", "evaluation.json", "facts.json", "config.yaml", "comparison.json"):
        (store.path / name).symlink_to(tmp_path)
        with pytest.raises(ValueError, match=r"is a symbolic link|is not an evaluation's folder"):
            store.begin()
        (store.path / name).unlink()
    store.begin()


@pytest.mark.parametrize(
    "change",
    [
        *({"name": ["a"]}, {"name": None}, {"data": {"name": "x"}}, {"data": [1]}, {"notes": {"a": "b"}}),
        *({"notes": {"a": [1]}}, {"threads": "1"}, {"versions": {"a": 1}}, {"command": None}, {"void": {"a": 1}}),
    ],
)
def test_facts_of_the_wrong_types_are_refused(tmp_path, change: dict) -> None:
    store = EvaluationStore(tmp_path)
    store.conclude([], FACTS | change)
    with pytest.raises(ValueError, match=rf"facts\.json is damaged: {next(iter(change))} is "):
        store.facts()

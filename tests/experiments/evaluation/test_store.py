import json

import pytest
import torch

from astra_gym.experiments.evaluation.store import EvaluationPart, EvaluationStore
from astra_gym.ssl_core.evaluation.results import Origin, read_results
from astra_gym.ssl_core.models.checkpoint import CheckpointError

ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="abc")
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
    store.conclude([ORIGIN.accuracy("SA", 3, 4)], {"name": "x"})
    assert read_results(store.file) == [ORIGIN.accuracy("SA", 3, 4)]
    assert store.facts()["name"] == "x"

"""The file of a search: whole after every trial, continued, and refused where it is of another search."""

from pathlib import Path

import pytest

from astra_gym.envs.api.action_sets import WIDE_SETS
from astra_gym.experiments.tuning.candidates import Candidate
from astra_gym.experiments.tuning.halving import Rung
from astra_gym.experiments.tuning.trial import Trial
from astra_gym.experiments.tuning.tuning_file import NONE, TuningFile, held, label
from astra_gym.ssl_core.downstream.quick_score import QuickScore
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.safety.writers import Locked
from tests.helpers.sealed import resealed_json

CANDIDATES = [Candidate(()), Candidate((("lr", 0.01),)), Candidate((("lr", 0.02), ("strength", 0.5)))]
RUNGS = (Rung(3, 1), Rung(1, 2))
WHAT = {"tune": ["lr"], "passes": 100.0, "candidates": 3, "search_seed": 0, "settings": {"preset": "digits"}}


def made(score: float) -> Trial:
    return Trial(score, QuickScore(90.0, 50.0, 0.5, score), 10, 83.0, 1.5)


def test_finished_trials_are_there_again_and_finished_rounds_are_told(tmp_path: Path) -> None:
    file = TuningFile(tmp_path / "t.json", WHAT, CANDIDATES, RUNGS)
    for candidate, score in zip(CANDIDATES, (0.1, 0.3, 0.2), strict=True):
        file.add(candidate, 0, made(score))
    document = read_json(tmp_path / "t.json")
    assert document["rounds"] == [{"seeds": 1, "best_first": ["--lr 0.01", "--lr 0.02 --strength 0.5", NONE]}]
    assert document["spent"] == {"trials": 3, "passes": 249, "seconds": 4.5}
    again = TuningFile(tmp_path / "t.json", WHAT, CANDIDATES, RUNGS)
    assert again.trials == file.trials and again.scores[CANDIDATES[1], 0] == 0.3
    again.add(CANDIDATES[1], 1, made(0.25))
    assert read_json(tmp_path / "t.json")["rounds"][1] == {"seeds": 2, "best_first": ["--lr 0.01"]}
    assert label(CANDIDATES[0]) == NONE


def test_a_file_whose_candidates_have_sets_written_out_is_continued(tmp_path: Path) -> None:
    wide = [Candidate((("agent", name), ("action_epsilons", WIDE_SETS.epsilons))) for name in ("escalating", "random")]
    TuningFile(tmp_path / "t.json", WHAT, wide, RUNGS).add(wide[1], 0, made(0.1))
    before = f"--agent random --action_epsilons [{','.join(map(repr, WIDE_SETS.epsilons))}]"
    assert len(before) > 400 > 100 > len(label(wide[1]))
    resealed_json(tmp_path / "t.json", lambda there: there["trials"][0].update(candidate=before))
    assert TuningFile(tmp_path / "t.json", WHAT, wide, RUNGS).trials == {(wide[1], 0): made(0.1)}


def test_the_file_of_another_search_is_not_continued(tmp_path: Path) -> None:
    TuningFile(tmp_path / "t.json", WHAT, CANDIDATES, RUNGS).add(CANDIDATES[0], 0, made(0.1))
    with pytest.raises(
        ValueError, match=r"it is another search: passes is 100.0 there, not 50.0; give another --output"
    ):
        TuningFile(tmp_path / "t.json", WHAT | {"passes": 50.0}, CANDIDATES, RUNGS)
    # as many arms, but another one among them: nothing is damaged
    with pytest.raises(ValueError, match="its candidate \"the world's own values\" is none of this command's; give an"):
        TuningFile(tmp_path / "t.json", WHAT, [Candidate((("lr", 0.5),)), *CANDIDATES[1:]], RUNGS)
    text = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(text.replace('"updates": 10', '"updates": 11'))
    with pytest.raises(ValueError, match="damaged"):
        TuningFile(tmp_path / "t.json", WHAT, CANDIDATES, RUNGS)


def test_a_file_has_one_search_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.json"
    with held(path):
        with pytest.raises(Locked, match=r"t.json is being written by another process"), held(path):
            pass
        with held(path.with_name("other.json")):
            pass
        assert list(path.parent.iterdir()) == [path.parent / ".t.json.lock"]
    assert not path.parent.exists()

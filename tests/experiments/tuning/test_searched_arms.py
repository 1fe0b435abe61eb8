"""What the search of an arm cost, read from its file; and files that are not those of the arm's search."""

import json
from pathlib import Path
from typing import Any

import pytest

from astra_gym.experiments.comparison.arms import make_arm
from astra_gym.experiments.comparison.searches import SearchCost
from astra_gym.experiments.tuning.searched_arms import search_costs
from astra_gym.experiments.tuning.tuning_file import NONE
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.provenance import ROOT

KEPT = ROOT / "results" / "tuning"
WORLD = ("--preset", "digits-wide")
FOUND = ("--epsilon", "48/255", "--steps", "1", "--step_size", "32/255")
ARMS = [
    make_arm("fixed", [*WORLD, "--agent", "fixed"], 1),
    make_arm("tuned", [*WORLD, "--agent", "fixed", *FOUND, "--epochs", "8"], 1),
]


def changed(tmp_path: Path, **parts: Any) -> str:
    """Write the kept search with changes."""
    document = read_json(KEPT / "digits-wide-fixed.json")
    (tmp_path / "t.json").write_text(json.dumps(document | parts))
    return f"tuned={tmp_path / 't.json'}"


def test_the_kept_search_is_that_of_its_arm() -> None:
    texts = [f"tuned={KEPT / 'digits-wide-fixed.json'}", f"fixed={KEPT / 'digits-wide-lr-strength.json'}"]
    assert search_costs(texts, ARMS) == [
        SearchCost("tuned", "digits-wide-fixed.json", ["fixed"], 64, 92, 135_404, 2352.0),
        # the preset has what this search found
        SearchCost("fixed", "digits-wide-lr-strength.json", ["lr", "strength"], 32, 48, 69_720, 1059.1),
    ]


def test_a_search_in_several_worlds_is_known_by_its_settings(tmp_path: Path) -> None:
    search = read_json(KEPT / "digits-wide-fixed.json")["search"]
    text = changed(tmp_path, search=search | {"settings": {"a: lr": 1, "a: epochs": 1, "b: lr": 1}})
    assert search_costs([text], ARMS)[0].worlds == 2


def test_the_worlds_own_values_can_be_the_best(tmp_path: Path) -> None:
    search = read_json(KEPT / "digits-wide-lr-strength.json")["search"]
    own = {"lr": 0.0221, "strength": 0.231, "preset": "digits-wide"}
    rounds = [{"seeds": seeds, "best_first": [NONE]} for seeds in (1, 2, 4, 8)]
    text = changed(tmp_path, search=search | {"settings": own}, rounds=rounds)
    assert search_costs([text], ARMS)[0].tune == ["lr", "strength"]
    text = changed(tmp_path, search=search | {"settings": own | {"lr": 0.5}}, rounds=rounds)
    with pytest.raises(
        ValueError, match=r"the search found --lr 0.5 --strength 0.231, but the arm has lr 0.0221; name"
    ):
        search_costs([text], ARMS)
    text = changed(tmp_path, search=search | {"settings": own | {"preset": "digits-wide-r8"}}, rounds=rounds)
    with pytest.raises(ValueError, match="it is a search in 'digits-wide-r8', but the arm is in digits-wide"):
        search_costs([text], ARMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuned", "--searched tuned: expected ARM=FILE"),
        ("tuned=", "expected ARM=FILE"),
        (f"tund={KEPT / 'digits-wide-fixed.json'}", "there is no arm 'tund': expected one of fixed, tuned"),
        ("tuned=nowhere.json", "nowhere.json cannot be read as a tuning file: No such file"),
        (f"tuned={ROOT / 'results' / 'benchmark.json'}", "benchmark.json is no tuning file: expected one that tune.py"),
        (f"tuned={ROOT / 'README.md'}", "README.md is not readable JSON"),
        (f"tuned={KEPT / 'digits-wide-curve.json'}", "--step_size 64/255, but the arm has epsilon 48/255; name"),
        (
            f"fixed={KEPT / 'digits-wide-fixed.json'}",
            "--step_size 32/255, but the arm has epsilon None; name the search",
        ),
    ],
)
def test_what_is_not_the_search_of_an_arm_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^--searched ") as error:
        search_costs([text], ARMS)
    assert message in str(error.value)


def test_a_search_is_an_arms_once() -> None:
    text = f"tuned={KEPT / 'digits-wide-fixed.json'}"
    assert len(search_costs([text], ARMS)) == 1
    # such results could not be read again
    with pytest.raises(ValueError, match=r"^--searched tuned=.*: the arm has a file of this name already"):
        search_costs([text, text], ARMS)


def test_the_installed_command_calls_itself_so_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/astra-gym"])
    with pytest.raises(ValueError, match="no tuning file: expected one that astra-gym tune wrote"):
        search_costs([f"tuned={ROOT / 'results' / 'benchmark.json'}"], ARMS)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rounds": []}, "of an unfinished search"),
        ({"schema": 2}, "no tuning file"),
        ({"rounds": [{"seeds": 1, "best_first": ["--lr 1"]}]}, "of an unfinished search: repeat its command"),
        ({"rounds": [{"seeds": 8, "best_first": [3]}] * 4}, "no tuning file"),
        (
            {"rounds": [{"seeds": 8, "best_first": ["--agent bad_module:Agent"]}] * 4},
            "expected flags that tune.py sets",
        ),
        ({"rounds": [{"seeds": 8, "best_first": ["--data_dir /"]}] * 4}, "expected flags that tune.py sets"),
        ({"rounds": [{"seeds": 8, "best_first": ["--steps"]}] * 4}, "expected flags that tune.py sets"),
        ({"spent": {"trials": 0, "passes": 1, "seconds": 1}}, "trials is 0: expected an integer of 1 or more"),
        ({"spent": {"trials": 1, "passes": "many", "seconds": 1}}, "passes is 'many': expected a number"),
        ({"spent": {"trials": 1}}, "missing or unknown fields: passes, seconds"),
    ],
)
def test_a_file_that_a_stranger_wrote_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^--searched ") as error:
        search_costs([changed(tmp_path, **parts)], ARMS)
    assert message in str(error.value)

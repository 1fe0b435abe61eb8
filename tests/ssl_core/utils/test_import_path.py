import sys
from pathlib import Path

import pytest

from astra_gym.ssl_core.utils.import_path import described, imported, located


def test_a_path_gives_what_a_module_holds() -> None:
    assert imported("pathlib:Path", "model", "my_module:build") is Path
    assert imported("pathlib:Path.exists", "model", "my_module:build") is Path.exists


def test_a_module_in_the_current_directory_is_found_after_all_others(tmp_path, monkeypatch) -> None:
    (tmp_path / "module_of_mine.py").write_text("def build(): return 7\n")
    (tmp_path / "pathlib.py").write_text("Path = None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert imported("module_of_mine:build", "model", "my_module:build")() == 7
    assert imported("pathlib:Path", "model", "my_module:build") is Path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pathlib.Path", r"model 'pathlib.Path' is no dotted path: expected module:Name, such as my_module:build"),
        ("no_such_module_here:build", "cannot import no_such_module_here: ModuleNotFoundError"),
        ("pathlib:Road", r"the module pathlib \(.*pathlib.*\) has no Road"),
        ("pathlib:Path.road", r"the module pathlib \(.*pathlib.*\) has no Path.road"),
        ("this-module:x", "no dotted path"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(path, "model", "my_module:build")


def test_a_module_that_fails_is_told_from_one_that_lacks_a_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "failing_module_of_mine.py").write_text("import sys\nsys.nowhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match="cannot import failing_module_of_mine: AttributeError: module 'sys' has no"):
        imported("failing_module_of_mine:build", "model", "my_module:build")


def test_an_error_is_located_in_the_custom_code_that_it_came_through(tmp_path, monkeypatch) -> None:
    file = tmp_path / "locating_module_of_mine.py"
    file.write_text("import json\n\n\ndef read(text):\n    return json.loads(text)\n\n\nif CALLED:\n    read('')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("builtins.CALLED", True, raising=False)
    path, found = "locating_module_of_mine:read", f"(char 0) ({file}, line 5, in read)"
    with pytest.raises(ValueError, match="cannot import") as failed:
        imported(path, "model", "my_module:build")
    assert located(failed.value).endswith(found)
    monkeypatch.setattr("builtins.CALLED", False)
    with pytest.raises(ValueError, match="Expecting value") as failed:
        imported(path, "model", "my_module:build")("")
    assert located(failed.value).endswith(found) and located(ValueError("ours")) == "ours"


def test_things_are_described_in_a_few_words() -> None:
    assert described(Path) == "the class Path"
    assert described(3) == "a int"

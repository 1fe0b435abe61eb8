"""Names from files stay names, links and devices are not written through, and only files of ours are removed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from astra_gym.ssl_core.models.checkpoint import save_checkpoint
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.safety.writers import temporary_of
from astra_gym.ssl_core.utils.files import check_target, replacing, write_json
from astra_gym.ssl_core.utils.paths import (
    LONGEST,
    OwnFiles,
    check_folder,
    check_place,
    copy_file,
    open_to_append,
    path_component,
)


@pytest.mark.parametrize(
    "name",
    [
        *("..", ".", "", "../victim", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "\ud800", "é" * LONGEST),
        *(3, None, ["a"], True),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"the arm is called .*: expected a plain name") as error:
        path_component(name, "the arm")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["reinforce@lr-seed0", "-x", "..a", "my_module:Agent", "Größe 2", "a" * LONGEST])
def test_a_plain_name_is_itself(name: str) -> None:
    assert path_component(name, "the arm") == name


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("new"))


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victim: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_link, _dangling, _pipe, _folder])
def test_what_is_no_regular_file_is_neither_replaced_nor_written_through(
    make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    victim, path, source = tmp_path / "victim", tmp_path / "in" / "a.json", tmp_path / "source"
    victim.write_text("mine")
    source.write_text("theirs")
    path.parent.mkdir()
    make(path, victim)
    before = path.lstat()

    def replaced() -> None:
        with replacing(path) as temporary:
            temporary.write_text("theirs")

    for write in (
        replaced,
        lambda: write_json(path, {"a": 1}),
        lambda: save_checkpoint(path, "run", {}),
        lambda: open_to_append(path),
        lambda: copy_file(source, path),
        lambda: copy_file(path, tmp_path / "copy"),
    ):
        with pytest.raises(ValueError, match=r"is a (symbolic link|pipe|folder): expected a file there, or nothing"):
            write()  # type: ignore[no-untyped-call]
    assert path.lstat() == before and list(path.parent.iterdir()) == [path]
    assert victim.read_text() == "mine" and not (tmp_path / "new").exists() and not (tmp_path / "copy").exists()


def test_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="/dev/null is a device"):
        check_target("/dev/null")


def test_a_link_where_the_temporary_file_goes_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    temporary_of(tmp_path / "a.json").symlink_to(victim)
    write_json(tmp_path / "a.json", {"a": 1})
    assert victim.read_text() == "mine" and read_json(tmp_path / "a.json") == {"a": 1}


def test_a_user_may_name_a_link_to_a_folder_but_none_to_anything_else(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for name, target in {"link": "there", "dangling": "nowhere", "astray": "file"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    for name in ("there", "nowhere", "link"):
        check_place(tmp_path / name, "--out")
    for name, what in {"file": "a file", "dangling": "a link that leads", "astray": "a link that leads"}.items():
        with pytest.raises(ValueError, match=rf"--out: {tmp_path / name} is {what}.*: expected a folder, or nothing"):
            check_place(tmp_path / name, "--out")


def test_a_link_to_a_folder_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    check_folder(tmp_path / "there")
    check_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a symbolic link"):
        check_folder(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no folder"):
        check_folder(tmp_path / "file")


def test_only_files_that_were_claimed_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "thesis.png").write_text("mine")
    own = OwnFiles(folder)
    with pytest.raises(ValueError, match=r"thesis\.png would be replaced, and is not of this project: move it away"):
        own.claim("a.png", "thesis.png")
    assert own.names() == set()
    own.claim("a.png", "b.png")
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    OwnFiles(folder).check("a.png")
    OwnFiles(folder).keep_only("b.png")
    assert {path.name for path in folder.iterdir()} == {"thesis.png", "b.png"}


@pytest.mark.parametrize(
    "listed",
    [
        *('{"files": ["../victim"]}', '{"files": ["/victim"]}', '{"files": [["a"]]}', '{"files": ["\\u0000"]}'),
        *('{"files": "victim"}', '["a"]', "{}", "null", "[" * 9999, '{"files": ["a'),
    ],
)
def test_a_list_that_a_stranger_wrote_removes_nothing(listed: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / ".figures.json").write_text(listed)
    with pytest.raises(ValueError, match=r"\.figures\.json"):
        OwnFiles(tmp_path / "figures").keep_only()
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_listed_link_is_left_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").symlink_to(tmp_path / "victim")
    (tmp_path / ".figures.json").write_text(json.dumps({"files": ["a.png", "gone.png"]}))
    own = OwnFiles(tmp_path / "figures")
    with pytest.raises(ValueError, match="is a symbolic link"):
        own.check("a.png")
    own.keep_only()
    assert (tmp_path / "victim").read_text() == "mine" and (tmp_path / "figures" / "a.png").is_symlink()

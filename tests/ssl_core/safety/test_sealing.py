import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.safety.plain_values import load_plain
from astra_gym.ssl_core.safety.sealing import (
    DamagedError,
    check_yaml,
    check_zip,
    opened_line,
    read_json,
    seal_zip,
    sealed_json,
    sealed_line,
    sealed_yaml,
    unsealed_collected,
    without_seal,
)
from tests.helpers.sealed import flip

DOCUMENT = {"name": "é", "rows": [1, 2.5, None]}
INDENTED = json.dumps(DOCUMENT, indent=1, ensure_ascii=False) + "\n"


def archive() -> io.BytesIO:
    file = io.BytesIO()
    torch.save({"x": torch.arange(3)}, file)
    return file


def sealed_archive() -> bytes:
    file = archive()
    seal_zip(file)
    return file.getvalue()


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "a.json": (lambda: sealed_json(INDENTED), read_json),
    "a.yaml": (lambda: sealed_yaml("name: é\nrows: [1, 2]\n"), check_yaml),
    "a.pt": (sealed_archive, check_zip),
}


@pytest.mark.parametrize("name", KINDS)
def test_no_flipped_bit_passes_and_none_makes_a_file_one_without_a_seal(name: str, tmp_path: Path) -> None:
    (write, read), path = KINDS[name], tmp_path / name
    content = write()
    path.write_bytes(content)
    with unsealed_collected() as unsealed:
        assert read(path) in (None, DOCUMENT)
        # of an archive, all of its end, where the seal is, and some of the rest
        for at in range(len(content)) if len(content) < 300 else [*range(0, len(content), 29), *range(-110, 0)]:
            bit = 8 * (at % len(content)) + at % 8
            flip(path, bit)
            with pytest.raises(DamagedError, match=re.escape(f"{path} is damaged or was changed")):
                read(path)
            flip(path, bit)
    assert unsealed == []


def test_a_line_of_a_log_comes_back_or_is_known_to_be_damaged() -> None:
    text = '{"step": 1, "loss": 0.5}'
    line = sealed_line(text).removesuffix(b"\n")
    assert opened_line(line) == text.encode() and json.loads(line)["step"] == 1
    for bit in range(8 * len(line)):
        changed = bytearray(line)
        changed[bit // 8] ^= 1 << bit % 8
        assert opened_line(bytes(changed)) is None
    # as version 0.1 wrote it
    assert opened_line(text.encode()) == text.encode()


def test_files_without_a_seal_are_read_and_named_once(tmp_path: Path) -> None:
    for name, content in {"a.json": INDENTED.encode(), "a.yaml": b"x: 1\n", "a.pt": archive().getvalue()}.items():
        path = tmp_path / name
        path.write_bytes(content)
        read = KINDS[name][1]
        with unsealed_collected() as unsealed:
            assert read(path) == read(path)
        assert unsealed == [path]
    assert without_seal(b"x: 1\n") == b"x: 1\n" == without_seal(sealed_yaml("x: 1\n"))
    check_yaml(tmp_path / "missing.yaml")
    with unsealed_collected() as unsealed:
        check_zip(tmp_path / "a.pt", ours=False)
    assert unsealed == []


def test_an_archive_without_a_seal_has_no_other_tensors_after_a_flipped_bit(tmp_path: Path) -> None:
    path, content = tmp_path / "a.pt", archive().getvalue()
    silent = 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            other = not torch.equal(load_plain(path)["x"], torch.arange(3))
        except Exception:  # whatever a damaged file is loaded as
            continue
        silent += other
        if other:
            with pytest.raises(DamagedError, match=r"a\.pt is damaged: its record '.*' does not fit its CRC-32.*copy$"):
                check_zip(path, ours=False)
    assert silent > 10  # torch alone does not notice
    torch.serialization.set_crc32_options(False)
    path.write_bytes(archive().getvalue())
    torch.serialization.set_crc32_options(True)
    check_zip(path, ours=False)


def test_what_another_program_has_written_anew_or_cut_is_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", sealed_json(INDENTED)
    path.write_text(json.dumps(json.loads(content)))
    with pytest.raises(DamagedError, match=r"delete it$"):
        read_json(path, "delete it")
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.json is "):
            read_json(path)
    path.write_text('{"x": NaN}')
    with pytest.raises(ValueError, match="NaN is no number of JSON"):
        read_json(path)


def test_only_what_can_carry_a_seal_is_sealed() -> None:
    for text in ("{}\n", "[\n 1\n]", '{"x": 1}'):
        with pytest.raises(ValueError, match="only an indented JSON object"):
            sealed_json(text)
    for content in (sealed_archive(), bytes(100)):
        with pytest.raises(ValueError, match="only a zip archive without a comment"):
            seal_zip(io.BytesIO(content))

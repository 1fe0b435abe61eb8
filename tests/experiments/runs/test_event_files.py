"""Damage in TensorBoard's files."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from astra_gym.experiments.runs.event_files import damaged_records


def test_the_first_damaged_record_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as board:
        for step in range(6):
            board.add_scalar("loss", float(step), step)
    [path] = tmp_path.iterdir()
    assert damaged_records(path) is None
    content, at, ends = bytearray(path.read_bytes()), 0, []
    while at < len(content):
        at += 16 + int.from_bytes(content[at : at + 8], "little")
        ends.append(at)
    for number, sentence in ((7, "record 7"), (6, "record 6 and 1 more")):
        # the last byte before the record's checksum
        content[ends[number - 1] - 5] ^= 1
        path.write_bytes(content)
        assert damaged_records(path) == sentence

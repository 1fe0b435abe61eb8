"""What ranks tell each other."""

import socket

import pytest
import torch

from astra_gym.ssl_core.distributed.ranks import (
    STARTED,
    TIMEOUT,
    RankLostError,
    Ranks,
    current,
    is_one_of_several,
    joined,
)

OF_FOUR = range(4)


def test_a_process_alone_is_a_group_of_one() -> None:
    ranks, values = Ranks(), torch.rand(5, 2)
    parts = [values.clone()]
    ranks.add_up(parts)
    assert ranks.alone and ranks.first and ranks.share(5) == slice(0, 5)
    assert torch.equal(parts[0], values) and torch.equal(ranks.gather_rows(values, 5), values)
    assert torch.equal(ranks.sum(values), values) and torch.equal(ranks.gather(values), values[None])
    assert ranks.largest(-3) == -3 and ranks.text_of_first("ü") == "ü" and ranks.is_first_to_say("x")
    ranks.check_same("values", b"anything")


def test_only_a_process_with_all_of_torchruns_variables_joins_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STARTED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_one_of_several()
    with joined() as ranks:
        assert ranks is current() and ranks.alone


def test_where_and_why_ranks_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in zip((*STARTED, TIMEOUT), ("0", "2", "127.0.0.1", port, "5"), strict=True):
            monkeypatch.setenv(name, value)
        why = rf"did not meet at 127\.0\.0\.1:{port} .* within 5 s: .* address already in use"
        with pytest.raises(RankLostError, match=why), joined():
            pass
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match=r"RANK 'first', WORLD_SIZE '2', .*: expected whole numbers"), joined():
        pass


@pytest.mark.parametrize("n", range(10))
def test_shares_are_consecutive_and_differ_by_at_most_one(n: int) -> None:
    shares = [Ranks(rank, 4).share(n) for rank in OF_FOUR]
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.slow
def test_ranks_exchange_numbers_rows_and_texts(on_four: list) -> None:
    for rank, found in enumerate(on_four):
        assert found["rank"] == rank and found["waited"] > 0
        assert found["gather"].tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]] and found["sum"].tolist() == [4, 6]
        assert [part.unique().tolist() for part in found["add_up"]] == [[6], [1111]]
        assert all(torch.equal(rows, torch.arange(n)) for n, rows in found["rows"].items())
        assert found["largest"] == 3 and found["text"] == ["Grüße 0", ""]


@pytest.mark.slow
def test_values_that_differ_are_named_on_all_ranks(on_four: list) -> None:
    assert [found["same"] for found in on_four] == [""] * 4
    assert all("the values of rank 2 differ from those of rank 0" in found["differ"] for found in on_four)


@pytest.mark.slow
def test_what_all_ranks_say_is_said_once(on_four: list) -> None:
    assert sum(found["said"] for found in on_four) == 1


@pytest.mark.slow
def test_the_others_wait_for_the_last_word_of_rank_0(on_four: list) -> None:
    said, *heard = [found["last word"] for found in on_four]
    assert all(said < each < said + 30 for each in heard)

from astra_gym.ssl_core.utils.messages import LIMIT, amount, brief, counted, few, plain, short, shown


def test_a_long_message_keeps_its_beginning_its_end_and_its_paths() -> None:
    path = "/data/" + "deep/" * 100 + "run.yaml"
    message = f"{path} holds {'x' * 1000}, 8/255 of it: expected less; do the other thing"
    said = short(message)
    assert said.startswith(f"{path} holds xxx") and said.endswith("8/255 of it: expected less; do the other thing")
    # a fraction is no path
    assert " ... " in said and LIMIT - 5 < counted(said) <= LIMIT and counted("8/255") == 5
    assert short(said) == said and short("all is well") == "all is well"


def test_no_message_is_long_whatever_is_in_it() -> None:
    """Nor does it break at the signs that stand for paths within."""
    many = " ".join(f"/a/b{number}" for number in range(300))
    assert counted(short(many)) <= LIMIT + len(many.split(" ", 100)[-1])
    assert len(short("/" + "a" * 10**5)) <= 1003
    assert short("\ue000\ue063 of /tmp/x") == "?? of /tmp/x"


def test_a_message_is_one_line_without_a_terminals_codes() -> None:
    assert plain("\x1b[31mred\x1b[0m\n\n  and\ttab \x07\u202e") == "red and tab ??"
    assert short("a\nb\x1b[2J") == "a b"


def test_values_and_names_are_shown_in_part() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(Broken()).startswith("<Broken instance") and shown("a\nb") == r"'a\nb'" and brief("a\nb") == "a b"
    for text in (shown("x" * 10**6), shown(list(range(10**6))), shown({"a": "y" * 10**6}), brief("z" * 10**6)):
        assert len(text) <= 60
    assert brief("a" * 50 + "b" * 50) == "a" * 45 + " ... " + "b" * 10
    assert shown((8 / 255, 0.1, 1 / 3, 0.0, 51 / 255)) == f"(8/255, 0.1, {1 / 3}, 0.0, 0.2)" and shown(0.03) == "0.03"
    assert few(["a", "b", "c"], "--list") == "a, b, c"
    assert [amount(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert (
        few(iter("abcde"), "--list") == "a, b, c and 2 more (see --list)" and few([1, 2, 3], most=1) == "1 and 2 more"
    )

import random
import time

import pytest

from triptych.processor.detokenizer import StopStrings


def said(stops, pieces, keeps=False):
    """(what was let through piece by piece and at the end, whether it stopped)."""
    finder = StopStrings(stops, keeps=keeps)
    out = []
    for piece in pieces:
        text, stopped = finder.push(piece)
        out.append(text)
        if stopped:
            return out, True
    return [*out, finder.flush()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "out", "stopped"),
    [
        (["b"], ["abc"], ["a"], True),
        (["stop"], ["x st", "op y"], ["x ", ""], True),
        (["stop"], ["s", "t", "o", "p"], ["", "", "", ""], True),
        (["stop"], ["sto", "re"], ["", "store", ""], False),
        (["stop"], ["stst", "op"], ["st", ""], True),
        (["stop"], ["the end sto"], ["the end ", "sto"], False),
        (["bc", "abcd"], ["xab", "cd"], ["x", ""], True),
        (["aab"], ["aa", "a", "b"], ["", "a", ""], True),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], True),
        (["😀"], ["a😀b"], ["a"], True),
        (["x"], [], [""], False),
    ],
)
def test_table(stops, pieces, out, stopped):
    assert said(stops, pieces) == (out, stopped)


@pytest.mark.parametrize(
    ("stops", "pieces", "out", "stopped"),
    [
        (["b"], ["abc"], ["ab"], True),
        (["stop"], ["x st", "op y"], ["x ", "stop"], True),
        (["stop"], ["sto", "re"], ["", "store", ""], False),
        (["bc", "abcd"], ["xab", "cd"], ["x", "abcd"], True),
        (["abc", "ab"], ["xabc"], ["xab"], True),
        (["ab", "abc"], ["xabc"], ["xab"], True),
    ],
)
def test_the_stop_string_itself_may_be_let_through(stops, pieces, out, stopped):
    assert said(stops, pieces, keeps=True) == (out, stopped)


def test_however_it_is_cut_the_result_is_that_of_the_whole_text():
    rng = random.Random(4)
    for _ in range(500):
        text = "".join(rng.choice("ab") for _ in range(rng.randrange(20)))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        pieces, rest = [], text
        while rest:
            cut = rng.randrange(1, 4)
            pieces.append(rest[:cut])
            rest = rest[cut:]
        out, stopped = said(stops, pieces)
        found = [text.index(stop) for stop in stops if stop in text]
        assert stopped == bool(found), (text, stops)
        joined = "".join(out)
        assert text.startswith(joined)
        if not found:
            assert joined == text
        else:
            assert not any(stop in joined for stop in stops), (text, stops, joined)
            kept = "".join(said(stops, pieces, keeps=True)[0])
            assert text.startswith(kept)
            assert kept.removeprefix(joined) in stops


def test_text_that_cannot_become_a_stop_string_is_not_held_back():
    finder = StopStrings(["<end>"])
    assert finder.push("a < b ").text == "a < b "
    assert finder.push("<en").text == ""
    assert finder.push("t").text == "<ent"


def test_a_long_stop_string_that_nearly_matches_is_given_up_in_linear_time():
    """Every tail of what was held was once compared anew: seconds of a frontend's event loop."""
    finder = StopStrings(["ab" * 100_000 + "#"])
    assert finder.push("ab" * 98_000).text == ""
    begun = time.process_time()
    assert finder.push("c").text == "ab" * 98_000 + "c"
    assert time.process_time() - begun < 0.5


def test_against_plain_search_on_repetitive_texts():
    rng = random.Random(7)
    for _ in range(300):
        stop = "".join(rng.choice("ab") for _ in range(rng.randrange(3, 12)))
        text = "".join(rng.choice([stop[: rng.randrange(1, len(stop) + 1)], "a", "b"]) for _ in range(8))
        out, stopped = said([stop], list(text))
        assert stopped == (stop in text)
        assert "".join(out) == text.partition(stop)[0]


def test_a_stop_string_is_left_out_unless_it_is_asked_for():
    assert StopStrings(["b"]).push("abc") == ("a", True)


def test_no_more_is_held_back_than_the_longest_beginning_of_a_stop_string():
    finder = StopStrings(["abab#", "ba!"])
    assert finder.push("xab").text == "x"
    assert finder.push("ab").text == ""
    assert finder.push("ab").text == "ab", "its last four may begin the first, its last two the second"
    assert finder.push("c").text == "ababc"


def test_a_finder_is_as_new_after_it_stopped_and_after_its_end():
    finder = StopStrings(["stop"])
    assert finder.push("a sto").text == "a "
    assert finder.push("p") == ("", True)
    assert finder.push("p") == ("p", False)
    assert finder.push("sto").text == ""
    assert finder.flush() == "sto"
    assert finder.push("p") == ("p", False)

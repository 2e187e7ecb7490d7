"""Output of many processes, line by line under their names."""

from __future__ import annotations

import io

from triptych.deploy.output import MAX_LINE_BYTES, Lines, Terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_joined_from_pieces() -> None:
    lines = Lines()

    assert lines.feed(b"one\r\ntw") == ["one"]
    assert lines.feed("o ü\n\nthree".encode()) == ["two ü", ""]
    assert lines.end() == ["three"]
    assert lines.end() == []


def test_an_endless_line_is_cut() -> None:
    lines = Lines()

    pieces = lines.feed(b"x" * MAX_LINE_BYTES) + lines.feed(b"y\n")

    assert [len(piece) for piece in pieces] == [MAX_LINE_BYTES, 1]


def test_bytes_that_are_not_text_are_still_shown() -> None:
    assert Lines().feed(b"\xff\n") == ["�"]


def test_names_are_padded_and_plain_in_a_file() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, ["frontend", "epd-0"])

    terminal.write("epd-0", "hello")
    terminal.write("frontend", "")

    assert stream.getvalue() == "epd-0    | hello\nfrontend | \n"


def test_names_are_coloured_on_a_terminal() -> None:
    stream = Tty()
    Terminal(stream, ["a", "b"]).write("b", "x")

    assert stream.getvalue() == "\x1b[33mb |\x1b[0m x\n"

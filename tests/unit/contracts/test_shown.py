from triptych.contracts.shown import cut, shown


def test_shown_texts_are_short_and_without_control_characters():
    assert shown("demo") == "'demo'"
    assert shown("a\r\nb\x1b[31m") == r"'a\r\nb\x1b[31m'"
    assert shown("x" * 5_000) == repr("x" * 100) + "... (5,000 characters)"
    assert shown(b"\xff\n") == "'\ufffd\\n'"
    assert len(cut("x" * 5_000, 50)) == 50
    assert cut("short", 50) == "short"

"""What patterns stand for, counted without compiling them."""

import time

import pytest

from triptych.frontend.openai.grammar.pattern import PatternError, pattern_size


def size(pattern: str, max_size: int = 10_000, max_repeats: int = 1000) -> int:
    return pattern_size(pattern, max_size=max_size, max_repeats=max_repeats)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", 0),
        ("abc", 3),
        (r"^[A-Z]{2}\d{4}$", 8),
        (r"^\d{4}-\d{2}-\d{2}$", 12),
        ("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", 38),
        (".{0,500}", 500),
        ("a{3,}", 4),
        ("a{,5}", 5),
        ("a{ 2 , 5 }", 5),
        ("a{0}", 1),
        ("a*b+c?", 3),
        ("a+?", 1),
        ("([a-z]{1,20} ){3}", 63),
        ("((a{2}b){3}c){4}", 40),
        ("(?:ab)+(?<name>c)(?P<other>d)", 4),
        ("cat|dog", 7),
        (r"[\]]{3}", 3),
        (r"\u0041{3}\x41\\", 5),
        ("()" * 5, 5),
        ("{}", 2),
        (r"[\b]", 1),
        ("[^]", 1),
        ("[a-]", 1),
        ("[-a]", 1),
        ("[a-z-9]", 1),
        (r"[\d-z]", 1),
        (r"[\x41-\u{5A}]", 1),
        (r"[+-\-]", 1),
    ],
)
def test_sizes(pattern: str, expected: int) -> None:
    assert size(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "word", "limit"),
    [
        ("[a-z]{1,20000}", "above 1,000", "max_schema_repeats"),
        ("a{ 20000 }", "above 1,000", "max_schema_repeats"),
        ("a{20000,}", "above 1,000", "max_schema_repeats"),
        ("a{1," + "9" * 100_000 + "}", "above 1,000", "max_schema_repeats"),
        ("(([a-z]{1,90}-){1,90},){1,90}", "more than 10,000", "max_pattern_size"),
        ("a" * 10_001, "more than 10,000", "max_pattern_size"),
        ("|" * 10_001, "more than 10,000", "max_pattern_size"),
        ("[" + "a" * 400_000 + "]", "more than 10,000", "max_pattern_size"),
        ("(" * 65 + ")" * 65, "nested", ""),
        ("a{5,2}", "wrong way round", ""),
        ("(?=a)", "look-around", ""),
        ("(?<!a)b", "look-around", ""),
        ("(?i)a", "look-around", ""),
        (r"(a)\1", "references", ""),
        (r"(?<n>a)\k<n>", "references", ""),
        (r"\p{L}{1,5000}", "Unicode property", ""),
        (r"[\p{L}]", "Unicode property", ""),
        ("(a", "not closed", ""),
        ("a)", "closes nothing", ""),
        ("[a", "not closed", ""),
        ("*a", "nothing to repeat", ""),
        ("a|{3}", "nothing to repeat", ""),
        ("a**", "repeats a repetition", ""),
        ("a{3}{4}", "repeats a repetition", ""),
        ("\\", "backslash", ""),
        (r"\bword", "word boundaries", ""),
        (r"a\B", "word boundaries", ""),
        ("[]", "is empty", ""),
        ("[]a]", "is empty", ""),
        ("a[z-a]", "z-a at character 3 has its ends the wrong way round", ""),
        (r"[\u0062-\x61]", "wrong way round", ""),
        (r"[b-\u{61}]", "wrong way round", ""),
        (r"[\--\+]", "wrong way round", ""),
        (r"\c", "not complete", ""),
        (r"[a-\d]", "ends in a class", ""),
    ],
)
def test_refusals(pattern: str, word: str, limit: str) -> None:
    with pytest.raises(PatternError, match=word) as refused:
        size(pattern)
    assert refused.value.limit == limit


@pytest.mark.parametrize("piece", ["a", "(", "[", "{", "a{0}", "(a{0})", "()", "|", "\\d", "^", "a{1,", "{1", "\\"])
def test_counting_is_quick_whatever_is_repeated(piece: str) -> None:
    pattern = piece * (131_072 // len(piece))
    begun = time.process_time()
    with pytest.raises(PatternError):
        size(pattern)
    assert time.process_time() - begun < 0.3

from triptych.frontend.fleet.known_models import KnownModels


def test_the_names_seen_last_are_kept_and_expected_ones_always():
    known = KnownModels(["expected"], max_known=3)
    for names in (["a", "b"], ["c"], ["a"], ["d"]):
        known.served(names)
    assert [name for name in "abcd" if name in known] == ["a", "c", "d"]
    assert "expected" in known
    assert known.by_age(["a", "d", "c", "never"]) == ["c", "a", "d"]

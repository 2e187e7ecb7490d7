import pytest

from triptych.cache.lru import ByteLru


def test_the_longest_unused_values_are_evicted_until_a_new_one_fits():
    lru = ByteLru[str, int](10)
    lru.put("a", 1, 4)
    lru.put("b", 2, 4)
    assert lru.get("a") == 1
    assert lru.put("c", 3, 5)
    assert ("a" in lru, "b" in lru, "c" in lru) == (True, False, True)
    assert (lru.size_bytes, len(lru), lru.evictions) == (9, 2, 1)


def test_a_store_may_be_exactly_full():
    lru = ByteLru[str, int](10)
    lru.put("a", 1, 5)
    lru.put("b", 2, 5)
    assert (len(lru), lru.evictions) == (2, 0)


def test_replacing_a_value_counts_its_size_once():
    lru = ByteLru[str, int](10)
    lru.put("a", 1, 8)
    lru.put("a", 2, 6)
    assert (lru.get("a"), lru.size_bytes, lru.evictions) == (2, 6, 0)


def test_a_value_larger_than_the_store_is_refused_and_evicts_nothing():
    lru = ByteLru[str, int](10)
    lru.put("a", 1, 10)
    assert not lru.put("b", 2, 11)
    assert lru.get("a") == 1


def test_a_limit_of_zero_refuses_even_empty_values():
    lru = ByteLru[str, int](0)
    assert not lru.put("a", 1, 0)
    assert lru.get("a") is None


def test_hits_and_misses_are_counted():
    lru = ByteLru[str, int](10)
    lru.get("a")
    lru.put("a", 1, 1)
    lru.get("a")
    assert (lru.hits, lru.misses) == (1, 1)


def test_remove_and_clear_free_the_bytes():
    lru = ByteLru[str, int](10)
    lru.put("a", 1, 4)
    lru.put("b", 1, 4)
    assert lru.remove("a")
    assert not lru.remove("a")
    assert lru.size_bytes == 4
    lru.clear()
    assert (lru.size_bytes, len(lru)) == (0, 0)


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="max_bytes"):
        ByteLru(-1)
    with pytest.raises(ValueError, match="size_bytes"):
        ByteLru[str, int](1).put("a", 1, -1)


@pytest.mark.parametrize(("max_bytes", "counted"), [(0, 0), (1, 1)])
def test_values_too_large_are_counted_where_the_store_is_on(max_bytes, counted):
    lru = ByteLru[str, int](max_bytes)
    assert lru.too_large == 0
    assert not lru.put("a", 1, 2)
    assert lru.too_large == counted


def test_evicting_by_hand_tells_how_much_it_freed():
    lru = ByteLru[str, int](10)
    assert (lru.evict(), lru.evictions) == (0, 0)
    lru.put("a", 1, 4)
    lru.put("b", 1, 5)
    assert (lru.evict(), lru.evict(), lru.evict()) == (4, 5, 0)
    assert (lru.size_bytes, lru.evictions) == (0, 2)

"""Addresses give numbers; the permutation of places is one, and every one is as likely."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.rng import generator, key, permute

Chance = Callable[[np.ndarray, int], float]


def test_equal_addresses_give_equal_numbers() -> None:
    first, again = generator(3, "replay", 17), generator(3, "replay", 17)
    assert (first.random(8) == again.random(8)).all()


def test_different_addresses_give_different_keys() -> None:
    addresses: list[tuple[int | str, ...]] = [
        (0, "replay", 1),
        (1, "replay", 1),
        (0, "replay", 2),
        (0, "offer", 1),
        (0, "replay", "1"),
        (0, "replay1"),
        (0, "replay", 1, 1),
        (0, "replay", 11),
    ]
    assert len({key(*address) for address in addresses}) == len(addresses)  # type: ignore[arg-type]


def test_streams_of_neighbouring_addresses_are_uncorrelated() -> None:
    rows = np.array([generator(0, "replay", step).random(2000) for step in range(20)])
    off = np.corrcoef(rows)[np.triu_indices(20, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(2000)


@given(n=st.integers(1, 3000), at=st.integers(0, 2**64 - 1))
def test_it_is_a_permutation_of_every_size(n: int, at: int) -> None:
    assert sorted(permute(np.arange(n), n, at).tolist()) == list(range(n))


@given(n=st.integers(1, 10**13), at=st.integers(0, 2**64 - 1), data=st.data())
def test_an_image_does_not_depend_on_what_else_is_asked(
    n: int, at: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5, unique=True))
    together = permute(np.array(places), n, at)
    alone = [int(permute(np.array([place]), n, at)[0]) for place in places]
    assert together.tolist() == alone
    assert len(set(alone)) == len(alone)
    assert min(alone) >= 0 and max(alone) < n


NUMBER = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(st.integers(1, 10**13), NUMBER, NUMBER), min_size=1, max_size=10))
def test_sizes_and_keys_may_differ_from_index_to_index(asked: list[tuple[int, int, int]]) -> None:
    places = np.array([place % n for n, _, place in asked])
    sizes = np.array([n for n, _, _ in asked])
    keys = np.array([at for _, at, _ in asked], np.uint64)
    alone = [int(permute(np.array([place % n]), n, at)[0]) for n, at, place in asked]
    assert permute(places, sizes, keys).tolist() == alone


@pytest.mark.parametrize("n", [2, 3, 5, 6, 8, 13, 33, 100])
def test_each_place_goes_everywhere_equally_often(n: int) -> None:
    counts, keys = np.zeros((n, n)), 2000
    for trial in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, key(trial, "order"))] += 1
    # A draw of n cells of n * n that has one in each row and column: (n - 1)**2 degrees of
    # freedom and a statistic n / (n - 1) times too large; drop one of each to count them right.
    expected = keys / n
    statistic = ((counts - expected) ** 2).sum() / expected * (n - 1) / n
    freedom = (n - 1) ** 2
    assert statistic < freedom + 3.72 * np.sqrt(2 * freedom) + 10  # p > 1e-4


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_orders_of_few_places_are_equally_likely(n: int, chance_of: Chance) -> None:
    orders = {order: i for i, order in enumerate(permutations(range(n)))}
    counts = np.zeros(len(orders))
    for trial in range(4000):
        order = permute(np.arange(n), n, key(trial, "order"))
        counts[orders[tuple(order.tolist())]] += 1
    assert chance_of(counts, 4000) > 1e-4


def test_neighbours_are_scattered_over_a_large_domain(chance_of: Chance) -> None:
    n = 10**12
    images = permute(np.arange(20_000), n, key(0, "order"))
    assert chance_of(np.bincount(images * 64 // n, minlength=64), 20_000) > 1e-4
    distance = np.diff(images) % n
    assert chance_of(np.bincount(distance * 64 // n, minlength=64), 19_999) > 1e-4


def test_other_keys_give_other_orders() -> None:
    n = 1000
    first, second = (permute(np.arange(n), n, key(0, "order", "a", epoch)) for epoch in (0, 1))
    assert (first == second).sum() < 10  # one on average


def test_a_large_domain_costs_what_a_small_one_costs() -> None:
    def best(n: int) -> float:
        took = []
        for trial in range(30):
            begin = time.perf_counter()
            permute(np.arange(512), n, trial)
            took.append(time.perf_counter() - begin)
        return min(took)

    tracemalloc.start()
    permute(np.arange(512), 10**12, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert best(2**40) < 3 * best(2**20)


@given(st.integers(1, 10**12), st.integers(0, 2**64 - 1), st.integers(25, 60))
def test_a_few_are_permuted_as_many_are(n: int, at: int, count: int) -> None:
    index = np.random.default_rng(count).integers(0, n, count)
    alone = [int(permute(index[i : i + 1], n, at)[0]) for i in range(count)]
    assert permute(index, n, at).tolist() == alone

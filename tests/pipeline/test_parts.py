"""Parts: the permutation, the blocks, and the arithmetic of ids that a resumed crawl rests on."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parts import (
    Block,
    Interval,
    Permutation,
    listed_blocks,
    merge,
    parse_range,
    range_blocks,
    read_ids,
    subtract,
)
from schemas.errors import UsageError

intervals = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=5
)


def ids_in(pieces: Iterable[Interval]) -> set[int]:
    return {i for first, last in pieces for i in range(first, last + 1)}


@given(st.integers(1, 3000), st.text(max_size=5))
def test_a_permutation_holds_every_index_once(size: int, key: str) -> None:
    assert sorted(Permutation(size, key)) == list(range(size))


def test_a_permutation_depends_on_its_key_and_refuses_what_is_outside() -> None:
    assert list(Permutation(1000, "a")) != list(Permutation(1000, "b"))
    assert list(Permutation(1000, "a")) == list(Permutation(1000, "a"))
    with pytest.raises(IndexError):
        Permutation(10, "a")[10]


@given(intervals, intervals)
def test_subtract_is_set_difference_in_merged_form(wanted: list[Interval], covered: list[Interval]) -> None:
    left = subtract(wanted, covered)
    assert ids_in(left) == ids_in(wanted) - ids_in(covered)
    assert left == merge(left)


def test_widening_the_range_adds_parts_and_keeps_names() -> None:
    narrow = {b.part: b for b in range_blocks("s", 1500, 3499, ids_per_part=1000, key="k")}
    wide = {b.part: b for b in range_blocks("s", 0, 9999, ids_per_part=1000, key="k")}
    assert set(narrow) == {"s-1000", "s-2000", "s-3000"}
    assert set(narrow) < set(wide)
    assert narrow["s-1000"].intervals == ((1500, 1999),)
    assert narrow["s-2000"].intervals == wide["s-2000"].intervals == ((2000, 2999),)


@given(st.integers(0, 5000), st.integers(0, 3000), st.integers(1, 700))
def test_blocks_of_a_range_hold_every_id_once(first: int, length: int, ids_per_part: int) -> None:
    blocks = list(range_blocks("s", first, first + length, ids_per_part=ids_per_part, key="k"))
    ids = [int(i) for block in blocks for i in block.ids("k")]
    assert sorted(ids) == list(range(first, first + length + 1))


def test_ids_of_a_block_come_in_a_keyed_order() -> None:
    block = Block("s-0", ((5, 9), (20, 40)))
    assert list(block.ids("a")) == list(block.ids("a")) != list(block.ids("b"))
    assert sorted(block.ids("a"), key=int) == [str(i) for i in (*range(5, 10), *range(20, 41))]
    assert list(Block("s-0").ids("a")) == []


def test_listed_numbers_make_the_blocks_of_a_range() -> None:
    blocks = listed_blocks("s", ["7", "1003", "6", "7"], committed=(), ids_per_part=1000, key="k")
    assert {b.part: b.intervals for b in blocks} == {"s-0": ((6, 7),), "s-1000": ((1003, 1003),)}


def test_listed_names_left_after_an_interruption_are_cut_as_before() -> None:
    names = [f"car-{i}" for i in range(10)]
    first = {b.part: b.names for b in listed_blocks("s", names, committed=(), ids_per_part=3, key="k")}
    committed = set(first["s-list-car-3"])
    rest = {b.part: b.names for b in listed_blocks("s", names, committed=committed, ids_per_part=3, key="k")}
    assert rest == {part: ids for part, ids in first.items() if part != "s-list-car-3"}


def test_an_odd_name_becomes_a_plain_file_name() -> None:
    (block,) = listed_blocks("s", ["a:b?c", "x"], committed=(), ids_per_part=3, key="k")
    assert block.part.removeprefix("s-list-").isalnum()


@pytest.mark.parametrize("text", ["5", "a:b", "5:", "9:3", "-1:4"])
def test_a_bad_range_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match=r"A:B|reversed"):
        parse_range(text)


def test_ids_files_are_read_and_checked(tmp_path: Path) -> None:
    good = tmp_path / "ids.txt"
    good.write_text("# mine\n12\n\n13\n")
    assert read_ids(good) == ["12", "13"]
    bad = tmp_path / "bad.txt"
    bad.write_text("12\n1/3\n")
    with pytest.raises(UsageError, match="line 2"):
        read_ids(bad)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="no ids"):
        read_ids(tmp_path / "empty.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_ids(tmp_path / "none.txt")

"""The search for garbage is put off inside, goes on afterwards, and still finds what was made."""

from __future__ import annotations

import gc
import weakref

import pytest

from core.collector import collection_put_off


@pytest.fixture(autouse=True)
def _nothing_is_frozen() -> None:
    gc.unfreeze()  # the server of the page freezes what it has made, and other tests start one in this process


class Node:
    def __init__(self) -> None:
        self.me = self


def test_nothing_is_searched_inside_and_cycles_are_freed_afterwards() -> None:
    before = sum(generation["collections"] for generation in gc.get_stats())
    with collection_put_off():
        nodes = [Node() for _ in range(50_000)]
        assert not gc.isenabled()
        assert sum(generation["collections"] for generation in gc.get_stats()) == before
        seen = weakref.ref(nodes[0])
        del nodes
    assert gc.isenabled() and gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_it_goes_on_after_an_error_and_inside_another() -> None:
    with pytest.raises(RuntimeError), collection_put_off():
        with collection_put_off():
            pass
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()


def test_what_the_caller_froze_or_turned_off_stays_so() -> None:
    gc.disable()
    try:
        with collection_put_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.freeze()
    try:
        with collection_put_off():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()

"""Records as tokens, each marked as trained or not: one example, and all of a dataset in a few arrays. Torch-free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

AT_HAND = 1024  # examples kept as Python objects, as a step asks for the same ones several times

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class TokenizedExample:
    """A record as tokens; `loss_mask[t]` tells whether token t is a target of the loss.

    The first token never is: nothing stands before it that could predict it. So `n_trained` is exactly the number
    of terms in the loss.
    """

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    row: int

    @property
    def n_trained(self) -> int:
        """How many tokens are trained."""
        return sum(self.loss_mask)

    @cached_property
    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The same tokens and mask."""
        return np.array(self.input_ids, np.int32), np.array(self.loss_mask, bool)

    def cut(self, max_length: int) -> TokenizedExample:
        """The first `max_length` tokens; 0 cuts nothing."""
        if not max_length or len(self.input_ids) <= max_length:
            return self
        return TokenizedExample(self.input_ids[:max_length], self.loss_mask[:max_length], self.row)

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        return [len(self.input_ids), *self.input_ids, *map(int, self.loss_mask)]

    def after(self, ids: tuple[int, ...]) -> TokenizedExample:
        """The same example with tokens before it that are not trained."""
        return TokenizedExample(ids + self.input_ids, (False,) * len(ids) + self.loss_mask, self.row)


@dataclass(frozen=True, eq=False)
class TokenPart:
    """The tokens of consecutive records, behind each other: record i has those from `starts[i]` to `starts[i + 1]`."""

    rows: Integers  # (N) rows of the dataset, from 1
    starts: Integers  # (N + 1)
    input_ids: NDArray[np.int32]  # (tokens)
    loss_mask: NDArray[np.bool_]  # (tokens)

    @classmethod
    def joined(cls, parts: Sequence[TokenPart]) -> TokenPart:
        """Several parts as one."""
        lengths = [np.diff(part.starts) for part in parts]
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate([part.loss_mask for part in parts]),
        )

    @cached_property
    def trained_before(self) -> NDArray[np.int32]:
        """(tokens + 1) How many tokens of the part are trained before each."""
        return np.concatenate([[0], np.cumsum(self.loss_mask)]).astype(np.int32)


class TokenTable(Sequence[TokenizedExample]):
    """Examples that lie in arrays, in memory or in files, and become objects when they are asked for.

    `lengths` (N) and `trained` (N) tell the tokens of every example, and those of them that are trained.
    """

    def __init__(self, parts: Sequence[TokenPart]) -> None:
        self._parts = tuple(parts)
        self._firsts = [0, *accumulate(len(part.rows) for part in self._parts)]
        self._chosen: Integers = np.arange(self._firsts[-1])
        self._max_length, self._before = 0, tuple[int, ...]()
        self._example = lru_cache(AT_HAND)(self._made)

    @classmethod
    def joined(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """The whole parts of several tables as one table."""
        return cls([part for table in tables for part in table._parts])

    @classmethod
    def of(cls, examples: Sequence[TokenizedExample]) -> TokenTable:
        """The table of examples that are objects already."""
        lengths = np.array([len(example.input_ids) for example in examples], np.int64)
        ids = [token for example in examples for token in example.input_ids]
        mask = [is_trained for example in examples for is_trained in example.loss_mask]
        rows = np.array([example.row for example in examples], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return cls([TokenPart(rows, starts, np.array(ids, np.int32), np.array(mask, bool))])

    @cached_property
    def lengths(self) -> Integers:
        """(N) tokens of each example."""
        whole: Integers = np.concatenate([np.empty(0, np.int64), *(np.diff(part.starts) for part in self._parts)])
        cut: Integers = np.minimum(whole, self._max_length) if self._max_length else whole
        return cut[self._chosen] + len(self._before)

    @cached_property
    def trained(self) -> Integers:
        """(N) trained tokens of each example."""
        found = [np.empty(0, np.int64)]
        for part in self._parts:
            ends = part.starts[1:]
            ends = np.minimum(ends, part.starts[:-1] + self._max_length) if self._max_length else ends
            found.append((part.trained_before[ends] - part.trained_before[part.starts[:-1]]).astype(np.int64))
        return np.concatenate(found)[self._chosen]

    @property
    def rows(self) -> Integers:
        """(N) rows of the dataset, from 1."""
        return np.concatenate([np.empty(0, np.int64), *(part.rows for part in self._parts)])[self._chosen]

    def pick(self, places: Sequence[int] | Integers) -> TokenTable:
        """The examples at these places, in this order."""
        return self._like(self._chosen[np.asarray(places, dtype=np.int64)], self._max_length, self._before)

    def cut(self, max_length: int) -> TokenTable:
        """Every example cut as `TokenizedExample.cut` does; before anything is put before them."""
        if self._before:
            raise ValueError("examples are cut before virtual tokens are put before them")
        own = max_length if not self._max_length else min(max_length or self._max_length, self._max_length)
        return self._like(self._chosen, own, self._before)

    def after(self, ids: tuple[int, ...]) -> TokenTable:
        """Every example after these tokens, as `TokenizedExample.after` puts them."""
        return self._like(self._chosen, self._max_length, ids + self._before)

    def _like(self, chosen: Integers, max_length: int, before: tuple[int, ...]) -> TokenTable:
        made = TokenTable(self._parts)
        made._chosen, made._max_length, made._before = chosen, max_length, before
        return made

    def arrays(self, place: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The tokens and the mask of an example, without what stands before it."""
        part, at = self._found(place)
        return self._arrays(part, at)

    def _arrays(self, part: TokenPart, at: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, end = part.starts[at : at + 2].tolist()
        end = min(end, start + self._max_length) if self._max_length else end
        return part.input_ids[start:end], part.loss_mask[start:end]

    def _found(self, place: int) -> tuple[TokenPart, int]:
        number = int(self._chosen[place])
        at = bisect_right(self._firsts, number) - 1
        return self._parts[at], number - self._firsts[at]

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, place: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, place: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(place, slice):
            return [self._made(one) for one in range(*place.indices(len(self)))]
        place = int(place)
        if not -len(self) <= place < len(self):
            raise IndexError(f"there is no example {place} of {len(self)}")
        return self._example(place % len(self))

    def __iter__(self) -> Iterator[TokenizedExample]:
        return map(self._made, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def fingerprints(self) -> Iterator[bytes]:
        """Of each example, the numbers of `TokenizedExample.fingerprint` as 8 bytes each."""
        before, none = np.asarray(self._before, np.int64), np.zeros(len(self._before), np.int64)
        for place in range(len(self)):
            ids, mask = self.arrays(place)
            yield np.concatenate([[len(before) + len(ids)], before, ids, none, mask]).astype(np.int64).tobytes()

    def _made(self, place: int) -> TokenizedExample:
        part, at = self._found(place)
        ids, mask = self._arrays(part, at)
        made = TokenizedExample(tuple(ids.tolist()), tuple(mask.tolist()), int(part.rows[at]))
        vars(made)["arrays"] = ids, mask  # are at hand already
        return made.after(self._before) if self._before else made


def lengths_of(examples: Sequence[Any]) -> list[int]:
    """The tokens of each example."""
    if isinstance(examples, TokenTable):
        found: list[int] = examples.lengths.tolist()
        return found
    return [len(example.input_ids) for example in examples]

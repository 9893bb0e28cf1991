"""Reads an LMDB file from its root to its last page, since LMDB itself trusts what it finds.

A page that points to where there is none makes LMDB stop the process or read foreign memory, which
no exception handler helps against. The format is that of LMDB 0.9 on 64 bits (mdb.c: MDB_page,
MDB_node, MDB_meta, MDB_db; data version 1).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from operator import ge, le
from typing import IO, Any, NamedTuple

__all__ = ["Damaged", "OtherVersion", "reach", "verify"]

MAGIC, VERSION = 0xBEEFC0DE, 1
HEAD = 16  # bytes of a page before its node offsets: pgno, pad, flags, lower, upper
NODE = 8  # bytes of a node before its key: size or page (low, high), flags, length of the key
BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08
BIG = 0x01  # a node's value is on pages of its own
INTEGER_KEYS = 0x08
PAGES = {1 << bits for bits in range(9, 17)}
NONE = 2**64 - 1  # the root of an empty tree
DEEPEST = 32  # levels that LMDB itself can follow
KEY_BYTES = 511  # the longest that LMDB takes

_head = struct.Struct("<QHHHH")
_meta = struct.Struct("<II16x")
_tree = struct.Struct("<IHHQQQQQ")
_last = struct.Struct("<QQ")
_node = struct.Struct("<HHHH")
_number = struct.Struct("<Q")


class Damaged(Exception):
    """The file is none of LMDB's, or not whole; says where."""


class OtherVersion(Damaged):
    """The file is LMDB's, and of a version that this one does not read."""


class _Tree(NamedTuple):
    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Node(NamedTuple):
    at: int
    """Where on its page."""
    low: int
    high: int
    """The size of its value, or together with the flags the page below it."""
    flags: int
    key: int
    """The length of its key."""


class _Meta(NamedTuple):
    size: int
    """Bytes in a page."""
    free: _Tree
    main: _Tree
    last: int
    """The last page in use."""
    transaction: int


def reach(file: IO[bytes]) -> int:
    """Return where the last page in use ends.

    :raises Damaged: It is no LMDB file.
    """
    meta = _newest(file)
    return (meta.last + 1) * meta.size


def verify(file: IO[bytes]) -> None:
    """See that every page in use is where it should be, and what it should be.

    The contents of keys and values are not judged: a flipped bit in one of them is another value.

    :raises Damaged: One is not; says which.
    """
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        return  # another layout
    meta = _newest(file)
    length = file.seek(0, 2)
    if length < (meta.last + 1) * meta.size:
        raise Damaged(f"it is cut short: {length} bytes of {(meta.last + 1) * meta.size}")
    seen = bytearray(meta.last + 1)
    seen[0] = seen[1] = 1
    for value in _walk(file, meta, meta.free, seen):
        pages = array("Q", value[: len(value) & ~7])
        free = pages[1 : 1 + pages[0]] if pages else pages
        if not pages or pages[0] >= len(pages) or any(map(le, free, free[1:])):
            raise Damaged("its list of free pages is broken")
        for page in free:
            _mark(seen, page)
    for _ in _walk(file, meta, meta.main, seen):
        pass


def _newest(file: IO[bytes]) -> _Meta:
    file.seek(0)
    raw = file.read(HEAD + 136)
    metas = [_meta_of(raw)]
    size = metas[0].size
    file.seek(size)
    metas.append(_meta_of(file.read(HEAD + 136)))
    if metas[1].size != size:
        raise Damaged("its two heads differ")
    return max(metas, key=lambda meta: meta.transaction)


def _meta_of(raw: bytes) -> _Meta:
    if len(raw) < HEAD + 136:
        raise Damaged("it is too short")
    magic, version = _meta.unpack_from(raw, HEAD)
    if not _head.unpack_from(raw)[2] & META or magic != MAGIC:
        raise Damaged("it does not begin as one")
    if version != VERSION:
        raise OtherVersion(f"it is of the format {version}, not {VERSION}")
    free = _Tree(*_tree.unpack_from(raw, HEAD + 24))
    main = _Tree(*_tree.unpack_from(raw, HEAD + 72))
    last, transaction = _last.unpack_from(raw, HEAD + 120)
    if free.pad not in PAGES or not 1 <= last < 2**40:
        raise Damaged("its head is broken")
    if (free.flags & 0x7FFF, main.flags & 0x7FFF) != (INTEGER_KEYS, 0):
        raise Damaged("its trees are of an unknown kind")
    return _Meta(free.pad, free, main, last, transaction)


def _mark(seen: bytearray, page: int, count: int = 1) -> None:
    if page + count > len(seen) or any(seen[page : page + count]):
        raise Damaged(f"page {page} is used twice, or beyond the end")
    seen[page : page + count] = b"\1" * count


def _walk(file: IO[bytes], meta: _Meta, tree: _Tree, seen: bytearray) -> Iterator[bytes]:
    """Yield the values of *tree*: of all when it is that of free pages, else the first 8 bytes."""
    if tree.root == NONE:
        return
    whole = tree is meta.free
    entries = 0
    if tree.depth > DEEPEST:
        raise Damaged("it is too deep")
    order = _as_number if whole else bytes
    # Of each page: how far it is from the leaves, and between which keys all of its own are.
    waiting: list[tuple[int, int, Any, Any]] = [(tree.root, tree.depth, None, None)]
    while waiting:
        number, level, least, below = waiting.pop()
        _mark(seen, number)
        file.seek(number * meta.size)
        page = file.read(meta.size)
        nodes = list(_nodes(page, number, LEAF if level == 1 else BRANCH))
        if whole and any(node.key < 8 for node in nodes[level > 1 :]):
            raise Damaged(f"page {number} has a value of an unknown kind")
        keys: list[Any] = [order(page[at + NODE : at + NODE + key]) for at, _, _, _, key in nodes]
        if level > 1:
            keys[0] = least  # LMDB does not read the first one
        inner = keys if least is not None or level == 1 else keys[1:]
        if any(map(ge, inner, inner[1:])) or (
            inner and ((least is not None and inner[0] < least) or not _under(inner[-1], below))
        ):
            raise Damaged(f"page {number} has keys out of order")
        if level > 1:
            children = [low | high << 16 | flags << 32 for _, low, high, flags, _ in nodes]
            bounds = zip(children, keys, [*keys[1:], below], strict=True)
            waiting += [(child, level - 1, *bound) for child, *bound in bounds]
            continue
        if whole and keys and not 0 < keys[-1] <= meta.transaction:
            raise Damaged("its list of free pages is from the future")
        for at, low, high, flags, length in nodes:
            entries += 1
            size, begin = low | high << 16, at + NODE + length
            if flags & ~BIG:
                raise Damaged(f"page {number} has a value of an unknown kind")
            if not flags:
                yield page[begin : begin + size]
                continue
            first = _number.unpack_from(page, begin)[0]
            count = (HEAD + size - 1) // meta.size + 1
            _mark(seen, first, count)
            file.seek(first * meta.size)
            head = file.read(HEAD + (size if whole else min(size, 8)))
            if _head.unpack_from(head)[0] != first or _head.unpack_from(head)[2] != OVERFLOW:
                raise Damaged(f"page {first} is not what it should be")
            if int.from_bytes(head[12:16], "little") != count:
                raise Damaged(f"page {first} has another length than it should")
            yield head[HEAD:]
    if entries != tree.entries:
        raise Damaged(f"it has {entries} entries of {tree.entries}")


def _as_number(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _under(key: Any, bound: Any) -> bool:
    return bound is None or key < bound


def _nodes(page: bytes, number: int, kind: int) -> Iterator[_Node]:
    """Yield the nodes of *page*, in the order of their keys."""
    own, _, flags, lower, upper = _head.unpack_from(page)
    if own != number or flags != kind:
        raise Damaged(f"page {number} is not what it should be")
    if not HEAD < lower <= upper <= len(page) or lower % 2:
        raise Damaged(f"page {number} is broken")
    places = struct.unpack_from(f"<{(lower - HEAD) // 2}H", page, HEAD)
    begin = upper
    for at in sorted(places):  # LMDB keeps them side by side up to the end of the page
        if at != begin or at > len(page) - NODE:
            raise Damaged(f"page {number} has a node where there should be none")
        low, high, flags, length = _node.unpack_from(page, at)
        if length > KEY_BYTES:
            raise Damaged(f"page {number} has a key that is too long")
        data = 0 if kind == BRANCH else 8 if flags & BIG else low | high << 16
        begin += NODE + length + data + (length + data) % 2
    if begin != len(page):
        raise Damaged(f"page {number} has a node beyond its end")
    for at in places:
        yield _Node(at, *_node.unpack_from(page, at))

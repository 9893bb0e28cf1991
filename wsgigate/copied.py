"""A copy of what goes out, made as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from wsgigate.wsgi import close_body

__all__ = ["CopiedBody"]


class CopiedBody:
    """The body of an answer on its way out, of which a copy is made if it comes to its end.

    :param body: What the app returned.
    :param most: The bytes that are copied; of a longer body there is no copy.
    :param whole: Called once with the copy, when the body has come to its end.
    """

    def __init__(self, body: Iterable[bytes], most: int, whole: Callable[[bytes], object]) -> None:
        self._body = body
        self._most = most
        self._whole: Callable[[bytes], object] | None = whole
        self._chunks: Iterator[bytes] | None = None
        self._copy = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = iter(self._body)
        try:
            chunk = next(chunks)
        except StopIteration:
            whole, self._whole = self._whole, None
            if whole is not None:
                whole(bytes(self._copy))
            raise
        except BaseException:
            self._whole = None
            raise
        if self._whole is not None:
            if len(self._copy) + len(chunk) > self._most:
                self._whole = None
                self._copy = bytearray()
            else:
                self._copy += chunk
        return chunk

    def close(self) -> None:
        body, self._body = self._body, ()
        close_body(body)

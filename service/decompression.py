"""A packed body -> what it holds, whole and within its limit: no more than that is ever unpacked."""

import zlib
from collections.abc import Callable

import zstandard


class BadEncodingError(Exception):
    """The body is not what its encoding says; the message says why."""


class UnpackedTooLargeError(Exception):
    """The body holds more than is taken."""


def unpack(encoding: str, body: bytes, limit: int) -> bytes:
    """Unpack a body.

    Raises:
        UnpackedTooLargeError: it holds more than `limit` bytes.
        BadEncodingError: it is damaged, ends too early, or something follows it.
    """
    return _UNPACKERS[encoding](body, limit)


def _unpack_gzip(body: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise BadEncodingError("it is damaged") from None
    return _check(unpacked, limit, whole=unpacker.eof, rest=unpacker.unused_data)


_ZSTD_WINDOW = 8 * 1024**2
"""What every reader must be able to hold (RFC 8878); a frame that wants more is refused before it is unpacked."""

_PIECE = 64 * 1024


def _unpack_zstd(body: bytes, limit: int) -> bytes:
    """Unpack twice: piece by piece to see how much it is, then at once to see that it is whole and ends there."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        _check_size(unpacker, body, limit)
        at_once = unpacker.decompressobj()
        unpacked = at_once.decompress(body)
    except zstandard.ZstdError:
        raise BadEncodingError("it is damaged") from None
    return _check(unpacked, limit, whole=at_once.eof, rest=at_once.unused_data)


def _check_size(unpacker: zstandard.ZstdDecompressor, body: bytes, limit: int) -> None:
    size, full = 0, True
    with unpacker.stream_reader(body) as reader:
        while full:
            piece = len(reader.read(_PIECE))
            full = piece == _PIECE  # less is the end of the frame
            size += piece
            if size > limit:
                raise UnpackedTooLargeError


def _check(unpacked: bytes, limit: int, *, whole: bool, rest: bytes) -> bytes:
    if len(unpacked) > limit:
        raise UnpackedTooLargeError
    if not whole:
        raise BadEncodingError("it ends too early")
    if rest:
        raise BadEncodingError("something follows it")
    return unpacked


_UNPACKERS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _unpack_gzip, "zstd": _unpack_zstd}

ENCODINGS = tuple(_UNPACKERS)

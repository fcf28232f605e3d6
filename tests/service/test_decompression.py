"""Packed bodies: what they hold, whole, and never more than the limit."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from service.decompression import ENCODINGS, BadEncodingError, UnpackedTooLargeError, unpack

LIMIT = 100_000


def zstd_of_unknown_size(content: bytes) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(content) + packer.flush()


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("zstd", zstandard.ZstdCompressor().compress),
    ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress),
    ("zstd", zstd_of_unknown_size),
]
each_packer = pytest.mark.parametrize(("encoding", "pack"), PACKERS)


def test_there_is_a_packer_for_every_encoding() -> None:
    assert {encoding for encoding, _ in PACKERS} == set(ENCODINGS)


@each_packer
@pytest.mark.parametrize("content", [b"", b"x", b"forecast " * 1000, b"\0" * LIMIT])
def test_what_was_packed_comes_out(encoding: str, pack: Callable[[bytes], bytes], content: bytes) -> None:
    assert unpack(encoding, pack(content), LIMIT) == content


@each_packer
def test_a_byte_more_than_the_limit_is_too_much(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnpackedTooLargeError):
        unpack(encoding, pack(b"\0" * (LIMIT + 1)), LIMIT)


@each_packer
def test_a_bomb_is_stopped_at_the_limit(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b"\0" * 64 * 1024**2)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(UnpackedTooLargeError):
            unpack(encoding, bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    finally:
        tracemalloc.stop()


def test_a_frame_that_lies_about_its_size_unpacks_no_more() -> None:
    """A header that says 10 bytes, before blocks of 50 MB, and the other way round."""
    honest = zstandard.ZstdCompressor(write_content_size=True).compress(b"\0" * 50_000_000)
    size = zstandard.frame_header_size(honest)
    assert honest[size - 4 : size] == (50_000_000).to_bytes(4, "little")
    for lie in (10, 2**32 - 1):
        with pytest.raises((UnpackedTooLargeError, BadEncodingError)):
            unpack("zstd", honest[: size - 4] + lie.to_bytes(4, "little") + honest[size:], LIMIT)


def test_a_window_nobody_needs_is_not_given() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BadEncodingError):
        unpack("zstd", packer.compress(b"x" * 100) + packer.flush(), LIMIT)


@each_packer
def test_a_body_that_ends_too_early_is_refused(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b"forecast " * 100)
    for length in range(len(packed)):
        with pytest.raises(BadEncodingError):
            unpack(encoding, packed[:length], LIMIT)


@each_packer
@pytest.mark.parametrize("rest", [b"x", b"\0", gzip.compress(b"x", mtime=0), zstd_of_unknown_size(b"x")])
def test_nothing_may_follow(encoding: str, pack: Callable[[bytes], bytes], rest: bytes) -> None:
    with pytest.raises(BadEncodingError, match="something follows it"):
        unpack(encoding, pack(b"forecast") + rest, LIMIT)


def test_deflate_without_its_envelope_is_not_gzip() -> None:
    with pytest.raises(BadEncodingError, match="damaged"):
        unpack("gzip", zlib.compress(b"forecast"), LIMIT)


@given(st.sampled_from(ENCODINGS), st.binary(max_size=200), st.booleans())
def test_whatever_is_sent_unpacks_or_is_refused(encoding: str, body: bytes, begins_well: bool) -> None:
    start = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd"}[encoding] if begins_well else b""
    with suppress(BadEncodingError, UnpackedTooLargeError):
        assert len(unpack(encoding, start + body, 1000)) <= 1000

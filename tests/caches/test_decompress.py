"""What a small file of a hostile cache may stand for: little memory, whatever it says."""

from __future__ import annotations

import gzip
import io
import lzma
import tracemalloc

import brotli
import pytest

from executor.caches.decompress import decompressed
from executor.caches.errors import CacheError
from executor.caches.web import WebClient, WebOptions
from executor.transfers.answers import Patience
from tests.web import Answer, Server
from tests.web import server as server  # a fixture

MIB = 1 << 20


def packed(dictionary: int, method: int) -> bytes:
    """Some zeros, with a dictionary that the decoder has to have room for."""
    kind = lzma.FILTER_LZMA2 if method == lzma.FORMAT_XZ else lzma.FILTER_LZMA1
    chain = [{"id": kind, "preset": 0, "dict_size": dictionary, "mf": lzma.MF_HC3, "nice_len": 273}]
    return lzma.compress(bytes(MIB), format=method, filters=chain)


@pytest.mark.parametrize(("name", "method"), [("xz", lzma.FORMAT_XZ), ("lzma", lzma.FORMAT_ALONE)])
def test_row_145_an_archive_asks_for_no_more_memory_than_there_is_reason_for(
    name: str, method: int
) -> None:
    # The highest preset takes a dictionary of 64 MiB.
    good = decompressed(io.BytesIO(packed(64 * MIB, method)), name, "it")
    assert sum(map(len, iter(lambda: good.read(MIB), b""))) == MIB
    bad = decompressed(io.BytesIO(packed(160 * MIB, method)), name, "it")
    with pytest.raises(CacheError, match="limit exceeded"):
        bad.read(1)


@pytest.mark.parametrize("encoding", ["br", "gzip", "gzip, gzip"])
def test_row_145_an_answer_is_not_decoded_beyond_its_limit(server: Server, encoding: str) -> None:
    body = bytes(512 * MIB)
    for each in encoding.split(", "):
        pack = brotli.Compressor(quality=1) if each == "br" else None
        body = gzip.compress(body, 1) if pack is None else pack.process(body) + pack.finish()
    assert len(body) < 4 * MIB
    url = server.offer("/file", Answer(body=body, headers={"Content-Encoding": encoding}))
    client = WebClient(WebOptions(patience=Patience(attempts=1)), {}, lambda _text: None)
    tracemalloc.start()
    try:
        with pytest.raises(CacheError, match="is longer than"):
            client.get(url, MIB)
        # The server's copy of what it sends is in it, too.
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
        client.close()

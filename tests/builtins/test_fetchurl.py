"""``builtin:fetchurl``: from files and servers, with mirrors and passwords, and when it fails."""

from __future__ import annotations

import base64
import gzip
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from executor.build.events import BuildTransfer
from executor.build.result import BuildStatus, exit_status
from executor.derivation import FixedOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.store_path import make_fixed_output_path
from tests.build.conftest import Drv, Workshop, fixed, sha256
from tests.web import Answer, Server
from tests.web import server as server

pytestmark = pytest.mark.root

CONTENT = b"hello from afar\n" * 1000
SECRET = "tiger"


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """One whose builds reach the servers of the test, which listen on loopback."""
    workshop = Workshop(tmp_path)
    workshop.change(fod_network="host")
    return workshop


def fetch(
    workshop: Workshop,
    url: str,
    promise: FixedOutput | None = None,
    env: Mapping[str, str] | None = None,
    **changes: Any,
) -> Drv:
    return workshop.make(
        "fetched",
        outputs={"out": promise or fixed(CONTENT)},
        builder=b"builtin:fetchurl",
        args=(),
        platform="builtin",
        env={"url": url, **(env or {})},
        **changes,
    )


def nar(content: bytes, *, executable: bool = False) -> bytes:
    """The archive of one file."""
    mark = (b"executable", b"") if executable else ()
    words = (b"nix-archive-1", b"(", b"type", b"regular", *mark, b"contents", content, b")")
    return b"".join(
        len(word).to_bytes(8, "little") + word + bytes(-len(word) % 8) for word in words
    )


def test_a_file_of_the_store(workshop: Workshop) -> None:
    source = workshop.source("source", CONTENT)
    drv = fetch(workshop, f"file://{workshop.render(source)}")
    outsider = workshop.build(drv)
    assert not outsider.result.success
    assert "Could not read a file:// file (37)" in outsider.text
    drv = fetch(workshop, f"file://{workshop.render(source)}", sources=[source])
    assert workshop.build(drv).result.status is BuildStatus.BUILT
    assert workshop.real(drv.out).read_bytes() == CONTENT


def test_files_of_the_host_are_out_of_reach(workshop: Workshop) -> None:
    """But for what a sandbox path shows."""
    directory = workshop.directory / "shown"
    directory.mkdir()
    (directory / "file name").write_bytes(CONTENT)
    drv = fetch(workshop, f"file://{directory}/file%20name")
    assert not workshop.build(drv).result.success
    drv = fetch(workshop, "file:///shown/file%20name")
    paths = (workshop.shown(directory, "/shown"),)
    assert workshop.build(drv, sandbox_paths=paths).result.success


def test_a_file_of_a_server(workshop: Workshop, server: Server) -> None:
    drv = fetch(workshop, server.offer("/a/b?c=%20d", Answer(body=CONTENT)))
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.BUILT, run.text
    assert server.paths == ["/a/b?c=%20d"]
    assert workshop.real(drv.out).read_bytes() == CONTENT
    assert workshop.info(drv.out).content_address is not None
    assert workshop.leftovers() == []


@pytest.mark.parametrize("length", [len(CONTENT), 3 << 20])
def test_a_download_is_told_of_as_it_goes(workshop: Workshop, server: Server, length: int) -> None:
    url = server.offer("/x", Answer(body=CONTENT[:1] * length))
    run = workshop.build(fetch(workshop, url, fixed(CONTENT[:1] * length)))
    assert run.result.success, run.text
    first, *results, last = [event for event in run.events if isinstance(event, BuildTransfer)]
    assert (first.action, last.action) == ("start", "stop")
    assert (first.text, first.level, first.fields) == (f"downloading '{url}'", 4, (url,))
    assert {(event.action, event.kind) for event in results} == {("result", 105)}
    assert results[-1].fields == (length, length, 0, 0)
    # They are no lines of the log for people, and few.
    assert run.log == []
    assert len(results) < 20


def test_a_download_that_fails_has_ended(workshop: Workshop, server: Server) -> None:
    run = workshop.build(fetch(workshop, server.offer("/x", Answer(404))))
    told = [event.action for event in run.events if isinstance(event, BuildTransfer)]
    assert told == ["start", "stop"]


def test_another_content_than_promised_is_kept_under_its_true_path(
    workshop: Workshop, server: Server
) -> None:
    drv = fetch(workshop, server.offer("/x", Answer(body=b"forged")))
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.HASH_MISMATCH
    assert exit_status(run.results) == 102
    assert f"got:    {sha256(b'forged').sri}" in run.result.message
    true_path = make_fixed_output_path(
        workshop.location.store_dir, "fetched", IngestionMethod.FLAT, sha256(b"forged")
    )
    assert workshop.real(true_path).read_bytes() == b"forged"
    assert not workshop.is_valid(drv.out)


def test_an_executable_file(workshop: Workshop, server: Server) -> None:
    promise = fixed(nar(CONTENT, executable=True), IngestionMethod.NAR)
    url = server.offer("/tool", Answer(body=CONTENT))
    drv = fetch(workshop, url, promise, {"executable": "1"})
    run = workshop.build(drv)
    assert run.result.success, run.result
    assert workshop.real(drv.out).stat().st_mode & 0o777 == 0o555


@pytest.mark.parametrize("name", ["x.nar", "x.nar.xz"])
def test_an_archive_to_unpack(workshop: Workshop, server: Server, name: str) -> None:
    data = nar(CONTENT)
    body = lzma.compress(data) if name.endswith(".xz") else data
    promise = fixed(data, IngestionMethod.NAR)
    drv = fetch(workshop, server.offer(f"/{name}", Answer(body=body)), promise, {"unpack": "1"})
    run = workshop.build(drv)
    assert run.result.success, run.result
    assert workshop.real(drv.out).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "body", [b"", b"no archive", nar(CONTENT)[:-8], lzma.compress(b"x")], ids=range(4)
)
def test_a_malformed_archive_fails(workshop: Workshop, server: Server, body: bytes) -> None:
    url = server.offer("/x.nar", Answer(body=body))
    run = workshop.build(fetch(workshop, url, fixed(b"", IngestionMethod.NAR), {"unpack": "1"}))
    assert run.result.status is BuildStatus.TRANSIENT_FAILURE
    assert "can't unpack the downloaded archive" in run.text
    assert workshop.leftovers() == []


def test_a_redirection_is_followed(workshop: Workshop, server: Server) -> None:
    server.offer("/there", Answer(body=CONTENT))
    url = server.offer("/here", Answer(302, headers={"Location": "/there"}))
    assert workshop.build(fetch(workshop, url)).result.success
    assert server.paths == ["/here", "/there"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/here", "Number of redirects hit maximum amount (47)"),
        ("file:///etc/passwd", 'Protocol "file" disabled'),
        ("gopher://127.0.0.1/", 'Protocol "gopher" not supported'),
    ],
)
def test_a_redirection_that_is_not_followed(
    workshop: Workshop, server: Server, location: str, message: str
) -> None:
    url = server.offer("/here", Answer(302, headers={"Location": location}))
    run = workshop.build(fetch(workshop, url), download_attempts=1)
    assert run.result.status is BuildStatus.TRANSIENT_FAILURE
    assert message in run.text


def test_a_compressed_transfer_is_unpacked(workshop: Workshop, server: Server) -> None:
    answer = Answer(body=gzip.compress(CONTENT), headers={"Content-Encoding": "gzip"})
    assert workshop.build(fetch(workshop, server.offer("/x", answer))).result.success


@pytest.mark.parametrize(
    ("answers", "attempts", "success", "requests"),
    [
        ([Answer(500), Answer(500), Answer(body=CONTENT)], 5, True, 3),
        ([Answer(500)], 2, False, 2),
        ([Answer(404)], 5, False, 1),
        ([Answer(403), Answer(body=CONTENT)], 5, False, 1),
        ([Answer(body=CONTENT[:100], cut=50), Answer(body=CONTENT)], 5, True, 2),
    ],
    ids=["recovers", "gives-up", "missing", "forbidden", "cut"],
)
def test_what_may_pass_is_tried_again(
    workshop: Workshop,
    server: Server,
    answers: list[Answer],
    attempts: int,
    success: bool,
    requests: int,
) -> None:
    run = workshop.build(fetch(workshop, server.offer("/x", *answers)), download_attempts=attempts)
    assert run.result.success is success, run.text
    assert len(server.requests) == requests
    if not success:
        assert run.result.status is BuildStatus.TRANSIENT_FAILURE
        assert f"unable to download '{server.url('/x')}': HTTP error" in run.text
        assert exit_status(run.results) == 1
        assert workshop.leftovers() == []


def test_a_cut_transfer_goes_on_where_it_ended(workshop: Workshop, server: Server) -> None:
    begin = Answer(body=CONTENT[:100], cut=len(CONTENT) - 100, headers={"Accept-Ranges": "bytes"})
    size = len(CONTENT)
    rest = Answer(206, CONTENT[100:], {"Content-Range": f"bytes 100-{size - 1}/{size}"})
    drv = fetch(workshop, server.offer("/x", begin, rest))
    assert workshop.build(drv).result.success
    assert server.requests[1][1]["Range"] == "bytes=100-"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/x", "Could not connect to server (7)"),
        ("ftp://127.0.0.1/x", 'Protocol "ftp" not supported'),
        ("nonsense", "URL using bad/illegal format or missing URL (3)"),
        ("http://127.0.0.1/with space", "URL using bad/illegal format or missing URL (3)"),
    ],
)
def test_a_url_that_leads_nowhere_fails(workshop: Workshop, url: str, message: str) -> None:
    run = workshop.build(fetch(workshop, url), download_attempts=1)
    assert run.result.status is BuildStatus.TRANSIENT_FAILURE
    assert message in run.text


def test_a_hashed_mirror_is_asked_first(workshop: Workshop, server: Server) -> None:
    mirrored = f"/mirror/sha256/{sha256(CONTENT).base16}"
    server.offer(mirrored, Answer(body=CONTENT))
    url = server.offer("/x", Answer(body=b"never asked for"))
    run = workshop.build(fetch(workshop, url), hashed_mirrors=(server.url("/mirror/"),))
    assert run.result.success
    assert server.paths == [mirrored]


def test_the_url_is_used_where_no_mirror_has_the_file(workshop: Workshop, server: Server) -> None:
    url = server.offer("/x", Answer(body=CONTENT))
    mirrors = (server.url("/one"), server.url("/two"))
    assert workshop.build(fetch(workshop, url), hashed_mirrors=mirrors).result.success
    assert [path.partition("/sha256/")[0] for path in server.paths] == ["/one", "/two", "/x"]


def test_mirrors_know_nothing_of_archives(workshop: Workshop, server: Server) -> None:
    data = nar(CONTENT)
    url = server.offer("/x.nar", Answer(body=data))
    drv = fetch(workshop, url, fixed(data, IngestionMethod.NAR), {"unpack": "1"})
    assert workshop.build(drv, hashed_mirrors=(server.url("/mirror"),)).result.success
    assert server.paths == ["/x.nar"]


@pytest.fixture
def netrc(workshop: Workshop) -> str:
    path = workshop.directory / "netrc"
    path.write_text(f"machine 127.0.0.1 login scott password {SECRET}\n")
    path.chmod(0o600)
    return str(path)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"scott:{password}".encode()).decode()


def test_a_password_of_the_netrc_file_is_sent(
    workshop: Workshop, server: Server, netrc: str
) -> None:
    drv = fetch(workshop, server.offer("/x", Answer(body=CONTENT)))
    assert workshop.build(drv, netrc_file=netrc).result.success
    assert server.requests[0][1]["Authorization"] == basic(SECRET)


def test_a_password_of_another_machine_is_not_sent(workshop: Workshop, server: Server) -> None:
    path = workshop.directory / "netrc"
    path.write_text(f"machine example.org login scott password {SECRET}\n")
    drv = fetch(workshop, server.offer("/x", Answer(body=CONTENT)))
    assert workshop.build(drv, netrc_file=str(path)).result.success
    assert "Authorization" not in server.requests[0][1]


def test_a_password_in_the_url_is_sent_and_not_told(workshop: Workshop, server: Server) -> None:
    server.offer("/x", Answer(403))
    run = workshop.build(fetch(workshop, server.url("/x", user=f"scott:{SECRET}@")))
    assert server.requests[0][1]["Authorization"] == basic(SECRET)
    assert "HTTP error 403" in run.text
    assert SECRET not in run.text + run.result.message


def test_passwords_are_left_in_no_place(workshop: Workshop, netrc: str, server: Server) -> None:
    """Neither in a kept build directory nor with a builder that is no builtin."""
    run = workshop.build(
        fetch(workshop, server.offer("/x", Answer(404))), netrc_file=netrc, keep_failed=True
    )
    assert run.result.kept_build_directory is None
    drv = workshop.make(
        "curious", "ls -a /build > $out; cat .netrc || true", outputs={"out": fixed(b".\n..\n")}
    )
    run = workshop.build(drv, netrc_file=netrc)
    assert run.result.success, run.result
    assert SECRET not in run.text


def test_a_proxy_of_the_environment_is_used(
    workshop: Workshop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    url = "http://not-a-host.invalid/x"
    server.offer(url, Answer(body=CONTENT))
    drv = fetch(workshop, url, env={"impureEnvVars": "http_proxy"})
    run = workshop.build(drv)
    assert run.result.success, run.text
    assert server.paths == [url]


@pytest.mark.parametrize(
    ("builder", "env", "message"),
    [
        (b"builtin:fetchurl", {}, "attribute 'url' missing"),
        (b"builtin:nonsense", {"url": "x"}, "unsupported builtin builder 'nonsense'"),
    ],
)
def test_a_builtin_that_can_not_run_fails(
    workshop: Workshop, builder: bytes, env: dict[str, str], message: str
) -> None:
    drv = workshop.make("odd", outputs={"out": fixed(b"")}, builder=builder, args=(), env=env)
    run = workshop.build(drv)
    assert not run.result.success
    assert message in run.text


def test_without_a_promised_hash_nothing_is_fetched(workshop: Workshop, server: Server) -> None:
    url = server.offer("/x", Answer(body=CONTENT))
    drv = workshop.make("free", builder=b"builtin:fetchurl", args=(), env={"url": url})
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert "'builtin:fetchurl' must be a fixed-output or impure derivation" in run.text
    assert server.requests == []


@pytest.mark.parametrize("path", [__file__, "/etc/shadow", "/bin/ls", "/proc/2/environ"])
def test_the_builtin_sees_no_more_than_any_builder(workshop: Workshop, path: str) -> None:
    """Not even the files that its own code was loaded from."""
    assert path.startswith("/proc/") or Path(path).exists()
    run = workshop.build(fetch(workshop, f"file://{path}"), sandbox_paths=())
    assert run.result.status is BuildStatus.TRANSIENT_FAILURE
    assert "Could not read a file:// file (37)" in run.text


def test_passwords_are_no_file_to_fetch(workshop: Workshop, netrc: str) -> None:
    """A fixed output is kept under its true path, so this would publish them."""
    run = workshop.build(fetch(workshop, "file:///build/.netrc"), netrc_file=netrc)
    assert "Could not open file /build/.netrc" in run.text
    assert run.result.status is not BuildStatus.HASH_MISMATCH

"""Files below /etc, held against those in the sandbox of Nix 2.34.8."""

from __future__ import annotations

from pathlib import Path

from executor.build.sandbox_files import sandbox_files

FIXTURES = Path(__file__).parent.parent / "fixtures" / "attributes"


def test_isolated_build_sees_what_nix_shows() -> None:
    expected = {
        f"/etc/{file.name}": file.read_bytes() for file in (FIXTURES / "plain/etc").iterdir()
    }
    files = sandbox_files(build_directory=b"/build", isolated=True)
    assert {file.path.decode(): file.content for file in files} == expected
    assert {file.mode for file in files} == {0o644}


def test_build_with_the_hosts_network_looks_names_up_in_files_and_dns() -> None:
    files = {
        file.path: file.content for file in sandbox_files(build_directory=b"/build", isolated=False)
    }
    assert files[b"/etc/nsswitch.conf"] == b"hosts: files dns\nservices: files\n"
    assert b"/etc/hosts" not in files


def test_ids_and_home_are_taken_over() -> None:
    files = {
        file.path: file.content
        for file in sandbox_files(build_directory=b"/top%s", isolated=True, uid=5, gid=6)
    }
    assert b"nixbld:x:5:6:Nix build user:/top%s:/noshell\n" in files[b"/etc/passwd"]
    assert b"nixbld:!:6:\n" in files[b"/etc/group"]

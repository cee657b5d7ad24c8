"""Builders that close their output, and logs that say nothing. Upstream: timeout, logging."""

from __future__ import annotations

import pytest

from tests.build.conftest import FOREVER, SLEEPING, Workshop, processes_with

pytestmark = pytest.mark.root


@pytest.mark.parametrize("limit", ["--timeout", "--max-silent-time"])
def test_a_builder_that_closed_its_output_can_not_escape_its_limits(
    workshop: Workshop, limit: str
) -> None:
    """Nix takes the end of the log for the end of the build and kills the builder at once."""
    drv = workshop.make("mute", f"echo > $out; exec > /dev/null 2>&1; {FOREVER}")
    done = workshop.cli("build", drv.text, limit, "1")
    assert done.returncode == 101
    assert f"Cannot build '{drv.text}'.\n" in done.stderr
    assert "       Reason: builder timed out after 1 seconds" in done.stderr
    assert processes_with(SLEEPING) == []
    assert workshop.leftovers() == []


def test_a_builder_that_closed_its_output_may_end_in_peace(workshop: Workshop) -> None:
    drv = workshop.make("mute", "exec > /dev/null 2>&1; sleep 0.5; echo late > $out")
    assert workshop.cli("build", drv.text).returncode == 0
    assert workshop.real(drv.out).read_text() == "late\n"


@pytest.mark.parametrize("compress", ["true", "false"])
def test_the_log_of_a_build_that_said_nothing_is_empty(workshop: Workshop, compress: str) -> None:
    drv = workshop.make("silent")
    done = workshop.cli("build", drv.text, "--option", "compress-build-log", compress)
    assert done.returncode == 0
    for path in (drv.text, workshop.render(drv.out)):
        done = workshop.cli("log", path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("line", ['@nix {"action": "start"}', "@nix {", '@nix {"action": 5}'])
def test_an_ill_formed_message_of_a_builder_does_not_fail_it(workshop: Workshop, line: str) -> None:
    drv = workshop.make("talker", f"echo '{line}' >&2; echo > $out")
    assert workshop.cli("build", drv.text, "-L").returncode == 0

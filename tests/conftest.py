"""Rules for the whole suite: nothing is skipped in CI, and long tests run when asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator

import pytest

IN_CI = os.environ.get("CI", "") not in ("", "0", "false")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long tests out unless ``-m`` names them."""
    if "long" in str(config.option.markexpr):
        return
    long = [item for item in items if "long" in item.keywords]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if "long" not in item.keywords]


@pytest.fixture(autouse=True)
def _requirements(request: pytest.FixtureRequest) -> None:
    """What a marker names must be there: its absence fails the test and says what to do."""
    if request.node.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.fail("this test needs root: run 'sudo make test'", pytrace=False)
    if request.node.get_closest_marker("nix") is not None and shutil.which("nix-store") is None:
        pytest.fail("this test needs stock Nix on PATH: run 'sudo make test'", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Nothing is skipped in CI: what is not tested there is not tested."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and CI runs everything"
    return report

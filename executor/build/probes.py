"""The sandbox's probes, for the layers above, which don't import the sandbox themselves."""

from __future__ import annotations

from sandbox.probe import ProbeResult, run_probes

__all__ = ["ProbeResult", "run_probes"]

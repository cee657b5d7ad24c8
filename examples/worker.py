"""A worker for a queue: reads derivations from standard input, and answers with a record of each.

    echo /nix/store/…-x.drv | python examples/worker.py unix:///run/executor/socket --seconds 60

One path a line; they are built at once, as many as the daemon has slots for. What takes longer
than so many seconds is cancelled, and its builder is gone. The records are lines of JSON, in the
order in which builds end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from executor.api import BuildResult
from executor.remote import RemoteExecutor


def record(drv: str, result: BuildResult | None) -> str:
    """What became of one derivation; None for one that was cancelled."""
    if result is None:
        return json.dumps({"drv": drv, "status": "Cancelled"})
    limit = None if result.exceeded is None else result.exceeded.limit.setting
    return json.dumps(
        {
            "drv": drv,
            "status": result.status.label,
            "outputs": {name: path.base_name for name, path in result.outputs.items()},
            "seconds": round(result.stop_time - result.start_time, 1),
            "exitCode": result.exit_code,
            "limit": limit,
            "lastLines": [line.decode("utf-8", "replace") for line in result.log_tail],
        }
    )


async def work(executor: RemoteExecutor, drv: str, seconds: float) -> None:
    """Build one, and say how it went."""
    try:
        async with asyncio.timeout(seconds):
            result = await executor.build(drv)
    except TimeoutError:
        result = None
    print(record(drv, result), flush=True)


async def main(address: str, seconds: float) -> None:
    """Work until there is no more."""
    async with RemoteExecutor(store=address) as executor:
        lines = await asyncio.to_thread(sys.stdin.readlines)
        await asyncio.gather(*(work(executor, line.strip(), seconds) for line in lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, default=3600)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.address, arguments.seconds))

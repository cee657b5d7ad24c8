"""Building again to see whether the same comes out (row M2): nothing of it enters the store.

Every output that differs is told, not only the first. Where somebody wants to look at it
(``keep-failed``, a diff hook), the new tree is left beside the valid one as ``<path>.check``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from executor.build.failure import BuildFailureError
from executor.build.install import check_fixed
from executor.build.prepare import Preparation
from executor.build.program import Program, output_of, status_text
from executor.build.result import BuildStatus, FailureCause
from executor.build.staged import StagedOutput
from executor.build.users import BuildUser
from executor.store.local import LocalStore
from executor.store.signing import SecretKey, sign

_HOOK_TIMEOUT = 600
_GRACE = 0.5
MOST_OF_DIFF_HOOK = 1 << 20


@dataclass(frozen=True, slots=True)
class Differing:
    """An output that came out otherwise than ``than`` says.

    ``path`` is where it belongs on disk, ``kept`` where the new tree lies, if it was kept.
    """

    path: str
    kept: str | None = None
    than: str = ""

    def __str__(self) -> str:
        other = f"'{self.kept}'" if self.kept else self.than
        return f"output '{self.path}' differs" + (f" from {other}" if other else "")

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a diff hook gets to compare."""
        return (self.path, self.kept or "")


def compare(
    store: LocalStore,
    staged: Sequence[StagedOutput],
    preparation: Preparation,
    keys: Sequence[SecretKey],
    keep: bool,
) -> tuple[Differing, ...]:
    """Compare new outputs with the valid ones; ``keep`` leaves those that differ for a look.

    An output that is the same was seen to be built here: it becomes ultimate and is signed. Runs
    in the store's thread. Raises ``BuildFailureError`` for a fixed output with a wrong hash.
    """
    for item in staged:
        check_fixed(store, item, preparation, keys, keep_wrong=False)
    differing: list[Differing] = []
    for item in staged:
        # A content-addressed output that differs belongs elsewhere; it is compared with the one
        # that is known for this derivation.
        path = preparation.outputs[item.output]
        valid = store.query_path_info(path)
        if valid.nar_hash != item.info.nar_hash:
            kept = store.keep_beside(item.directory_fd, item.name, path, ".check") if keep else None
            differing.append(Differing(store.real_path(path), kept))
        elif not valid.ultimate:
            signatures = (*valid.signatures, *sign(valid, store.store_dir, keys))
            store.register([replace(valid, ultimate=True, signatures=signatures)])
    return tuple(differing)


def not_deterministic(name: str, differing: Sequence[Differing]) -> BuildFailureError:
    """The failure that names every output that differs, in Nix's words."""
    text = f"derivation '{name}' may not be deterministic: {', '.join(map(str, differing))}"
    return BuildFailureError(BuildStatus.NOT_DETERMINISTIC, text, FailureCause.OUTPUT)


async def run_diff_hook(command: Sequence[str], user: BuildUser) -> tuple[str, ...]:
    """Run the diff hook as the build user, and return what there is to tell of it.

    Its failure is told and nothing more: the build has failed for another reason. What it says is
    about contents that a builder has made, who may have made them so that it is very much.
    """
    env = {b"PATH": os.environb.get(b"PATH", b"/usr/bin:/bin")}
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)
        try:
            hook = Program.start(
                command,
                env=env,
                output=writing,
                merge=False,
                directory="/",
                user=(user.uid, user.gid),
            )
        except (OSError, subprocess.SubprocessError) as error:
            return (f"diff hook execution failed: {error}",)
        finally:
            os.close(writing)
        # Its user may build something else soon: nothing of it may stay.
        status, output = await output_of(
            *(hook, reading),
            grace=_GRACE,
            seconds=_HOOK_TIMEOUT,
            spare_rest=False,
            most=MOST_OF_DIFF_HOOK,
        )
    except TimeoutError:
        return (f"diff hook execution failed: '{command[0]}' took over {_HOOK_TIMEOUT} seconds",)
    finally:
        os.close(reading)
    if status:
        return (f"diff hook execution failed: '{command[0]}' {status_text(status)}",)
    text = output.decode("utf-8", "replace").rstrip("\n")
    if len(output) == MOST_OF_DIFF_HOOK:
        text += "\n[what follows was left out]"
    return (text,) if text else ()

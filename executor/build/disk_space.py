"""Where a build needs room, and what its result says if there is none (row R2)."""

from __future__ import annotations

from executor.build.context import BuildContext
from executor.store.file_systems import (
    FullFileSystem,
    Place,
    database_place,
    full_file_systems,
    notes_on,
    tells_of_no_room,
)


def full_for_builders(context: BuildContext) -> list[FullFileSystem]:
    """Those that a builder may have failed for: where its outputs, /tmp and directory are."""
    return full_file_systems(_places_of_builders(context))


def room_notes(context: BuildContext, error: BaseException) -> str:
    """Lines on those that a step of ours may have failed for."""
    if not tells_of_no_room(error):
        return ""
    # The error of a database has told already.
    full = full_file_systems(_all_places(context))
    return notes_on(one for one in full if one.subject not in str(error))


def log_notes(context: BuildContext, error: OSError) -> str:
    """The same for what could not be written to a log."""
    return notes_on(full_file_systems([_place_of_logs(context)])) if tells_of_no_room(error) else ""


def _places_of_builders(context: BuildContext) -> list[Place]:
    store, builds = context.store.store.location.real_store_dir, context.build_root
    return [
        Place(store, "the store", "'executor gc' deletes what nobody needs"),
        Place(
            builds,
            "build directories",
            f"free some below '{builds}', or set 'build-dir' to a larger place",
        ),
    ]


def _place_of_logs(context: BuildContext) -> Place:
    path = f"{context.store.store.location.log_dir}/drvs"
    return Place(path, "logs of builds", f"delete old logs below '{path}'")


def _all_places(context: BuildContext) -> list[Place]:
    database = database_place(f"{context.store.store.location.state_dir}/db")
    return [*_places_of_builders(context), database, _place_of_logs(context)]

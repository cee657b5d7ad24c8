"""The parsers, by name. The quick ones first."""

from tests.fuzz.harness import Target
from tests.fuzz.targets import (
    archives,
    caches,
    derivations,
    frames,
    logs,
    names,
    protocols,
    references,
    requests,
    roots,
    servers,
    settings,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        *(names, frames, protocols, requests, servers, logs, settings, caches),
        *(derivations, archives, references, roots),
    )
    for target in module.TARGETS
}

"""Names of settings, as plain data: whoever only looks at names imports nothing else.

``settings`` has the settings themselves, and what ``ALIASES``, ``HARMLESS`` and ``NIX_ONLY`` are.
"""

from __future__ import annotations

# Old names of settings (row X2); the last is what other Nix versions call download-attempts.
ALIASES = {
    "build-cores": "cores",
    "build-max-jobs": "max-jobs",
    "build-timeout": "timeout",
    "build-max-silent-time": "max-silent-time",
    "build-max-log-size": "max-build-log-size",
    "build-use-sandbox": "sandbox",
    "build-use-chroot": "sandbox",
    "build-sandbox-paths": "sandbox-paths",
    "build-chroot-dirs": "sandbox-paths",
    "build-keep-log": "keep-build-log",
    "build-compress-log": "compress-build-log",
    "build-extra-platforms": "extra-platforms",
    "build-fallback": "fallback",
    "build-use-substitutes": "substitute",
    "substitution-max-jobs": "max-substitution-jobs",
    "binary-caches": "substituters",
    "binary-cache-public-keys": "trusted-public-keys",
    "trusted-binary-caches": "trusted-substituters",
    "gc-keep-outputs": "keep-outputs",
    "gc-keep-derivations": "keep-derivations",
    "env-keep-derivations": "keep-env-derivations",
    "filetransfer-retry-attempts": "download-attempts",
}

# Settings that would make the sandbox weaker, and the values that don't.
HARMLESS = {
    "sandbox": frozenset({"true", "yes", "1"}),
    "sandbox-fallback": frozenset({"false", "no", "0"}),
    "filter-syscalls": frozenset({"true", "yes", "1"}),
    "allow-new-privileges": frozenset({"false", "no", "0"}),
}

# Settings that count only with an experimental feature, which has to be enabled.
EXPERIMENTAL = {"auto-allocate-uids": "auto-allocate-uids"}

# Known to Nix 2.34.8 and without meaning here: evaluation and other matters.
NIX_ONLY = frozenset(
    """
    abort-on-warn accept-flake-config access-tokens allow-dirty allow-dirty-locks
    allow-import-from-derivation allow-symlinked-store
    allow-unsafe-native-code-during-evaluation allowed-uris
    bash-prompt bash-prompt-prefix bash-prompt-suffix build-impersonate-linux-26
    commit-lock-file-summary commit-lockfile-summary debugger-on-trace debugger-on-warn
    download-buffer-size download-speed eval-cache eval-cores eval-system external-builders
    filetransfer-retry-delay filetransfer-retry-delay-rate-limited
    filetransfer-retry-jitter filetransfer-retry-max-delay flake-registry force-git
    gc-reserved-space-old http2 http3 ignore-try impersonate-linux-26
    keep-env-derivations lazy-locks lazy-trees lint-absolute-path-literals
    lint-short-path-literals lint-url-literals log-format max-call-depth narinfo-cache-meta-ttl
    narinfo-cache-positive-ttl nix-path
    nix-shell-always-looks-for-shell-nix nix-src-hash optimise-store plugin-files print-missing
    pure-eval reject-flake-config restrict-eval show-trace ssl-cert-old store sync-before-old
    tarball-ttl trace-function-calls trace-import-from-derivation trace-verbose
    upgrade-nix-store-path-url
    use-case-hack use-registries use-sqlite-wal-old use-xdg-base-directories
    warn-dirty warn-short-path-literals
    """.split()  # noqa: SIM905
)

# What may stand in a configuration without any need to look at more than its form: settings of one
# kind each, whose values have no meaning for what is valid already.
SIMPLE_BOOLEANS = frozenset(
    """
    always-allow-substitutes auto-optimise-store builders-use-substitutes compress-build-log
    enforce-determinism fallback fsync-metadata fsync-store-paths keep-build-log keep-derivations
    keep-failed keep-going keep-outputs require-drop-supplementary-groups require-sigs
    run-diff-hook substitute sync-before-registering
    """.split()  # noqa: SIM905
)
SIMPLE_NUMBERS = frozenset(
    """
    build-hook-kill-timeout build-poll-interval connect-timeout cores download-attempts
    extra-local-jobs http-connections log-lines max-build-log-size max-jobs max-silent-time
    max-substitution-jobs narinfo-cache-negative-ttl repeat stalled-download-timeout timeout
    """.split()  # noqa: SIM905
)
SIMPLE_TEXTS = frozenset(
    """
    allowed-users build-dir build-users-group builders extra-platforms extra-system-features
    extra-substituters extra-trusted-public-keys hashed-mirrors netrc-file sandbox-build-dir
    ssl-cert-file substituters system system-features trusted-public-keys trusted-substituters
    trusted-users user-agent-suffix
    """.split()  # noqa: SIM905
)

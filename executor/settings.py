"""The settings that the executor obeys, as one frozen value. Names and defaults are Nix's.

``nix.conf`` spells them with dashes. What is not here is either unknown, which is a warning, or
known to Nix and of no use to the executor (``NIX_ONLY``), which is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from executor.limits import LimitRule
from executor.network_rules import DEFAULT_RULES, NetworkRule

MAX_JOBS_AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPath:
    """A host path shown in the sandbox; ``?`` makes it optional, ``:ro`` read-only."""

    target: str
    source: str
    optional: bool = False
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times are seconds, sizes bytes; 0 means no limit. ``cores`` 0 means all there are."""

    max_jobs: int = 1
    cores: int = 0
    timeout: int = 0
    max_silent_time: int = 0
    max_build_log_size: int = 0
    build_memory_max: int = 0
    build_cpu_max: int = 0
    build_pids_max: int = 0
    build_disk_max: int = 0
    build_limits: tuple[LimitRule, ...] = ()
    build_limits_mode: str = "enforce"
    log_lines: int = 25
    keep_failed: bool = False
    keep_going: bool = False
    keep_build_log: bool = True
    compress_build_log: bool = True
    build_poll_interval: int = 5
    system: str = "x86_64-linux"
    extra_platforms: frozenset[str] = frozenset()
    system_features: frozenset[str] = frozenset()
    build_users_group: str = "nixbld"
    require_drop_supplementary_groups: bool = True
    auto_allocate_uids: bool = False
    use_cgroups: bool = False
    start_id: int = 0x34000000
    id_count: int = 65536 * 128
    build_dir: str = ""
    sandbox_build_dir: str = "/build"
    sandbox_dev_shm_size: str = "50%"
    sandbox_paths: tuple[SandboxPath, ...] = ()
    fod_network: str = "host"
    fod_network_rules: tuple[NetworkRule, ...] = DEFAULT_RULES
    allowed_impure_host_deps: frozenset[str] = frozenset()
    pre_build_hook: str = ""
    repeat: int = 0
    enforce_determinism: bool = True
    diff_hook: str = ""
    run_diff_hook: bool = False
    impure_env: Mapping[str, str] = field(default_factory=dict)
    experimental_features: frozenset[str] = frozenset()
    fsync_metadata: bool = True
    fsync_store_paths: bool = False
    sync_before_registering: bool = False
    use_sqlite_wal: bool = True
    gc_reserved_space: int = 8 << 20
    ignored_acls: frozenset[str] = frozenset(
        {"security.selinux", "system.nfs4_acl", "security.csm"}
    )
    secret_key_files: tuple[str, ...] = ()
    hashed_mirrors: tuple[str, ...] = ()
    netrc_file: str = ""
    ssl_cert_file: str = ""
    connect_timeout: int = 15
    stalled_download_timeout: int = 300
    download_attempts: int = 5
    user_agent_suffix: str = ""
    json_log_path: str = ""
    substitute: bool = True
    substituters: tuple[str, ...] = ("https://cache.nixos.org/",)
    trusted_public_keys: frozenset[str] = frozenset(
        {"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="}
    )
    require_sigs: bool = True
    fallback: bool = False
    always_allow_substitutes: bool = False
    max_substitution_jobs: int = 16
    http_connections: int = 25
    narinfo_cache_negative_ttl: int = 3600
    nar_buffer_size: int = 32 << 20
    post_build_hook: str = ""
    build_hook: tuple[str, ...] = ("nix", "__build-remote")
    build_hook_kill_timeout: int = 500
    builders: str = "@/etc/nix/machines"
    builders_use_substitutes: bool = False
    extra_local_jobs: int = 0
    keep_outputs: bool = False
    keep_derivations: bool = True
    min_free: int = 0
    max_free: int = (1 << 63) - 1
    min_free_check_interval: int = 5
    auto_optimise_store: bool = False
    warn_large_path_threshold: int = 0
    trusted_users: tuple[str, ...] = ("root",)
    allowed_users: tuple[str, ...] = ("*",)
    trusted_substituters: tuple[str, ...] = ()

    @property
    def available_features(self) -> frozenset[str]:
        """What derivations may require: the setting, and what an experimental feature brings."""
        return self.system_features | (self.experimental_features & {"ca-derivations"})


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

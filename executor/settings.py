"""The settings that the executor obeys, as one frozen value. Names and defaults are Nix's.

``nix.conf`` spells them with dashes. What is not here is either unknown, which is a warning, or
known to Nix and of no use to the executor (``setting_names.NIX_ONLY``), which is none.
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
    fod_network: str = "isolated"
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
    silent_client_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def available_features(self) -> frozenset[str]:
        """What derivations may require: the setting, and what an experimental feature brings."""
        brought = self.experimental_features & {"ca-derivations", "recursive-nix"}
        return self.system_features | brought

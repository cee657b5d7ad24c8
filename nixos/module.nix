# services.executor: builds Nix derivations, beside nix-daemon or in its place.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.executor;

  # A value as nix.conf writes it.
  render =
    value:
    if lib.isBool value then
      lib.boolToString value
    else if lib.isList value then
      lib.concatMapStringsSep " " render value
    else
      toString value;

  confFile = pkgs.writeTextDir "nix.conf" (
    lib.concatStrings (lib.mapAttrsToList (name: value: "${name} = ${render value}\n") cfg.settings)
  );

  socketPath =
    if cfg.replaceNixDaemon then "/nix/var/nix/daemon-socket/socket" else "/run/executor/socket";
in
{
  options.services.executor = {
    enable = lib.mkEnableOption "the sandboxed build executor";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package to run.";
    };

    settings = lib.mkOption {
      type =
        with lib.types;
        submodule {
          freeformType =
            let
              atom = oneOf [
                bool
                int
                float
                str
                path
              ];
            in
            attrsOf (either atom (listOf atom));
        };
      default = { };
      example = {
        fod-network-rules = "deny private; allow any tcp 443";
        trusted-users = [ "@wheel" ];
      };
      description = ''
        Settings by the names that nix.conf has for them. What has an option of its own below is set
        by that.
      '';
    };

    maxJobs = lib.mkOption {
      type = with lib.types; either ints.unsigned (enum [ "auto" ]);
      default = "auto";
      description = "How many builds may run at once.";
    };

    cores = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 0;
      description = "How many processors a build is told to use; 0 means all there are.";
    };

    memoryMax = lib.mkOption {
      type = with lib.types; nullOr str;
      default = null;
      example = "80%";
      description = "What the executor and all of its builds may use together (systemd's MemoryMax).";
    };

    buildMemoryMax = lib.mkOption {
      type = with lib.types; nullOr (either ints.unsigned str);
      default = null;
      example = "8G";
      description = "What one build may use (build-memory-max).";
    };

    buildCpuMax = lib.mkOption {
      type = with lib.types; nullOr ints.unsigned;
      default = null;
      description = "Seconds of processor time that one build may use (build-cpu-max).";
    };

    buildPidsMax = lib.mkOption {
      type = with lib.types; nullOr ints.unsigned;
      default = null;
      description = "How many processes one build may have (build-pids-max).";
    };

    buildDiskMax = lib.mkOption {
      type = with lib.types; nullOr (either ints.unsigned str);
      default = null;
      example = "50G";
      description = "What one build may write (build-disk-max).";
    };

    fodNetwork = lib.mkOption {
      type = lib.types.enum [
        "isolated"
        "host"
        "none"
      ];
      default = "isolated";
      description = "The network of fixed-output builds (fod-network).";
    };

    fodNetworkRules = lib.mkOption {
      type = with lib.types; nullOr (listOf str);
      default = null;
      example = [
        "deny private"
        "allow any tcp 443"
      ];
      description = "What such builds may reach; the first rule that matches decides.";
    };

    replaceNixDaemon = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether to listen where Nix's clients look for nix-daemon, which is then not started.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    services.executor.settings = lib.mkMerge [
      (lib.mapAttrs (_name: lib.mkDefault) {
        build-users-group = "nixbld";
        sandbox-paths = [ "/bin/sh=${pkgs.busybox-sandbox-shell or pkgs.pkgsStatic.busybox}/bin/busybox" ];
      })
      {
        max-jobs = cfg.maxJobs;
        cores = cfg.cores;
        fod-network = cfg.fodNetwork;
      }
      (lib.mkIf (cfg.buildMemoryMax != null) { build-memory-max = cfg.buildMemoryMax; })
      (lib.mkIf (cfg.buildCpuMax != null) { build-cpu-max = cfg.buildCpuMax; })
      (lib.mkIf (cfg.buildPidsMax != null) { build-pids-max = cfg.buildPidsMax; })
      (lib.mkIf (cfg.buildDiskMax != null) { build-disk-max = cfg.buildDiskMax; })
      (lib.mkIf (cfg.fodNetworkRules != null) {
        fod-network-rules = lib.concatStringsSep "; " cfg.fodNetworkRules;
      })
    ];

    systemd.sockets.executor = {
      description = "Socket of the sandboxed build executor";
      wantedBy = [ "sockets.target" ];
      unitConfig.RequiresMountsFor = [
        "/nix/store"
        "/nix/var/nix"
      ];
      socketConfig = {
        ListenStream = socketPath;
        SocketMode = "0666";
        Backlog = 1024;
      };
    };

    # The same as systemd/executor.service.in, where the reasons stand.
    systemd.services.executor = {
      description = "Sandboxed build executor";
      requires = [ "executor.socket" ];
      after = [ "executor.socket" ];
      unitConfig.RequiresMountsFor = [
        "/nix/store"
        "/nix/var/nix"
      ];
      environment.NIX_CONF_DIR = confFile;
      # A restart lets running builds finish; the socket stays open meanwhile.
      stopIfChanged = false;
      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${lib.getExe cfg.package} daemon";
        Delegate = true;
        DelegateSubgroup = "executor-supervisor";
        KillMode = "mixed";
        TimeoutStopSec = 120;
        Restart = "on-failure";
        RestartSec = 1;
        OOMPolicy = "continue";
        LimitNOFILE = 1048576;
        LimitCORE = 0;
        TasksMax = "infinity";
        UMask = "0022";
        CapabilityBoundingSet = "~CAP_SYS_MODULE CAP_SYS_BOOT CAP_SYS_TIME CAP_SYS_RAWIO CAP_SYS_PACCT CAP_SYSLOG CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_BPF CAP_PERFMON";
        KeyringMode = "private";
        StandardInput = "null";
      }
      // lib.optionalAttrs (cfg.memoryMax != null) { MemoryMax = cfg.memoryMax; };
    };

    # The socket and the service of nix-daemon; its group and its users are needed still.
    systemd.sockets.nix-daemon.enable = lib.mkIf cfg.replaceNixDaemon (lib.mkForce false);
    systemd.services.nix-daemon.enable = lib.mkIf cfg.replaceNixDaemon (lib.mkForce false);
  };
}

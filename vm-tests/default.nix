# The tests of vm-tests/scripts on NixOS: nix-build vm-tests -A boot (with nixpkgs in NIX_PATH).
#
# tests.toml says which machines a script needs; the QEMU driver of vm-tests/driver reads the same.
{
  pkgs ? import <nixpkgs> { },
}:

let
  inherit (pkgs) lib;
  # The others need a root file system that is Debian's: one mounts file systems over /nix/store, which
  # NixOS runs from, and one replaces files of the package, which NixOS never does.
  tests = removeAttrs (builtins.fromTOML (builtins.readFile ./tests.toml)) [
    "disk-full"
    "update"
  ];

  kernels = {
    oldest = pkgs.linuxPackages_6_1;
    newest = pkgs.linuxPackages_latest;
  };

  machine =
    table:
    { ... }:
    {
      imports = [
        ../nixos/module.nix
        ./nixos-guest.nix
      ];
      virtualisation.memorySize = table.memory or 1024;
      virtualisation.cores = table.processors or 2;
      # What was built has to survive a crash.
      virtualisation.writableStoreUseTmpfs = false;
      virtualisation.emptyDiskImages = table.disks or [ ];
      boot.kernelPackages = kernels.${table.kernel or "oldest"};
      boot.kernelParams = lib.optional (table ? options) table.options;
    };
in
lib.mapAttrs (
  name: table:
  pkgs.testers.runNixOSTest {
    name = "executor-${name}";
    nodes = lib.mapAttrs (_: machine) table.machines;
    testScript = builtins.readFile (./scripts + "/${name}.py");
    globalTimeout = 60 * (table.minutes or 15);
    # The scripts are typed and linted with the driver that stands beside them.
    skipTypeCheck = true;
    skipLint = true;
  }
) tests

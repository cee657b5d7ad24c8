# What nixos/module.nix makes of some options, as JSON: the text of nix.conf, the units, the names and
# defaults of the options. `lib` is nixpkgs' own, or lib.nix beside this file.
{
  lib,
  # Those below services.executor, as JSON.
  options,
}:

let
  library = import lib;
  package = name: {
    outPath = "/pkgs/${name}";
    type = "derivation";
    inherit name;
    meta.mainProgram = name;
  };
  pkgs = {
    callPackage = _: _: package "executor";
    busybox-sandbox-shell = package "busybox";
    writeTextDir = name: text: { inherit name text; };
  };
  free = library.mkOption {
    type = library.types.anything;
    default = { };
  };
  # A package can't be written as JSON.
  given = builtins.fromJSON options;
  evaluated = library.evalModules {
    specialArgs = { inherit pkgs; };
    modules = [
      ../../nixos/module.nix
      {
        options.environment.systemPackages = free // {
          default = [ ];
        };
        options.systemd.sockets = free;
        options.systemd.services = free;
      }
      {
        config.services.executor =
          given // (if given ? package then { package = package given.package; } else { });
      }
    ];
  };
  inherit (evaluated.config) services systemd environment;
in
{
  options = builtins.attrNames evaluated.options.services.executor;
  packages = map (one: one.outPath) environment.systemPackages;
  conf = systemd.services.executor.environment.NIX_CONF_DIR.text or null;
  inherit (systemd) sockets;
  services = builtins.mapAttrs (_: service: builtins.removeAttrs service [ "environment" ]) systemd.services;
}

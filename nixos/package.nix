# The executor as a package: nixpkgs.callPackage ./nixos/package.nix { }
{
  lib,
  python3Packages,
  passt,
  nftables,
}:

python3Packages.buildPythonApplication {
  pname = "executor";
  version = (lib.importTOML ../pyproject.toml).project.version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../pyproject.toml
      ../setup.py
      ../scripts/executor
      ../README.md
      ../executor
      ../sandbox
    ];
  };

  build-system = [ python3Packages.setuptools ];
  dependencies = with python3Packages; [
    pyroute2
    python-prctl
    cryptography
    zstandard
    brotli
    urllib3
  ];

  # What the network of fixed-output builds is made with.
  makeWrapperArgs = [ "--prefix PATH : ${lib.makeBinPath [ passt nftables ]}" ];

  # The tests build as root in namespaces of their own; vm-tests runs them where that is possible.
  doCheck = false;
  pythonImportsCheck = [
    "executor"
    "sandbox"
  ];

  meta = {
    description = "Sandboxed Linux build executor for Nix derivations";
    mainProgram = "executor";
    platforms = lib.platforms.linux;
  };
}

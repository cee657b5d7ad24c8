# Builtin builders (D27-D30).
lib: with lib;
let
  text = builtins.toFile "hello.txt" "hello\n";
  hash = builtins.hashString "sha256" "hello\n";
  fetch = name: attributes: builtin name "fetchurl" ({ url = "file://${text}"; outputHash = hash; outputHashAlgo = "sha256"; outputHashMode = "flat"; } // attributes);
  package = name: script: sh name "$b mkdir -p $out/bin; ${script}" { };
  one = package "one" "echo one > $out/bin/one; $b mkdir $out/share; echo s > $out/share/s";
  two = package "two" "echo two > $out/bin/two";
  rival = package "rival" "echo rival > $out/bin/one";
  proud = package "proud" "echo proud > $out/bin/proud; $b mkdir $out/nix-support; echo ${two} > $out/nix-support/propagated-user-env-packages";
  env = name: derivations: builtin name "buildenv" { inherit derivations; manifest = leaf; };
  tarball = script: sh "channel.tar.gz" "$b mkdir w; cd w; ${script}; $b tar -c -f - * | $b gzip -n > $out" { };
in
{
  "D27-file" = fetch "file" { };
  "D27-executable" = fetch "executable" { executable = true; outputHashMode = "recursive"; outputHash = "sha256-ZUNgOdP5PKGajb8cYLFXOe1Y9T8UuNNyrMGzUVMwEPo="; };
  "D27-unpack" = builtin "unpacked" "fetchurl" {
    url = "file://${builtins.path { path = ./archive.nar.xz; name = "archive.nar.xz"; }}"; unpack = true;
    outputHashAlgo = "sha256"; outputHashMode = "recursive"; outputHash = "sha256-pqGS8+0XbhJTJzM/hLA35aV/RdCfKhK1VNKSGBsYTQA=";
  };
  "D27-missing-file" = fetch "missing" { url = "file:///no/such/file"; };
  "D27-wrong-hash" = fetch "wrong-hash" { outputHash = builtins.hashString "sha256" "other"; };
  "D27-no-url" = builtin "no-url" "fetchurl" { outputHash = hash; outputHashAlgo = "sha256"; };
  "D27-unknown-protocol" = fetch "protocol" { url = "gopher://localhost/x"; };
  "D28-channel" = builtin "channel" "unpack-channel" { channelName = "nixos"; src = tarball "$b mkdir top; echo text > top/file; $b ln -s file top/link"; };
  "D28-two-entries" = builtin "two-entries" "unpack-channel" { channelName = "nixos"; src = tarball "echo a > a; echo b > b"; };
  "D28-not-an-archive" = builtin "no-archive" "unpack-channel" { channelName = "nixos"; src = leaf; };
  "D29-forest" = env "forest" [ "true" 5 1 one "true" 5 1 two ];
  "D29-priority-wins" = env "priority" [ "true" 5 1 one "true" 4 1 rival ];
  "D29-not-active" = env "inactive" [ "false" 5 1 rival "true" 5 1 one ];
  "D29-propagated" = env "propagated" [ "true" 5 1 proud ];
  "D29-collision" = env "collision" [ "true" 5 1 one "true" 5 1 rival ];
  "D30-builtin-system" = fetch "anywhere" { system = "builtin"; };
  "D30-unknown-builtin" = fetch "unknown" { builder = "builtin:brew"; };
  "D30-program-on-builtin-system" = sh "program" "echo > $out" { system = "builtin"; };
}

# What the cases are written with. /bin/sh and /bin/busybox are one static busybox, from the
# settings; inside scripts `b` is short for it.
rec {
  system = "x86_64-linux";
  shell = script: [ "-c" "b=/bin/busybox; ${script}" ];

  # A derivation whose builder is a shell script.
  sh = name: script: attributes:
    derivation ({ inherit name system; builder = "/bin/sh"; args = shell script; } // attributes);

  # The same with structured attributes; `out` is found in .attrs.json without a JSON parser.
  structured = name: script: attributes:
    sh name "read -r json < .attrs.json; out=\${json##*\\\"out\\\":\\\"}; out=\${out%%\\\"*}; ${script}"
      ({ __structuredAttrs = true; outputs = [ "out" ]; } // attributes);

  # A fixed output of the given algorithm, mode and hash.
  fixed = name: script: { algo ? "sha256", mode ? "flat", hash, ... }@attributes:
    sh name script ({ outputHashAlgo = algo; outputHashMode = mode; outputHash = hash; }
      // removeAttrs attributes [ "algo" "mode" "hash" ]);

  builtin = name: which: attributes:
    derivation ({ inherit name; system = "builtin"; builder = "builtin:${which}"; } // attributes);

  with_ = options: drv: { inherit options drv; };

  leaf = builtins.toFile "leaf" "no references\n";
  branch = builtins.toFile "branch" "refers to ${leaf}\n";
  dependency = sh "dependency" "$b mkdir $out; echo text > $out/file; echo $out" { };
}

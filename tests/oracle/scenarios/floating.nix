# One floating output: what its path follows from, and rewriting (O7, O6, D3).
lib: with lib;
let
  one = name: script: attributes: ca [ (build (floating name script attributes)) ];
  by = mode: algo: script: one "${mode}-${algo}" script { outputHashMode = mode; outputHashAlgo = algo; };
  text = script: attributes: dynamic [
    (build (floating "text" script ({ outputHashMode = "text"; } // attributes)))
  ];
in
{
  "O7-flat-sha1" = by "flat" "sha1" "echo flat > $out";
  "O7-flat-sha256" = by "flat" "sha256" "echo flat > $out";
  "O7-flat-sha512" = by "flat" "sha512" "echo flat > $out";
  "O7-flat-executable" = by "flat" "sha256" "echo flat > $out; $b chmod +x $out";
  "O7-flat-directory" = by "flat" "sha256" "$b mkdir $out";
  "O7-flat-link" = by "flat" "sha256" "$b ln -s nowhere $out";
  "O7-flat-refers-to-itself" = by "flat" "sha256" "echo $out > $out";
  "O7-flat-refers-to-an-input" = by "flat" "sha256" "echo ${leaf} > $out";
  "O7-flat-md5" = by "flat" "md5" "echo flat > $out";
  "O7-nar-md5" = by "recursive" "md5" "echo nar > $out";
  "O7-nar-sha1" = by "recursive" "sha1" "$b mkdir $out; echo nar > $out/file";
  "O7-nar-sha256" = by "recursive" "sha256" "$b mkdir $out; echo nar > $out/file";
  "O7-nar-sha512" = by "recursive" "sha512" "$b mkdir $out; echo nar > $out/file";
  "O7-nar-sha1-refers-to-itself" = by "recursive" "sha1" "echo $out > $out";
  "O7-nar-sha512-refers-to-an-input" = by "recursive" "sha512" "echo ${leaf} > $out";
  "O7-nar-refers-to-an-input" = by "recursive" "sha256" "echo ${leaf} > $out";
  "O7-text" = text "echo text > $out" { };
  "O7-text-refers-to-an-input" = text "echo ${leaf} ${branch} > $out" { };
  "O7-text-refers-to-itself" = text "echo $out > $out" { };
  "O7-text-executable" = text "echo text > $out; $b chmod +x $out" { };
  "O7-text-directory" = text "$b mkdir $out" { };

  "O6-file-names-itself" = one "self" "echo in the text $out twice $out > $out" { };
  "O6-executable-names-itself" = one "self-run" "echo $out/run > $out; $b chmod +x $out" { };
  "O6-directory-names-itself" = one "self-tree" "$b mkdir -p $out/a/b; echo $out > $out/a/b/c; echo no > $out/z" { };
  "O6-link-to-itself" = one "self-link" "$b mkdir $out; $b ln -s $out/there $out/here; $b ln -s $out $out/top" { };
  "O6-output-is-a-link-to-itself" = one "only-link" "$b ln -s $out/nothing $out" { };
  "O6-output-is-a-link" = one "link" "$b ln -s ${leaf} $out" { };
  "O6-only-the-hash-part" = one "hash-part" ''part=''${out##*/}; part=''${part%%-*}; echo "x''${part}y" > $out'' { };
  "O6-binary-around" = one "binary" ''printf '\0\377%s\0%s\200' $out ''${out##*/} > $out'' { };
  "O6-without-itself" = one "no-self" "$b mkdir $out; echo $out > /dev/null; echo 1 > $out/1" { };
  "O6-self-and-input" = one "self-and-input" "$b mkdir $out; echo $out ${branch} > $out/f; $b ln -s ${leaf} $out/l" { };
  "O6-file-name-has-the-hash-part" = one "file-name" ''$b mkdir $out; echo x > $out/''${out##*/}'' { };
  "O6-hard-links" = one "hard" "$b mkdir $out; echo $out > $out/a; $b ln $out/a $out/b" { };
  "O6-placeholder-in-arguments" = ca [ (build (floating "argument" ''echo "$1" "$here" > $out'' {
    here = "${placeholder "out"}/etc";
    args = shell ''echo "$1" "$here" > $out'' ++ [ "zero" (placeholder "out") ];
  })) ];
  "O6-modes-and-times" = one "modes" "$b mkdir $out; echo $out > $out/f; $b chmod 4755 $out/f; echo > $out/g; $b chmod 0 $out/g; $b touch -d 1999-01-01 $out/g" { };
  "O6-empty-file" = one "empty-file" ": > $out" { };
  "O6-empty-directory" = one "empty-directory" "$b mkdir $out" { };
  "O6-large" = one "large" "$b seq 1 40000 > $out; echo $out >> $out; $b seq 1 40000 >> $out" { };
  "O6-structured" = ca [ (build (structured "structured" "echo $out > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  })) ];

  "D3-floating-fails" = one "fails" "echo words; exit 3" { };
  "D3-floating-makes-nothing" = one "nothing" ":" { };
  "D3-floating-without-the-feature" = ca [
    (told { experimental-features = "nix-command"; } (build (floating "no-feature" "echo > $out" { })))
  ];
  "D18-floating-may-name-itself" = one "may" "echo $out > $out" { allowedReferences = [ "out" ]; };
  "D19-floating-references-discarded" = later (ca [ (build (structured "discarded" "echo $out ${leaf} > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
    unsafeDiscardReferences.out = true;
  })) ]);
}

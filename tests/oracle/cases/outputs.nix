# Outputs: existence, form, references (O1-O11).
lib: with lib;
{
  "O1-missing" = sh "missing" "true" { };
  "O1-one-missing" = sh "one-missing" "echo > $out" { outputs = [ "out" "dev" ]; };
  "O2-world-writable" = sh "writable" "echo > $out; $b chmod 666 $out" { };
  "O2-group-writable" = sh "group" "$b mkdir $out; $b chmod 775 $out" { };
  "O2-writable-inside" = sh "inside" "$b mkdir $out; echo > $out/f; $b chmod 666 $out/f; $b mkdir $out/d; $b chmod 777 $out/d" { };
  "O3-modes" = sh "modes" ''
    $b mkdir $out; for m in 000 200 400 600 644 700 755 100 011 555; do : > $out/$m; $b chmod $m $out/$m; done
    $b mkdir $out/dir $out/dir/in; $b chmod 500 $out/dir/in'' { };
  "O3-unreadable-directory" = sh "unreadable" "$b mkdir -p $out/d; : > $out/d/f; $b chmod 000 $out/d" { };
  "O3-links" = sh "links" "$b mkdir $out; $b ln -s /nowhere $out/dangling; $b ln -s . $out/self; $b ln -s $out/x $out/absolute" { };
  "O3-hard-links" = sh "hard" "$b mkdir $out; echo text > $out/a; $b ln $out/a $out/b" { };
  "O3-hard-link-from-outside" = sh "outside" "echo text > a; $b ln a $out 2>/dev/null || $b cp a $out" { };
  "O3-times" = sh "times" "$b mkdir $out; : > $out/f; $b touch -d '2001-02-03 04:05:06' $out/f; $b ln -s x $out/l" { };
  "O3-empty-directory" = sh "empty" "$b mkdir $out" { };
  "O3-output-is-a-link" = sh "a-link" "$b ln -s $dependency $out" { inherit dependency; };
  "O3-odd-names" = sh "names" "$b mkdir $out; cd $out; : > 'with space'; : > \"$(printf 'new\\nline')\"; : > \"$(printf 'byte\\377')\"; : > .hidden; : > -dash; : > '~nix~case~hack~1'; : > A; : > a" { };
  "O3-fifo" = sh "fifo" "$b mkdir $out; $b mkfifo $out/pipe" { };
  "O3-output-is-a-fifo" = sh "a-fifo" "$b mkfifo $out" { };
  "O3-device" = sh "device" "$b mkdir $out; $b mknod $out/null c 1 3" { };
  "O4-references" = sh "references" "$b mkdir $out; echo $branch > $out/text; $b ln -s $dependency/file $out/link; echo $out > $out/self" { inherit branch dependency leaf; };
  "O4-only-what-is-there" = sh "unused" "echo nothing > $out" { inherit branch dependency; };
  "O4-hash-part-alone" = sh "part" "h=\${dependency#/nix/store/}; echo \${h%%-*} > $out" { inherit dependency; };
  "O4-across-blocks" = sh "blocks" "$b head -c 65500 /dev/zero > $out; echo $dependency >> $out; $b head -c 131020 /dev/zero >> $out; echo $branch >> $out" { inherit dependency branch; };
  "O4-broken-hash" = sh "broken" "h=\${dependency#/nix/store/}; printf '%s ' \${h%%?-*} > $out; echo $dependency | $b sed 's/./& /g' >> $out" { inherit dependency; };
  "O4-in-a-file-name" = sh "file-name" "$b mkdir $out; : > $out/\${dependency#/nix/store/}" { inherit dependency; };
  "O4-compressed-hides" = sh "compressed" "echo $dependency | $b gzip -n > $out" { inherit dependency; };
  "O5-outputs-refer-to-each-other" = sh "order" "echo $dev > $out; echo $lib > $dev; echo end > $lib" { outputs = [ "out" "dev" "lib" ]; };
  "O5-cycle" = sh "cycle" "echo $b > $a; echo $a > $b" { outputs = [ "a" "b" ]; args = [ "-c" "echo $b > $a; echo $a > $b" ]; };
  "O8-hash-mismatch" = fixed "mismatch" "echo other > $out" { hash = builtins.hashString "sha256" "hello\n"; };
  "O8-mismatch-recursive" = fixed "mismatch" "$b mkdir $out" { mode = "recursive"; hash = builtins.hashString "sha256" "hello\n"; };
  "O8-mismatch-sha1" = fixed "mismatch" "echo other > $out" { algo = "sha1"; hash = builtins.hashString "sha1" "hello\n"; };
  "O9-fixed-refers-to-an-input" = fixed "refers" "echo $leaf > $out" { inherit leaf; hash = builtins.hashString "sha256" "${leaf}\n"; };
  "O10-every-check-passes" = structured "passes" "echo ${leaf} > $out" {
    inherit leaf; outputChecks.out = { maxSize = 4000; maxClosureSize = 9000; allowedReferences = [ leaf ]; allowedRequisites = [ leaf "out" ]; disallowedReferences = [ branch ]; disallowedRequisites = [ branch ]; };
  };
  "O11-large" = sh "large" "$b head -c 5000000 /dev/zero > $out" { };
  "O11-many" = sh "many" "$b mkdir $out; for i in $($b seq 300); do echo $i > $out/$i; done" { };
  "O11-deep" = sh "deep" "$b mkdir $out; cd $out; for i in $($b seq 40); do $b mkdir d; cd d; done; echo end > end" { };
  "O1-all-made" = sh "all" "echo > $out; echo > $dev" { outputs = [ "out" "dev" ]; };
  "O4-a-link-counts" = sh "link-counts" "$b ln -s $dependency $out" { inherit dependency; disallowedReferences = [ dependency ]; };
  "O8-as-promised" = fixed "promised" "echo hello > $out" { hash = builtins.hashString "sha256" "hello\n"; };
  "O9-without-references" = fixed "no-references" "$b basename $leaf | $b wc -c > $out" { inherit leaf; hash = builtins.hashString "sha256" "38\n"; };
  "O9-recursive-refers" = fixed "refers" "echo $leaf > $out" { inherit leaf; mode = "recursive"; hash = "sha256-aRJMNVjAamim+6/1gt9GbsQsUqiRxUN3znYYOdiQFYg="; };
  "O10-one-check-fails" = structured "one-fails" "echo ${leaf} > $out" { inherit leaf; outputChecks.out = { maxSize = 4000; disallowedReferences = [ leaf ]; }; };
  "O11-failed-outputs-are-unknown" = sh "failed" "$b mkdir $out; echo > $out/f; exit 1" { };
}

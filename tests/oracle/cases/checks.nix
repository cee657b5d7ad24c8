# Output checks (D17-D19, O9, O10).
lib: with lib;
let
  both = "echo ${branch} $out > $out";
  check = name: checks: structured name both { inherit branch; outputChecks.out = checks; };
  legacy = name: attributes: sh name "echo $branch $out > $out" ({ inherit branch; } // attributes);
in
{
  "D17-max-size-kept" = check "size" { maxSize = 400; };
  "D17-max-size" = check "too-large" { maxSize = 10; };
  "D17-max-closure-size-kept" = check "closure-size" { maxClosureSize = 4000; };
  "D17-max-closure-size" = check "closure-too-large" { maxClosureSize = 300; };
  "D17-allowed-references-kept" = check "refs" { allowedReferences = [ branch "out" ]; };
  "D17-allowed-references" = check "refs-not" { allowedReferences = [ branch ]; };
  "D17-disallowed-references-kept" = check "norefs" { disallowedReferences = [ leaf ]; };
  "D17-disallowed-references" = check "norefs-not" { disallowedReferences = [ branch ]; };
  "D17-allowed-requisites-kept" = check "reqs" { allowedRequisites = [ branch leaf "out" ]; };
  "D17-allowed-requisites" = check "reqs-not" { allowedRequisites = [ branch ]; };
  "D17-disallowed-requisites-kept" = check "noreqs" { disallowedRequisites = [ dependency ]; };
  "D17-disallowed-requisites" = check "noreqs-not" { disallowedRequisites = [ leaf ]; };
  "D17-checks-of-another-output" = structured "other-output" both { inherit branch; outputChecks.dev.allowedReferences = [ ]; };
  "D17-checks-are-no-object" = structured "no-object" "echo > $out" { outputChecks.out = 1; };
  "D17-size-is-a-string" = check "size-string" { maxSize = "1"; };
  "D18-allowed-references-kept" = legacy "lrefs" { allowedReferences = [ branch "out" ]; };
  "D18-allowed-references" = legacy "lrefs-not" { allowedReferences = [ "out" ]; };
  "D18-none-allowed" = legacy "lrefs-none" { allowedReferences = [ ]; };
  "D18-disallowed-references-kept" = legacy "lnorefs" { disallowedReferences = [ leaf ]; };
  "D18-disallowed-references" = legacy "lnorefs-not" { disallowedReferences = [ "out" ]; };
  "D18-allowed-requisites-kept" = legacy "lreqs" { allowedRequisites = [ branch leaf ]; };
  "D18-allowed-requisites" = legacy "lreqs-not" { allowedRequisites = [ branch ]; };
  "D18-disallowed-requisites-kept" = legacy "lnoreqs" { disallowedRequisites = [ dependency ]; };
  "D18-disallowed-requisites" = legacy "lnoreqs-not" { disallowedRequisites = [ leaf ]; };
  "D18-unknown-output-name" = sh "unknown" "echo > $out; echo > $dev" { outputs = [ "out" "dev" ]; allowedReferences = [ "nope" ]; };
  "D18-every-output" = sh "every" "echo > $out; echo $branch > $dev" { inherit branch; outputs = [ "out" "dev" ]; allowedReferences = [ ]; };
  "D19-references-discarded" = structured "discarded" both {
    inherit branch; unsafeDiscardReferences.out = true; outputChecks.out.allowedReferences = [ ];
  };
  "D19-not-discarded" = structured "not-discarded" both { inherit branch; unsafeDiscardReferences.out = false; outputChecks.out.allowedReferences = [ ]; };
  "D19-not-a-boolean" = structured "not-boolean" both { inherit branch; unsafeDiscardReferences.out = 1; };
}

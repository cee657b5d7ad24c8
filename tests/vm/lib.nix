# As much of nixpkgs' lib as nixos/module.nix uses, for machines without nixpkgs. What is here does what
# it does there, as far as the tests see; they run on nixpkgs itself where NIX_PATH has it.
let
  inherit (builtins)
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    ;

  tagged = tag: value: isAttrs value && value._type or "" == tag;
  unique = foldl' (seen: one: if elem one seen then seen else seen ++ [ one ]) [ ];
  quote = path: "`${concatStringsSep "." path}'";
  anOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  ordinary = 100;

  # The definitions in a value: mkIf and mkMerge opened, each with its priority.
  opened =
    value:
    if tagged "if" value then
      if value.condition then opened value.content else [ ]
    else if tagged "merge" value then
      concatMap opened value.contents
    else if tagged "override" value then
      map (one: one // { inherit (value) priority; }) (opened value.content)
    else
      [
        {
          priority = ordinary;
          inherit value;
        }
      ];
  strongest =
    definitions:
    let
      best = foldl' (
        least: one: if one.priority < least then one.priority else least
      ) 10000 definitions;
    in
    filter (one: one.priority == best) definitions;

  # The sets in a value, with what stands around them around each of their attributes: a condition
  # may ask for other options, and must not be asked before it is known which there are.
  pushedDown =
    value:
    let
      around = map (mapAttrs (_: content: value // { inherit content; })) (pushedDown value.content);
    in
    if tagged "merge" value then
      concatMap pushedDown value.contents
    else if tagged "if" value || tagged "override" value then
      around
    else
      [ value ];

  # The attributes of sets that are defined together, each with the definitions of its own.
  perName =
    definitions:
    let
      within = one: inner: if inner.priority == ordinary then inner // { inherit (one) priority; } else inner;
      of =
        name:
        concatMap (one: map (within one) (opened one.value.${name})) (
          filter (one: one.value ? ${name}) definitions
        );
      names = unique (concatMap (one: attrNames one.value) definitions);
    in
    filter (one: one.definitions != [ ]) (
      map (name: {
        inherit name;
        definitions = strongest (of name);
      }) names
    );
  mergedNames =
    merge: path: definitions:
    listToAttrs (
      map (one: {
        inherit (one) name;
        value = merge (path ++ [ one.name ]) one.definitions;
      }) (perName definitions)
    );

  type = description: check: {
    inherit description check;
    merge =
      path: definitions:
      let
        value = (head definitions).value;
      in
      if length (unique (map (one: one.value) definitions)) > 1 then
        throw "The option ${quote path} has conflicting definition values"
      else if check value then
        value
      else
        throw "A definition for option ${quote path} is not of type `${description}'";
  };

  # Anything: sets are merged, lists joined, all else must agree.
  anything = {
    description = "anything";
    check = _: true;
    merge =
      path: definitions:
      let
        first = (head definitions).value;
      in
      if isAttrs first && !(first ? outPath) then
        mergedNames anything.merge path definitions
      else if isList first then
        concatLists (map (one: one.value) definitions)
      else
        (type "anything" (_: true)).merge path definitions;
  };

  types = {
    inherit anything;
    bool = type "boolean" isBool;
    int = type "signed integer" isInt;
    float = type "floating point number" isFloat;
    str = type "string" isString;
    path = type "absolute path" (v: isPath v || isString v && builtins.substring 0 1 v == "/");
    package = type "package" (v: isAttrs v && v ? outPath);
    ints.unsigned = type "unsigned integer" (v: isInt v && v >= 0);
    enum = values: type "one of ${builtins.toJSON values}" (v: elem v values);
    nullOr = one: type "null or ${one.description}" (v: v == null || one.check v);
    either = one: other: type "${one.description} or ${other.description}" (v: one.check v || other.check v);
    oneOf = all: foldl' types.either (head all) (builtins.tail all);
    listOf = one: type "list of ${one.description}" (v: isList v && builtins.all one.check v);
    attrsOf = one: {
      description = "attribute set of ${one.description}";
      check = isAttrs;
      merge = mergedNames one.merge;
    };
    submodule = module: module.freeformType;
  };

  mapAttrsToList = function: set: map (name: function name set.${name}) (attrNames set);

  # What the modules say, as lib.evalModules answers: { config, options }.
  evalModules =
    { modules, specialArgs }:
    let
      loaded = map (
        module:
        let
          content = if isFunction module then module arguments else if isPath module then import module arguments else module;
        in
        if content ? config || content ? options then content else { config = content; }
      ) modules;
      arguments = specialArgs // {
        inherit config lib options;
      };
      options = foldl' merged { } (map (module: module.options or { }) loaded);
      merged =
        left: right:
        left
        // mapAttrs (
          name: value:
          if left ? ${name} && !(tagged "option" value) then merged left.${name} value else value
        ) right;
      evaluated =
        path: options: values:
        if tagged "option" options then
          let
            default = if options ? default then [ (anOverride 1500 options.default) ] else [ ];
            definitions = strongest (concatMap opened (values ++ default));
          in
          if definitions == [ ] then
            throw "The option ${quote path} is used but not defined"
          else
            options.type.merge path definitions
        else
          let
            sets = concatMap pushedDown values;
            unknown = filter (name: !(options ? ${name})) (concatMap attrNames sets);
            of = name: map (set: set.${name}) (filter (set: set ? ${name}) sets);
          in
          if unknown != [ ] then
            throw "The option ${quote (path ++ [ (head unknown) ])} does not exist"
          else
            mapAttrs (name: inner: evaluated (path ++ [ name ]) inner (of name)) options;
      config = evaluated [ ] options (map (module: module.config or { }) loaded);
    in
    {
      inherit config options;
    };

  lib = {
    inherit
      concatStringsSep
      evalModules
      isBool
      isList
      mapAttrs
      mapAttrsToList
      types
      ;
    boolToString = value: if value then "true" else "false";
    concatMapStringsSep = separator: function: list: concatStringsSep separator (map function list);
    concatStrings = concatStringsSep "";
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    literalExpression = text: { inherit text; };
    mkEnableOption =
      name:
      lib.mkOption {
        default = false;
        type = types.bool;
        description = "Whether to enable ${name}.";
      };
    mkOption = fields: fields // { _type = "option"; };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkDefault = anOverride 1000;
    mkForce = anOverride 50;
    optionalAttrs = condition: set: if condition then set else { };
  };
in
lib

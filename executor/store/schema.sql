-- The database of a Nix store, version 10. Names, types and indexes are those of Nix, which works
-- on the same file; every statement leaves what exists as it is.

create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null, -- "sha256:" and base 16
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer, -- null means false
    sigs             text, -- separated by spaces
    ca               text -- rendered content address, or null
);

create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);

create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);

-- A path may refer to itself, and that row would block the deletion of the path.
create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;

create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null, -- name of the output
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);

create index if not exists IndexDerivationOutputs on DerivationOutputs(path);

-- Nix 2.34 looks here which later changes were made; it takes the big lock exclusively to add a
-- table that is missing, and would wait for us.
create table if not exists SchemaMigrations (migration text primary key not null);

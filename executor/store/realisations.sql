-- Realisations of content-addressed derivations, in the form of Nix 2.34.8; made when the feature
-- 'ca-derivations' is on. Names, types and indexes are those of Nix, which works on the same file.

create table if not exists Realisations (
    id integer primary key autoincrement not null,
    drvPath text not null, -- the hash modulo: "sha256:" and base 16
    outputName text not null,
    outputPath integer not null,
    signatures text, -- separated by spaces
    foreign key (outputPath) references ValidPaths(id) on delete cascade
);

create index if not exists IndexRealisations on Realisations(drvPath, outputName);

-- A path may depend on itself over realisations, and those rows would block its deletion.
create trigger if not exists DeleteSelfRefsViaRealisations before delete on ValidPaths
  begin
    delete from RealisationsRefs where realisationReference in (
      select id from Realisations where outputPath = old.id
    );
  end;

create table if not exists RealisationsRefs (
    referrer integer not null,
    realisationReference integer,
    foreign key (referrer) references Realisations(id) on delete cascade,
    foreign key (realisationReference) references Realisations(id) on delete restrict
);

create index if not exists IndexRealisationsRefsRealisationReference
    on RealisationsRefs(realisationReference);
create index if not exists IndexRealisationsRefs on RealisationsRefs(referrer);
create index if not exists IndexRealisationsRefsOnOutputPath on Realisations(outputPath);

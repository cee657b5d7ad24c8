# zlib: its configure is not Autoconf's, and its tests run programs against the new library.
tar -xf "$src" --strip-components=1
CC=gcc ./configure --prefix="$out"
make -j"$NIX_BUILD_CORES"
make check
make install

# GNU hello: configured, compiled and tested as its README says.
tar -xf "$src" --strip-components=1
./configure --prefix="$out" CC=gcc
make -j"$NIX_BUILD_CORES"
make check AM_COLOR_TESTS=no
make install

# libpng: linked with the zlib of another derivation, which the host's own must not replace.
tar -xf "$src" --strip-components=1
./configure --prefix="$out" --disable-static --disable-dependency-tracking CC=gcc \
    CPPFLAGS="-I$zlib/include" LDFLAGS="-L$zlib/lib -Wl,-rpath,$zlib/lib"
make -j"$NIX_BUILD_CORES"
# Three of its tests: all of them take longer than everything else here.
make check -j"$NIX_BUILD_CORES" AM_COLOR_TESTS=no \
    TESTS="tests/pngtest-all tests/pngvalid-gamma-sbit tests/pngstest-none"
make install

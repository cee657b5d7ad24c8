# Lua: plain make; its own makefile has no tests beyond asking for the version.
tar -xf "$src" --strip-components=1
make -j"$NIX_BUILD_CORES" -C src CC=gcc MYCFLAGS="-DLUA_USE_POSIX" all
make test
make install INSTALL_TOP="$out"

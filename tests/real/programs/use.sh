# A program of our own that uses the four others.
mkdir "$out"
"$hello/bin/hello" --greeting "built and run in sandboxes" > "$out/hello.txt"
"$lua/bin/lua" -e 'print(_VERSION, 6 * 7)' > "$out/lua.txt"
gcc -o versions "$versions" -I"$libpng/include" -I"$zlib/include" -L"$libpng/lib" -lpng16 \
    -L"$zlib/lib" -lz -Wl,-rpath,"$libpng/lib:$zlib/lib"
./versions > "$out/versions.txt"
ldd versions > "$out/libraries.txt"

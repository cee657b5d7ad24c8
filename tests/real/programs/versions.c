/* Prints the versions of the libraries that it runs with, and fails if it was compiled with others. */
#include <png.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

int main(void)
{
    printf("libpng %s\nzlib %s\n", png_get_libpng_ver(NULL), zlibVersion());
    return strcmp(png_get_libpng_ver(NULL), PNG_LIBPNG_VER_STRING) != 0
        || strcmp(zlibVersion(), ZLIB_VERSION) != 0;
}

#include <stdio.h>

int main(int argc, char **argv)
{
    printf("Hello, %s!\n", argc > 1 ? argv[1] : "whoever you are");
    printf("I was built into %s.\n", PREFIX);
    return 0;
}

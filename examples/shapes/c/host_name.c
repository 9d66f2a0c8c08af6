/* The host name is the environment's own. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char name[65];
    assert(gethostname(name, sizeof name) == 0);
    printf("%s\n", name);
    assert(name[0] == 'e');
    assert(strspn(name + 1, "0123456789") == strlen(name + 1));
    return 0;
}

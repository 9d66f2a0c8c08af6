/* System V shared memory under a fixed key: nobody else's is seen. */
#include <assert.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>

int main(void)
{
    int id = shmget(42, 4096, IPC_CREAT | IPC_EXCL | 0600);
    assert(id >= 0);
    char *memory = shmat(id, NULL, 0);
    assert(memory != (char *)-1);
    strcpy(memory, "here");
    assert(strcmp(memory, "here") == 0);
    return 0;
}

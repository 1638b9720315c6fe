/* A libcuda.so.1 that misbehaves as KVX_TEST_BROKEN_GPU says: "crash" or "hang" when it is started,
 * "exit" from the program, else it lacks all but its first function. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cuInit(unsigned flags)
{
	return (int)flags;
}

__attribute__((constructor)) static void misbehave(void)
{
	const char *how = getenv("KVX_TEST_BROKEN_GPU");

	if (how == NULL)
		return;
	if (strcmp(how, "crash") == 0)
		raise(SIGSEGV);
	while (strcmp(how, "hang") == 0)
		pause();
	if (strcmp(how, "exit") == 0) {
		fprintf(stderr, "libcuda: no kernel module\n");
		exit(3);
	}
}

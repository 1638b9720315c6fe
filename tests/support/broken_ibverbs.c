/* A libibverbs of its own for tests of kvxferctl doctor, loaded in place of the real one: offers
 * one device and does with it what KVX_TEST_IBVERBS says: "fine", "refused" (no permission), "abi"
 * (its provider does not speak the kernel's ABI), "crash", "hang" or "exit". */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT void **ibv_get_device_list(int *n);
EXPORT const char *ibv_get_device_name(void *device);
EXPORT void *ibv_open_device(void *device);
EXPORT int ibv_close_device(void *context);

static char name[] = "rdma0";
static void *list[] = {name, NULL};

static int is(const char *what)
{
	const char *how = getenv("KVX_TEST_IBVERBS");

	return how != NULL && strcmp(how, what) == 0;
}

void **ibv_get_device_list(int *n)
{
	*n = is("abi") ? 0 : 1;
	if (is("abi"))
		fprintf(stderr,
			"libibverbs: Warning: Driver bnxt_re does not support the kernel ABI of 6 "
			"(supports 1 to 1) for device /sys/class/infiniband/rdma0\n");
	if (is("exit"))
		exit(1);
	return list;
}

const char *ibv_get_device_name(void *device)
{
	return device;
}

void *ibv_open_device(void *device)
{
	if (is("crash"))
		raise(SIGSEGV);
	while (is("hang"))
		pause();
	if (is("refused")) {
		errno = EIO;
		return NULL;
	}
	return device;
}

int ibv_close_device(void *context)
{
	(void)context;
	return 0;
}

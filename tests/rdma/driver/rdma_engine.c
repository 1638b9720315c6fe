/* rdma_engine: an engine of the RDMA tests, as it runs in a guest. Each program prints lines of
 * what happens, then its figures as key=value lines and once more as one line of JSON. */
#include <stdio.h>
#include <string.h>

#include "drive.h"
#include "drv.h"
#include "serve.h"

static const struct {
	const char *name;
	int (*main)(struct drv_args *args);
	const char *what;
} programs[] = {
    {"serve", serve_main, "has memory that others write to and read from"},
    {"drive", drive_main, "submits transfers and keeps the books"},
    {"oob", oob_main, "asks for what must be refused"},
};

int main(int argc, char **argv)
{
	struct drv_args args;

	for (size_t i = 0; argc > 1 && i < sizeof(programs) / sizeof(programs[0]); i++) {
		if (strcmp(argv[1], programs[i].name) != 0)
			continue;
		drv_args_init(&args, argc - 2, argv + 2);
		return programs[i].main(&args);
	}
	for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
		fprintf(stderr, "rdma_engine %s: %s\n", programs[i].name, programs[i].what);
	return DRV_UNUSABLE;
}

/* rdma_raw: verbs and packets without kvxfer. See the files of the programs. */
#include <stdio.h>
#include <string.h>

#include "drv.h"
#include "raw.h"

static const struct {
	const char *name;
	int (*main)(struct drv_args *args);
	const char *what;
} programs[] = {
    {"late", raw_late_main, "which verb is a fence, and does this test see late bytes"},
    {"victim", raw_victim_main, "a foothold on the node that is attacked"},
    {"attack", raw_attack_main, "tries keys and addresses that it must not use"},
    {"forge", raw_forge_main, "sends packets made by hand"},
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
		fprintf(stderr, "rdma_raw %s: %s\n", programs[i].name, programs[i].what);
	return DRV_UNUSABLE;
}

/* Fuzzes the configuration file: a refused file has a reason and changes nothing; an accepted one
 * can be printed and read back as the same configuration. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok)
{
	if (!ok)
		abort();
}

static int load_bytes(const void *data, size_t size, struct kvx_config *config, struct kvx_why *why)
{
	int fd = memfd_create("fuzz_config", MFD_CLOEXEC), err;
	char path[64];

	check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	err = kvx_config_load(path, config, why);
	close(fd);
	return err;
}

static void check_round_trip(const struct kvx_config *config)
{
	struct kvx_config again;
	struct kvx_why why;
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	check(f != NULL);
	kvx_config_print(config, f);
	fclose(f);
	kvx_config_defaults(&again);
	if (load_bytes(text, size, &again, &why) != 0) {
		fprintf(stderr, "%s\n%s\n", why.text, text);
		abort();
	}
	check(memcmp(config, &again, sizeof(again)) == 0);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kvx_config config, before;
	struct kvx_why why = {.text = ""};

	kvx_config_defaults(&config);
	before = config;
	if (load_bytes(data, size, &config, &why) == 0) {
		check_round_trip(&config);
		if (kvx_config_finish(&config, &why) == 0)
			check_round_trip(&config);
		return 0;
	}
	check(why.text[0] != '\0');
	check(memcmp(&config, &before, sizeof(config)) == 0);
	return 0;
}

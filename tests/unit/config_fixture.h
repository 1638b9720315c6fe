/* Configurations of text, for tests of them. */
#ifndef KVX_CONFIG_FIXTURE_H
#define KVX_CONFIG_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"

/* Writes text to a file, loads it over the defaults, removes it. */
static inline int load_bytes(const char *text, size_t len, struct kvx_config *config,
			     struct kvx_why *why)
{
	char path[] = "/tmp/kvx-config-XXXXXX";
	char *at;
	int fd = mkstemp(path), err;

	cr_assert_geq(fd, 0);
	cr_assert_eq(write(fd, text, len), (ssize_t)len);
	close(fd);
	why->text[0] = '\0';
	err = kvx_config_load(path, config, why);
	unlink(path);
	at = strstr(why->text, path); /* the name is random: FILE stands for it */
	if (at != NULL) {
		char rest[KVX_WHY_BYTES];

		snprintf(rest, sizeof(rest), "FILE%s", at + strlen(path));
		snprintf(why->text, sizeof(why->text), "%s", rest);
	}
	return err;
}

static inline int load_text(const char *text, struct kvx_config *config, struct kvx_why *why)
{
	return load_bytes(text, strlen(text), config, why);
}

static inline void must_set(struct kvx_config *c, const char *assignment)
{
	struct kvx_why why = {.text = ""};

	cr_assert_eq(kvx_config_set(c, assignment, &why), 0, "%s: %s", assignment, why.text);
}

#endif

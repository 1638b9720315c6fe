/* Configuration: the table of its keys, and the files made from it. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_fixture.h"
#include "config_keys.h"
#include "test_end.h"

static char *file_read(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = calloc(1, 1 << 20);

	cr_assert_not_null(f, "%s", path);
	cr_assert_lt(fread(text, 1, (1 << 20) - 1, f), (1 << 20) - 1);
	fclose(f);
	return text;
}

static char *config_printed(const struct kvx_config *config)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	kvx_config_print(config, f);
	fclose(f);
	return text;
}

Test(config_print, printed_file_reads_back_as_the_same_configuration)
{
	struct kvx_config c, again;
	struct kvx_why why = {.text = ""};
	char *text;

	kvx_config_defaults(&c);
	cr_assert_eq(kvx_config_finish(&c, &why), 0);
	c.copy_nt_min_bytes = 12345;
	c.spin_us = 0;
	c.deadline_ms = 1001;
	c.insecure_peers = true;
	c.node_id_file[0] = '\0';
	c.verbs.gid_index = 5;
	must_set(&c, "daemon.tenants=blue=/run/b red");
	text = config_printed(&c);
	kvx_config_defaults(&again);
	cr_assert_eq(load_text(text, &again, &why), 0, "%s", why.text);
	for (unsigned i = 0; i < kvx_config_n_keys; i++)
		cr_assert(kvx_config_value_equal(&kvx_config_keys[i], &c, &again), "%s.%s",
			  kvx_config_keys[i].section, kvx_config_keys[i].name);
	free(text);
	KVX_TEST_END();
}

Test(config_print, each_key_keeps_its_own_field)
{
	static uint8_t used[sizeof(struct kvx_config)];

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];

		cr_assert_eq(kvx_config_key_find(key->section, key->name), key,
			     "%s.%s is twice in the table", key->section, key->name);
		cr_assert_gt(strlen(key->help), 10);
		for (size_t j = 0; j < key->size; j++)
			cr_assert_eq(used[key->offset + j]++, 0, "%s.%s shares its field",
				     key->section, key->name);
	}
	KVX_TEST_END();
}

static void visit_count(void *arg, const char *name, const char *value)
{
	cr_assert_not_null(strchr(name, '.'));
	cr_assert_not_null(value);
	++*(unsigned *)arg;
}

Test(config_print, visit_shows_each_key)
{
	struct kvx_config c;
	unsigned n = 0;

	kvx_config_defaults(&c);
	kvx_config_visit(&c, visit_count, &n);
	cr_assert_eq(n, kvx_config_n_keys);
	KVX_TEST_END();
}

Test(config_print, packaged_file_is_the_printed_defaults)
{
	char *packaged = file_read(KVX_SOURCE_ROOT "/packaging/kvxferd.conf");
	struct kvx_config c;
	char *printed;

	kvx_config_defaults(&c);
	printed = config_printed(&c);
	cr_assert_str_eq(packaged, printed);
	free(packaged);
	free(printed);
	KVX_TEST_END();
}

Test(config_print, manual_page_has_each_key_with_its_default)
{
	char *page = file_read(KVX_SOURCE_ROOT "/docs/man/kvxferd.conf.5");
	char *section = page;
	struct kvx_config c;

	kvx_config_defaults(&c);
	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];
		char text[KVX_CONFIG_VALUE_BYTES + 64], value[KVX_CONFIG_VALUE_BYTES];
		char *item, *def, *next;

		snprintf(text, sizeof(text), ".Ss [%s]\n", key->section);
		if (i == 0 || strcmp(kvx_config_keys[i - 1].section, key->section) != 0)
			section = strstr(page, text);
		cr_assert_not_null(section, "no section %s", key->section);
		snprintf(text, sizeof(text), "\n.It Ic %s\n", key->name);
		item = strstr(section, text);
		cr_assert_not_null(item, "no key %s.%s", key->section, key->name);
		kvx_config_value_get(key, &c, value);
		snprintf(text, sizeof(text), "default %s%s.\n", value[0] != '\0' ? value : "empty",
			 key->reloadable ? "; reloaded" : "");
		def = strstr(item, text);
		next = strstr(item + 1, "\n.It Ic ");
		cr_assert(def != NULL && (next == NULL || def < next), "%s.%s: no '%s'",
			  key->section, key->name, text);
	}
	free(page);
	KVX_TEST_END();
}

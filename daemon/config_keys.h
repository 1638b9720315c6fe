/* The table of configuration keys, and values of its types from and to text. For the config files
 * only; everybody else reads struct kvx_config. */
#ifndef KVX_CONFIG_KEYS_H
#define KVX_CONFIG_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"

enum kvx_config_type {
	KVX_CONFIG_BOOL,    /* bool */
	KVX_CONFIG_COUNT,   /* uint32_t */
	KVX_CONFIG_BYTES32, /* uint32_t; K, M, G */
	KVX_CONFIG_BYTES,   /* uint64_t; K, M, G, T */
	KVX_CONFIG_MS,      /* uint32_t; ms, s, m */
	KVX_CONFIG_US,      /* uint32_t; us, ms, s */
	KVX_CONFIG_MODE,    /* uint32_t; octal */
	KVX_CONFIG_TEXT,    /* char[] */
	KVX_CONFIG_PATH,    /* char[]: absolute */
	KVX_CONFIG_SOCKET,  /* char[]: absolute path, or @name */
	KVX_CONFIG_LEVEL,   /* char[]: error .. trace */
	KVX_CONFIG_ADDRESS, /* char[]: HOST:PORT */
	KVX_CONFIG_AUTO,    /* int: a number, or auto (-1) */
	KVX_CONFIG_TENANTS, /* char[]: NAME=SOCKET ... */
	KVX_CONFIG_NAMES,   /* char[]: transports */
	KVX_CONFIG_DEVICES, /* char[]: DEVICE[:PORT],... */
};

struct kvx_config_key {
	const char *section;
	const char *name;
	enum kvx_config_type type;
	bool reloadable;
	size_t offset; /* in struct kvx_config */
	size_t size;
	const char *def;   /* as it would stand in the file */
	uint64_t min, max; /* of numbers */
	const char *help;  /* sentences, with what 0 or empty means */
};

extern const struct kvx_config_key kvx_config_keys[];
extern const unsigned kvx_config_n_keys;

#define KVX_CONFIG_VALUE_BYTES (KVX_CONFIG_STR + 16)

const struct kvx_config_key *kvx_config_key_find(const char *section, const char *name);
bool kvx_config_section_exists(const char *section);
/* The most similar key of any section, or section name; NULL when nothing is similar. */
const struct kvx_config_key *kvx_config_key_guess(const char *section, const char *name);
const char *kvx_config_section_guess(const char *section);
/* Name of the type, for people: "bytes", "milliseconds". */
const char *kvx_config_type_name(enum kvx_config_type type);

/* The forms of the values that are lists; reasons do not name the key. 0 or -EINVAL. */
int kvx_config_check_tenants(const char *text, struct kvx_why *why);
int kvx_config_check_names(const char *text, struct kvx_why *why);
int kvx_config_check_devices(const char *text, struct kvx_why *why);
/* No two tenants, the default one among them, may have the same socket. Names the key. */
int kvx_config_check_tenant_sockets(const struct kvx_config *config, struct kvx_why *why);

/* Parses text into the key's field. -EINVAL with the reason, and the field is as before. */
int kvx_config_value_set(const struct kvx_config_key *key, const char *text,
			 struct kvx_config *config, struct kvx_why *why);
/* The field's value as it would stand in the file; with the largest suffix that is exact. */
void kvx_config_value_get(const struct kvx_config_key *key, const struct kvx_config *config,
			  char out_text[KVX_CONFIG_VALUE_BYTES]);
/* A number of the key's type, as above: for the ranges in texts. */
void kvx_config_number_print(enum kvx_config_type type, uint64_t value, char *out_text,
			     size_t size);
bool kvx_config_value_equal(const struct kvx_config_key *key, const struct kvx_config *a,
			    const struct kvx_config *b);

#endif

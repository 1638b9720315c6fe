/* Whether the user-space provider of a device speaks the ABI of its kernel driver. libibverbs says
 * so only in words, on stderr; here the words are read, and turned into what to do. Pure: used by
 * the backend and by kvxferctl doctor, which get the words each in its own way. Any thread. */
#ifndef KVX_VERBS_ABI_H
#define KVX_VERBS_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One device that a provider refused. */
struct verbs_abi_gap {
	char provider[32]; /* "bnxt_re" */
	char device[64];
	uint32_t kernel_abi;
	uint32_t min_abi, max_abi; /* what the provider supports */
};

/* What libibverbs wrote about this device. False: nothing. */
bool verbs_abi_find(const char *words, const char *device, struct verbs_abi_gap *out_gap);
/* The provider library that libibverbs could not load, as it names it; false: none. */
bool verbs_abi_unloadable(const char *words, char *out_name, size_t name_bytes);

/* What to install so that the device of this kernel driver works ("" when it is unknown): static
 * text. newer: the kernel driver is newer than the provider. */
const char *verbs_abi_cure(const char *driver, bool newer);

#endif

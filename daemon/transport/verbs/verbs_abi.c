/* Reads what libibverbs says of devices that it cannot use. It keeps the range of ABIs that a
 * provider supports to itself and only prints it, so its words are all there is. They are data of a
 * foreign program: what does not look as expected is skipped. Any thread. */
#include "transport/verbs/verbs_abi.h"

#include <stdio.h>
#include <string.h>

struct cure {
	const char *driver;
	const char *newer; /* the kernel driver is newer, or the vendor's own */
	const char *older; /* or there is no provider at all */
};

/* Matched by the beginning: the kernel driver is mlx5_core or mlx5_ib, the provider mlx5. */
static const struct cure cures[] = {
    {"mlx5",
     "install ibverbs-providers (rdma-core) of the kernel driver's release: from DOCA-OFED where "
     "the driver is from there",
     "install ibverbs-providers (rdma-core), or update the kernel driver"},
    {"bnxt",
     "install Broadcom's bnxt-rocelib (libbnxt_re) of the release of bnxt-re-dkms, also in the "
     "container",
     "install ibverbs-providers (rdma-core), or update the kernel driver bnxt_re"},
    {"ionic", "install AMD's libionic1 of the release of ionic-dkms, also in the container",
     "install AMD's libionic1, or an rdma-core that has an ionic provider"},
    {"", "install ibverbs-providers (rdma-core), or the vendor's, of the kernel driver's release",
     "install ibverbs-providers (rdma-core), or the vendor's, or update the kernel driver"},
};

static bool line_parse(const char *line, struct verbs_abi_gap *gap)
{
	char path[128];
	const char *slash;
	int n = sscanf(line,
		       "libibverbs: Warning: Driver %31s does not support the kernel ABI of %u "
		       "(supports %u to %u) for device %127s",
		       gap->provider, &gap->kernel_abi, &gap->min_abi, &gap->max_abi, path);

	if (n != 5)
		return false;
	slash = strrchr(path, '/');
	if (slash == NULL || strlen(slash + 1) >= sizeof(gap->device))
		return false;
	memcpy(gap->device, slash + 1, strlen(slash + 1) + 1);
	return true;
}

bool verbs_abi_find(const char *words, const char *device, struct verbs_abi_gap *out_gap)
{
	const char *line = words;

	while (line != NULL && *line != '\0') {
		struct verbs_abi_gap gap;

		if (line_parse(line, &gap) && strcmp(gap.device, device) == 0) {
			*out_gap = gap;
			return true;
		}
		line = strchr(line, '\n');
		if (line != NULL)
			line++;
	}
	return false;
}

bool verbs_abi_unloadable(const char *words, char *out_name, size_t name_bytes)
{
	static const char start[] = "libibverbs: Warning: couldn't load driver '";
	const char *at = strstr(words, start), *end;
	size_t len;

	if (at == NULL)
		return false;
	at += sizeof(start) - 1;
	end = strpbrk(at, "'\n");
	if (end == NULL || *end != '\'')
		return false;
	len = (size_t)(end - at);
	if (len == 0 || len >= name_bytes)
		return false;
	memcpy(out_name, at, len);
	out_name[len] = '\0';
	return true;
}

const char *verbs_abi_cure(const char *driver, bool newer)
{
	const struct cure *cure = cures;

	while (strncmp(driver, cure->driver, strlen(cure->driver)) != 0)
		cure++; /* ends at "" */
	return newer ? cure->newer : cure->older;
}

/* Reads the path of a PCI device off the link that sysfs has of it, and compares paths. Pure but
 * for the reading. Any thread. */
#include "base/pci.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool kvx_pci_name(const char *text, char out_name[KVX_PCI_NAME_BYTES])
{
	unsigned domain = 0, bus, device, function;
	char rest;

	if (sscanf(text, "%8x:%2x:%2x.%1x%c", &domain, &bus, &device, &function, &rest) != 4) {
		domain = 0;
		if (sscanf(text, "%2x:%2x.%1x%c", &bus, &device, &function, &rest) != 3)
			return false;
	}
	if (domain > 0xffff || device > 0x1f || function > 7)
		return false;
	snprintf(out_name, KVX_PCI_NAME_BYTES, "%04x:%02x:%02x.%x", domain, bus & 0xff, device,
		 function);
	return true;
}

/* One folder on the way down. False: it is none of PCI's. */
static bool path_step(struct kvx_pci_path *path, const char *folder)
{
	char name[KVX_PCI_NAME_BYTES];

	if (strncmp(folder, "pci", 3) == 0 && strlen(folder) < sizeof(path->host)) {
		strcpy(path->host, folder);
		path->n_bridges = 0;
		return true;
	}
	if (path->host[0] == '\0' || !kvx_pci_name(folder, name))
		return false;
	if (path->name[0] != '\0' && path->n_bridges < KVX_PCI_MAX_DEPTH)
		memcpy(path->bridges[path->n_bridges++], path->name, sizeof(name));
	memcpy(path->name, name, sizeof(name));
	return true;
}

static int read_numa_node(const char *folder)
{
	char file[PATH_MAX + 16], line[32];
	int node = -1;
	FILE *f;

	snprintf(file, sizeof(file), "%s/numa_node", folder);
	f = fopen(file, "re");
	if (f == NULL)
		return -1;
	if (fgets(line, sizeof(line), f) != NULL)
		node = atoi(line);
	fclose(f);
	return node < 0 ? -1 : node;
}

static int path_of_folder(const char *folder, struct kvx_pci_path *out_path)
{
	struct kvx_pci_path path = {.numa_node = -1};
	char real[PATH_MAX], *rest = real, *part;

	if (realpath(folder, real) == NULL)
		return -ENOENT;
	path.numa_node = read_numa_node(real);
	while ((part = strsep(&rest, "/")) != NULL)
		path_step(&path, part);
	if (path.name[0] == '\0')
		return -ENOENT;
	*out_path = path;
	return 0;
}

int kvx_pci_path_read(const char *sysfs, const char *name, struct kvx_pci_path *out_path)
{
	char folder[PATH_MAX], pci[KVX_PCI_NAME_BYTES];

	if (!kvx_pci_name(name, pci))
		return -EINVAL;
	snprintf(folder, sizeof(folder), "%s/bus/pci/devices/%s", sysfs, pci);
	return path_of_folder(folder, out_path);
}

int kvx_pci_path_of(const char *sysfs, const char *class_name, const char *name,
		    struct kvx_pci_path *out_path)
{
	char folder[PATH_MAX];

	snprintf(folder, sizeof(folder), "%s/class/%s/%s/device", sysfs, class_name, name);
	return path_of_folder(folder, out_path);
}

/* Of one device, "0000:c1:00" may have several functions. */
static bool same_device(const char *a, const char *b)
{
	return strncmp(a, b, strlen("0000:00:00")) == 0;
}

static struct kvx_pci_distance below_one_host(const struct kvx_pci_path *a,
					      const struct kvx_pci_path *b)
{
	struct kvx_pci_distance d = {.relation = KVX_PCI_HOST_BRIDGE};
	unsigned common = 0;

	while (common < a->n_bridges && common < b->n_bridges &&
	       strcmp(a->bridges[common], b->bridges[common]) == 0)
		common++;
	/* Up from a to what they share, and down to b. */
	d.hops = a->n_bridges - common + 1 + b->n_bridges - common + 1;
	if (common == 0)
		return d;
	/* A switch is two bridges deep: its upstream port and one downstream port for each. */
	d.relation = a->n_bridges - common <= 1 && b->n_bridges - common <= 1 ? KVX_PCI_ONE_SWITCH
									      : KVX_PCI_SWITCHES;
	return d;
}

struct kvx_pci_distance kvx_pci_distance_of(const struct kvx_pci_path *a,
					    const struct kvx_pci_path *b)
{
	struct kvx_pci_distance d = {.relation = KVX_PCI_SYSTEM};

	if (a->name[0] == '\0' || b->name[0] == '\0')
		return (struct kvx_pci_distance){.relation = KVX_PCI_UNKNOWN};
	if (same_device(a->name, b->name))
		return (struct kvx_pci_distance){.relation = KVX_PCI_SAME};
	if (strcmp(a->host, b->host) == 0)
		return below_one_host(a, b);
	/* One more from host bridge to host bridge, and one more between NUMA nodes. */
	d.hops = a->n_bridges + 1 + b->n_bridges + 1 + 1;
	if (a->numa_node == b->numa_node)
		d.relation = KVX_PCI_NUMA_NODE;
	else
		d.hops++;
	return d;
}

int kvx_pci_distance_compare(const struct kvx_pci_distance *a, const struct kvx_pci_distance *b)
{
	if (a->relation != b->relation)
		return a->relation < b->relation ? -1 : 1;
	return (a->hops > b->hops) - (a->hops < b->hops);
}

const char *kvx_pci_relation_name(enum kvx_pci_relation relation)
{
	static const char *const names[] = {
	    [KVX_PCI_SAME] = "X",          [KVX_PCI_ONE_SWITCH] = "PIX", [KVX_PCI_SWITCHES] = "PXB",
	    [KVX_PCI_HOST_BRIDGE] = "PHB", [KVX_PCI_NUMA_NODE] = "NODE", [KVX_PCI_SYSTEM] = "SYS",
	    [KVX_PCI_UNKNOWN] = "-",
	};

	return names[relation];
}

static unsigned count_given(const int *out_to, unsigned n_from, int to)
{
	unsigned n = 0;

	for (unsigned i = 0; i < n_from; i++)
		n += out_to[i] == to;
	return n;
}

static bool is_better(const struct kvx_pci_distance *row, int to, int best, const int *given,
		      unsigned n_given)
{
	int order;

	if (best < 0)
		return true;
	order = kvx_pci_distance_compare(&row[to], &row[best]);
	if (order != 0)
		return order < 0;
	return count_given(given, n_given, to) < count_given(given, n_given, best);
}

void kvx_pci_assign(const struct kvx_pci_distance *distances, unsigned n_from, unsigned n_to,
		    const bool *usable, int *out_to)
{
	for (unsigned i = 0; i < n_from; i++) {
		const struct kvx_pci_distance *row = &distances[(size_t)i * n_to];
		int best = -1;

		for (unsigned j = 0; j < n_to; j++)
			if ((usable == NULL || usable[j]) &&
			    is_better(row, (int)j, best, out_to, i))
				best = (int)j;
		out_to[i] = best;
	}
}

/* Which device it is, in every process the same: PCI address and UUID. Pure, but for the look into
 * sysfs. Any thread. */
#include <stdio.h>
#include <string.h>

#include "gpu/gpu.h"

void kvx_gpu_pci_normalise(const char *text, char out_pci[KVX_GPU_PCI_BYTES])
{
	unsigned domain, bus, device, function;
	char rest;

	out_pci[0] = '\0';
	if (sscanf(text, "%x:%x:%x.%1x%c", &domain, &bus, &device, &function, &rest) != 4 ||
	    domain > 0xffff || bus > 0xff || device > 0x1f || function > 7)
		return;
	snprintf(out_pci, KVX_GPU_PCI_BYTES, "%04x:%02x:%02x.%x", domain, bus, device, function);
}

bool kvx_gpu_uuid_known(const struct kvx_gpu_id *id)
{
	static const uint8_t none[KVX_GPU_UUID_BYTES];

	return memcmp(id->uuid, none, sizeof(none)) != 0;
}

bool kvx_gpu_id_same(const struct kvx_gpu_id *a, const struct kvx_gpu_id *b)
{
	if (kvx_gpu_uuid_known(a) && kvx_gpu_uuid_known(b))
		return memcmp(a->uuid, b->uuid, sizeof(a->uuid)) == 0;
	return a->pci[0] != '\0' && strcmp(a->pci, b->pci) == 0;
}

int kvx_gpu_numa_node(const struct kvx_gpu_id *id)
{
	char path[64];
	int node = -1;

	if (id->pci[0] == '\0')
		return -1;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/numa_node", id->pci);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return -1;
	if (fscanf(file, "%d", &node) != 1)
		node = -1;
	fclose(file);
	return node;
}

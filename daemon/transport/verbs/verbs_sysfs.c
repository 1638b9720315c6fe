/* Reads /sys/class/infiniband and /sys/class/infiniband_verbs. Keeps nothing, opens no device,
 * calls no library: it also shows what libibverbs cannot use. A file that is not there leaves its
 * field empty. Any thread. */
#include "transport/verbs/verbs_sysfs.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first line of a file named by a format, in buf; "" when it cannot be read. */
__attribute__((format(printf, 3, 4))) static const char *read_line(char *buf, size_t buf_bytes,
								   const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	FILE *file;

	va_start(args, fmt);
	vsnprintf(path, sizeof(path), fmt, args);
	va_end(args);
	buf[0] = '\0';
	file = fopen(path, "re");
	if (file == NULL)
		return buf;
	if (fgets(buf, (int)buf_bytes, file) == NULL)
		buf[0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	fclose(file);
	return buf;
}

static int read_number(const char *text, int otherwise)
{
	char *end;
	long value = strtol(text, &end, 10);

	return end == text || value < INT_MIN || value > INT_MAX ? otherwise : (int)value;
}

int verbs_sysfs_numa(const char *device_path)
{
	char line[32];

	return read_number(read_line(line, sizeof(line), "%s/device/numa_node", device_path), -1);
}

static int by_name(const void *a, const void *b)
{
	const struct verbs_kdev *left = a, *right = b;

	return strverscmp(left->name, right->name);
}

static int by_port(const void *a, const void *b)
{
	const struct verbs_kport *left = a, *right = b;

	return (left->port > right->port) - (left->port < right->port);
}

static void keep_name(char netdev[16], const char *name)
{
	if (strlen(name) < 16)
		memcpy(netdev, name, strlen(name) + 1);
}

/* The GID table names it only while the port is up: else a software device's parent, or the
 * interface of the same PCI device with that port's number. */
static void read_netdev(const char *root, const char *device, struct verbs_kport *port)
{
	char path[PATH_MAX], line[32];
	struct dirent *entry;
	DIR *dir;

	read_line(line, sizeof(line), "%s/infiniband/%s/ports/%u/gid_attrs/ndevs/0", root, device,
		  port->port);
	if (line[0] == '\0')
		read_line(line, sizeof(line), "%s/infiniband/%s/parent", root, device);
	keep_name(port->netdev, line);
	snprintf(path, sizeof(path), "%s/infiniband/%s/device/net", root, device);
	dir = port->netdev[0] == '\0' ? opendir(path) : NULL;
	while (dir != NULL && (entry = readdir(dir)) != NULL) {
		if (entry->d_name[0] == '.' || strlen(entry->d_name) >= sizeof(port->netdev))
			continue;
		read_line(line, sizeof(line), "%s/infiniband/%s/device/net/%.15s/dev_port", root,
			  device, entry->d_name);
		if (read_number(line, 0) == (int)port->port - 1)
			keep_name(port->netdev, entry->d_name);
	}
	if (dir != NULL)
		closedir(dir);
}

static void read_ports(const char *root, struct verbs_kdev *device)
{
	char path[PATH_MAX], layer[32];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/infiniband/%s/ports", root, device->name);
	dir = opendir(path);
	while (dir != NULL && device->n_ports < VERBS_SYSFS_MAX_PORTS &&
	       (entry = readdir(dir)) != NULL) {
		struct verbs_kport *port = &device->ports[device->n_ports];
		int number = read_number(entry->d_name, 0);

		if (number < 1)
			continue;
		*port = (struct verbs_kport){.port = (uint32_t)number};
		read_line(port->state, sizeof(port->state), "%s/%d/state", path, number);
		read_line(port->physical, sizeof(port->physical), "%s/%d/phys_state", path, number);
		read_line(port->rate, sizeof(port->rate), "%s/%d/rate", path, number);
		read_line(layer, sizeof(layer), "%s/%d/link_layer", path, number);
		port->active = strstr(port->state, "ACTIVE") != NULL;
		port->infiniband = strcmp(layer, "InfiniBand") == 0;
		if (!port->infiniband)
			read_netdev(root, device->name, port);
		device->n_ports++;
	}
	if (dir != NULL)
		closedir(dir);
	qsort(device->ports, device->n_ports, sizeof(device->ports[0]), by_port);
}

static void read_driver(const char *root, struct verbs_kdev *device)
{
	char path[PATH_MAX], target[PATH_MAX];
	ssize_t len;

	snprintf(path, sizeof(path), "%s/infiniband/%s/device/driver", root, device->name);
	len = readlink(path, target, sizeof(target) - 1);
	if (len <= 0)
		return;
	target[len] = '\0';
	snprintf(device->driver, sizeof(device->driver), "%.31s", basename(target));
}

/* uverbsN names its device, not the other way round. */
static void read_uverbs(const char *root, struct verbs_kdev *devices, unsigned n)
{
	char path[PATH_MAX], line[64];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/infiniband_verbs", root);
	dir = opendir(path);
	while (dir != NULL && (entry = readdir(dir)) != NULL) {
		if (strncmp(entry->d_name, "uverbs", 6) != 0)
			continue;
		read_line(line, sizeof(line), "%s/%s/ibdev", path, entry->d_name);
		for (unsigned i = 0; i < n; i++) {
			if (strcmp(devices[i].name, line) != 0)
				continue;
			snprintf(devices[i].uverbs, sizeof(devices[i].uverbs), "%.31s",
				 entry->d_name);
			read_line(line, sizeof(line), "%s/%s/abi_version", path, entry->d_name);
			devices[i].abi = read_number(line, -1);
			break;
		}
	}
	if (dir != NULL)
		closedir(dir);
}

unsigned verbs_sysfs_devices(const char *root, struct verbs_kdev *out_devices, unsigned max)
{
	char path[PATH_MAX], folder[PATH_MAX + 64];
	struct dirent *entry;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/infiniband", root);
	dir = opendir(path);
	while (dir != NULL && n < max && (entry = readdir(dir)) != NULL) {
		struct verbs_kdev *device = &out_devices[n];

		if (entry->d_name[0] == '.' || strlen(entry->d_name) >= sizeof(device->name))
			continue;
		*device = (struct verbs_kdev){.abi = -1};
		memcpy(device->name, entry->d_name, strlen(entry->d_name) + 1);
		read_line(device->firmware, sizeof(device->firmware), "%s/%s/fw_ver", path,
			  device->name);
		snprintf(folder, sizeof(folder), "%s/%s", path, device->name);
		device->numa_node = verbs_sysfs_numa(folder);
		read_driver(root, device);
		read_ports(root, device);
		n++;
	}
	if (dir != NULL)
		closedir(dir);
	qsort(out_devices, n, sizeof(out_devices[0]), by_name);
	read_uverbs(root, out_devices, n);
	return n;
}

unsigned verbs_sysfs_gids(const char *root, const char *device, uint32_t port,
			  struct verbs_gid *out_gids, unsigned max)
{
	static const uint8_t zero[16];
	char dir[512], text[64];
	unsigned n = 0;

	snprintf(dir, sizeof(dir), "%s/infiniband/%s/ports/%u", root, device, port);
	for (uint32_t index = 0; index < VERBS_MAX_GIDS && n < max; index++) {
		struct verbs_gid *gid = &out_gids[n];

		if (*read_line(text, sizeof(text), "%s/gids/%u", dir, index) == '\0')
			break; /* the table's end */
		*gid = (struct verbs_gid){.index = index, .kind = VERBS_GID_IB};
		if (inet_pton(AF_INET6, text, gid->raw) != 1 ||
		    memcmp(gid->raw, zero, sizeof(zero)) == 0)
			continue;
		read_line(gid->netdev, sizeof(gid->netdev), "%s/gid_attrs/ndevs/%u", dir, index);
		read_line(text, sizeof(text), "%s/gid_attrs/types/%u", dir, index);
		if (strcmp(text, "RoCE v2") == 0)
			gid->kind = VERBS_GID_ROCE_V2;
		else if (gid->netdev[0] !=
			 '\0') /* the kernel calls both InfiniBand's and v1 "IB/RoCE v1" */
			gid->kind = VERBS_GID_ROCE_V1;
		n++;
	}
	return n;
}

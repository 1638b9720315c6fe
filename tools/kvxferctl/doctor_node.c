/* doctor: limits of the processes, memory and network of this node. Reads /proc and /sys only. */
#include "doctor.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include "common/tool.h"

#define MIN_SHM_BYTES (64ull << 20)

/* Soft limit named as in /proc/PID/limits; RLIM_INFINITY for "unlimited". 0 or -errno. */
static int proc_limit(uint64_t pid, const char *name, uint64_t *out_value)
{
	char path[64], line[256];
	size_t len = strlen(name);
	int rc = -ENOENT;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%llu/limits", (unsigned long long)pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (rc != 0 && fgets(line, sizeof(line), f)) {
		const char *value = line + len;

		if (strncmp(line, name, len) != 0)
			continue;
		value += strspn(value, " ");
		*out_value = *value == 'u' ? RLIM_INFINITY : strtoull(value, NULL, 10);
		rc = 0;
	}
	fclose(f);
	return rc;
}

/* The daemon's limit where it can be read, else this process's. Returns whose it is. */
static const char *limit_get(struct json_object *daemon, const char *name, int resource,
			     uint64_t *out_value)
{
	struct rlimit own;

	if (daemon && proc_limit(kvx_json_u64(daemon, "pid"), name, out_value) == 0)
		return "of the daemon";
	*out_value = getrlimit(resource, &own) == 0 ? own.rlim_cur : 0;
	return "of this shell (the daemon's cannot be read)";
}

static bool dir_has(const char *path, const char *prefix)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir)))
		found =
		    entry->d_name[0] != '.' && strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
	if (dir)
		closedir(dir);
	return found;
}

static void limit_memlock(struct kvx_report *report, struct json_object *daemon)
{
	char buf[KVX_UNIT_BYTES];
	uint64_t value;
	const char *whose = limit_get(daemon, "Max locked memory", RLIMIT_MEMLOCK, &value);
	bool rdma = dir_has("/sys/class/infiniband", "");

	if (value == RLIM_INFINITY)
		kvx_report_ok(report, "memlock", kvx_tool_printf("unlimited, %s", whose));
	else if (rdma)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "memlock",
		    kvx_tool_printf("RLIMIT_MEMLOCK is %s, %s: an RDMA device cannot "
				    "register more than that",
				    kvx_unit_bytes(buf, value), whose),
		    kvx_tool_strdup("LimitMEMLOCK=infinity in kvxferd.service, or `ulimit "
				    "-l unlimited`"));
	else
		kvx_report_ok(report, "memlock",
			      kvx_tool_printf("RLIMIT_MEMLOCK is %s, %s; nothing here locks memory "
					      "without RDMA",
					      kvx_unit_bytes(buf, value), whose));
}

static void limit_nofile(struct kvx_report *report, struct json_object *daemon)
{
	uint64_t clients = kvx_json_u64(kvx_json_get(daemon, "limits"), "clients"), value, need;
	const char *whose = limit_get(daemon, "Max open files", RLIMIT_NOFILE, &value);

	/* One socket a client, one memfd a region in flight, and a few of the daemon's own. */
	need = 2 * (clients ? clients : 1024) + 256;
	if (value >= need)
		kvx_report_ok(
		    report, "nofile",
		    kvx_tool_printf("RLIMIT_NOFILE is %llu, %s", (unsigned long long)value, whose));
	else
		kvx_report_add(
		    report, KVX_FINDING_WARN, "nofile",
		    kvx_tool_printf("RLIMIT_NOFILE is %llu, %s: too few for limits.clients = %llu",
				    (unsigned long long)value, whose,
				    (unsigned long long)(clients ? clients : 1024)),
		    kvx_tool_printf("LimitNOFILE=%llu in kvxferd.service, or `ulimit -n %llu`",
				    (unsigned long long)need, (unsigned long long)need));
}

void kvx_doctor_limits(struct kvx_report *report, struct json_object *daemon)
{
	limit_memlock(report, daemon);
	limit_nofile(report, daemon);
}

static void memory_hugepages(struct kvx_report *report)
{
	char size[KVX_UNIT_BYTES];
	uint64_t total = 0, n_free = 0, page_kib = 0;

	kvx_read_field("/proc/meminfo", "HugePages_Total", &total);
	kvx_read_field("/proc/meminfo", "HugePages_Free", &n_free);
	if (kvx_read_field("/proc/meminfo", "Hugepagesize", &page_kib) != 0) {
		kvx_report_add(
		    report, KVX_FINDING_WARN, "hugepages",
		    kvx_tool_strdup("this kernel has none: regions that ask for huge pages "
				    "are refused"),
		    kvx_tool_strdup("leave KVXFER_REGION_HUGEPAGES out, or use a kernel "
				    "with hugetlbfs"));
		return;
	}
	kvx_unit_bytes(size, page_kib << 10);
	if (n_free > 0)
		kvx_report_ok(report, "hugepages",
			      kvx_tool_printf("%llu of %llu free, %s each",
					      (unsigned long long)n_free, (unsigned long long)total,
					      size));
	else
		kvx_report_add(
		    report, KVX_FINDING_WARN, "hugepages",
		    kvx_tool_printf("%s: regions that ask for huge pages (5-10 %% faster at 4 KiB "
				    "blocks) are refused",
				    total ? "all are taken" : "none are reserved"),
		    kvx_tool_printf(
			"sysctl vm.nr_hugepages=N, N = bytes of the KV caches / %s, best "
			"at boot",
			size));
}

static void memory_shm(struct kvx_report *report)
{
	char total[KVX_UNIT_BYTES], avail[KVX_UNIT_BYTES];
	struct statvfs fs;

	if (statvfs("/dev/shm", &fs) != 0) {
		kvx_report_add(report, KVX_FINDING_WARN, "shm",
			       kvx_tool_printf("/dev/shm: %s; regions do not need it, but engines "
					       "and libfabric's shm do",
					       strerror(errno)),
			       kvx_tool_strdup("mount -t tmpfs tmpfs /dev/shm"));
		return;
	}
	uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;

	kvx_unit_bytes(total, (uint64_t)fs.f_blocks * fs.f_frsize);
	kvx_unit_bytes(avail, free_bytes);
	if (free_bytes >= MIN_SHM_BYTES)
		kvx_report_ok(report, "shm",
			      kvx_tool_printf("/dev/shm: %s, %s free", total, avail));
	else
		kvx_report_add(
		    report, KVX_FINDING_WARN, "shm",
		    kvx_tool_printf("/dev/shm: %s, only %s free: engines' own shared memory "
				    "may fail (regions are memfds and not counted here)",
				    total, avail),
		    kvx_tool_strdup("a larger --shm-size for the container, or remove what "
				    "an engine left behind in /dev/shm"));
}

static void memory_available(struct kvx_report *report)
{
	char avail[KVX_UNIT_BYTES], total[KVX_UNIT_BYTES], line[64];
	uint64_t avail_kib = 0, total_kib = 0, limit = 0;

	kvx_read_field("/proc/meminfo", "MemAvailable", &avail_kib);
	kvx_read_field("/proc/meminfo", "MemTotal", &total_kib);
	if (kvx_read_line("/sys/fs/cgroup/memory.max", line, sizeof(line)))
		limit = strtoull(line, NULL, 10);
	kvx_unit_bytes(avail, avail_kib << 10);
	kvx_unit_bytes(total, total_kib << 10);
	if (limit > 0 && limit < total_kib << 10)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "memory",
		    kvx_tool_printf("%s of %s available, but the memory cgroup allows %s: "
				    "regions are charged to it",
				    avail, total, kvx_unit_bytes(line, limit)),
		    kvx_tool_strdup("raise the container's memory limit above the KV caches"));
	else
		kvx_report_ok(report, "memory",
			      kvx_tool_printf("%s of %s available", avail, total));
}

/* "always [madvise] never" -> "madvise" */
static const char *chosen_word(char *line)
{
	char *start = strchr(line, '['), *end = start ? strchr(start, ']') : NULL;

	if (!end)
		return line;
	*end = '\0';
	return start + 1;
}

static void memory_thp(struct kvx_report *report)
{
	char enabled[128], shmem[128];

	if (!kvx_read_line("/sys/kernel/mm/transparent_hugepage/enabled", enabled,
			   sizeof(enabled)) ||
	    !kvx_read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem,
			   sizeof(shmem))) {
		kvx_report_ok(report, "thp",
			      kvx_tool_strdup("no transparent huge pages in this kernel"));
		return;
	}
	const char *for_shmem = chosen_word(shmem);

	if (strcmp(for_shmem, "never") == 0 || strcmp(for_shmem, "deny") == 0)
		kvx_report_ok(
		    report, "thp",
		    kvx_tool_printf("%s; for shared memory %s, so regions have 4 KiB pages "
				    "(`advise` gives 5-10 %% at 4 KiB blocks)",
				    chosen_word(enabled), for_shmem));
	else
		kvx_report_ok(
		    report, "thp",
		    kvx_tool_printf("%s; for shared memory %s", chosen_word(enabled), for_shmem));
}

void kvx_doctor_memory(struct kvx_report *report)
{
	memory_available(report);
	memory_hugepages(report);
	memory_shm(report);
	memory_thp(report);
}

void kvx_doctor_network(struct kvx_report *report)
{
	char line[64];

	if (!kvx_read_line("/proc/sys/net/ipv4/tcp_congestion_control", line, sizeof(line)))
		return;
	if (strcmp(line, "bbr") == 0)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "tcp",
		    kvx_tool_strdup("congestion control is bbr: 20-45 % slower than cubic on "
				    "loopback and in a rack"),
		    kvx_tool_strdup("sysctl net.ipv4.tcp_congestion_control=cubic"));
	else
		kvx_report_ok(report, "tcp", kvx_tool_printf("congestion control is %s", line));
}

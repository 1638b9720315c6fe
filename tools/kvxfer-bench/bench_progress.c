/* Progress on stderr, and what machine this is. */
#include "bench.h"

#include <json-c/json.h>
#include <stdarg.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "transport/copy_kernels.h"

#define BAR 24u

void kvx_progress_step(struct kvx_progress *progress, const char *fmt, ...)
{
	bool tty = isatty(STDERR_FILENO) != 0;
	unsigned total = progress->total ? progress->total : 1;
	unsigned filled = BAR * progress->done / total;
	va_list args;

	progress->done++;
	if (progress->quiet)
		return;
	if (tty)
		fprintf(stderr, "\r\033[K[%.*s%*s] %u/%u ", (int)filled, "########################",
			(int)(BAR - filled), "", progress->done, progress->total);
	else
		fprintf(stderr, "[%u/%u] ", progress->done, progress->total);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputs(tty ? "" : "\n", stderr);
	fflush(stderr);
}

void kvx_progress_end(struct kvx_progress *progress)
{
	if (!progress->quiet && progress->done > 0 && isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}

static void file_line(const char *path, char *buf, size_t buf_bytes)
{
	FILE *f = fopen(path, "re");

	snprintf(buf, buf_bytes, "unknown");
	if (f && fgets(buf, (int)buf_bytes, f))
		buf[strcspn(buf, "\n")] = '\0';
	if (f)
		fclose(f);
}

static void cpu_model(char *buf, size_t buf_bytes)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256];

	snprintf(buf, buf_bytes, "unknown");
	while (f && fgets(line, sizeof(line), f)) {
		char *value = strstr(line, ": ");

		if (strncmp(line, "model name", 10) != 0 || !value)
			continue;
		value[strcspn(value, "\n")] = '\0';
		snprintf(buf, buf_bytes, "%s", value + 2);
		break;
	}
	if (f)
		fclose(f);
}

struct json_object *kvx_machine_json(void)
{
	struct json_object *obj = json_object_new_object();
	char text[256];
	struct utsname name;

	uname(&name);
	cpu_model(text, sizeof(text));
	kvx_json_set_str(obj, "cpu", text);
	kvx_json_set_u64(obj, "cores", (uint64_t)sysconf(_SC_NPROCESSORS_ONLN));
	kvx_json_set_str(obj, "kernel", name.release);
	kvx_json_set_str(obj, "copy_isa", kvx_copy_isa());
	file_line("/proc/sys/net/ipv4/tcp_congestion_control", text, sizeof(text));
	kvx_json_set_str(obj, "tcp_congestion_control", text);
	file_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", text, sizeof(text));
	kvx_json_set_str(obj, "thp_shmem", text);
	return obj;
}

void kvx_machine_print(FILE *f)
{
	struct json_object *obj = kvx_machine_json();

	fprintf(f, "%s, %s cores, Linux %s, copy kernels %s, TCP %s\n", kvx_json_str(obj, "cpu"),
		kvx_json_str(obj, "cores"), kvx_json_str(obj, "kernel"),
		kvx_json_str(obj, "copy_isa"), kvx_json_str(obj, "tcp_congestion_control"));
	json_object_put(obj);
}

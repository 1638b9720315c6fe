/* Tries the GPU runtimes of this node in child processes, as kvxferctl doctor does. First thing in
 * a start: fork(2) is for a process of one thread, and a dlopen() that hangs would keep the
 * loader's lock from everybody else here. Says which runtime works, or why none does. */
#include "transport/gpu_try.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/log.h"
#include "gpu/gpu.h"

/* Both together; the second one has a little in any case. */
#define TRY_MS       30000u
#define TRY_LEAST_MS 5000u

static const struct {
	enum kvx_gpu_kind kind;
	const char *name, *key;
} runtimes[] = {{KVX_GPU_CUDA, "CUDA", "cuda"}, {KVX_GPU_HIP, "HIP", "hip"}};

/* Of what the daemon has open the child has but its own pipe: one that is left behind shall keep no
 * socket that systemd has handed over. */
static int try_tell(int fd, void *find)
{
	if (fd > STDERR_FILENO + 1)
		(void)close_range(STDERR_FILENO + 1, (unsigned)fd - 1, 0);
	(void)close_range((unsigned)fd + 1, UINT_MAX, 0);
	return kvx_gpu_tell(fd, find);
}

/* 0, or the -errno of kvx_gpu_open(), with the reason in words; -EIO: it does not return, or ended
 * the child. */
static int try_one(unsigned i, const char *dir, unsigned limit_ms, struct kvx_gpu_told *told)
{
	struct kvx_gpu_find find = {.kind = runtimes[i].kind, .dir = dir};
	static struct kvx_child child; /* large */
	char line[KVX_GPU_TOLD_BYTES], text[KVX_GPU_TOLD_BYTES];

	kvx_child_ask(try_tell, &find, limit_ms, line, sizeof(line), &child);
	bool said = child.end == KVX_CHILD_ANSWERED || child.end == KVX_CHILD_FAILED;
	if (said && kvx_gpu_told(line, told))
		return told->err;
	kvx_child_text(&child, runtimes[i].name, text, sizeof(text));
	snprintf(told->why, sizeof(told->why), "%.*s", KVX_WHY_BYTES - 1, text);
	kvx_warn("gpu: %s: it is not used until the daemon starts anew", told->why);
	return -EIO;
}

/* The folder that somebody took the trouble to name is not where the library comes from. */
static void check_dir(const struct kvx_gpu_conf *conf, const struct kvx_gpu_told *told)
{
	const char *dir = conf->library_dir;
	size_t len = strlen(dir);

	if (len == 0 || (strncmp(told->file, dir, len) == 0 && told->file[len] == '/'))
		return;
	if (access(dir, X_OK) < 0)
		kvx_warn("gpu: [gpu] library_dir %s: %s; %s is used", dir, strerror(errno),
			 told->file);
	else
		kvx_warn("gpu: [gpu] library_dir %s has no library that can be loaded; %s is used",
			 dir, told->file);
}

/* Why the runtimes do not work is said of the one that is most likely meant: whose library is
 * there. */
static void note_reason(struct kvx_gpu_conf *conf, int *err, int rc, const char *why)
{
	size_t len = rc == -ENOENT ? strlen(conf->refused) : 0;

	if (*err != -ENOENT)
		return;
	snprintf(conf->refused + len, sizeof(conf->refused) - len, "%s%s", len > 0 ? ", " : "",
		 why);
	*err = rc;
}

void kvx_gpu_try(struct kvx_gpu_conf *conf)
{
	bool any = conf->runtime[0] == '\0' || strcmp(conf->runtime, "auto") == 0;
	uint64_t end_ns = kvx_now_ns() + TRY_MS * KVX_MS;
	int err = -ENOENT;

	conf->tried = 0;
	conf->refused[0] = '\0';
	for (unsigned i = 0; i < sizeof(runtimes) / sizeof(runtimes[0]); i++) {
		struct kvx_gpu_told told = {.err = 0};
		uint64_t now_ns = kvx_now_ns();
		unsigned left_ms = now_ns < end_ns ? (unsigned)((end_ns - now_ns) / KVX_MS) : 0;

		if (!any && strcmp(conf->runtime, runtimes[i].key) != 0)
			continue;
		int rc = try_one(i, conf->library_dir,
				 left_ms > TRY_LEAST_MS ? left_ms : TRY_LEAST_MS, &told);
		if (rc == 0) {
			check_dir(conf, &told);
			conf->tried = (int)runtimes[i].kind;
			conf->refused[0] = '\0';
			return;
		}
		note_reason(conf, &err, rc, told.why);
	}
	if (conf->refused[0] == '\0')
		snprintf(conf->refused, sizeof(conf->refused), "no GPU runtime works");
}

/* A runtime that is tried in a child process: the child's line, written and read. The library may
 * write what it likes to standard output; the line has a pipe of its own. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "gpu/gpu_priv.h"

enum { TELL_REFUSED = 10 };

int kvx_gpu_tell(int fd, void *find)
{
	struct kvx_why why = {.text = ""};
	struct kvx_gpu *gpu;
	int version = 0, n = 0, err = kvx_gpu_open(find, &gpu, &why);

	if (err == 0) {
		err = gpu->ops->version(gpu, &version);
		if (err == 0)
			err = gpu->ops->count(gpu, &n);
		if (err < 0)
			kvx_why(&why, err, "it does not answer: error %d", kvx_gpu_code());
	}
	if (err < 0) {
		why.text[strcspn(why.text, "\n")] = '\0';
		dprintf(fd, "why|%d|%s\n", err, why.text);
		return TELL_REFUSED;
	}
	dprintf(fd, "file|%d|%d|%u|%s\n", version, n, gpu->caps, gpu->library);
	return 0;
}

static void take_rest(char *out, size_t out_bytes, const char *from)
{
	snprintf(out, out_bytes, "%.*s", (int)strcspn(from, "\n"), from);
}

bool kvx_gpu_told(const char *line, struct kvx_gpu_told *out_told)
{
	struct kvx_gpu_told told = {.err = 0};
	int at = 0;

	(void)sscanf(line, "why|%d|%n", &told.err, &at);
	if (at > 0) {
		take_rest(told.why, sizeof(told.why), line + at);
		if (told.err >= 0)
			told.err = -EIO;
	} else {
		(void)sscanf(line, "file|%d|%d|%u|%n", &told.version, &told.n_devices, &told.caps,
			     &at);
		take_rest(told.file, sizeof(told.file), line + at);
	}
	if (at == 0)
		return false;
	*out_told = told;
	return true;
}

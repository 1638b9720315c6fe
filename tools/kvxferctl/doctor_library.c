/* doctor: asks libibverbs in a child process, which loads it and reports in lines on a pipe. Needs
 * no header of it: four functions that have not changed in its lifetime are looked up by name, so
 * that kvxferctl starts on nodes without it. */
#include "doctor_library.h"

#include "base/child.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Exit statuses of the child. */
enum { CHILD_OK = 0, CHILD_MISSING = 10, CHILD_FOREIGN = 11 };

/* As in <infiniband/verbs.h>, with its structs unseen. */
struct library_calls {
	void **(*list)(int *n);
	const char *(*name)(void *device);
	void *(*open)(void *device);
	int (*close)(void *ctx);
};

static void child_find(void *library, const char *name, void *out_call)
{
	void *symbol = dlsym(library, name);

	if (symbol == NULL)
		_exit(CHILD_FOREIGN);
	memcpy(out_call, &symbol, sizeof(symbol)); /* ISO C has no cast for this, POSIX has */
}

static void child_say_path(const struct library_calls *calls, int fd)
{
	void *symbol;
	char *path;
	Dl_info info;

	memcpy(&symbol, &calls->list, sizeof(symbol));
	if (dladdr(symbol, &info) == 0 || info.dli_fname == NULL)
		return;
	path = realpath(info.dli_fname, NULL); /* the release is in the file's name */
	dprintf(fd, "path %s\n", path != NULL ? path : info.dli_fname);
	free(path);
}

/* Each device is announced before it is opened: when that is the end, it is known of which. */
static int child_run(int fd, void *soname)
{
	struct library_calls calls;
	void *library, **devices;
	int n = 0;

	(void)setenv("IBV_SHOW_WARNINGS", "1", 1);
	library = dlopen(soname, RTLD_NOW);
	if (library == NULL)
		return CHILD_MISSING;
	child_find(library, "ibv_get_device_list", &calls.list);
	child_find(library, "ibv_get_device_name", &calls.name);
	child_find(library, "ibv_open_device", &calls.open);
	child_find(library, "ibv_close_device", &calls.close);
	child_say_path(&calls, fd);
	devices = calls.list(&n);
	for (int i = 0; devices != NULL && i < n; i++) {
		void *ctx;

		dprintf(fd, "open %s\n", calls.name(devices[i]));
		errno = 0;
		ctx = calls.open(devices[i]);
		dprintf(fd, "done %d\n", ctx != NULL ? 0 : errno != 0 ? errno : EIO);
		if (ctx != NULL)
			(void)calls.close(ctx);
	}
	return CHILD_OK;
}

static void take_line(struct kvx_library *library, const char *line)
{
	struct kvx_library_device *device = &library->devices[library->n_devices];

	if (sscanf(line, "path %255[^\n]", library->path) == 1)
		return;
	if (sscanf(line, "open %63[^\n]", library->last) == 1)
		return;
	if (library->n_devices == KVX_LIBRARY_DEVICES ||
	    sscanf(line, "done %d", &device->open_errno) != 1)
		return;
	memcpy(device->name, library->last, sizeof(device->name));
	library->last[0] = '\0';
	library->n_devices++;
}

static void library_end(struct kvx_library *library, const struct kvx_child *child)
{
	library->number = child->number;
	switch (child->end) {
	case KVX_CHILD_ANSWERED:
		library->end = KVX_LIBRARY_ANSWERED;
		break;
	case KVX_CHILD_CRASHED:
		library->end = KVX_LIBRARY_CRASHED;
		break;
	case KVX_CHILD_HUNG:
		library->end = KVX_LIBRARY_HUNG;
		break;
	case KVX_CHILD_NOT_STARTED:
		library->end = KVX_LIBRARY_FAILED;
		break;
	case KVX_CHILD_FAILED:
		if (child->number == CHILD_MISSING) {
			library->end = KVX_LIBRARY_MISSING;
			library->number = 0;
		} else { /* not what it is named for, or a provider that exits */
			library->end = KVX_LIBRARY_FAILED;
			library->number = ENOEXEC;
		}
		break;
	}
}

void kvx_library_ask(const char *soname, unsigned limit_ms, struct kvx_library *out_library)
{
	char lines[16384], *rest = lines, *line;
	struct kvx_child child;

	memset(out_library, 0, sizeof(*out_library));
	kvx_child_ask(child_run, (void *)(uintptr_t)soname, limit_ms, lines, sizeof(lines), &child);
	library_end(out_library, &child);
	memcpy(out_library->words, child.words, sizeof(out_library->words));
	memcpy(out_library->left, child.left, sizeof(out_library->left));
	while ((line = strsep(&rest, "\n")) != NULL)
		take_line(out_library, line);
}

char *kvx_library_release(const struct kvx_library *library, char *buf, unsigned buf_bytes)
{
	const char *name = strrchr(library->path, '/');
	unsigned major, minor;

	buf[0] = '\0';
	if (name != NULL && sscanf(name, "/libibverbs.so.1.%*u.%u.%u", &major, &minor) == 2)
		snprintf(buf, buf_bytes, "%u.%u", major, minor);
	return buf;
}

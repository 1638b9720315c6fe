/* doctor: asks libibverbs in a child process, which loads it and reports in lines on a pipe. Needs
 * no header of it: four functions that have not changed in its lifetime are looked up by name, so
 * that kvxferctl starts on nodes without it. */
#include "doctor_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
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

/* A crash shall look like one, whoever handles such signals in this program, and leave no core. */
static void child_die_plainly(void)
{
	static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
	struct rlimit no_core = {0, 0};

	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		(void)signal(fatal[i], SIG_DFL);
	(void)setrlimit(RLIMIT_CORE, &no_core);
}

/* Each device is announced before it is opened: when that is the end, it is known of which. */
static void child_run(const char *soname, int fd)
{
	struct library_calls calls;
	void *library, **devices;
	int n = 0;

	child_die_plainly();
	(void)setenv("IBV_SHOW_WARNINGS", "1", 1);
	library = dlopen(soname, RTLD_NOW);
	if (library == NULL)
		_exit(CHILD_MISSING);
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
	_exit(CHILD_OK);
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

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

struct stream {
	char *buf;
	size_t used, room;
};

/* Takes what is there; what does not fit is dropped. False: the other end is closed. */
static bool stream_read(struct stream *stream, int fd)
{
	char spill[512];
	bool full = stream->used + 1 >= stream->room;
	ssize_t n = full ? read(fd, spill, sizeof(spill))
			 : read(fd, stream->buf + stream->used, stream->room - 1 - stream->used);

	if (n > 0 && !full)
		stream->used += (size_t)n;
	stream->buf[stream->used] = '\0';
	return n > 0 || (n < 0 && errno == EINTR);
}

/* Until both streams are closed; false: the time is over. */
static bool child_listen(int lines_fd, int words_fd, struct stream *lines, struct stream *words,
			 unsigned limit_ms)
{
	uint64_t end_ms = now_ms() + limit_ms;
	struct pollfd fds[2] = {{.fd = lines_fd, .events = POLLIN},
				{.fd = words_fd, .events = POLLIN}};

	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		uint64_t now = now_ms();

		if (now >= end_ms)
			return false;
		if (poll(fds, 2, (int)(end_ms - now)) < 0) {
			if (errno != EINTR)
				return false;
			continue;
		}
		if (fds[0].revents != 0 && !stream_read(lines, fds[0].fd))
			fds[0].fd = -1;
		if (fds[1].revents != 0 && !stream_read(words, fds[1].fd))
			fds[1].fd = -1;
	}
	return true;
}

static void library_end(struct kvx_library *library, pid_t pid, bool in_time)
{
	int status = 0;

	if (!in_time)
		(void)kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!in_time) {
		library->end = KVX_LIBRARY_HUNG;
	} else if (WIFSIGNALED(status)) {
		library->end = KVX_LIBRARY_CRASHED;
		library->number = WTERMSIG(status);
	} else if (WEXITSTATUS(status) == CHILD_OK) {
		library->end = KVX_LIBRARY_ANSWERED;
	} else if (WEXITSTATUS(status) == CHILD_MISSING) {
		library->end = KVX_LIBRARY_MISSING;
	} else { /* not what it is named for, or a provider that exits */
		library->end = KVX_LIBRARY_FAILED;
		library->number = ENOEXEC;
	}
}

static void library_fail(struct kvx_library *library, int error)
{
	library->end = KVX_LIBRARY_FAILED;
	library->number = error;
}

void kvx_library_ask(const char *soname, unsigned limit_ms, struct kvx_library *out_library)
{
	char lines_buf[16384] = "", *rest = lines_buf, *line;
	struct stream lines = {.buf = lines_buf, .room = sizeof(lines_buf)};
	struct stream words = {.buf = out_library->words, .room = sizeof(out_library->words)};
	int lines_fd[2], words_fd[2];
	bool in_time;
	pid_t pid;

	memset(out_library, 0, sizeof(*out_library));
	if (pipe2(lines_fd, O_CLOEXEC) != 0) {
		library_fail(out_library, errno);
		return;
	}
	if (pipe2(words_fd, O_CLOEXEC) != 0) {
		library_fail(out_library, errno);
		close(lines_fd[0]);
		close(lines_fd[1]);
		return;
	}
	(void)fflush(NULL); /* or the child would have it too */
	pid = fork();
	if (pid == 0) {
		if (dup2(words_fd[1], STDERR_FILENO) < 0 || dup2(words_fd[1], STDOUT_FILENO) < 0)
			_exit(CHILD_FOREIGN);
		child_run(soname, lines_fd[1]);
	}
	close(lines_fd[1]);
	close(words_fd[1]);
	if (pid < 0) {
		library_fail(out_library, errno);
	} else {
		in_time = child_listen(lines_fd[0], words_fd[0], &lines, &words, limit_ms);
		library_end(out_library, pid, in_time);
	}
	while ((line = strsep(&rest, "\n")) != NULL)
		take_line(out_library, line);
	close(lines_fd[0]);
	close(words_fd[0]);
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

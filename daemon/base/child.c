/* A child process that loads what this one does not want to: its lines come over a pipe, its words
 * over another one that stands for standard output and standard error. */
#include "base/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct stream {
	int fd; /* -1: at its end */
	char *buf;
	size_t used, room;
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Takes what is there; of too much the beginning is kept. */
static void stream_read(struct stream *stream)
{
	char chunk[4096];
	ssize_t n = read(stream->fd, chunk, sizeof(chunk));
	size_t room = stream->room - 1 - stream->used;

	if (n > 0) {
		size_t take = (size_t)n < room ? (size_t)n : room;

		memcpy(stream->buf + stream->used, chunk, take);
		stream->used += take;
		stream->buf[stream->used] = '\0';
	} else if (n == 0 || errno != EINTR) {
		close(stream->fd);
		stream->fd = -1;
	}
}

/* False: the time is over. */
static bool streams_read(struct stream *streams, unsigned limit_ms)
{
	uint64_t end_ms = now_ms() + limit_ms;

	while (streams[0].fd >= 0 || streams[1].fd >= 0) {
		struct pollfd fds[2] = {{.fd = streams[0].fd, .events = POLLIN},
					{.fd = streams[1].fd, .events = POLLIN}};
		uint64_t now = now_ms();

		if (now >= end_ms)
			return false;
		if (poll(fds, 2, (int)(end_ms - now)) < 0 && errno != EINTR)
			return false;
		for (unsigned i = 0; i < 2; i++)
			if (streams[i].fd >= 0 && fds[i].revents != 0)
				stream_read(&streams[i]);
	}
	return true;
}

/* Not for ever: a driver can keep a process in the kernel, where even SIGKILL does not reach it. */
static bool child_reap(pid_t pid, int *out_status)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	uint64_t end_ms = now_ms() + KVX_CHILD_END_MS;

	for (;;) {
		pid_t got = waitpid(pid, out_status, WNOHANG);

		if (got == pid || (got < 0 && errno != EINTR))
			return true;
		if (now_ms() >= end_ms)
			return false;
		(void)nanosleep(&pause, NULL);
	}
}

static void child_end(struct kvx_child *child, pid_t pid, bool in_time)
{
	int status = 0;

	if (!in_time || !child_reap(pid, &status)) {
		in_time = false;
		(void)kill(pid, SIGKILL);
		if (!child_reap(pid, &status))
			(void)snprintf(child->left, sizeof(child->left),
				       ", and its process %d cannot be ended: it is left behind, "
				       "see dmesg for the driver",
				       (int)pid);
	}
	if (!in_time) {
		child->end = KVX_CHILD_HUNG;
	} else if (WIFSIGNALED(status)) {
		child->end = KVX_CHILD_CRASHED;
		child->number = WTERMSIG(status);
	} else if (WEXITSTATUS(status) != 0) {
		child->end = KVX_CHILD_FAILED;
		child->number = WEXITSTATUS(status);
	}
}

/* A crash shall look like one and leave no core. */
static void die_plainly(void)
{
	static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
	struct rlimit no_core = {0, 0};

	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		(void)signal(fatal[i], SIG_DFL);
	(void)setrlimit(RLIMIT_CORE, &no_core);
}

const char *kvx_child_last_line(struct kvx_child *child)
{
	char *words = child->words;
	size_t len = strlen(words);
	const char *line;

	while (len > 0 && words[len - 1] == '\n')
		words[--len] = '\0';
	line = strrchr(words, '\n');
	return line != NULL ? line + 1 : words;
}

const char *kvx_child_text(struct kvx_child *child, const char *name, char *buf, size_t buf_bytes)
{
	const char *words = kvx_child_last_line(child);
	const char *colon = *words != '\0' ? ": " : "";

	switch (child->end) {
	case KVX_CHILD_HUNG:
		snprintf(buf, buf_bytes, "%s does not return when it is started%s", name,
			 child->left);
		break;
	case KVX_CHILD_CRASHED:
		snprintf(buf, buf_bytes, "%s crashes when it is started (%s)%s%s", name,
			 strsignal(child->number), colon, words);
		break;
	case KVX_CHILD_NOT_STARTED:
		snprintf(buf, buf_bytes, "%s was not tried: no process for it: %s", name,
			 strerror(child->number));
		break;
	case KVX_CHILD_ANSWERED:
	case KVX_CHILD_FAILED:
		snprintf(buf, buf_bytes, "%s ends the program when it is started%s%s", name, colon,
			 words);
		break;
	}
	return buf;
}

static int child_start(int (*body)(int fd, void *arg), void *arg, int fd, int words_fd,
		       pid_t *out_pid)
{
	(void)fflush(NULL); /* or the child would have it too */
	*out_pid = fork();
	if (*out_pid == 0) {
		if (dup2(words_fd, STDERR_FILENO) < 0 || dup2(words_fd, STDOUT_FILENO) < 0)
			_exit(127);
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		die_plainly();
		_exit(body(fd, arg));
	}
	return *out_pid < 0 ? errno : 0;
}

void kvx_child_ask(int (*body)(int fd, void *arg), void *arg, unsigned limit_ms, char *buf,
		   size_t buf_bytes, struct kvx_child *out_child)
{
	struct kvx_child *child = out_child;
	int fds[2] = {-1, -1}, words_fds[2] = {-1, -1};
	pid_t pid = -1;

	*child = (struct kvx_child){.end = KVX_CHILD_ANSWERED};
	buf[0] = '\0';
	if (pipe2(fds, O_CLOEXEC) != 0 || pipe2(words_fds, O_CLOEXEC) != 0)
		child->number = errno;
	else
		child->number = child_start(body, arg, fds[1], words_fds[1], &pid);
	close(fds[1]);
	close(words_fds[1]);
	struct stream streams[2] = {
	    {.fd = fds[0], .buf = buf, .room = buf_bytes},
	    {.fd = words_fds[0], .buf = child->words, .room = sizeof(child->words)}};
	if (child->number != 0)
		child->end = KVX_CHILD_NOT_STARTED;
	else
		child_end(child, pid, streams_read(streams, limit_ms));
	for (unsigned i = 0; i < 2; i++)
		if (streams[i].fd >= 0)
			close(streams[i].fd);
}

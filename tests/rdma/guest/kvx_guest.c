/* The first process of a test guest: runs commands that the harness sends over a virtio-serial
 * port, many at a time, and sends back what they print and how they end. One thread, one poll loop.
 * It reaps every orphan too, as it is process 1.
 *
 * From the harness, each a line and, where a length is given, that many bytes:
 *   R id timeout_ms len    run the bytes with /bin/sh -c; timeout_ms 0: no limit
 *   I id len               bytes for the command's standard input; len 0 closes it
 *   K id signal            a signal to the command's process group
 * To the harness:
 *   H                      ready
 *   O id len / E id len    bytes of standard output / standard error
 *   X id code              ended: the exit code, 128 + signal, or 124 when its time was over
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_COMMANDS      64
#define MAX_COMMAND_BYTES 65536
#define EXIT_TIMED_OUT    124
/* What a command's children may still print after it has ended, when they hold its output open. */
#define LINGER_MS 200

struct command {
	bool used, ended, timed_out;
	unsigned id;
	pid_t pid;
	int code;
	int in, out, err;    /* pipe ends of ours; -1: closed */
	int64_t end_ms;      /* time limit; 0: none */
	int64_t ended_at_ms; /* when it was reaped */
};

static struct command commands[MAX_COMMANDS];
static int port = -1;

static void die(const char *what)
{
	fprintf(stderr, "kvx_guest: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- the port */

/* All of it. While the harness is not connected the port is readable as closed: wait for it. */
static void port_write(const void *data, size_t len)
{
	const char *at = data;

	while (len > 0) {
		ssize_t n = write(port, at, len);

		if (n < 0 && errno != EINTR && errno != EAGAIN)
			die("write to the port");
		if (n < 0) {
			usleep(10000);
			continue;
		}
		at += n;
		len -= (size_t)n;
	}
}

__attribute__((format(printf, 1, 2))) static void port_line(const char *format, ...)
{
	char line[128];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	port_write(line, (size_t)n);
}

/* One byte at least; the port reads as ended while nobody is connected on the host's side. */
static size_t port_read_some(char *data, size_t len)
{
	for (;;) {
		ssize_t n = read(port, data, len);

		if (n > 0)
			return (size_t)n;
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			die("read from the port");
		usleep(10000);
	}
}

static void port_read(char *data, size_t len)
{
	while (len > 0) {
		size_t n = port_read_some(data, len);

		data += n;
		len -= n;
	}
}

static void port_read_line(char *line, size_t size)
{
	size_t n = 0;

	for (;;) {
		port_read_some(line + n, 1);
		if (line[n] == '\n')
			break;
		if (++n == size) {
			errno = EMSGSIZE;
			die("a line of the port");
		}
	}
	line[n] = '\0';
}

/* ---- commands */

static struct command *command_find(unsigned id)
{
	for (unsigned i = 0; i < MAX_COMMANDS; i++)
		if (commands[i].used && commands[i].id == id)
			return &commands[i];
	return NULL;
}

static struct command *command_find_pid(pid_t pid)
{
	for (unsigned i = 0; i < MAX_COMMANDS; i++)
		if (commands[i].used && !commands[i].ended && commands[i].pid == pid)
			return &commands[i];
	return NULL;
}

static struct command *command_free(void)
{
	for (unsigned i = 0; i < MAX_COMMANDS; i++)
		if (!commands[i].used)
			return &commands[i];
	return NULL;
}

static void close_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void child_run(const int *in, const int *out, const int *err, const char *text)
{
	sigset_t none;

	setsid();
	dup2(in[0], STDIN_FILENO);
	dup2(out[1], STDOUT_FILENO);
	dup2(err[1], STDERR_FILENO);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	execl("/bin/sh", "sh", "-c", text, (char *)NULL);
	_exit(127);
}

static void command_start(unsigned id, long timeout_ms, const char *text)
{
	struct command *c = command_free();
	int in[2], out[2], err[2];

	if (c == NULL) {
		port_line("X %u 126\n", id);
		return;
	}
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		die("pipe");
	*c = (struct command){.used = true, .id = id, .in = in[1], .out = out[0], .err = err[0]};
	c->end_ms = timeout_ms > 0 ? now_ms() + timeout_ms : 0;
	c->pid = fork();
	if (c->pid < 0)
		die("fork");
	if (c->pid == 0)
		child_run(in, out, err, text);
	close(in[0]);
	close(out[1]);
	close(err[1]);
	fcntl(c->in, F_SETFL, O_NONBLOCK);
}

/* What a full pipe does not take is lost, and said: drivers read a few lines only. */
static void command_input(unsigned id, const char *data, size_t len)
{
	struct command *c = command_find(id);

	if (c == NULL || c->in < 0)
		return;
	if (len == 0)
		close_end(&c->in);
	else if (write(c->in, data, len) != (ssize_t)len)
		fprintf(stderr, "kvx_guest: command %u: %zu bytes of input lost\n", id, len);
}

static void command_signal(unsigned id, int sig)
{
	struct command *c = command_find(id);

	if (c != NULL && !c->ended)
		kill(-c->pid, sig);
}

/* False: the other end is closed and all was read. */
static bool forward(char kind, unsigned id, int fd)
{
	char data[8192];
	ssize_t n = read(fd, data, sizeof(data));

	if (n <= 0)
		return false;
	port_line("%c %u %zd\n", kind, id, n);
	port_write(data, (size_t)n);
	return true;
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct command *c = command_find_pid(pid);

		if (c == NULL)
			continue;
		c->ended = true;
		c->ended_at_ms = now_ms();
		c->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
}

static void command_finish(struct command *c)
{
	close_end(&c->in);
	close_end(&c->out);
	close_end(&c->err);
	port_line("X %u %d\n", c->id, c->timed_out ? EXIT_TIMED_OUT : c->code);
	c->used = false;
}

static void commands_check(void)
{
	int64_t now = now_ms();

	for (unsigned i = 0; i < MAX_COMMANDS; i++) {
		struct command *c = &commands[i];

		if (!c->used)
			continue;
		if (!c->ended && c->end_ms != 0 && now >= c->end_ms) {
			c->timed_out = true;
			c->end_ms = 0;
			kill(-c->pid, SIGKILL);
		}
		if (c->ended && ((c->out < 0 && c->err < 0) || now >= c->ended_at_ms + LINGER_MS))
			command_finish(c);
	}
}

/* ---- the loop */

static void take_request(void)
{
	static char text[MAX_COMMAND_BYTES + 1];
	char line[128];
	unsigned id, len;
	long timeout_ms;
	int sig;

	port_read_line(line, sizeof(line));
	if (sscanf(line, "R %u %ld %u", &id, &timeout_ms, &len) == 3 && len <= MAX_COMMAND_BYTES) {
		port_read(text, len);
		text[len] = '\0';
		command_start(id, timeout_ms, text);
	} else if (sscanf(line, "I %u %u", &id, &len) == 2 && len <= MAX_COMMAND_BYTES) {
		port_read(text, len);
		command_input(id, text, len);
	} else if (sscanf(line, "K %u %d", &id, &sig) == 2) {
		command_signal(id, sig);
	} else {
		fprintf(stderr, "kvx_guest: not understood: %s\n", line);
		exit(1);
	}
}

static void forward_all(const struct pollfd *fds)
{
	for (unsigned i = 0; i < MAX_COMMANDS; i++) {
		struct command *c = &commands[i];
		const struct pollfd *out = &fds[1 + 2 * i], *err = &fds[2 + 2 * i];

		if (!c->used)
			continue;
		if (out->fd >= 0 && out->revents != 0 && !forward('O', c->id, c->out))
			close_end(&c->out);
		if (err->fd >= 0 && err->revents != 0 && !forward('E', c->id, c->err))
			close_end(&c->err);
	}
}

static void on_child(int sig)
{
}

int main(int argc, char **argv)
{
	static struct pollfd fds[1 + 2 * MAX_COMMANDS];
	sigset_t child, none;
	struct sigaction action = {.sa_handler = on_child};

	if (argc != 2) {
		fprintf(stderr, "usage: kvx_guest PORT\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGCHLD, &action, NULL);
	sigemptyset(&none);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL); /* taken in ppoll only */
	port = open(argv[1], O_RDWR | O_CLOEXEC);
	if (port < 0)
		die(argv[1]);
	port_line("H\n");
	for (;;) {
		const struct timespec tick = {.tv_nsec = 100000000};

		fds[0] = (struct pollfd){.fd = port, .events = POLLIN};
		for (unsigned i = 0; i < MAX_COMMANDS; i++) {
			const struct command *c = &commands[i];

			fds[1 + 2 * i] =
			    (struct pollfd){.fd = c->used ? c->out : -1, .events = POLLIN};
			fds[2 + 2 * i] =
			    (struct pollfd){.fd = c->used ? c->err : -1, .events = POLLIN};
		}
		if (ppoll(fds, 1 + 2 * MAX_COMMANDS, &tick, &none) > 0) {
			forward_all(fds);
			if (fds[0].revents & POLLIN)
				take_request();
			else if (fds[0].revents & POLLHUP)
				usleep(10000);
		}
		reap();
		commands_check();
	}
}

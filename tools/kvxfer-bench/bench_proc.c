/* Child processes of the benchmark: daemons, each a node with its own socket, port and directory,
 * and engines. All are stopped by their pid, also when the program ends early; the temporary
 * directory goes with them. Main thread of the first process only. */
#include "bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kvxfer/client.h"

#define MAX_DAEMONS      8u
#define START_TIMEOUT_NS 15000000000ull

static char bench_dir[KVX_BENCH_PATH];
static pid_t owner;
static volatile pid_t daemons[MAX_DAEMONS];

static void sleep_ms(unsigned ms)
{
	struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&pause, NULL);
}

static void dir_remove(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		struct stat st;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISDIR(st.st_mode)) {
			char *sub = kvx_tool_printf("%s/%s", path, entry->d_name);

			dir_remove(sub);
			free(sub);
		} else {
			unlinkat(dirfd(dir), entry->d_name, 0);
		}
	}
	if (dir)
		closedir(dir);
	rmdir(path);
}

static void on_exit_clean(void)
{
	if (getpid() != owner)
		return;
	for (unsigned i = 0; i < MAX_DAEMONS; i++) {
		struct kvx_daemon daemon = {.pid = daemons[i]};

		kvx_daemon_stop(&daemon);
	}
	dir_remove(bench_dir);
}

/* exit(3) is not safe here, but the program has nothing better to do than to end with its children.
 */
static void on_signal(int signo)
{
	signal(signo, SIG_DFL);
	if (getpid() == owner) {
		for (unsigned i = 0; i < MAX_DAEMONS; i++)
			if (daemons[i] > 0)
				kill(daemons[i], SIGTERM);
		dir_remove(bench_dir);
	}
	raise(signo);
}

const char *kvx_bench_dir(void)
{
	const char *tmp = getenv("TMPDIR");

	if (bench_dir[0])
		return bench_dir;
	/* A socket path has 108 bytes: a long TMPDIR is no place for one. */
	if (!tmp || !*tmp || strlen(tmp) > 60)
		tmp = "/tmp";
	snprintf(bench_dir, sizeof(bench_dir), "%s/kvxfer-bench.XXXXXX", tmp);
	if (!mkdtemp(bench_dir)) {
		kvx_tool_error("%s: %s", bench_dir, strerror(errno));
		bench_dir[0] = '\0';
		return NULL;
	}
	owner = getpid();
	atexit(on_exit_clean);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	return bench_dir;
}

/* The daemon's binary: beside this program (build tree and installed), then $PATH. */
static bool daemon_find(char *out, size_t out_bytes)
{
	static const char *const beside[] = {"kvxferd", "../../daemon/kvxferd", "../sbin/kvxferd"};
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	const char *path = getenv("PATH");
	char *dirs, *dir, *next;
	bool found = false;

	self[n > 0 ? n : 0] = '\0';
	if (strrchr(self, '/'))
		*strrchr(self, '/') = '\0';
	for (unsigned i = 0; i < sizeof(beside) / sizeof(beside[0]); i++) {
		snprintf(out, out_bytes, "%.4000s/%s", self, beside[i]);
		if (access(out, X_OK) == 0)
			return true;
	}
	dirs = kvx_tool_printf("%s:/usr/local/sbin:/usr/sbin", path ? path : "/usr/bin");
	for (dir = strtok_r(dirs, ":", &next); dir && !found; dir = strtok_r(NULL, ":", &next)) {
		snprintf(out, out_bytes, "%.4000s/kvxferd", dir);
		found = access(out, X_OK) == 0;
	}
	free(dirs);
	return found;
}

static void log_print_end(const struct kvx_daemon *daemon)
{
	FILE *f = fopen(daemon->log, "re");
	char line[512];

	if (!f)
		return;
	if (fseek(f, -2000, SEEK_END) == 0 && !fgets(line, sizeof(line), f))
		line[0] = '\0';
	while (fgets(line, sizeof(line), f))
		fprintf(stderr, "  %s", line);
	fclose(f);
}

static int config_write(const struct kvx_daemon_conf *conf, const char *dir,
			const struct kvx_daemon *daemon, const char *path)
{
	FILE *f = fopen(path, "we");

	if (!f) {
		kvx_tool_error("%s: %s", path, strerror(errno));
		return -1;
	}
	fprintf(f, "[daemon]\nsocket = %s\nnode_id_file = %s/node-id\nlog_level = %s\n",
		daemon->socket, dir, conf->verbose ? "debug" : "info");
	if (conf->copy_workers)
		fprintf(f, "[copy]\nworkers = %llu\n", (unsigned long long)conf->copy_workers);
	fprintf(f, "[peer]\nlisten = 127.0.0.1:0\n%s", conf->extra ? conf->extra : "");
	return fclose(f);
}

static void daemon_exec(const struct kvx_daemon_conf *conf, const char *binary,
			const struct kvx_daemon *daemon, const char *config)
{
	int log = open(daemon->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(null, STDIN_FILENO);
	if (!conf->verbose) {
		dup2(log, STDOUT_FILENO);
		dup2(log, STDERR_FILENO);
	}
	unsetenv("NOTIFY_SOCKET");
	execl(binary, binary, "--config", config, (char *)NULL);
	fprintf(stderr, "%s: %s\n", binary, strerror(errno));
	_exit(127);
}

/* Until it answers, has ended, or the time is over. */
static int daemon_await(struct kvx_daemon *daemon, const char *name)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = daemon->socket,
	    .name = "kvxfer-bench",
	    .timeout_ms = 2000,
	};
	uint64_t deadline = kvx_now_ns() + START_TIMEOUT_NS;
	struct kvxfer_client *client;
	int status;

	while (kvx_now_ns() < deadline) {
		if (kvxfer_client_open(&options, &client) == 0) {
			kvxfer_client_close(client);
			return KVX_BENCH_OK;
		}
		if (waitpid(daemon->pid, &status, WNOHANG) == daemon->pid) {
			kvx_tool_error("%s ended with %s %d:", name,
				       WIFEXITED(status) ? "exit status" : "signal",
				       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
			log_print_end(daemon);
			daemon->pid = 0;
			return KVX_BENCH_NO_DAEMON;
		}
		sleep_ms(10);
	}
	kvx_tool_error("%s does not answer on %s: %s", name, daemon->socket, kvxfer_open_error());
	log_print_end(daemon);
	return KVX_BENCH_NO_DAEMON;
}

static void daemons_note(pid_t old, pid_t pid)
{
	for (unsigned i = 0; i < MAX_DAEMONS; i++) {
		if (daemons[i] == old) {
			daemons[i] = pid;
			return;
		}
	}
}

int kvx_daemon_start(const struct kvx_daemon_conf *conf, const char *name,
		     struct kvx_daemon *out_daemon)
{
	struct kvx_daemon daemon = {0};
	char binary[PATH_MAX], dir[KVX_BENCH_PATH], config[KVX_BENCH_PATH + 16];
	const char *top = kvx_bench_dir();
	int rc;

	if (!top)
		return KVX_BENCH_NO_DAEMON;
	if (conf->binary)
		snprintf(binary, sizeof(binary), "%s", conf->binary);
	else if (!daemon_find(binary, sizeof(binary))) {
		kvx_tool_error(
		    "kvxferd is neither beside this program nor in $PATH: use --kvxferd PATH");
		return KVX_BENCH_NO_DAEMON;
	}
	snprintf(dir, sizeof(dir), "%.200s/%.20s", top, name);
	if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
		kvx_tool_error("%s: %s", dir, strerror(errno));
		return KVX_BENCH_NO_DAEMON;
	}
	snprintf(daemon.socket, sizeof(daemon.socket), "%.230s/kvxferd.sock", dir);
	snprintf(daemon.log, sizeof(daemon.log), "%.230s/kvxferd.log", dir);
	snprintf(config, sizeof(config), "%s/kvxferd.conf", dir);
	if (config_write(conf, dir, &daemon, config) != 0)
		return KVX_BENCH_NO_DAEMON;
	fflush(NULL);
	daemon.pid = fork();
	if (daemon.pid == 0)
		daemon_exec(conf, binary, &daemon, config);
	if (daemon.pid < 0) {
		kvx_tool_error("fork: %s", strerror(errno));
		return KVX_BENCH_NO_DAEMON;
	}
	daemons_note(0, daemon.pid);
	rc = daemon_await(&daemon, name);
	if (rc != KVX_BENCH_OK)
		kvx_daemon_stop(&daemon);
	else
		*out_daemon = daemon;
	return rc;
}

void kvx_daemon_stop(struct kvx_daemon *daemon)
{
	pid_t pid = daemon->pid;

	if (pid <= 0)
		return;
	kill(pid, SIGTERM);
	for (unsigned i = 0; i < 500 && waitpid(pid, NULL, WNOHANG) == 0; i++)
		sleep_ms(10);
	if (kill(pid, 0) == 0 && waitpid(pid, NULL, WNOHANG) == 0) {
		kvx_tool_error("kvxferd (pid %d) did not end within 5 s of SIGTERM: killed", pid);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	daemons_note(pid, 0);
	daemon->pid = 0;
}

/* Starts, asks and ends real daemons for integration tests. Only ever signals pids that it started.
 */
#include "test_node.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_TIMEOUT_MS 20000
#define STOP_TIMEOUT_MS  15000
#define MAX_ARGS         64

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static void print_log(const struct test_node *node)
{
	char line[512];
	FILE *f = fopen(node->log, "re");

	if (f == NULL)
		return;
	fprintf(stderr, "--- log of kvxferd %s\n", node->dir);
	while (fgets(line, sizeof(line), f) != NULL)
		fputs(line, stderr);
	fclose(f);
}

static void exec_daemon(const struct test_node *node, const char *const *sets, pid_t parent)
{
	const char *bin = getenv("KVXFERD");
	char node_id_file[160];
	const char *argv[MAX_ARGS] = {bin, "--socket", node->socket, "--set"};
	unsigned n = 4;
	int fd = open(node->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	snprintf(node_id_file, sizeof(node_id_file), "daemon.node_id_file=%s/node-id", node->dir);
	argv[n++] = node_id_file;
	argv[n++] = "--listen";
	argv[n++] = "127.0.0.1:0";
	for (; sets != NULL && *sets != NULL && n + 3 < MAX_ARGS; sets++) {
		argv[n++] = "--set";
		argv[n++] = *sets;
	}
	argv[n] = NULL;
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(126);
	execv(bin, (char *const *)argv);
	_exit(127);
}

static int try_open(const struct test_node *node, const char *name,
		    struct kvxfer_client **out_client)
{
	struct kvxfer_client_options opt = {
	    .struct_bytes = sizeof(opt),
	    .socket_path = node->socket,
	    .name = name,
	    .timeout_ms = 20000,
	};

	return kvxfer_client_open(&opt, out_client);
}

static void read_node_id(struct test_node *node)
{
	struct kvxfer_client *client = test_node_client(node, "test");
	struct json_object *root;
	struct json_object *id;
	char *text = NULL;

	cr_assert_eq(kvxfer_client_query(client, "status", NULL, &text), 0, "%s",
		     kvxfer_client_error(client));
	root = json_tokener_parse(text);
	cr_assert(json_object_object_get_ex(root, "node_id", &id));
	snprintf(node->node_id, sizeof(node->node_id), "%s", json_object_get_string(id));
	json_object_put(root);
	free(text);
	kvxfer_client_close(client);
}

static void start_within(struct test_node *node, const char *const *sets, long limit_ms)
{
	long end = now_ms() + limit_ms;
	struct kvxfer_client *client = NULL;
	pid_t parent = getpid();
	int rc;

	cr_assert_eq(node->pid, 0, "the daemon runs already");
	cr_assert(getenv("KVXFERD") != NULL, "KVXFERD names the daemon under test");
	node->pid = fork();
	cr_assert_geq(node->pid, 0);
	if (node->pid == 0)
		exec_daemon(node, sets, parent);
	while ((rc = try_open(node, "probe", &client)) != 0 && now_ms() < end) {
		int status;

		if (waitpid(node->pid, &status, WNOHANG) == node->pid) {
			node->pid = 0;
			print_log(node);
			cr_assert_fail("kvxferd ended at its start, status %d", status);
		}
		sleep_ms(5);
	}
	if (rc != 0)
		print_log(node);
	cr_assert_eq(rc, 0, "no answer from kvxferd: %s", kvxfer_open_error());
	kvxfer_client_close(client);
	read_node_id(node);
}

void test_node_restart(struct test_node *node, const char *const *sets)
{
	start_within(node, sets, START_TIMEOUT_MS);
}

void test_node_start(struct test_node *node, const char *const *sets)
{
	test_node_start_within(node, sets, START_TIMEOUT_MS);
}

void test_node_start_within(struct test_node *node, const char *const *sets, long limit_ms)
{
	memset(node, 0, sizeof(*node));
	snprintf(node->dir, sizeof(node->dir), "/tmp/kvxfer-test-XXXXXX");
	cr_assert_neq(mkdtemp(node->dir), NULL);
	snprintf(node->socket, sizeof(node->socket), "%s/kvxferd.sock", node->dir);
	snprintf(node->log, sizeof(node->log), "%s/log", node->dir);
	start_within(node, sets, limit_ms);
}

void test_node_signal(struct test_node *node, int signo)
{
	cr_assert_gt(node->pid, 0);
	kill(node->pid, signo);
	if (signo == SIGKILL) {
		waitpid(node->pid, NULL, 0);
		node->pid = 0;
	}
}

void test_node_stop(struct test_node *node)
{
	long end = now_ms() + STOP_TIMEOUT_MS;
	int status = 0;
	pid_t got;

	cr_assert_gt(node->pid, 0);
	kill(node->pid, SIGCONT);
	kill(node->pid, SIGTERM);
	while ((got = waitpid(node->pid, &status, WNOHANG)) == 0 && now_ms() < end)
		sleep_ms(2);
	if (got != node->pid) {
		print_log(node);
		kill(node->pid, SIGKILL);
		waitpid(node->pid, NULL, 0);
		node->pid = 0;
		cr_assert_fail("kvxferd did not end within %d ms of SIGTERM", STOP_TIMEOUT_MS);
	}
	node->pid = 0;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || getenv("KVX_TEST_VERBOSE") != NULL)
		print_log(node);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "kvxferd ended with status %#x",
		  (unsigned)status);
}

void test_node_fini(struct test_node *node)
{
	struct dirent *entry;
	DIR *dir;

	if (node->pid > 0)
		test_node_stop(node);
	dir = opendir(node->dir);
	while (dir != NULL && (entry = readdir(dir)) != NULL)
		if (entry->d_name[0] != '.')
			unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir != NULL)
		closedir(dir);
	rmdir(node->dir);
}

struct kvxfer_client *test_node_client(const struct test_node *node, const char *name)
{
	struct kvxfer_client *client = NULL;
	int rc = try_open(node, name, &client);

	cr_assert_eq(rc, 0, "open %s: %s", node->socket, kvxfer_open_error());
	return client;
}

static int64_t number_at(struct json_object *obj, const char *path)
{
	char *copy = strdup(path);
	char *save = NULL;
	int64_t value = -1;
	char *part;

	for (part = strtok_r(copy, ".", &save); part != NULL; part = strtok_r(NULL, ".", &save))
		if (!json_object_object_get_ex(obj, part, &obj))
			goto out;
	value = json_object_is_type(obj, json_type_array) ? (int64_t)json_object_array_length(obj)
							  : json_object_get_int64(obj);
out:
	free(copy);
	return value;
}

int test_run(const char *const *argv, char *out, size_t out_bytes)
{
	size_t len = 0;
	int status;
	int fds[2];
	pid_t pid;

	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[1], STDERR_FILENO);
		execv(argv[0], (char *const *)argv);
		_exit(127);
	}
	close(fds[1]);
	for (;;) {
		ssize_t n = read(fds[0], out + len, out_bytes - 1 - len);

		if (n <= 0 || len + (size_t)n >= out_bytes - 1)
			break;
		len += (size_t)n;
	}
	out[len] = '\0';
	close(fds[0]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int64_t test_node_number(const struct test_node *node, const char *verb, const char *path)
{
	struct kvxfer_client *client = test_node_client(node, "test");
	struct json_object *root;
	char *text = NULL;
	int64_t value;

	cr_assert_eq(kvxfer_client_query(client, verb, NULL, &text), 0, "%s",
		     kvxfer_client_error(client));
	root = json_tokener_parse(text);
	cr_assert_neq(root, NULL, "not JSON: %s", text);
	value = number_at(root, path);
	json_object_put(root);
	free(text);
	kvxfer_client_close(client);
	return value;
}

int64_t test_node_wait_number(const struct test_node *node, const char *verb, const char *path,
			      int64_t want, int timeout_ms)
{
	long end = now_ms() + timeout_ms;
	int64_t value;

	while ((value = test_node_number(node, verb, path)) != want && now_ms() < end)
		sleep_ms(10);
	return value;
}

long test_count_fds(pid_t pid)
{
	char path[64];
	long n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	cr_assert_neq(dir, NULL);
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n - 2;
}

static void read_maps(pid_t pid, struct test_node_base *base)
{
	char line[1024];
	FILE *f;

	snprintf(line, sizeof(line), "/proc/%d/maps", (int)pid);
	f = fopen(line, "re");
	cr_assert_neq(f, NULL);
	for (base->maps = 0; fgets(line, sizeof(line), f) != NULL; base->maps++)
		;
	fclose(f);
	snprintf(line, sizeof(line), "/proc/%d/status", (int)pid);
	f = fopen(line, "re");
	cr_assert_neq(f, NULL);
	while (fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "VmRSS: %ld kB", &base->rss_kib) == 1)
			break;
	fclose(f);
}

/* Connections that have just ended are closed a little later: until two looks 50 ms apart find the
 * same, and no more than `most`. */
static long settled_fds(pid_t pid, long most)
{
	long end = now_ms() + 3000, fds = test_count_fds(pid), before;

	do {
		before = fds;
		sleep_ms(50);
		fds = test_count_fds(pid);
	} while ((fds != before || fds > most) && now_ms() < end);
	return fds;
}

static void measure(const struct test_node *node, long most_fds, struct test_node_base *out_base)
{
	/* The asking client is one of the clients and is still there while it asks. */
	out_base->clients = test_node_wait_number(node, "status", "clients", 1, 3000);
	out_base->regions = test_node_number(node, "status", "regions");
	out_base->transfers = test_node_number(node, "status", "transfers");
	out_base->fds = settled_fds(node->pid, most_fds);
	read_maps(node->pid, out_base);
}

void test_node_measure(const struct test_node *node, struct test_node_base *out_base)
{
	measure(node, LONG_MAX, out_base);
}

void test_node_measure_after(const struct test_node *node, const struct test_node_base *before,
			     struct test_node_base *out_base)
{
	measure(node, before->fds, out_base);
}

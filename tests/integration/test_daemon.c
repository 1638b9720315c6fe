/* The daemon as an operator meets it: start, second start, stale socket, configuration errors,
 * reload, drain, idle. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"

#define WAIT_MS 10000

static void sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	cr_assert_neq(f, NULL);
	fputs(text, f);
	fclose(f);
}

Test(daemon, second_one_on_the_same_socket_is_refused)
{
	struct test_node node;
	char out[4096];

	test_node_start(&node, NULL);
	const char *argv[] = {getenv("KVXFERD"), "--socket",    node.socket,
			      "--listen",        "127.0.0.1:0", NULL};
	cr_assert_neq(test_run(argv, out, sizeof(out)), 0);
	cr_assert_neq(strstr(out, node.socket), NULL, "%s", out);
	cr_assert_eq(test_node_number(&node, "status", "clients"), 1);
	test_node_fini(&node);
}

Test(daemon, stale_socket_is_taken_over)
{
	struct test_node node;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd;

	test_node_start(&node, NULL);
	test_node_signal(&node, SIGKILL);
	cr_assert_eq(access(node.socket, F_OK), 0, "kill -9 leaves the socket behind");
	test_node_restart(&node, NULL);
	test_node_stop(&node);
	cr_assert_eq(access(node.socket, F_OK), -1, "a clean stop removes the socket");
	/* One that another program left. */
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", node.socket);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	test_node_restart(&node, NULL);
	test_node_fini(&node);
}

Test(daemon, wrong_configuration_is_refused_with_line_and_reason)
{
	static const struct {
		const char *text, *word1, *word2;
	} cases[] = {
	    {"[daemon]\nlog_level = loud\n", ":2:", "log_level"},
	    {"[daemon]\n\n\nlog_levle = info\n", ":4:", "log_levle"},
	    {"[deamon]\nlog_level = info\n", ":", "deamon"},
	    {"[copy]\nworkers = many\n", ":2:", "workers"},
	    {"[copy]\nworkers = 1000\n", ":2:", "workers"},
	    {"[limits]\nclients = -1\n", ":2:", "clients"},
	    {"[limits]\nclients = 10\nclients = 20\n", ":3:", "clients"},
	    {"[limits]\nbytes = 99999999999999999999999\n", ":2:", "bytes"},
	    {"[peer]\nheartbeat_ms = 1000\nlost_ms = 500\n", "lost_ms", "heartbeat_ms"},
	    {"nonsense\n", ":1:", ""},
	};
	char dir[] = "/tmp/kvxfer-test-XXXXXX";
	char path[64], sock[64], out[8192];

	cr_assert_neq(mkdtemp(dir), NULL);
	snprintf(path, sizeof(path), "%s/kvxferd.conf", dir);
	snprintf(sock, sizeof(sock), "%s/sock", dir);
	const char *argv[] = {getenv("KVXFERD"), "--config", path, "--socket", sock, NULL};
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		write_file(path, cases[i].text);
		cr_expect_neq(test_run(argv, out, sizeof(out)), 0, "case %u was taken", i);
		cr_expect_neq(strstr(out, cases[i].word1), NULL, "case %u: %s", i, out);
		cr_expect_neq(strstr(out, cases[i].word2), NULL, "case %u: %s", i, out);
	}
	unlink(path);
	cr_assert_neq(test_run(argv, out, sizeof(out)), 0);
	cr_assert_neq(strstr(out, path), NULL, "%s", out);
	rmdir(dir);
}

Test(daemon, printed_configuration_is_accepted)
{
	char path[] = "/tmp/kvxfer-test-XXXXXX";
	static char text[65536], out[65536];
	int fd = mkstemp(path);

	const char *print[] = {getenv("KVXFERD"), "--print-config", NULL};
	cr_assert_eq(test_run(print, text, sizeof(text)), 0, "%s", text);
	write_file(path, text);
	const char *check[] = {getenv("KVXFERD"), "--config", path, "--check-config", NULL};
	cr_assert_eq(test_run(check, out, sizeof(out)), 0, "%s", out);
	close(fd);
	unlink(path);
}

Test(daemon, non_loopback_peers_need_a_flag)
{
	char sock[] = "/tmp/kvxfer-test-XXXXXX";
	char out[4096];

	cr_assert_neq(mkdtemp(sock), NULL);
	char path[64];
	snprintf(path, sizeof(path), "%s/s", sock);
	const char *argv[] = {getenv("KVXFERD"), "--socket", path, "--listen", "0.0.0.0:0", NULL};
	cr_assert_neq(test_run(argv, out, sizeof(out)), 0);
	cr_assert_neq(strstr(out, "--insecure-peers"), NULL, "%s", out);
	unlink(path);
	snprintf(path, sizeof(path), "%s/s.lock", sock);
	unlink(path);
	rmdir(sock);
}

Test(daemon, drain_refuses_new_and_ends_when_told)
{
	static struct pair p;
	uint32_t block = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;
	char *json = NULL;

	pair_open(&p, false, NULL, 1, 4, 4096);
	cr_assert_eq(kvxfer_client_query(p.decode.client, "drain", NULL, &json), 0, "%s",
		     kvxfer_client_error(p.decode.client));
	free(json);
	test_wait(&p.prefill, KVXFER_EVENT_DRAINING, 0, WAIT_MS);
	t = pair_write(&p);
	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_DRAINING, "%s", ev.text);
	cr_assert_eq(kvxfer_client_query(p.decode.client, "undrain", NULL, &json), 0);
	free(json);
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	pair_close(&p);
}

/* SIGTERM with an open stream: it gets its end before the daemon goes. */
Test(daemon, sigterm_ends_what_is_left_and_exits_zero)
{
	const char *sets[] = {"daemon.drain_timeout_ms=300", NULL};
	static struct pair p;
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, false, sets, 1, 4, 4096);
	t = pair_write(&p);
	t.streaming = 1;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	cr_assert_eq(test_node_wait_number(&p.node[0], "status", "transfers", 1, WAIT_MS), 1);
	test_node_stop(&p.node[0]);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_neq(ev.status, KVXFER_OK);
	test_wait(&p.prefill, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	test_engine_close(&p.prefill);
	test_engine_close(&p.decode);
	test_node_fini(&p.node[0]);
}

/* The harness has no way to say --config: starts it by hand, and gives a client when it answers. */
static struct kvxfer_client *start_with_config(struct test_node *node, const char *dir,
					       const char *config)
{
	struct kvxfer_client_options opt = {
	    .struct_bytes = sizeof(opt), .name = "reload", .timeout_ms = WAIT_MS};
	struct kvxfer_client *client = NULL;
	long end = now_ms() + 2 * WAIT_MS;
	char set[128];
	int rc;

	memset(node, 0, sizeof(*node));
	snprintf(node->dir, sizeof(node->dir), "%s", dir);
	snprintf(node->socket, sizeof(node->socket), "%s/kvxferd.sock", dir);
	snprintf(node->log, sizeof(node->log), "%s/log", dir);
	snprintf(set, sizeof(set), "daemon.node_id_file=%s/node-id", dir);
	node->pid = fork();
	if (node->pid == 0) {
		int fd = open(node->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

		dup2(fd, STDERR_FILENO);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(getenv("KVXFERD"), "kvxferd", "--config", config, "--socket", node->socket,
		      "--listen", "127.0.0.1:0", "--set", set, NULL);
		_exit(127);
	}
	opt.socket_path = node->socket;
	while ((rc = kvxfer_client_open(&opt, &client)) != 0 && now_ms() < end)
		sleep_ms(10);
	cr_assert_eq(rc, 0, "no answer from kvxferd: %s", kvxfer_open_error());
	return client;
}

static bool log_says(const struct test_node *node, const char *words)
{
	char line[512];
	bool found = false;
	FILE *f = fopen(node->log, "re");

	cr_assert_neq(f, NULL);
	while (!found && fgets(line, sizeof(line), f) != NULL)
		found = strstr(line, words) != NULL;
	fclose(f);
	return found;
}

Test(daemon, sighup_reloads_what_can_be)
{
	struct test_node node;
	char dir[] = "/tmp/kvxfer-test-XXXXXX";
	char path[64];
	struct kvxfer_client *client;
	struct kvxfer_region *region = NULL;
	long end;
	int rc;

	cr_assert_neq(mkdtemp(dir), NULL);
	snprintf(path, sizeof(path), "%s/c.conf", dir);
	write_file(path, "[limits]\nregions_per_client = 1\n");
	client = start_with_config(&node, dir, path);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), 0);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), -EDQUOT);
	write_file(path, "[limits]\nregions_per_client = 3\n");
	test_node_signal(&node, SIGHUP);
	end = now_ms() + WAIT_MS;
	while ((rc = kvxfer_region_alloc(client, 4096, NULL, &region)) == -EDQUOT && now_ms() < end)
		sleep_ms(10);
	cr_assert_eq(rc, 0, "%s", kvxfer_client_error(client));
	write_file(path, "[limits]\nregions_per_client = lots\n");
	test_node_signal(&node, SIGHUP);
	end = now_ms() + WAIT_MS;
	while (!log_says(&node, "the configuration stays as it is") && now_ms() < end)
		sleep_ms(10);
	cr_assert(log_says(&node, "the configuration stays as it is"));
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), 0,
		     "a bad file must change nothing: %s", kvxfer_client_error(client));
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), -EDQUOT);
	kvxfer_client_close(client);
	test_node_fini(&node);
}

static long context_switches(pid_t pid)
{
	char path[96], line[256];
	long total = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	cr_assert_neq(f, NULL);
	while (fgets(line, sizeof(line), f) != NULL) {
		long n;

		if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1 ||
		    sscanf(line, "nonvoluntary_ctxt_switches: %ld", &n) == 1)
			total += n;
	}
	fclose(f);
	return total;
}

/* The loop thread of an idle daemon without peers sleeps. */
Test(daemon, idle_daemon_does_not_wake_up)
{
	struct test_node node;
	struct kvxfer_client *client;
	long before, after;

	test_node_start(&node, NULL);
	client = test_node_client(&node, "idle");
	sleep_ms(500);
	before = context_switches(node.pid);
	sleep_ms(3000);
	after = context_switches(node.pid);
	fprintf(stderr, "# %ld wake-ups in 3 s\n", after - before);
	cr_assert_leq(after - before, 6);
	kvxfer_client_close(client);
	test_node_fini(&node);
}

Test(daemon, ctl_shows_the_node_and_its_exit_codes_tell)
{
	static const char *const words[] = {"status", "clients", "regions", "transfers", "peers",
					    "lanes",  "devices", "stats",   "version"};
	static char out[65536];
	static struct pair p;

	pair_open(&p, true, NULL, 2, 8, 4096);
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		for (int json = 0; json < 2; json++) {
			const char *argv[] = {getenv("KVXFERCTL"),    "--socket",
					      p.node[0].socket,       words[i],
					      json ? "--json" : NULL, NULL};
			cr_expect_eq(test_run(argv, out, sizeof(out)), 0, "%s: %s", words[i], out);
			cr_expect_neq(out[0], '\0', "%s says nothing", words[i]);
			if (json)
				cr_expect(strchr("{[", out[0]) != NULL, "%s: %s", words[i], out);
		}
	}
	const char *ping[] = {getenv("KVXFERCTL"), "--socket", p.node[0].socket, "ping",
			      p.node[1].node_id,   NULL};
	cr_expect_eq(test_run(ping, out, sizeof(out)), 0, "%s", out);
	const char *usage[] = {getenv("KVXFERCTL"), "no-such-command", NULL};
	cr_expect_eq(test_run(usage, out, sizeof(out)), 2, "%s", out);
	const char *nobody[] = {getenv("KVXFERCTL"), "--socket", "/nonexistent/sock", "status",
				NULL};
	cr_expect_eq(test_run(nobody, out, sizeof(out)), 3, "%s", out);
	const char *doctor[] = {getenv("KVXFERCTL"), "--socket", p.node[0].socket, "doctor", NULL};
	cr_expect_leq(test_run(doctor, out, sizeof(out)), 1, "%s", out);
	pair_close(&p);
}

/* Tenants, between clients of one daemon and of two, and what kvxferctl shows of lanes and devices.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "test_engine.h"
#include "test_node.h"

#define WAIT_MS 10000
#define RW      (KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE)

/* A node with the tenants blue and red, and each of them as a node of its own: another socket. */
struct tenant_node {
	struct test_node node, blue, red;
};

static void tenant_node_start(struct tenant_node *t, unsigned n, const char *const *more)
{
	const char *sets[8] = {NULL};
	char tenants[160], blue[64], red[64];
	unsigned i = 0;

	snprintf(blue, sizeof(blue), "@kvxfer-test-%d-%u-blue", (int)getpid(), n);
	snprintf(red, sizeof(red), "@kvxfer-test-%d-%u-red", (int)getpid(), n);
	snprintf(tenants, sizeof(tenants), "daemon.tenants=blue=%s red=%s", blue, red);
	sets[i++] = tenants;
	for (; more != NULL && *more != NULL; more++)
		sets[i++] = *more;
	test_node_start(&t->node, sets);
	t->blue = t->red = t->node;
	snprintf(t->blue.socket, sizeof(t->blue.socket), "%s", blue);
	snprintf(t->red.socket, sizeof(t->red.socket), "%s", red);
}

/* Block 1 of `from` arrives in block 1 of `to`. */
static void expect_moved(struct test_engine *from, struct test_engine *to)
{
	struct kvxfer_import *import_ = test_engine_import(from, to);
	uint32_t block = 1;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t),
	    .op = KVXFER_WRITE,
	    .region = from->region,
	    .import_ = import_,
	    .blocks = &blocks,
	};
	struct test_event ev;
	uint64_t id = 0;

	test_fill(from, 7);
	cr_assert_eq(kvxfer_transfer_submit(from->client, &t, &id), 0);
	ev = test_wait(from, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	cr_assert(test_block_is(to, 7, 0, 1, 1));
}

/* The import fails with these words, and nothing of the region was touched. */
static void expect_refused(struct test_engine *from, struct test_engine *to, const char *text)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	int len = kvxfer_region_export(to->region, desc, sizeof(desc));

	cr_assert_gt(len, 0);
	cr_assert_eq(kvxfer_import_open(from->client, desc, (size_t)len, NULL, &import_), -EACCES,
		     "%s", kvxfer_client_error(from->client));
	cr_assert_neq(strstr(kvxfer_client_error(from->client), text), NULL, "%s",
		      kvxfer_client_error(from->client));
	cr_assert(test_block_is_canary(to, 0, 1));
}

static struct json_object *ask(const struct test_node *node, const char *verb)
{
	struct kvxfer_client *client = test_node_client(node, "ask");
	struct json_object *root;
	char *text = NULL;

	cr_assert_eq(kvxfer_client_query(client, verb, NULL, &text), 0, "%s",
		     kvxfer_client_error(client));
	root = json_tokener_parse(text);
	cr_assert_neq(root, NULL);
	free(text);
	kvxfer_client_close(client);
	return root;
}

static const char *member(struct json_object *obj, const char *name)
{
	struct json_object *value = NULL;

	cr_assert(json_object_object_get_ex(obj, name, &value), "no %s in %s", name,
		  json_object_to_json_string(obj));
	return json_object_get_string(value);
}

/* The row of a list whose member `key` is `value`; NULL. Of root, which the caller puts. */
static struct json_object *row_with(struct json_object *root, const char *list, const char *key,
				    const char *value)
{
	struct json_object *rows = NULL;

	cr_assert(json_object_object_get_ex(root, list, &rows));
	for (size_t i = 0; i < json_object_array_length(rows); i++) {
		struct json_object *row = json_object_array_get_idx(rows, i);

		if (strcmp(member(row, key), value) == 0)
			return row;
	}
	return NULL;
}

static void engine(struct test_engine *e, const struct test_node *node, const char *name)
{
	test_engine_open(e, node, name, 1, 4, 4096, RW);
}

Test(tenants, same_node_keeps_them_apart)
{
	static struct test_engine blue1, blue2, red, none;
	struct tenant_node t;

	tenant_node_start(&t, 0, NULL);
	engine(&blue1, &t.blue, "blue1");
	engine(&blue2, &t.blue, "blue2");
	engine(&red, &t.red, "red");
	engine(&none, &t.node, "none");
	expect_refused(&red, &blue2, "the region belongs to another tenant");
	expect_refused(&none, &blue2, "the region belongs to another tenant");
	expect_refused(&blue1, &none, "this client is of tenant blue");
	expect_moved(&blue1, &blue2);
	test_engine_close(&blue1);
	test_engine_close(&blue2);
	test_engine_close(&red);
	test_engine_close(&none);
	test_node_fini(&t.node);
}

/* Each tenant has its own lane; a descriptor that is given away opens nothing. */
Test(tenants, two_nodes_keep_them_apart)
{
	static struct test_engine blue[2], red[2];
	struct tenant_node t[2];
	struct json_object *lanes, *lane;
	char generation[24];

	for (unsigned i = 0; i < 2; i++) {
		tenant_node_start(&t[i], i, NULL);
		engine(&blue[i], &t[i].blue, "blue");
		engine(&red[i], &t[i].red, "red");
	}
	expect_refused(&red[0], &blue[1], "tenant");
	expect_refused(&blue[1], &red[0], "tenant");
	expect_moved(&blue[0], &blue[1]);
	expect_moved(&red[1], &red[0]);

	lanes = ask(&t[0].node, "lanes");
	lane = row_with(lanes, "lanes", "tenant", "blue");
	cr_assert_neq(lane, NULL);
	cr_assert_str_eq(member(lane, "state"), "up");
	cr_assert_str_eq(member(lane, "transport"), "fabric");
	cr_assert_str_eq(member(lane, "peer"), t[1].node.node_id);
	cr_assert_str_eq(member(lane, "bytes"), "4096");
	snprintf(generation, sizeof(generation), "%s", member(lane, "generation"));
	lane = row_with(lanes, "lanes", "tenant", "red");
	cr_assert_str_eq(member(lane, "state"), "up");
	cr_assert_str_neq(member(lane, "generation"), generation, "a generation names its lane");
	json_object_put(lanes);
	for (unsigned i = 0; i < 2; i++) {
		test_engine_close(&blue[i]);
		test_engine_close(&red[i]);
	}
	test_node_fini(&t[0].node);
	test_node_fini(&t[1].node);
}

Test(tenants, one_that_the_other_node_lacks_is_refused)
{
	static struct test_engine blue, none, there;
	struct tenant_node t;
	struct test_node plain;

	tenant_node_start(&t, 0, NULL);
	test_node_start(&plain, NULL);
	engine(&blue, &t.blue, "blue");
	engine(&none, &t.node, "none");
	engine(&there, &plain, "there");
	expect_refused(&blue, &there, "does not have");
	expect_refused(&there, &blue, "tenant");
	expect_moved(&none, &there);
	test_engine_close(&blue);
	test_engine_close(&none);
	test_engine_close(&there);
	test_node_fini(&t.node);
	test_node_fini(&plain);
}

/* ---- what is shown */

static void ctl(const struct test_node *node, const char *verb, const char *flag, char *out,
		size_t out_bytes)
{
	const char *argv[] = {getenv("KVXFERCTL"), "--socket", node->socket, verb, flag, NULL};

	cr_assert_eq(test_run(argv, out, out_bytes), 0, "%s: %s", verb, out);
}

static void shows(const char *out, const char *word)
{
	cr_assert_neq(strstr(out, word), NULL, "no '%s' in:\n%s", word, out);
}

Test(tenants, ctl_shows_lanes_devices_and_tenants)
{
	static struct test_engine here, there, blue;
	static char out[65536];
	struct tenant_node t[2];
	struct json_object *devices, *row;

	for (unsigned i = 0; i < 2; i++)
		tenant_node_start(&t[i], i, NULL);
	engine(&here, &t[0].node, "here");
	engine(&there, &t[1].node, "there");
	engine(&blue, &t[0].blue, "blue");
	expect_moved(&here, &there);
	ctl(&t[0].node, "lanes", NULL, out, sizeof(out));
	shows(out, "GEN");
	shows(out, "default");
	shows(out, "4 KiB");
	ctl(&t[0].node, "devices", NULL, out, sizeof(out));
	shows(out, "fabric");
	shows(out, "usable");
	ctl(&t[0].node, "status", NULL, out, sizeof(out));
	shows(out, t[0].blue.socket);
	ctl(&t[0].node, "clients", NULL, out, sizeof(out));
	shows(out, "blue");
	ctl(&t[0].node, "peers", NULL, out, sizeof(out));
	shows(out, " of 3");
	devices = ask(&t[0].node, "devices");
	row = row_with(devices, "devices", "transport", "fabric");
	cr_assert_neq(row, NULL);
	cr_assert_str_eq(member(row, "lanes"), "3", "default, blue and red");
	json_object_put(devices);
	test_engine_close(&here);
	test_engine_close(&there);
	test_engine_close(&blue);
	test_node_fini(&t[0].node);
	test_node_fini(&t[1].node);
}

/* A look inside is not worth a line of the log each. */
Test(tenants, ctl_leaves_no_trace_in_the_log)
{
	struct test_node node;
	static char out[65536];
	char log[4096] = "";
	FILE *f;
	size_t len;

	test_node_start(&node, NULL);
	for (unsigned i = 0; i < 5; i++)
		ctl(&node, "status", NULL, out, sizeof(out));
	f = fopen(node.log, "re");
	cr_assert_neq(f, NULL);
	len = fread(log, 1, sizeof(log) - 1, f);
	log[len] = '\0';
	fclose(f);
	cr_assert_eq(strstr(log, "kvxferctl"), NULL, "%s", log);
	test_node_fini(&node);
}

/* ---- refused at the start */

static void start_refused(int exit_code, const char *set, const char *word)
{
	static char out[8192];
	char dir[] = "/tmp/kvxfer-test-XXXXXX";
	char sock[64];

	cr_assert_neq(mkdtemp(dir), NULL);
	snprintf(sock, sizeof(sock), "%s/sock", dir);
	const char *argv[] = {getenv("KVXFERD"),      "--socket", sock, "--listen",
			      "127.0.0.1:0",          "--set",    set,  "--set",
			      "daemon.node_id_file=", NULL};
	cr_assert_eq(test_run(argv, out, sizeof(out)), exit_code, "%s: %s", set, out);
	cr_assert_neq(strstr(out, word), NULL, "%s: no '%s' in: %s", set, word, out);
	cr_assert_eq(rmdir(dir), 0, "%s: something was left behind", set);
}

Test(tenants, unusual_configurations_are_refused_with_a_reason)
{
	start_refused(3, "daemon.tenants=Blue=/run/x", "a-z, 0-9 and -");
	start_refused(3, "daemon.tenants=a b c d e f g h", "more than 7 tenants");
	start_refused(3, "peer.transports=verbs tcp", "'tcp' is not a transport");
	start_refused(3, "verbs.devices=mlx5_0,,mlx5_1", "such as mlx5_0");
	start_refused(3, "verbs.mtu_bytes=1500", "not 256, 512");
	start_refused(3, "verbs.sq_depth=32", "verbs.post_batch: 64 does not fit");
	start_refused(3, "verbs.cq_depth=512", "no room for one lane");
	start_refused(3, "peer.tls_key=/k", "given together");
	start_refused(1, "daemon.tenants=blue", "tenant blue has no path");
	start_refused(1, "daemon.tenants=blue=/nonexistent/dir/blue", "/nonexistent/dir/blue");
}

Test(tenants, socket_of_another_daemon_is_not_taken)
{
	struct tenant_node t;
	char set[128];

	tenant_node_start(&t, 0, NULL);
	snprintf(set, sizeof(set), "daemon.tenants=mine=%s", t.blue.socket);
	start_refused(4, set, "another process");
	test_node_fini(&t.node);
}

/* ---- sockets of the service manager */

static int listen_on(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	cr_assert_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(listen(fd, 16), 0);
	return fd;
}

/* As systemd starts it: descriptors 3 and 4, their names in the environment. */
static void exec_activated(const struct test_node *node, const int *fds, const char *names)
{
	char pid[16];
	int log = open(node->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	dup2(log, STDERR_FILENO);
	for (int i = 0; i < 2; i++)
		dup2(fcntl(fds[i], F_DUPFD, 16), 3 + i);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "2", 1);
	setenv("LISTEN_FDNAMES", names, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execl(getenv("KVXFERD"), "kvxferd", "--listen", "127.0.0.1:0", "--set",
	      "daemon.node_id_file=", "--set", "daemon.tenants=blue", NULL);
	_exit(127);
}

Test(tenants, descriptor_names_say_whose_socket_it_is)
{
	static struct test_engine blue, none;
	struct test_node node = {.pid = 0}, blue_node;
	int fds[2];

	snprintf(node.dir, sizeof(node.dir), "/tmp/kvxfer-test-XXXXXX");
	cr_assert_neq(mkdtemp(node.dir), NULL);
	snprintf(node.socket, sizeof(node.socket), "%s/sock", node.dir);
	snprintf(node.log, sizeof(node.log), "%s/log", node.dir);
	blue_node = node;
	snprintf(blue_node.socket, sizeof(blue_node.socket), "%s/blue", node.dir);
	fds[0] = listen_on(blue_node.socket);
	fds[1] = listen_on(node.socket);
	node.pid = fork();
	if (node.pid == 0)
		exec_activated(&node, fds, "blue:kvxferd.socket");
	close(fds[0]);
	close(fds[1]);
	engine(&blue, &blue_node, "blue"); /* waits in the backlog until it runs */
	engine(&none, &node, "none");
	expect_refused(&none, &blue, "another tenant");
	test_engine_close(&blue);
	test_engine_close(&none);
	unlink(blue_node.socket);
	unlink(node.socket);
	test_node_fini(&node);
}

/* Opening and closing a client against a daemon that behaves, misbehaves, or is not there. */
#include "client_fixture.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "test_end.h"

static int open_path(const char *path, struct kvxfer_client **out_client)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options), .socket_path = path, .timeout_ms = 1000};

	return kvxfer_client_open(&options, out_client);
}

Test(client_open, no_socket_is_enoent_in_words)
{
	struct kvxfer_client *client = NULL;

	cr_assert_eq(open_path("/nonexistent/kvxferd.sock", &client), -ENOENT);
	cr_assert_null(client);
	cr_assert_not_null(strstr(kvxfer_open_error(), "/nonexistent/kvxferd.sock"));
	cr_assert_not_null(strstr(kvxfer_open_error(), "is kvxferd running?"));
	KVX_TEST_END();
}

Test(client_open, dead_socket_is_refused_in_words)
{
	char dir[] = "/tmp/kvxfer-test-XXXXXX", path[64];
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct kvxfer_client *client;
	int fd;

	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	cr_assert_eq(open_path(path, &client), -ECONNREFUSED);
	cr_assert_not_null(strstr(kvxfer_open_error(), "no daemon listens"));
	unlink(path);
	rmdir(dir);
	KVX_TEST_END();
}

Test(client_open, bad_options_are_refused)
{
	struct kvxfer_client_options options = {0};
	struct kvxfer_client *client;
	char longer[80];

	memset(longer, 'x', sizeof(longer));
	longer[65] = '\0';
	cr_assert_eq(kvxfer_client_open(&options, &client), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_open_error(), "struct_bytes"));
	options.struct_bytes = sizeof(options);
	cr_assert_eq(kvxfer_client_open(&options, NULL), -EINVAL);
	options.timeout_ms = -1;
	cr_assert_eq(kvxfer_client_open(&options, &client), -EINVAL);
	options.timeout_ms = 3600001;
	cr_assert_eq(kvxfer_client_open(&options, &client), -EINVAL);
	options.timeout_ms = 0;
	options.name = longer;
	cr_assert_eq(kvxfer_client_open(&options, &client), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_open_error(), "64"));
	options.name = NULL;
	options.socket_path = "";
	cr_assert_eq(kvxfer_client_open(&options, &client), -EINVAL);
	cr_assert_eq(open_path("/a/path/that/is/longer/than/a/socket/address/can/be/and/so/it/is/"
			       "refused/before/anything/else/is/tried/with/it",
			       &client),
		     -EINVAL);
	KVX_TEST_END();
}

/* What a newer program passes is taken when it asks for nothing new; an older program's struct
 * lacks fields, which are 0. */
Test(client_open, options_of_other_versions)
{
	struct {
		struct kvxfer_client_options options;
		uint64_t future;
	} newer = {.options = {.struct_bytes = sizeof(newer), .timeout_ms = 1000}};
	struct kvxfer_client_options older = {
	    .struct_bytes = offsetof(struct kvxfer_client_options, timeout_ms), .timeout_ms = -5};
	struct kvxfer_client *client;
	struct fake_daemon d;

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	newer.options.socket_path = older.socket_path = d.path;
	cr_assert_eq(kvxfer_client_open(&newer.options, &client), 0, "%s", kvxfer_open_error());
	kvxfer_client_close(client);
	cr_assert_eq(kvxfer_client_open(&older, &client), 0, "%s", kvxfer_open_error());
	kvxfer_client_close(client);
	newer.future = 1;
	cr_assert_eq(kvxfer_client_open(&newer.options, &client), -EINVAL);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_open, tells_the_limits_and_closes)
{
	struct kvxfer_client *client;
	struct kvxfer_limits limits;
	struct fake_daemon d;

	fake_daemon_init(&d);
	d.hello.max_payload_bytes = 100000;
	fake_daemon_start(&d);
	cr_assert_eq(open_client(&d, 2000, &client), 0, "%s", kvxfer_open_error());
	kvxfer_client_limits(client, &limits);
	cr_assert_eq(limits.max_ops, 32768);
	cr_assert_eq(limits.max_planes, 256);
	cr_assert_eq(limits.max_payload_bytes, KVXFER_PAYLOAD_MAX);
	cr_assert_geq(kvxfer_client_fd(client), 0);
	cr_assert_str_eq(kvxfer_client_error(client), "");
	kvxfer_client_close(client);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_GOODBYE], 1);
	kvxfer_client_close(NULL);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_open, other_protocol_version_is_refused)
{
	struct kvxfer_client *client;
	struct fake_daemon d;

	fake_daemon_init(&d);
	d.hello.version = 2;
	fake_daemon_start(&d);
	cr_assert_eq(open_client(&d, 2000, &client), -EPROTONOSUPPORT);
	cr_assert_not_null(strstr(kvxfer_open_error(), "version 2"));
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

static enum fake_answer refuse_hello(struct fake_daemon *d, uint16_t type)
{
	fake_error(d, *(uint32_t *)d->arg, "no room here");
	return FAKE_HANG_UP;
}

Test(client_open, refusals_have_their_errno_and_words)
{
	const struct {
		uint32_t status;
		int err;
	} cases[] = {{KVXFER_QUOTA, -EDQUOT},
		     {KVXFER_VERSION, -EPROTONOSUPPORT},
		     {KVXFER_DRAINING, -ESHUTDOWN},
		     {KVXFER_OK, -EPROTO},
		     {4711, -ENOTRECOVERABLE}};
	struct kvxfer_client *client;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint32_t status = cases[i].status;
		struct fake_daemon d;

		fake_daemon_init(&d);
		d.hook = refuse_hello;
		d.arg = &status;
		fake_daemon_start(&d);
		cr_assert_eq(open_client(&d, 2000, &client), cases[i].err, "status %u", status);
		cr_assert_not_null(strstr(kvxfer_open_error(), "no room here"));
		fake_daemon_stop(&d);
	}
	KVX_TEST_END();
}

static enum fake_answer stay_silent(struct fake_daemon *d, uint16_t type)
{
	return FAKE_DONE;
}

static enum fake_answer hang_up(struct fake_daemon *d, uint16_t type)
{
	return FAKE_HANG_UP;
}

static enum fake_answer send_oversized(struct fake_daemon *d, uint16_t type)
{
	struct kvx_wire_hdr hdr = {.len_bytes = 0x7fffffff,
				   .type = KVXP__FRAME_TYPE__FRAME_HELLO_REPLY};
	uint8_t bytes[KVX_WIRE_HDR_BYTES];

	kvx_wire_hdr_pack(&hdr, bytes);
	fake_send_bytes(d, bytes, sizeof(bytes));
	return FAKE_DONE;
}

static enum fake_answer send_text(struct fake_daemon *d, uint16_t type)
{
	fake_send_bytes(d, "\x08\0\0\0\x64\0\0\0garbage!", 16);
	return FAKE_DONE;
}

static enum fake_answer send_event_first(struct fake_daemon *d, uint16_t type)
{
	fake_event(d, KVXP__EVENT_TYPE__EVENT_DRAINING, 0, 0, NULL);
	return FAKE_DONE;
}

Test(client_open, misbehaving_daemons_are_named_errors)
{
	const struct {
		fake_hook hook;
		int err;
	} cases[] = {{stay_silent, -ETIMEDOUT},
		     {hang_up, -ECONNRESET},
		     {send_oversized, -EPROTO},
		     {send_text, -EPROTO},
		     {send_event_first, -EPROTO}};
	struct kvxfer_client *client = NULL;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fake_daemon d;

		fake_daemon_init(&d);
		d.hook = cases[i].hook;
		fake_daemon_start(&d);
		cr_assert_eq(open_client(&d, 500, &client), cases[i].err, "case %zu: %s", i,
			     kvxfer_open_error());
		cr_assert_null(client);
		cr_assert_neq(kvxfer_open_error()[0], '\0');
		fake_daemon_stop(&d);
	}
	KVX_TEST_END();
}

/* Open, a region with a layout, an import: whichever allocation fails, the call says -ENOMEM and
 * leaves nothing behind. The failing of the generated decoder's memory shows as a bad frame. */
static int open_all(const struct fake_daemon *d)
{
	struct kvxfer_plane plane = {"kv", 0, 64, 64, 10};
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options options = {
	    .struct_bytes = sizeof(options), .name = "r", .access = 1, .layout = &layout};
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
	int err = open_client(d, 500, &client);

	if (err < 0)
		return err;
	err = kvxfer_region_alloc(client, 4096, &options, &region);
	if (err == 0)
		err = kvxfer_region_export(region, descriptor, sizeof(descriptor));
	if (err >= 0)
		err = kvxfer_import_open(client, descriptor, (size_t)err, NULL, &import_);
	kvxfer_client_close(client);
	return err;
}

Test(client_open, every_failing_allocation_is_an_error)
{
	struct fake_daemon d;
	unsigned n = 0;
	int err, pid;

	fake_daemon_init(&d);
	pid = fake_daemon_fork(&d);
	for (;;) {
		fault_alloc_arm(++n);
		err = open_all(&d);
		if (!fault_alloc_disarm())
			break;
		cr_assert(err == -ENOMEM || err == -EPROTO || err == -ECONNRESET,
			  "allocation %u: %d", n, err);
	}
	cr_assert_eq(err, 0);
	cr_assert_gt(n, 10);
	fake_daemon_reap(pid);
	KVX_TEST_END();
}

Test(client_open, environment_names_the_socket)
{
	struct kvxfer_client *client;
	struct fake_daemon d;

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	cr_assert_eq(setenv("KVXFER_SOCKET", d.path, 1), 0);
	cr_assert_eq(kvxfer_client_open(NULL, &client), 0, "%s", kvxfer_open_error());
	kvxfer_client_close(client);
	cr_assert_eq(setenv("KVXFER_SOCKET", "/nonexistent/s", 1), 0);
	cr_assert_eq(kvxfer_client_open(NULL, &client), -ENOENT);
	cr_assert_not_null(strstr(kvxfer_open_error(), "/nonexistent/s"));
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* A user's own daemon is found without being named, after the system's. */
Test(client_open, daemon_of_the_user_is_found)
{
	char dir[] = "/tmp/kvxfer-test-XXXXXX", path[64];
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct kvxfer_client *client;
	int fd;

	if (access("/run/kvxfer/kvxferd.sock", F_OK) == 0)
		cr_skip_test("this machine has a daemon of the system");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(setenv("KVXFER_SOCKET", "", 1), 0);
	cr_assert_eq(setenv("XDG_RUNTIME_DIR", dir, 1), 0);
	cr_assert_eq(kvxfer_client_open(NULL, &client), -ENOENT);
	cr_assert_not_null(strstr(kvxfer_open_error(), "/run/kvxfer/kvxferd.sock"));
	snprintf(path, sizeof(path), "%s/kvxferd.sock", dir);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	cr_assert_eq(kvxfer_client_open(NULL, &client), -ECONNREFUSED);
	cr_assert_not_null(strstr(kvxfer_open_error(), path), "%s", kvxfer_open_error());
	cr_assert_eq(setenv("KVXFER_SOCKET", "/nonexistent/s", 1), 0);
	cr_assert_eq(kvxfer_client_open(NULL, &client), -ENOENT, "a named socket goes first");
	unlink(path);
	rmdir(dir);
	KVX_TEST_END();
}

/* The daemon hangs: nobody accepts, and its backlog is full. */
Test(client_open, full_backlog_is_a_timeout_in_words)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct kvxfer_client_options options = {.struct_bytes = sizeof(options), .timeout_ms = 100};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fds[8], n = 0, err = 0;
	struct kvxfer_client *client;
	char path[64];
	socklen_t len;

	snprintf(path, sizeof(path), "@kvxfer-test-full-%d", (int)getpid());
	memcpy(address.sun_path, path, strlen(path));
	address.sun_path[0] = '\0';
	len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	cr_assert_eq(bind(listener, (struct sockaddr *)&address, len), 0);
	cr_assert_eq(listen(listener, 0), 0);
	while (n < 8 && err == 0) {
		fds[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		err = connect(fds[n++], (struct sockaddr *)&address, len);
	}
	cr_assert_eq(err, -1, "the backlog does not fill");
	options.socket_path = path;
	cr_assert_eq(kvxfer_client_open(&options, &client), -ETIMEDOUT);
	cr_assert_not_null(strstr(kvxfer_open_error(), "does not accept connections"));
	while (n > 0)
		close(fds[--n]);
	close(listener);
	KVX_TEST_END();
}

static _Atomic unsigned n_signals;

static void on_signal(int signo)
{
	n_signals++;
}

static enum fake_answer answer_slowly(struct fake_daemon *d, uint16_t type)
{
	struct timespec ts = {.tv_nsec = 30 * 1000000};

	while (nanosleep(&ts, &ts) != 0)
		;
	return FAKE_DEFAULT;
}

/* A signal every millisecond, with a handler that interrupts system calls. */
Test(client_open, signals_do_not_disturb)
{
	const struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
	struct sigaction action = {.sa_handler = on_signal};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;
	char *json;

	fake_daemon_init(&d);
	d.hook = answer_slowly;
	fake_daemon_start(&d);
	cr_assert_eq(sigaction(SIGALRM, &action, NULL), 0);
	cr_assert_eq(setitimer(ITIMER_REAL, &often, NULL), 0);
	pair = open_pair(&d, 5000);
	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), 0);
	free(json);
	cr_assert_eq(kvxfer_client_wait(pair.client, 50, seen_event, &seen), 0);
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(kvxfer_region_unregister(pair.region), 0);
	kvxfer_client_close(pair.client);
	cr_assert_eq(setitimer(ITIMER_REAL, &never, NULL), 0);
	cr_assert_gt(n_signals, 10);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* In a forked child every call is an error, close() sends nothing, and the parent goes on. */
Test(client_open, forked_child_cannot_use_the_client)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	pid_t pid;
	int status;

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	pid = fork();
	if (pid == 0) {
		struct kvxfer_region *region;
		uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
		int ok = 1;

		ok &= kvxfer_client_dispatch(pair.client, seen_event, &seen) == -EOWNERDEAD;
		ok &= kvxfer_client_wait(pair.client, 0, seen_event, &seen) == -EOWNERDEAD;
		ok &= submit_one(&pair, 1, NULL) == -EOWNERDEAD;
		ok &= kvxfer_transfer_cancel(pair.client, 1) == -EOWNERDEAD;
		ok &= kvxfer_region_alloc(pair.client, 4096, NULL, &region) == -EOWNERDEAD;
		ok &= kvxfer_region_export(pair.region, descriptor, sizeof(descriptor)) ==
		      -EOWNERDEAD;
		ok &= kvxfer_region_unregister(pair.region) == -EOWNERDEAD;
		ok &= kvxfer_import_close(pair.import_) == -EOWNERDEAD;
		ok &= kvxfer_message_send(pair.import_, "x", 1) == -EOWNERDEAD;
		ok &= kvxfer_client_reconnect(pair.client) == -EOWNERDEAD;
		kvxfer_client_close(pair.client);
		_exit(ok ? 0 : 1);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	cr_assert_eq(submit_one(&pair, 5, NULL), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].tag, 5);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_GOODBYE], 0);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_open, status_texts_and_errnos)
{
	cr_assert_str_eq(kvxfer_status_name(KVXFER_PEER_LOST), "PEER_LOST");
	cr_assert_str_eq(kvxfer_status_name(12345), "UNKNOWN");
	cr_assert_str_eq(kvxfer_status_name(-1), "UNKNOWN");
	cr_assert_eq(kvxfer_status_errno(KVXFER_OK), 0);
	cr_assert_eq(kvxfer_status_errno(KVXFER_LAYOUT), -EMEDIUMTYPE);
	cr_assert_eq(kvxfer_status_errno(-7), -ENOTRECOVERABLE);
	cr_assert_neq(kvxfer_status_text(KVXFER_RANGE)[0], '\0');
	cr_assert_eq(kvxfer_status_retryable(KVXFER_PEER_LOST), 1);
	cr_assert_eq(kvxfer_status_retryable(KVXFER_QUOTA), 1);
	cr_assert_eq(kvxfer_status_retryable(KVXFER_RANGE), 0);
	cr_assert_eq(kvxfer_status_retryable(KVXFER_OK), 0);
	cr_assert_eq(kvxfer_status_retryable(-7), 0);
	cr_assert_eq(kvxfer_version()[0], '0');
	KVX_TEST_END();
}

/* Configuration: every key, every refusal with its words, reload, and the files made from it. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "config_keys.h"
#include "test_end.h"

/* Writes text to a file, loads it over the defaults, removes it. */
static int load_bytes(const char *text, size_t len, struct kvx_config *config, struct kvx_why *why)
{
	char path[] = "/tmp/kvx-config-XXXXXX";
	char *at;
	int fd = mkstemp(path), err;

	cr_assert_geq(fd, 0);
	cr_assert_eq(write(fd, text, len), (ssize_t)len);
	close(fd);
	why->text[0] = '\0';
	err = kvx_config_load(path, config, why);
	unlink(path);
	at = strstr(why->text, path); /* the name is random: FILE stands for it */
	if (at != NULL) {
		char rest[KVX_WHY_BYTES];

		snprintf(rest, sizeof(rest), "FILE%s", at + strlen(path));
		snprintf(why->text, sizeof(why->text), "%s", rest);
	}
	return err;
}

static int load_text(const char *text, struct kvx_config *config, struct kvx_why *why)
{
	return load_bytes(text, strlen(text), config, why);
}

static char *file_read(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = calloc(1, 1 << 20);

	cr_assert_not_null(f, "%s", path);
	cr_assert_lt(fread(text, 1, (1 << 20) - 1, f), (1 << 20) - 1);
	fclose(f);
	return text;
}

static char *config_printed(const struct kvx_config *config)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	kvx_config_print(config, f);
	fclose(f);
	return text;
}

Test(config, defaults_are_valid_and_documented_values)
{
	struct kvx_config c;
	struct kvx_why why = {.text = ""};

	kvx_config_defaults(&c);
	cr_assert_eq(c.socket_mode, 0660);
	cr_assert_eq(c.frame_bytes, 16u << 20);
	cr_assert_eq(c.copy_nt_min_bytes, 16384);
	cr_assert_eq(c.spin_us, 50);
	cr_assert_eq(c.lost_ms, 3000);
	cr_assert(c.peer_enable);
	cr_assert_not(c.insecure_peers);
	cr_assert_str_eq(c.peer_listen, "127.0.0.1:7717");
	cr_assert_eq(kvx_config_finish(&c, &why), 0, "%s", why.text);
	cr_assert_gt(strlen(c.socket), 0);
	cr_assert_gt(c.bytes, 1u << 20);
	cr_assert_eq(c.bytes_per_client, c.bytes);
	cr_assert_geq(c.copy_workers, 1);
	cr_assert_leq(c.copy_workers, 4);
	KVX_TEST_END();
}

Test(config, file_values_are_taken_over)
{
	struct kvx_config c;
	struct kvx_why why;

	kvx_config_defaults(&c);
	cr_assert_eq(load_text("\xef\xbb\xbf# comment\r\n"
			       "[daemon]\r\n"
			       "socket = /tmp/a b.sock\r\n"
			       "  socket_mode=0600\n"
			       "; another comment = 3\n"
			       "node_id_file =\n"
			       "\n"
			       "[limits]\n"
			       "bytes = 3 GiB\n"
			       "frame_bytes = 32M ; room for larger lists\n"
			       "[transfer]\n"
			       "deadline_ms = 5s\n"
			       "[copy]\n"
			       "spin_us = 1ms\n"
			       "[peer]\n"
			       "listen = [::1]:0\n"
			       "enable = off",
			       &c, &why),
		     0, "%s", why.text);
	cr_assert_str_eq(c.socket, "/tmp/a b.sock");
	cr_assert_eq(c.socket_mode, 0600);
	cr_assert_str_eq(c.node_id_file, "");
	cr_assert_eq(c.bytes, 3ull << 30);
	cr_assert_eq(c.frame_bytes, 32u << 20);
	cr_assert_eq(c.deadline_ms, 5000);
	cr_assert_eq(c.spin_us, 1000);
	cr_assert_str_eq(c.peer_listen, "[::1]:0");
	cr_assert_not(c.peer_enable);
	KVX_TEST_END();
}

struct refusal {
	const char *text;
	const char *why;
};

static const struct refusal refusals[] = {
    {"[daemn]\n", "FILE:1: unknown section [daemn]; did you mean [daemon]?"},
    {"[nothing_like_it]\n", "FILE:1: unknown section [nothing_like_it]"},
    {"\n[limits]\n\nclientz = 3\n",
     "FILE:4: unknown key clientz in [limits]; did you mean clients?"},
    {"[limits]\nlog_level = info\n",
     "FILE:2: unknown key log_level in [limits]; did you mean log_level in [daemon]?"},
    {"[limits]\nxyzzy = 1\n", "FILE:2: unknown key xyzzy in [limits]"},
    {"clients = 3\n", "FILE:1: key clients stands before the first [section]"},
    {"[limits]\nclients = 3\n#\nclients = 3\n",
     "FILE:4: limits.clients is given twice, first in line 2"},
    {"[limits]\nclients = 3\n[daemon]\n[limits]\nclients = 4\n",
     "FILE:5: limits.clients is given twice, first in line 2"},
    {"[limits]\nclients = 0\n", "FILE:2: limits.clients: '0' is outside of 1 to 1000000"},
    {"[limits]\nclients = 99999999999999999999999\n",
     "FILE:2: limits.clients: '99999999999999999999999' is outside of 1 to 1000000"},
    {"[limits]\nclients = -3\n", "FILE:2: limits.clients: '-3' is not a number"},
    {"[limits]\nclients = 3x\n", "FILE:2: limits.clients: '3x' is not a number"},
    {"[limits]\nclients = 3K\n", "FILE:2: limits.clients: '3K' is not a number"},
    {"[limits]\nclients =\n", "FILE:2: limits.clients: '' is not a number"},
    {"[limits]\nbytes = 99999999999999T\n",
     "FILE:2: limits.bytes: '99999999999999T' is outside of 0 to 1024T"},
    {"[limits]\nframe_bytes = 5G\n", "FILE:2: limits.frame_bytes: '5G' is outside of 64K to 1G"},
    {"[limits]\nframe_bytes = 4 apples\n",
     "FILE:2: limits.frame_bytes: '4 apples' is not a number of bytes, such as 65536 or 64K"},
    {"[transfer]\ndeadline_ms = 1h\n",
     "FILE:2: transfer.deadline_ms: '1h' is not a time, such as 1500 (ms), 1500ms or 2s"},
    {"[daemon]\nsocket_mode = 0980\n",
     "FILE:2: daemon.socket_mode: '0980' is not octal permissions, such as 0660"},
    {"[daemon]\nsocket_mode = 1777\n",
     "FILE:2: daemon.socket_mode: '1777' is outside of 0000 to 0777"},
    {"[daemon]\nsocket = run/x\n",
     "FILE:2: daemon.socket: 'run/x' is not an absolute path, or @name"},
    {"[daemon]\nsocket = \"/run/x\"\n", "FILE:2: daemon.socket: values are written without quotes"},
    {"[daemon]\nsocket = /run/x # mine\n",
     "FILE:2: daemon.socket: a comment needs a line of its own"},
    {"[daemon]\nsocket = /run/\x01x\n", "FILE:2: daemon.socket: control character in the value"},
    {"[daemon]\nlog_level = loud\n",
     "FILE:2: daemon.log_level: 'loud' is not error, warn, info, debug or trace"},
    {"[peer]\nenable = maybe\n", "FILE:2: peer.enable: 'maybe' is not true or false"},
    {"[peer]\nlisten = 7717\n",
     "FILE:2: peer.listen: '7717' is not HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717"},
    {"[peer]\nlisten =\n",
     "FILE:2: peer.listen: '' is not HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717"},
    {"[peer]\nlisten = ::1:7717\n",
     "FILE:2: peer.listen: '::1:7717' is not HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717"},
    {"[peer]\nlisten = h:70000\n",
     "FILE:2: peer.listen: 'h:70000' is not HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717"},
    {"[verbs]\ngid_index = first\n", "FILE:2: verbs.gid_index: 'first' is not auto or a number"},
    {"[verbs]\ngid_index = 65536\n", "FILE:2: verbs.gid_index: '65536' is outside of 0 to 65535"},
    {"[verbs]\nqps_per_lane = 17\n", "FILE:2: verbs.qps_per_lane: '17' is outside of 1 to 16"},
    {"[verbs]\ntimeout = 0\n", "FILE:2: verbs.timeout: '0' is outside of 1 to 31"},
    {"[verbs]\nmtu = 4096\n", "FILE:2: unknown key mtu in [verbs]; did you mean mtu_bytes?"},
    /* lists */
    {"[daemon]\ntenants = Blue=/run/b\n", "FILE:2: daemon.tenants: 'Blue=/run/b' is not "
					  "NAME=SOCKET with a name of 1 to 31 characters of "
					  "a-z, 0-9 and -"},
    {"[daemon]\ntenants = =/run/b\n",
     "FILE:2: daemon.tenants: '=/run/b' is not NAME=SOCKET with a name of 1 to 31 characters of "
     "a-z, 0-9 and -"},
    {"[daemon]\ntenants = blue=\n",
     "FILE:2: daemon.tenants: tenant blue: '' is not an absolute path, or @name"},
    {"[daemon]\ntenants = blue=run/b\n",
     "FILE:2: daemon.tenants: tenant blue: 'run/b' is not an absolute path, or @name"},
    {"[daemon]\ntenants = blue=/run/b red=/run/r blue=/run/c\n",
     "FILE:2: daemon.tenants: tenant blue is given twice"},
    {"[daemon]\ntenants = blue=/run/b red=/run/b\n",
     "FILE:2: daemon.tenants: tenants blue and red have the same socket"},
    {"[daemon]\ntenants = default=/run/d\n",
     "FILE:2: daemon.tenants: tenant default is always there, on daemon.socket"},
    {"[daemon]\ntenants = a b c d e f g h\n", "FILE:2: daemon.tenants: more than 7 tenants"},
    {"[peer]\ntransports = verbs copy\n",
     "FILE:2: peer.transports: 'copy' is not a transport between nodes: verbs and fabric are"},
    {"[peer]\ntransports = peer\n",
     "FILE:2: peer.transports: 'peer' is not a transport between nodes: verbs and fabric are"},
    {"[peer]\ntransports = fabric fabric\n", "FILE:2: peer.transports: fabric is given twice"},
    {"[peer]\ntransports =\n",
     "FILE:2: peer.transports: no transport is named; verbs and fabric are some"},
    {"[verbs]\ndevices = mlx5_0,\n",
     "FILE:2: verbs.devices: '' is not DEVICE or DEVICE:PORT, such as mlx5_0 or mlx5_0:1"},
    {"[verbs]\ndevices = ^\n",
     "FILE:2: verbs.devices: '' is not DEVICE or DEVICE:PORT, such as mlx5_0 or mlx5_0:1"},
    {"[verbs]\ndevices = mlx5_0, mlx5_1\n",
     "FILE:2: verbs.devices: ' mlx5_1' is not DEVICE or DEVICE:PORT, such as mlx5_0 or mlx5_0:1"},
    {"[verbs]\ndevices = mlx5_0:x\n",
     "FILE:2: verbs.devices: 'mlx5_0:x' is not DEVICE or DEVICE:PORT, such as mlx5_0 or mlx5_0:1"},
    {"[verbs]\ndevices = mlx5_0:0\n",
     "FILE:2: verbs.devices: 'mlx5_0:0' is not DEVICE or DEVICE:PORT, such as mlx5_0 or mlx5_0:1"},
    /* what inih alone would take in silence */
    {"[daemon]\nsocket = /run/x\n  /run/y\n",
     "FILE:3: expected 'key = value', '[section]' or a comment with '#' at its beginning"},
    {"[daemon]\nsocket: /run/x\n",
     "FILE:2: expected 'key = value', '[section]' or a comment with '#' at its beginning"},
    {"[daemon]\n= /run/x\n",
     "FILE:2: expected 'key = value', '[section]' or a comment with '#' at its beginning"},
    {"[daemon] socket = /run/x\n", "FILE:1: only a section's name may stand on its line"},
    {"[daemon\n", "FILE:1: ']' is missing after the section's name"},
    {"[]\n", "FILE:1: unknown section []"},
};

Test(config, wrong_files_are_refused_with_line_and_reason)
{
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct kvx_config before, c;
		struct kvx_why why;

		kvx_config_defaults(&before);
		c = before;
		cr_assert_eq(load_text(refusals[i].text, &c, &why), -EINVAL, "%s",
			     refusals[i].text);
		cr_assert_str_eq(why.text, refusals[i].why);
		cr_assert_eq(memcmp(&before, &c, sizeof(c)), 0, "changed by %s", refusals[i].text);
	}
	KVX_TEST_END();
}

Test(config, nul_bytes_and_endless_lines_are_refused)
{
	static const char nul[] = "[daemon]\nlog_level = info\0rmation\n";
	struct kvx_config c;
	struct kvx_why why;
	char line[600] = "[daemon]\nsocket = /";

	kvx_config_defaults(&c);
	cr_assert_eq(load_bytes(nul, sizeof(nul) - 1, &c, &why), -EINVAL);
	cr_assert_str_eq(why.text, "FILE:2: NUL byte in the line");
	memset(line + strlen(line), 'x', sizeof(line) - 1 - strlen(line));
	cr_assert_eq(load_bytes(line, sizeof(line) - 1, &c, &why), -EINVAL);
	cr_assert_str_eq(why.text, "FILE:2: the line is too long");
	line[0] = '#'; /* a comment may be as long as it likes */
	line[8] = ' ';
	cr_assert_eq(load_bytes(line, sizeof(line) - 1, &c, &why), 0);
	KVX_TEST_END();
}

Test(config, missing_file_is_named)
{
	struct kvx_config c;
	struct kvx_why why;

	kvx_config_defaults(&c);
	cr_assert_eq(kvx_config_load("/nonexistent/kvxferd.conf", &c, &why), -ENOENT);
	cr_assert_str_eq(why.text, "/nonexistent/kvxferd.conf: No such file or directory");
	cr_assert_eq(kvx_config_load("/", &c, &why), -EISDIR);
	KVX_TEST_END();
}

Test(config, assignments_override_and_are_checked)
{
	struct kvx_config c;
	struct kvx_why why;

	kvx_config_defaults(&c);
	cr_assert_eq(kvx_config_set(&c, "peer.listen=127.0.0.1:0", &why), 0);
	cr_assert_str_eq(c.peer_listen, "127.0.0.1:0");
	cr_assert_eq(kvx_config_set(&c, "daemon.socket=@kvx=1", &why), 0);
	cr_assert_str_eq(c.socket, "@kvx=1");
	cr_assert_eq(kvx_config_set(&c, "peer.lsten=127.0.0.1:0", &why), -EINVAL);
	cr_assert_str_eq(why.text, "unknown key peer.lsten; did you mean peer.listen?");
	cr_assert_eq(kvx_config_set(&c, "peer", &why), -EINVAL);
	cr_assert_str_eq(why.text, "'peer': expected section.key=value");
	cr_assert_eq(kvx_config_set(&c, "x=a.b", &why), -EINVAL);
	cr_assert_eq(kvx_config_set(&c, "copy.workers=9", NULL), -EINVAL);
	cr_assert_eq(c.copy_workers, 0);
	KVX_TEST_END();
}

Test(config, values_that_contradict_each_other_are_refused)
{
	char long_socket[140] = "daemon.socket=/";
	const char *const wrong[] = {
	    "peer.lost_ms=1500",        "peer.heartbeat_ms=60s",
	    "peer.reconnect_min_ms=6s", "limits.ops=1000000",
	    "limits.blocks=4000000",    "limits.frame_bytes=64K",
	    "fabric.provider=",         "peer.listen=10.0.0.7:7717",
	    "peer.listen=[::]:7717",    long_socket,
	    "verbs.mtu_bytes=1500",     "verbs.mtu_bytes=128",
	    "verbs.post_batch=512",     "verbs.sq_depth=64",
	    "verbs.cq_depth=1023",      "limits.queued_bytes_per_client=4M",
	};

	memset(long_socket + strlen(long_socket), 'x', 108); /* one more than fits */
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct kvx_config c, before;
		struct kvx_why why = {.text = ""};

		kvx_config_defaults(&c);
		cr_assert_eq(kvx_config_set(&c, wrong[i], &why), 0, "%s: %s", wrong[i], why.text);
		before = c;
		cr_assert_eq(kvx_config_finish(&c, &why), -EINVAL, "%s", wrong[i]);
		cr_assert_not_null(strchr(why.text, '.'), "no key named for %s", wrong[i]);
		cr_assert_eq(memcmp(&c, &before, sizeof(c)), 0);
	}
	KVX_TEST_END();
}

Test(config, peers_are_authenticated_one_way)
{
	struct kvx_config c;
	struct kvx_why why = {.text = ""};

	kvx_config_defaults(&c);
	snprintf(c.peer_tls_ca, sizeof(c.peer_tls_ca), "/a");
	snprintf(c.peer_tls_cert, sizeof(c.peer_tls_cert), "/c");
	snprintf(c.peer_tls_key, sizeof(c.peer_tls_key), "/k");
	snprintf(c.peer_listen, sizeof(c.peer_listen), "0.0.0.0:7717");
	cr_assert_eq(kvx_config_finish(&c, &why), 0, "%s", why.text);
	snprintf(c.peer_secret_file, sizeof(c.peer_secret_file), "/s");
	cr_assert_eq(kvx_config_finish(&c, &why), -EINVAL);
	cr_assert_str_eq(why.text,
			 "peer.secret_file: peers are authenticated by it or by peer.tls_ca, "
			 "peer.tls_cert and peer.tls_key, not by both");
	KVX_TEST_END();
}

Test(config, other_addresses_than_loopback_need_authentication_or_trust)
{
	static const char *const fine[] = {
	    "peer.listen=[::1]:0",      "peer.listen=127.9.9.9:1",      "peer.listen=node7:7717",
	    "peer.insecure_peers=true", "peer.secret_file=/etc/secret", "peer.enable=false"};
	struct kvx_config c;
	struct kvx_why why;

	for (size_t i = 0; i < sizeof(fine) / sizeof(fine[0]); i++) {
		kvx_config_defaults(&c);
		if (strncmp(fine[i], "peer.listen", 11) != 0)
			cr_assert_eq(kvx_config_set(&c, "peer.listen=0.0.0.0:7717", &why), 0);
		cr_assert_eq(kvx_config_set(&c, fine[i], &why), 0);
		cr_assert_eq(kvx_config_finish(&c, &why), 0, "%s: %s", fine[i], why.text);
	}
	KVX_TEST_END();
}

static void must_set(struct kvx_config *c, const char *assignment)
{
	struct kvx_why why = {.text = ""};

	cr_assert_eq(kvx_config_set(c, assignment, &why), 0, "%s: %s", assignment, why.text);
}

Test(config, verbs_values_are_those_of_the_transport)
{
	struct kvx_config c;

	kvx_config_defaults(&c);
	cr_assert(c.verbs_enable && c.verbs.flush && c.peer_fallback);
	cr_assert_eq(c.verbs.gid_index, -1);
	cr_assert_eq(c.verbs.stripe_bytes, 1u << 20);
	cr_assert_eq(c.verbs.settle_ms, 100);
	cr_assert_eq(c.verbs_spin_us, 50);
	must_set(&c, "verbs.gid_index=3");
	must_set(&c, "verbs.devices=^mlx5_2:1,rxe0");
	must_set(&c, "verbs.cq_depth=1024");
	must_set(&c, "verbs.mtu_bytes=1024");
	cr_assert_eq(c.verbs.gid_index, 3);
	cr_assert_str_eq(c.verbs.devices, "^mlx5_2:1,rxe0");
	cr_assert_eq(kvx_config_finish(&c, NULL), 0);
	must_set(&c, "verbs.gid_index=auto");
	cr_assert_eq(c.verbs.gid_index, -1);
	KVX_TEST_END();
}

Test(config, tenants_have_an_index_and_a_socket)
{
	struct kvx_config_tenant tenants[KVX_MAX_TENANTS];
	struct kvx_config c;

	kvx_config_defaults(&c);
	must_set(&c, "daemon.socket=/run/k");
	must_set(&c, "daemon.tenants=");
	cr_assert_eq(kvx_config_tenants(&c, tenants), 1);
	must_set(&c, "daemon.tenants= blue=/run/b  team-2  red=@red");
	cr_assert_eq(kvx_config_finish(&c, NULL), 0);
	cr_assert_eq(kvx_config_tenants(&c, tenants), 4);
	cr_assert_str_eq(tenants[0].name, "default");
	cr_assert_str_eq(tenants[0].socket, "/run/k");
	cr_assert_str_eq(tenants[1].name, "blue");
	cr_assert_str_eq(tenants[1].socket, "/run/b");
	cr_assert_str_eq(tenants[2].name, "team-2");
	cr_assert_str_eq(tenants[2].socket, "", "systemd is to hand it over");
	cr_assert_str_eq(tenants[3].socket, "@red");
	KVX_TEST_END();
}

Test(config, tenants_cannot_share_the_default_socket)
{
	struct kvx_config c;
	struct kvx_why why = {.text = ""};

	kvx_config_defaults(&c);
	must_set(&c, "daemon.tenants=blue=/run/k");
	must_set(&c, "daemon.socket=/run/k");
	cr_assert_eq(kvx_config_finish(&c, &why), -EINVAL);
	cr_assert_str_eq(why.text, "daemon.tenants: tenants default and blue have the same socket");
	KVX_TEST_END();
}

Test(config, socket_of_a_tenant_must_fit_an_address)
{
	char text[160] = "daemon.tenants=blue=/";
	struct kvx_config c;
	struct kvx_why why = {.text = ""};

	kvx_config_defaults(&c);
	memset(text + strlen(text), 'x', 101); /* one more than fits */
	cr_assert_eq(kvx_config_set(&c, text, &why), -EINVAL);
	cr_assert_str_eq(why.text,
			 "daemon.tenants: tenant blue: its socket is longer than 101 bytes");
	text[strlen(text) - 1] = '\0';
	cr_assert_eq(kvx_config_set(&c, text, &why), 0);
	KVX_TEST_END();
}

Test(config, transports_come_in_their_order_without_disabled_ones)
{
	char names[KVX_CONFIG_TRANSPORTS][KVX_CONFIG_TRANSPORT_BYTES];
	struct kvx_config c;

	kvx_config_defaults(&c);
	cr_assert_eq(kvx_config_transports(&c, names), 2);
	cr_assert_str_eq(names[0], "verbs");
	cr_assert_str_eq(names[1], "fabric");
	must_set(&c, "peer.transports=fabric verbs");
	cr_assert_eq(kvx_config_transports(&c, names), 2);
	cr_assert_str_eq(names[0], "fabric");
	must_set(&c, "fabric.enable=false");
	cr_assert_eq(kvx_config_transports(&c, names), 1);
	cr_assert_str_eq(names[0], "verbs");
	must_set(&c, "verbs.enable=false");
	cr_assert_eq(kvx_config_transports(&c, names), 0);
	KVX_TEST_END();
}

Test(config, socket_is_in_the_runtime_directory_for_users)
{
	struct kvx_config user, other;
	uid_t uid = geteuid();

	if (uid == 0 && seteuid(65534) < 0)
		cr_skip_test("cannot become another user");
	kvx_config_defaults(&user);
	other = user;
	setenv("XDG_RUNTIME_DIR", "/run/user/1234", 1);
	cr_assert_eq(kvx_config_finish(&user, NULL), 0);
	unsetenv("XDG_RUNTIME_DIR");
	cr_assert_eq(kvx_config_finish(&other, NULL), 0);
	cr_assert_str_eq(user.socket, "/run/user/1234/kvxferd.sock");
	cr_assert_eq(strncmp(other.socket, "/run/user/", 10), 0);
	/* the leak check looks into /proc/self */
	cr_assert_eq(seteuid(uid), 0);
	prctl(PR_SET_DUMPABLE, 1);
	KVX_TEST_END();
}

Test(config, reload_takes_what_may_change_and_names_the_rest)
{
	struct kvx_config running, fresh;
	struct kvx_why why = {.text = ""};

	kvx_config_defaults(&running);
	fresh = running;
	cr_assert_eq(kvx_config_reload(&running, &fresh, &why), 0);
	fresh.clients = 7;
	snprintf(fresh.log_level, sizeof(fresh.log_level), "debug");
	cr_assert_eq(kvx_config_reload(&running, &fresh, &why), 0);
	cr_assert_eq(running.clients, 7);
	cr_assert_str_eq(running.log_level, "debug");
	fresh.batches = 99;
	snprintf(fresh.socket, sizeof(fresh.socket), "/run/other");
	fresh.deadline_ms = 5;
	cr_assert_eq(kvx_config_reload(&running, &fresh, &why), 2);
	cr_assert_str_eq(why.text, "changed only by a restart: daemon.socket, transfer.batches");
	cr_assert_eq(running.batches, 512);
	cr_assert_eq(running.deadline_ms, 5);
	KVX_TEST_END();
}

Test(config, printed_file_reads_back_as_the_same_configuration)
{
	struct kvx_config c, again;
	struct kvx_why why = {.text = ""};
	char *text;

	kvx_config_defaults(&c);
	cr_assert_eq(kvx_config_finish(&c, &why), 0);
	c.copy_nt_min_bytes = 12345;
	c.spin_us = 0;
	c.deadline_ms = 1001;
	c.insecure_peers = true;
	c.node_id_file[0] = '\0';
	c.verbs.gid_index = 5;
	must_set(&c, "daemon.tenants=blue=/run/b red");
	text = config_printed(&c);
	kvx_config_defaults(&again);
	cr_assert_eq(load_text(text, &again, &why), 0, "%s", why.text);
	for (unsigned i = 0; i < kvx_config_n_keys; i++)
		cr_assert(kvx_config_value_equal(&kvx_config_keys[i], &c, &again), "%s.%s",
			  kvx_config_keys[i].section, kvx_config_keys[i].name);
	free(text);
	KVX_TEST_END();
}

Test(config, each_key_keeps_its_own_field)
{
	static uint8_t used[sizeof(struct kvx_config)];

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];

		cr_assert_eq(kvx_config_key_find(key->section, key->name), key,
			     "%s.%s is twice in the table", key->section, key->name);
		cr_assert_gt(strlen(key->help), 10);
		for (size_t j = 0; j < key->size; j++)
			cr_assert_eq(used[key->offset + j]++, 0, "%s.%s shares its field",
				     key->section, key->name);
	}
	KVX_TEST_END();
}

static void visit_count(void *arg, const char *name, const char *value)
{
	cr_assert_not_null(strchr(name, '.'));
	cr_assert_not_null(value);
	++*(unsigned *)arg;
}

Test(config, visit_shows_each_key)
{
	struct kvx_config c;
	unsigned n = 0;

	kvx_config_defaults(&c);
	kvx_config_visit(&c, visit_count, &n);
	cr_assert_eq(n, kvx_config_n_keys);
	KVX_TEST_END();
}

Test(config, packaged_file_is_the_printed_defaults)
{
	char *packaged = file_read(KVX_SOURCE_ROOT "/packaging/kvxferd.conf");
	struct kvx_config c;
	char *printed;

	kvx_config_defaults(&c);
	printed = config_printed(&c);
	cr_assert_str_eq(packaged, printed);
	free(packaged);
	free(printed);
	KVX_TEST_END();
}

Test(config, manual_page_has_each_key_with_its_default)
{
	char *page = file_read(KVX_SOURCE_ROOT "/docs/man/kvxferd.conf.5");
	char *section = page;
	struct kvx_config c;

	kvx_config_defaults(&c);
	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];
		char text[KVX_CONFIG_VALUE_BYTES + 64], value[KVX_CONFIG_VALUE_BYTES];
		char *item, *def, *next;

		snprintf(text, sizeof(text), ".Ss [%s]\n", key->section);
		if (i == 0 || strcmp(kvx_config_keys[i - 1].section, key->section) != 0)
			section = strstr(page, text);
		cr_assert_not_null(section, "no section %s", key->section);
		snprintf(text, sizeof(text), "\n.It Ic %s\n", key->name);
		item = strstr(section, text);
		cr_assert_not_null(item, "no key %s.%s", key->section, key->name);
		kvx_config_value_get(key, &c, value);
		snprintf(text, sizeof(text), "default %s%s.\n", value[0] != '\0' ? value : "empty",
			 key->reloadable ? "; reloaded" : "");
		def = strstr(item, text);
		next = strstr(item + 1, "\n.It Ic ");
		cr_assert(def != NULL && (next == NULL || def < next), "%s.%s: no '%s'",
			  key->section, key->name, text);
	}
	free(page);
	KVX_TEST_END();
}

/* Configuration: every refusal with its words, and that it changes nothing. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "config_fixture.h"
#include "test_end.h"

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

Test(config_refuse, wrong_files_are_refused_with_line_and_reason)
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

Test(config_refuse, nul_bytes_and_endless_lines_are_refused)
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

Test(config_refuse, missing_file_is_named)
{
	struct kvx_config c;
	struct kvx_why why;

	kvx_config_defaults(&c);
	cr_assert_eq(kvx_config_load("/nonexistent/kvxferd.conf", &c, &why), -ENOENT);
	cr_assert_str_eq(why.text, "/nonexistent/kvxferd.conf: No such file or directory");
	cr_assert_eq(kvx_config_load("/", &c, &why), -EISDIR);
	KVX_TEST_END();
}

Test(config_refuse, values_that_contradict_each_other_are_refused)
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

Test(config_refuse, peers_are_authenticated_one_way)
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

Test(config_refuse, tenants_cannot_share_the_default_socket)
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

Test(config_refuse, socket_of_a_tenant_must_fit_an_address)
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

/* Configuration: what values are taken from a file and from assignments, and what a reload takes.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "config_fixture.h"
#include "test_end.h"

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

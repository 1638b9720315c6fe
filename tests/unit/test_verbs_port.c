/* The address of a port, asked for while the domain is open: the table changes under it when the
 * interface gets other addresses, or goes down and up again. */
#include <poll.h>
#include <stdio.h>

#include "verbs_rig.h"

#include "transport/verbs/verbs_priv.h"

struct port_rig {
	struct side side;
	struct fake_verbs_port *port;
	struct verbs_port now;
};

static void start(struct port_rig *r, int gid_index)
{
	struct kvx_verbs_conf conf = rig_conf();

	memset(r, 0, sizeof(*r));
	conf.gid_index = gid_index;
	rig_reset();
	kvx_log_set_level(KVX_LOG_ERROR);
	side_dom(&r->side, "fake0:1", &conf);
	r->port = &fake_verbs_dev(0)->ports[0];
}

static int ask(struct port_rig *r)
{
	struct kvx_why why;

	return verbs_port_read(r->side.dom, &r->now, &why);
}

static void finish(struct port_rig *r)
{
	T->close(r->side.dom);
	FAKE_VERBS_END();
}

Test(verbs_port, address_under_another_index_is_found)
{
	struct port_rig r;

	start(&r, -1);
	cr_assert_eq(ask(&r), 0);
	cr_assert_eq(r.now.gid_index, 3);
	memset(r.port->gids, 0, sizeof(r.port->gids));
	fake_verbs_make_gid(&r.port->gids[1], 1, "10.0.0.77", IBV_GID_TYPE_ROCE_V2);
	cr_assert_eq(ask(&r), 0);
	cr_assert_eq(r.now.gid_index, 1);
	cr_assert_eq(memcmp(r.now.gid + 12, "\x0a\x00\x00\x4d", 4), 0);
	finish(&r);
	KVX_TEST_END();
}

Test(verbs_port, index_of_the_configuration_stays)
{
	struct port_rig r;

	start(&r, 1);
	cr_assert_eq(ask(&r), 0);
	cr_assert_eq(r.now.gid_index, 1);
	memset(&r.port->gids[1], 0, sizeof(r.port->gids[1]));
	cr_assert_eq(ask(&r), -EHOSTUNREACH);
	finish(&r);
	KVX_TEST_END();
}

static const char *waits(const struct port_rig *r)
{
	return atomic_load(&r->side.limits.port->waits);
}

/* Asynchronous events wake a sleeper. */
static void sleep_and_pump(struct port_rig *r)
{
	for (unsigned i = 0; i < 5; i++) {
		(void)T->arm(r->side.dom);
		side_pump(&r->side);
	}
}

static int try_listen(struct port_rig *r)
{
	r->side.addr_len = sizeof(r->side.addr);
	return T->listen(r->side.dom, 0, &r->side.ep, r->side.addr, &r->side.addr_len);
}

static void raise(enum ibv_event_type type)
{
	fake_verbs_raise_port(fake_verbs_dev(0), 1, type);
}

Test(verbs_port, lost_address_is_said_once_and_waited_for)
{
	struct ibv_gid_entry kept[FAKE_VERBS_MAX_GIDS];
	unsigned long said;
	struct port_rig r;

	start(&r, -1);
	memcpy(kept, r.port->gids, sizeof(kept));
	memset(r.port->gids, 0, sizeof(r.port->gids));
	kvx_log_set_level(KVX_LOG_WARN);
	said = kvx_log_count_warnings();
	for (unsigned i = 0; i < 5; i++) {
		cr_assert_eq(try_listen(&r), -EHOSTUNREACH);
		sleep_and_pump(&r);
	}
	cr_assert_eq(kvx_log_count_warnings(), said + 1);
	cr_assert_not_null(strstr(waits(&r), "address"), "%s", waits(&r));
	cr_assert(!r.side.device_up);
	memcpy(r.port->gids, kept, sizeof(kept));
	raise(IBV_EVENT_GID_CHANGE);
	sleep_and_pump(&r);
	cr_assert_null(waits(&r));
	cr_assert(r.side.device_up);
	cr_assert_eq(try_listen(&r), 0);
	side_end_ep(&r.side);
	finish(&r);
	KVX_TEST_END();
}

/* Opens a device whose port is not ready, and makes it ready by what ready() does. */
static void expect_wait(void (*spoil)(struct fake_verbs_port *), int error, const char *words,
			void (*ready)(struct fake_verbs_port *))
{
	struct kvx_verbs_conf conf = rig_conf();
	struct port_rig r = {0};

	rig_reset();
	kvx_log_set_level(KVX_LOG_ERROR);
	r.port = &fake_verbs_dev(0)->ports[0];
	spoil(r.port);
	side_dom(&r.side, "fake0:1", &conf);
	cr_assert_not_null(strstr(r.side.rail.reason, words), "%s", r.side.rail.reason);
	cr_assert_not_null(strstr(waits(&r), words), "%s", waits(&r));
	cr_assert_eq(try_listen(&r), error);
	sleep_and_pump(&r);
	cr_assert(!r.side.device_up);
	ready(r.port);
	sleep_and_pump(&r);
	cr_assert(r.side.device_up);
	cr_assert_null(waits(&r));
	cr_assert_eq(try_listen(&r), 0);
	cr_assert_eq(atomic_load(&r.side.limits.port->mtu_bytes), 1024);
	cr_assert_eq(atomic_load(&r.side.limits.port->gid_index), 3);
	side_end_ep(&r.side);
	finish(&r);
}

/* As mlx5 shows a port whose interface is down. */
static void port_goes_down(struct fake_verbs_port *port)
{
	port->attr.state = IBV_PORT_DOWN;
	port->attr.active_mtu = (enum ibv_mtu)0;
	port->attr.max_msg_sz = 0;
}

static void port_comes_up(struct fake_verbs_port *port)
{
	port->attr.active_mtu = IBV_MTU_1024;
	raise(IBV_EVENT_PORT_ACTIVE);
}

static void address_goes(struct fake_verbs_port *port)
{
	memset(port->gids, 0, sizeof(port->gids));
}

static void address_comes(struct fake_verbs_port *port)
{
	fake_verbs_make_gid(&port->gids[3], 3, "10.0.0.77", IBV_GID_TYPE_ROCE_V2);
	raise(IBV_EVENT_GID_CHANGE);
}

Test(verbs_port, down_when_the_domain_is_opened_is_waited_for)
{
	expect_wait(port_goes_down, -ENETDOWN, "ip link set lo up", port_comes_up);
	KVX_TEST_END();
}

Test(verbs_port, without_address_when_the_domain_is_opened_is_waited_for)
{
	expect_wait(address_goes, -EHOSTUNREACH, "GID table is empty", address_comes);
	KVX_TEST_END();
}

/* The port is active before its address is back: only then it can be used. */
Test(verbs_port, up_without_address_is_not_up)
{
	struct ibv_gid_entry kept[FAKE_VERBS_MAX_GIDS];
	struct port_rig r;

	start(&r, -1);
	memcpy(kept, r.port->gids, sizeof(kept));
	memset(r.port->gids, 0, sizeof(r.port->gids));
	raise(IBV_EVENT_PORT_ERR);
	raise(IBV_EVENT_PORT_ACTIVE);
	sleep_and_pump(&r);
	cr_assert(!r.side.device_up);
	memcpy(r.port->gids, kept, sizeof(kept));
	raise(IBV_EVENT_GID_CHANGE);
	sleep_and_pump(&r);
	cr_assert(r.side.device_up);
	finish(&r);
	KVX_TEST_END();
}

/* A driver may say nothing, or a helper have looked at the wrong moment: who failed to listen makes
 * the data thread look too. */
Test(verbs_port, failed_listen_without_any_event_ends_in_news)
{
	struct port_rig r;

	start(&r, -1);
	r.port->attr.state = IBV_PORT_DOWN;
	cr_assert_eq(try_listen(&r), -ENETDOWN);
	r.port->attr.state = IBV_PORT_ACTIVE; /* before the data thread looks */
	sleep_and_pump(&r);
	cr_assert(r.side.device_up);
	cr_assert_null(waits(&r));
	finish(&r);
	KVX_TEST_END();
}

Test(verbs_port, listen_that_works_again_ends_the_wait)
{
	struct port_rig r;

	start(&r, -1);
	r.port->attr.state = IBV_PORT_DOWN;
	cr_assert_eq(try_listen(&r), -ENETDOWN);
	sleep_and_pump(&r);
	cr_assert_not_null(waits(&r));
	r.port->attr.state = IBV_PORT_ACTIVE; /* and no event */
	cr_assert_eq(try_listen(&r), 0);
	sleep_and_pump(&r);
	cr_assert_null(waits(&r));
	side_end_ep(&r.side);
	finish(&r);
	KVX_TEST_END();
}

/* However many different things are wrong one after the other, nothing is overwritten. */
Test(verbs_port, texts_stay_as_they_are)
{
	const char *first;
	struct port_rig r;
	char name[16];

	start(&r, -1);
	raise(IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	first = waits(&r);
	for (unsigned i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "eth%u", i);
		memcpy(r.side.dom->netdev, name, sizeof(name));
		raise(IBV_EVENT_PORT_ERR);
		sleep_and_pump(&r);
		cr_assert_not_null(waits(&r));
	}
	cr_assert_not_null(strstr(first, "ip link set lo up"), "%s", first);
	finish(&r);
	KVX_TEST_END();
}

/* Not "no address", for which a listen would wait quietly. */
Test(verbs_port, table_that_cannot_be_read_is_an_error)
{
	struct port_rig r;

	start(&r, -1);
	fake_verbs_fail(FV_QUERY_GID, 1, EIO);
	cr_assert_eq(ask(&r), -EIO);
	cr_assert(fake_verbs_fired());
	cr_assert_eq(ask(&r), 0);
	finish(&r);
	KVX_TEST_END();
}

/* No event follows a call that failed: the port is looked at again after a second. */
Test(verbs_port, call_that_fails_once_does_not_make_the_port_wait_for_ever)
{
	struct port_rig r;

	start(&r, -1);
	raise(IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	r.side.device_up = false;
	fake_verbs_fail(FV_QUERY_PORT, 1, ENOMEM);
	raise(IBV_EVENT_PORT_ACTIVE);
	sleep_and_pump(&r);
	cr_assert(fake_verbs_fired());
	cr_assert_not_null(waits(&r));
	for (unsigned i = 0; i < 30 && !r.side.device_up; i++) {
		poll(NULL, 0, 100);
		sleep_and_pump(&r);
	}
	cr_assert(r.side.device_up);
	cr_assert_null(waits(&r));
	finish(&r);
	KVX_TEST_END();
}

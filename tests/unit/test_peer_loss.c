/* The loss of a peer with several lanes: each lane's part of it is told when that lane's inbound
 * has stopped, whatever the other lanes do meanwhile. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_pair.h"
#include "test_end.h"
#include "worker/worker.h"

static const char *const tenants[] = {"default", "blue", NULL};
static struct kvx_worker *held; /* does nothing while it is held: its LEASE 0 takes so long */
static bool blue_may_listen;

bool __real_kvx_worker_pump(struct kvx_worker *worker);
bool __wrap_kvx_worker_pump(struct kvx_worker *worker);

bool __wrap_kvx_worker_pump(struct kvx_worker *worker)
{
	return worker != held && __real_kvx_worker_pump(worker);
}

static int (*real_listen)(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
			  size_t *addr_len);

/* The default lane goes by "best", the one of tenant blue by "fake". */
static int best_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		       size_t *addr_len)
{
	return tenant == 1 ? -ENOMEM : real_listen(dom, tenant, out_ep, addr, addr_len);
}

static int fake_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		       size_t *addr_len)
{
	return tenant == 1 && !blue_may_listen ? -ENOMEM
					       : real_listen(dom, tenant, out_ep, addr, addr_len);
}

static void start(void)
{
	rig_init(&rig);
	real_listen = test_best_ops.listen;
	test_best_ops.listen = best_listen;
	test_fake_ops.listen = fake_listen;
	rig.a.node_conf.peer_ops[0] = rig.b.node_conf.peer_ops[0] = &test_best_ops;
	rig.a.node_conf.peer_ops[1] = rig.b.node_conf.peer_ops[1] = &test_fake_ops;
	rig.a.conf.fallback = rig.b.conf.fallback = true;
	rig.a.conf.tenants = rig.b.conf.tenants = tenants;
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 60000;
	rig.a.conf.heartbeat_ms = rig.b.conf.heartbeat_ms = 5000;
	rig_wire_b(&rig);
	pair_start();
	rig_pass(&rig, 50);
}

static struct kvx_worker *worker_of(const struct kvx_transport_ops *ops)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(rig.b.node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].ops == ops)
			return rails[i].worker;
	return NULL;
}

static bool blue_is_up(void)
{
	struct kvx_lane_row row;

	return rig_lane(&rig.b, "blue", &row) && strcmp(row.state, "up") == 0;
}

Test(peer_loss, owner_is_told_though_another_lane_is_up_again_before_its_own_has_stopped)
{
	start();
	rig.script.latency_ns = 100 * KVX_SEC;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	cr_assert_eq(rig.b.n_arrivals, 0);
	held = worker_of(&test_best_ops);
	cr_assert_not_null(held);
	rig_wire_cut(&rig);
	rig.script.latency_ns = 0;
	blue_may_listen = true;
	cr_assert(RIG_UNTIL(&rig, blue_is_up(), 8000));
	cr_assert_eq(rig.b.n_arrivals, 0, "told while bytes may still land");
	held = NULL;
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals > 0, 8000));
	cr_assert_eq(rig.b.n_arrivals, 1);
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "best", 1), 30000));
	pair_stop();
	KVX_TEST_END();
}

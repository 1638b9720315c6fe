/* The order in which the loss of a peer, or of a client of it, is told: after the fence of what it
 * had under way. With several lanes each lane's part of it is told when that lane's inbound has
 * stopped, whatever the other lanes do meanwhile. */
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

struct importer {
	struct kvx_target_watch watch;
	struct kvx_target *target;
	unsigned n_told, arrivals_then;
	int status;
};

static void on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	struct importer *importer = (struct importer *)watch;

	importer->n_told++;
	importer->status = status;
	importer->arrivals_then = rig.b.n_arrivals;
}

/* b imports a region of a. */
static KVX_ON_LOOP void import_from_a(struct importer *importer, const struct kvx_region *region)
{
	struct kvx_desc desc = rig_desc(&rig.a, region);
	struct rig_answer answer = rig_resolve(&rig.b, &desc);

	cr_assert_eq(answer.status, 0, "%s", answer.text);
	*importer = (struct importer){.watch.lost = on_lost, .target = answer.target};
	kvx_target_watch(importer->target, &importer->watch);
}

static KVX_ON_LOOP void import_end(struct importer *importer)
{
	kvx_target_unwatch(importer->target, &importer->watch);
	kvx_target_unref(importer->target);
}

Test(peer_loss, importer_is_told_after_the_arrivals_of_the_lost_peer)
{
	struct importer importer;

	start();
	import_from_a(&importer, here);
	rig.script.latency_ns = 100 * KVX_SEC;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	held = worker_of(&test_best_ops);
	cr_assert_not_null(held);
	rig_wire_cut(&rig);
	rig_pass(&rig, 500);
	cr_assert(importer.target->lost, "it takes no new transfers");
	cr_assert_eq(importer.n_told, 0, "told while bytes may still land");
	cr_assert_eq(rig.b.n_arrivals, 0);
	rig.script.latency_ns = 0;
	held = NULL;
	cr_assert(RIG_UNTIL(&rig, importer.n_told > 0, 8000));
	cr_assert_eq(importer.arrivals_then, 1, "told before the arrival");
	cr_assert_eq(importer.status, -EHOSTDOWN);
	rig_pass(&rig, 1000);
	cr_assert_eq(importer.n_told, 1);
	import_end(&importer);
	pair_stop();
	KVX_TEST_END();
}

/* Several clients on both sides: what one of them hears first says nothing about the others. */
Test(peer_loss, every_importer_is_told_after_the_arrivals_of_all_transfers)
{
	enum { N = 4 }; /* all of them have begun */
	struct importer importers[N];
	struct kvx_target *targets[N];

	start();
	for (unsigned i = 0; i < N; i++) {
		struct kvx_desc desc = rig_desc(&rig.b, rig_region(&rig.b, LEN, RW, NULL));
		struct rig_answer answer = rig_resolve(&rig.a, &desc);

		cr_assert_eq(answer.status, 0, "%s", answer.text);
		targets[i] = answer.target;
		import_from_a(&importers[i], rig_region(&rig.a, LEN, RW, NULL));
	}
	rig.script.latency_ns = 100 * KVX_SEC;
	for (unsigned i = 0; i < N; i++)
		cr_assert_eq(rig_submit(&rig.a, i % 2 ? KVX_OP_READ : KVX_OP_WRITE, here,
					targets[i], LEN, 60000),
			     0);
	rig_pass(&rig, 20);
	held = worker_of(&test_best_ops);
	rig_wire_cut(&rig);
	rig_pass(&rig, 500);
	for (unsigned i = 0; i < N; i++) {
		cr_assert(importers[i].target->lost);
		cr_assert_eq(importers[i].n_told, 0, "told while bytes may still land");
	}
	cr_assert_eq(rig.b.n_arrivals, 0);
	rig.script.latency_ns = 0;
	held = NULL;
	cr_assert(RIG_UNTIL(&rig, importers[N - 1].n_told > 0, 8000));
	rig_pass(&rig, 1000);
	for (unsigned i = 0; i < N; i++) {
		cr_assert_eq(importers[i].n_told, 1);
		cr_assert_eq(importers[i].arrivals_then, N, "%u: before an arrival", i);
		cr_assert_eq(importers[i].status, -EHOSTDOWN);
		cr_assert_eq(rig.b.arrivals[i].arrival.status, -EHOSTDOWN);
		import_end(&importers[i]);
		kvx_target_unref(targets[i]);
	}
	cr_assert_eq(rig.b.n_arrivals, N);
	pair_stop();
	KVX_TEST_END();
}

static void on_closed(void *arg, uint64_t region_id)
{
	*(bool *)arg = true;
}

/* The transfer goes from another region than the one that is imported. */
Test(peer_loss, importer_is_told_of_a_lost_client_after_the_arrivals_of_its_transfers)
{
	struct importer importer;
	struct kvx_region *other;
	bool closed = false;

	start();
	other = rig_region(&rig.a, LEN, RW, NULL);
	import_from_a(&importer, other);
	rig.script.latency_ns = 300 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	kvx_xfers_cancel_client(kvx_node_xfers(rig.a.node), other->owner, -EPIPE, "killed");
	cr_assert_eq(kvx_node_region_close(rig.a.node, other, -EPIPE, "killed", on_closed, &closed),
		     0);
	rig_pass(&rig, 100);
	cr_assert_eq(importer.n_told, 0, "told while bytes may still land");
	cr_assert(RIG_UNTIL(&rig, importer.n_told > 0, 5000));
	cr_assert_eq(importer.arrivals_then, 1, "told before the arrival");
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EPIPE);
	cr_assert_eq(importer.status, -EPIPE);
	rig.script.latency_ns = 0;
	import_end(&importer);
	cr_assert(RIG_UNTIL(&rig, closed, 5000));
	pair_stop();
	KVX_TEST_END();
}

/* Only CLIENT_LOST promises that nothing of the client is under way. */
Test(peer_loss, region_that_was_unregistered_is_told_as_such)
{
	struct importer importer;
	struct kvx_region *other;
	bool closed = false;

	start();
	other = rig_region(&rig.a, LEN, RW, NULL);
	import_from_a(&importer, other);
	cr_assert_eq(kvx_node_region_close(rig.a.node, other, -EOWNERDEAD, "unregistered",
					   on_closed, &closed),
		     0);
	cr_assert(RIG_UNTIL(&rig, importer.n_told > 0, 5000));
	cr_assert_eq(importer.status, -EOWNERDEAD);
	import_end(&importer);
	cr_assert(RIG_UNTIL(&rig, closed, 5000));
	pair_stop();
	KVX_TEST_END();
}

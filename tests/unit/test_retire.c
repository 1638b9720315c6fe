/* Regions out: the order of the steps, and that nobody can use a region that is on its way out. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "node_rig.h"
#include "test_end.h"

#define MIB (1u << 20)

/* The peer table's part: answers at once, or when the test says so. */
struct withdrawals {
	bool later;
	unsigned n;
	void (*done_cb)(void *done_arg);
	void *done_arg;
	unsigned mrs_then; /* registered when it was asked */
	unsigned users_then;
};

static struct node_rig rig;
static struct withdrawals withdrawals;
static struct kvx_region *local, *remote;
static struct kvx_target *target;
static struct kvx_xfer_req req;

static void withdraw(void *arg, struct kvx_region *region, const struct kvx_withdrawal *why,
		     void (*done_cb)(void *done_arg), void *done_arg)
{
	withdrawals.n++;
	withdrawals.mrs_then = rig.script.n_mrs;
	withdrawals.users_then = region->n_users;
	rig_log(&rig, 'W');
	if (withdrawals.later) {
		withdrawals.done_cb = done_cb;
		withdrawals.done_arg = done_arg;
	} else {
		done_cb(done_arg);
	}
}

static void setup(void)
{
	static const struct kvx_node_peer_hooks hooks = {.withdraw = withdraw};
	memset(&withdrawals, 0, sizeof(withdrawals));
	rig_init(&rig);
	rig.script.latency_ns = 500000;
	rig_start(&rig);
	kvx_node_set_peers(rig.node, &hooks);
	local = rig_region(&rig, 1, MIB, 0, NULL);
	remote = rig_region(&rig, 2, MIB, 3, NULL);
	target = rig_target(&rig, remote);
	req = (struct kvx_xfer_req){.client = 1,
				    .number = 1,
				    .op = KVX_OP_WRITE,
				    .region = local,
				    .target = target,
				    .require = ""};
	rig_turn(&rig, 0);
	memset(rig.log, 0, sizeof(rig.log));
}

static int start_close(struct kvx_region *region)
{
	return kvx_node_region_close(rig.node, region, -EOWNERDEAD, "unregistered", rig_on_closed,
				     &rig);
}

Test(retire, steps_come_in_the_one_safe_order)
{
	setup();
	rig_submit(&rig, &req, MIB);
	rig_turn(&rig, 1000);
	cr_assert_gt(rig.script.n_open_ops, 0);
	cr_assert_eq(start_close(remote), 0);
	cr_assert_eq(rig.n_closed, 0);
	rig_turn(&rig, 1000);
	cr_assert_eq(withdrawals.n, 0, "withdrawn with a transfer in flight");
	cr_assert_eq(rig.script.n_mrs, 4);
	for (unsigned i = 0; i < 20 && rig.n_closed == 0; i++)
		rig_turn(&rig, 500000);
	cr_assert_str_eq(rig.log, "ATWuC");
	cr_assert_eq(rig.ends[0].end.status, -EOWNERDEAD);
	cr_assert_str_eq(rig.ends[0].text, "unregistered");
	cr_assert_eq(withdrawals.users_then, 0);
	cr_assert_eq(withdrawals.mrs_then, 4, "deregistered before peers had stopped");
	cr_assert_eq(rig.script.n_mrs, 2);
	cr_assert_null(target->region);
	kvx_target_unref(target); /* an import may outlive the region */
	rig_region_close(&rig, local);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(retire, waits_for_peers_with_everything_in_place)
{
	setup();
	withdrawals.later = true;
	cr_assert_eq(start_close(remote), 0);
	for (unsigned i = 0; i < 50; i++)
		rig_turn(&rig, 1000000);
	cr_assert_eq(withdrawals.n, 1);
	cr_assert_eq(rig.n_closed, 0);
	cr_assert_eq(rig.n_mapped, 2);
	cr_assert_eq(rig.script.n_mrs, 4);
	withdrawals.done_cb(withdrawals.done_arg);
	rig_turn(&rig, 0);
	rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	cr_assert_eq(rig.n_mapped, 1);
	withdrawals.later = false;
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_stop(&rig);
	KVX_TEST_END();
}

static unsigned n_lost;

static void on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	cr_assert_eq(status, -EOWNERDEAD);
	n_lost++;
	kvx_target_unwatch(target, watch);
}

Test(retire, closing_region_takes_no_new_users)
{
	struct kvx_target_watch a = {.lost = on_lost}, b = {.lost = on_lost};
	static const uint64_t zero, len = 64;
	struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
	struct kvx_target *again = NULL;
	struct kvx_xfer *xfer = NULL;
	struct kvx_why why = {""};
	setup();
	withdrawals.later = true;
	kvx_target_watch(target, &a);
	kvx_target_watch(target, &b);
	cr_assert_eq(start_close(remote), 0);
	cr_assert_eq(start_close(remote), -EALREADY);
	cr_assert_eq(n_lost, 2);
	cr_assert(target->lost);
	cr_assert_eq(kvx_node_target_open(rig.node, remote, &again, &why), -EOWNERDEAD);
	req.ops = &ops;
	cr_assert_eq(kvx_xfer_submit(kvx_node_xfers(rig.node), &req, &xfer, &why), -EOWNERDEAD);
	rig_turn(&rig, 0);
	withdrawals.done_cb(withdrawals.done_arg);
	rig_turn(&rig, 0);
	rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	withdrawals.later = false;
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(retire, stuck_transfer_is_fenced_then_the_region_goes)
{
	setup();
	rig.script.drop_nth_op = (unsigned)rig.script.n_ops + 1;
	rig.script.drop_ops = 50;
	rig_submit(&rig, &req, MIB);
	rig_turn(&rig, 1000000);
	cr_assert_eq(start_close(local), 0);
	rig_turn(&rig, 500000);
	cr_assert_eq(rig.n_closed, 0);
	rig_turn(&rig, 600000);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	cr_assert_eq(kvx_node_copy_lane(rig.node)->n_resets, 1);
	cr_assert_eq(rig.ends[0].end.status, -EOWNERDEAD);
	kvx_target_unref(target);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

static void on_client_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	cr_assert_eq(status, -EPIPE);
	cr_assert_str_eq(text, "the engine is gone");
	rig_log(&rig, 'L');
}

/* Its transfer uses another region than the one that was imported. */
Test(retire, loss_of_a_client_is_told_after_its_last_transfer)
{
	struct kvx_target_watch watch = {.lost = on_client_lost};
	struct kvx_region *other;
	struct kvx_target *imported;
	setup();
	other = rig_region(&rig, 1, MIB, 3, NULL);
	imported = rig_target(&rig, other);
	kvx_target_watch(imported, &watch);
	rig_turn(&rig, 0);
	memset(rig.log, 0, sizeof(rig.log));
	rig_submit(&rig, &req, MIB);
	rig_turn(&rig, 1000);
	cr_assert_gt(rig.script.n_open_ops, 0);
	kvx_xfers_cancel_client(kvx_node_xfers(rig.node), 1, -EPIPE, "the engine is gone");
	cr_assert_eq(kvx_node_region_close(rig.node, other, -EPIPE, "the engine is gone",
					   rig_on_closed, &rig),
		     0);
	rig_turn(&rig, 1000);
	cr_assert(imported->lost, "it takes no new transfers");
	cr_assert_str_eq(rig.log, "", "told with a transfer of the client in flight");
	for (unsigned i = 0; i < 20 && rig.n_closed == 0; i++)
		rig_turn(&rig, 500000);
	cr_assert_str_eq(rig.log, "ATLWuC");
	kvx_target_unwatch(imported, &watch);
	kvx_target_unref(imported);
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Who unregisters one region goes on using the others. */
Test(retire, region_alone_does_not_wait_for_other_transfers_of_its_owner)
{
	struct kvx_region *other;
	setup();
	other = rig_region(&rig, 1, MIB, 3, NULL);
	rig_turn(&rig, 0);
	rig_submit(&rig, &req, MIB);
	rig_turn(&rig, 1000);
	cr_assert_eq(start_close(other), 0);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	cr_assert_eq(rig.n_ends, 0);
	cr_assert(rig_until_ends(&rig, 1, 500000));
	cr_assert_eq(rig.ends[0].end.status, 0);
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Both sides of the same transfer, closed at once, with the lane being reset on top. */
Test(retire, both_sides_close_during_a_lane_reset)
{
	setup();
	rig_submit(&rig, &req, MIB);
	rig_turn(&rig, 1000);
	kvx_fake_ep_lose(kvx_node_copy_lane(rig.node)->outlets[0].ep, -EIO);
	cr_assert_eq(start_close(local), 0);
	cr_assert_eq(start_close(remote), 0);
	for (unsigned i = 0; i < 10; i++)
		rig_turn(&rig, 500000);
	cr_assert_eq(rig.n_closed, 2);
	cr_assert_eq(rig.n_ends, 1);
	cr_assert_eq(kvx_node_copy_lane(rig.node)->state, KVX_LANE_UP);
	kvx_target_unref(target);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Closed before the target's keys have come back from the workers. */
Test(retire, close_while_keys_are_being_made)
{
	setup();
	struct kvx_region *third = rig_region(&rig, 3, MIB, 3, NULL);
	struct kvx_target *young = rig_target(&rig, third);
	struct kvx_target *dying = rig_target(&rig, third);
	kvx_target_unref(dying);
	cr_assert_eq(start_close(third), 0);
	kvx_target_unref(young);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(retire, region_without_keys_goes_while_it_is_imported)
{
	setup();
	rig.script.faults[KVX_FAKE_RKEY_UNPACK] = (struct kvx_fake_fault){
	    .nth = rig.script.calls[KVX_FAKE_RKEY_UNPACK] + 1, .err = -ENOMEM};
	struct kvx_region *third = rig_region(&rig, 3, MIB, 3, NULL);
	struct kvx_target *lost = rig_target(&rig, third);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 0);
	cr_assert(lost->lost);
	cr_assert_eq(start_close(third), 0);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1, "it waits for the importer");
	kvx_target_unref(lost);
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* A daemon restart under a living engine: reconnect registers the same memory anew, nothing is
 * retried, old descriptors are refused by name. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "pair.h"

#define WAIT_MS 10000

static void write_one_block(struct pair *p, uint32_t block)
{
	struct kvxfer_blocks blocks = {
	    .n_planes = 2, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t = pair_write(p);
	struct test_event ev;
	uint64_t id = 0;

	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(p->prefill.client, &t, &id), 0);
	ev = test_wait(&p->prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	cr_assert(test_block_is(&p->decode, 1, 1, block, block));
}

static void restart(bool cross, int signo)
{
	static struct pair p;
	uint8_t old[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	struct kvxfer_region *region;
	int len, rc;

	pair_open(&p, cross, NULL, 2, 8, 4096);
	write_one_block(&p, 1);
	len = kvxfer_region_export(p.decode.region, old, sizeof(old));
	if (signo == SIGTERM)
		test_node_stop(pair_node(&p, 1));
	else
		test_node_signal(pair_node(&p, 1), signo);
	test_node_restart(pair_node(&p, 1), NULL);
	test_wait(&p.decode, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	if (!cross) {
		test_wait(&p.prefill, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
		cr_assert_eq(kvxfer_client_reconnect(p.prefill.client), 0);
	}
	region = p.decode.region;
	cr_assert_eq(kvxfer_client_reconnect(p.decode.client), 0, "%s",
		     kvxfer_client_error(p.decode.client));
	cr_assert_eq(kvxfer_client_reconnect(p.decode.client), -EALREADY);
	cr_assert_eq(p.decode.region, region);
	cr_assert(test_block_is(&p.decode, 1, 1, 1, 1), "the memory itself was not touched");
	rc = kvxfer_import_open(p.prefill.client, old, (size_t)len, NULL, &import_);
	cr_assert_eq(rc, -ESTALE, "%d %s", rc, kvxfer_client_error(p.prefill.client));
	p.to_decode = test_engine_import(&p.prefill, &p.decode);
	write_one_block(&p, 5);
	pair_close(&p);
}

Test(restart, after_kill_same_node)
{
	restart(false, SIGKILL);
}

Test(restart, after_kill_two_nodes)
{
	restart(true, SIGKILL);
}

Test(restart, after_term_same_node)
{
	restart(false, SIGTERM);
}

Test(restart, after_term_two_nodes)
{
	restart(true, SIGTERM);
}

/* Submissions between the loss and the reconnect are refused at once, and leave no event. */
Test(restart, calls_without_a_daemon_say_so)
{
	static struct pair p;
	uint32_t block = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, false, NULL, 1, 4, 4096);
	test_node_signal(&p.node[0], SIGKILL);
	test_wait(&p.prefill, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	t = pair_write(&p);
	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), -ECONNRESET);
	cr_assert_eq(kvxfer_client_reconnect(p.prefill.client) == 0, 0);
	cr_assert_not(test_wait_maybe(&p.prefill, KVXFER_EVENT_TERMINAL, 0, 50, &ev));
	test_engine_close(&p.prefill);
	test_engine_close(&p.decode);
	test_node_fini(&p.node[0]);
}

/* Two whole daemons for test_direct: in this process, joined by TCP, on both stand-ins: the one for
 * libibverbs (devices "fake0" and "fake1"), which carries the bytes between them, and the one for a
 * GPU runtime, whose memory the devices reach by dma-buf or by address. Ends when the test closes
 * its pipe; exit status 0: everything was given back and nothing was done wrong.
 *
 * usage: direct_daemons DIR MARK_FD ACK_FD     sockets DIR/0 and DIR/1
 * KVX_DIRECT_TRANSPORTS: how they reach each other; "verbs" when it is not set
 * KVX_DIRECT_CALL_MS: gpu.call_timeout_ms, when it is set
 *
 * For each byte that it reads from MARK_FD it does as told and answers one:
 *   d D   what lands in GPU memory is (not) held back until the same device reads there
 *   b B   devices take no (take) dma-bufs
 *   p P   devices reach no (reach) GPU memory by address
 *   h H   registering a dma-buf hangs (no longer)
 *   n     does any now: 'y' or 'a'
 *   o O   a dma-buf shows memory of a page before (what it should)
 *   w     from now on a thread of its own moves the bytes, in packets and random order
 *   x     a queue pair fails, or a work request soon does; which one is random
 *   f     has that hit anything so far: 'y' or 'a'
 *   l     does a device reach GPU memory now: 'y' or 'a' */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "rdma_gpus.h"
#include "verbs_daemons.h"

#define N_DEVS 2u

static void tune(struct kvx_config *config, unsigned i)
{
	const char *transports = getenv("KVX_DIRECT_TRANSPORTS");
	const char *call_ms = getenv("KVX_DIRECT_CALL_MS");

	(void)i;
	if (call_ms != NULL)
		config->gpu.call_timeout_ms = (uint32_t)atoi(call_ms);
	if (transports != NULL)
		snprintf(config->peer_transports, sizeof(config->peer_transports), "%s",
			 transports);
	config->verbs_spin_us = 0;
	config->verbs.qps_per_lane = 2;
	config->verbs.stripe_bytes = 64 << 10;
}

static bool has_hit;

/* Also those of a loopback, which are queue pairs like others. */
static void fault(void)
{
	static uint64_t state = 4711;

	has_hit |= fake_verbs_broken();

	state = state * 6364136223846793005u + 1442695040888963407u;
	if (state >> 63) {
		has_hit |= fake_verbs_n_qps() > 0;
		fake_verbs_raise_some(state >> 33, IBV_EVENT_QP_FATAL);
	} else {
		fake_verbs_break(1 + (unsigned)(state >> 40) % 20, IBV_WC_REM_OP_ERR, 0x8b,
				 (enum fake_verbs_land)((state >> 50) % 3));
	}
}

static char command(char mark)
{
	for (unsigned i = 0; i < N_DEVS; i++) {
		struct fake_verbs_dev *dev = fake_verbs_dev(i);

		if (mark == 'b' || mark == 'B')
			dev->has_dmabuf = mark == 'B';
		else if (mark == 'p' || mark == 'P')
			dev->has_peermem = mark == 'P';
		else if (mark == 'o' || mark == 'O')
			dev->dmabuf_off = mark == 'o' ? 0 - (uint64_t)4096 : 0;
	}
	if (mark == 'd' || mark == 'D')
		fake_verbs_gpu_delay(mark == 'd');
	if (mark == 'h' || mark == 'H')
		fake_verbs_hang(FV_REG_DMABUF_MR, mark == 'h');
	if (mark == 'n')
		return fake_verbs_hanging(FV_REG_DMABUF_MR) > 0 ? 'y' : 'a';
	if (mark == 'x')
		fault();
	if (mark == 'w') {
		fake_verbs_packet(4096);
		fake_verbs_mode(FV_HELD);
		fake_verbs_wire_start(17);
	}
	if (mark == 'f')
		return has_hit ? 'y' : 'a';
	if (mark == 'l')
		return fake_verbs_gpu_mrs() > 0 ? 'y' : 'a';
	return 'a';
}

static void on_mark(struct verbs_daemons *d, char mark)
{
	char answer = command(mark);

	if (write(d->ack_fd, &answer, 1) != 1)
		abort();
}

/* What the daemons were given and have not given back. */
static int leftovers(void)
{
	struct fake_verbs_count c = fake_verbs_count();
	unsigned n = c.qps + c.cqs + c.channels + c.mrs + c.pds + c.contexts + c.unacked_events;

	if (fake_verbs_n_violations() > 0)
		fprintf(stderr, "direct_daemons: %s\n", fake_verbs_violation());
	if (n > 0)
		fprintf(stderr,
			"direct_daemons: left: %u queue pairs, %u completion queues, %u channels, "
			"%u registrations, %u protection domains, %u contexts\n",
			c.qps, c.cqs, c.channels, c.mrs, c.pds, c.contexts);
	return n > 0 || fake_verbs_n_violations() > 0;
}

int main(int argc, char **argv)
{
	static struct verbs_daemons d;
	int left;

	if (argc != 4 || strlen(argv[1]) >= sizeof(d.dir))
		return 2;
	strcpy(d.dir, argv[1]);
	d.mark_fd = atoi(argv[2]);
	d.ack_fd = atoi(argv[3]);
	d.engine_mark_fd = d.engine_ack_fd = -1;
	d.on_mark = on_mark;
	kvx_role_set_loop();
	kvx_assert_on_loop();
	kvx_log_init(getenv("KVX_TEST_VERBOSE") != NULL ? KVX_LOG_DEBUG : KVX_LOG_ERROR, false);
	fake_verbs_reset();
	fake_verbs_add("fake1");
	fake_verbs_retry(1000);
	fake_verbs_set_gpus(&test_rdma_gpus);
	verbs_daemons_open(&d, tune);
	verbs_daemons_run(&d);
	fake_verbs_wire_stop();
	if (fake_verbs_hanging(FV_REG_DMABUF_MR) > 0)
		return fake_verbs_n_violations() > 0; /* what is left to it is the kernel's */
	left = leftovers();
	fake_verbs_fini();
	return left;
}

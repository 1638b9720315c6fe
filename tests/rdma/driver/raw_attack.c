/* `rdma_raw victim` and `rdma_raw attack`: someone has a process with a queue pair on the node
 * whose memory is to be protected (victim; its own protection domain) and one on another node
 * (attack), and knows keys and addresses that a kvxferd there has given out. attack tries to write
 * and to read with them, with keys like them, and past the ends; every attempt must be refused by
 * the device. With victim's own key, in range, both must work: the attempts are real ones. */
#include "raw.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "drv_chan.h"
#include "drv_mem.h"

#define OWN_BYTES   65536u
#define TRY_BYTES   256u
#define WAIT_MS     20000u
#define MAX_KEYS    64u
#define MAX_OFFSETS 16u

enum { MSG_ADDR = 1, MSG_END };

/* victim: its queue pair, and the memory that may be used. */
struct offer {
	struct raw_addr addr;
	uint32_t rkey, pad;
	uint64_t at, len;
};

static const void *receive(struct drv_chan *chan, size_t want)
{
	uint64_t end = drv_now_ns() + drv_ms(WAIT_MS);
	enum drv_msg type;
	size_t len;

	for (;;) {
		const void *body = drv_chan_next(chan, &type, &len);

		if (body != NULL && type == (enum drv_msg)MSG_END)
			return NULL;
		if (body != NULL && len != want)
			drv_die("a message of %zu bytes, not %zu", len, want);
		if (body != NULL)
			return body;
		if (!drv_chan_pump(chan))
			return NULL;
		if (drv_now_ns() > end)
			drv_die("no answer");
		drv_sleep_ms(1);
	}
}

static struct ibv_mr *own_memory(struct ibv_pd *pd, uint8_t **out_at)
{
	struct ibv_mr *mr;

	*out_at = mmap(NULL, OWN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (*out_at == MAP_FAILED)
		drv_die("mmap: %s", strerror(errno));
	mr = ibv_reg_mr(pd, *out_at, OWN_BYTES,
			IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
	if (mr == NULL)
		drv_die("reg_mr: %s", strerror(errno));
	return mr;
}

/* One queue pair after the other: each refusal breaks one. */
int raw_victim_main(struct drv_args *args)
{
	struct drv_chan chan = {.fd = -1};
	struct raw_qp rq = {NULL};
	const struct raw_addr *other;
	struct raw_dev dev;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	uint8_t *at;
	uint64_t n = 0;
	int fd;

	raw_dev_open(&dev, args);
	fd = drv_chan_listen(drv_arg_str(args, "--listen", "127.0.0.1:9901"));
	drv_args_end(args);
	pd = ibv_alloc_pd(dev.ctx);
	mr = own_memory(pd, &at);
	drv_say("event=ready");
	while (chan.fd < 0) {
		drv_sleep_ms(20);
		drv_chan_accept(&chan, fd);
	}
	while ((other = receive(&chan, sizeof(*other))) != NULL) {
		struct offer offer = {.rkey = mr->rkey, .at = (uintptr_t)at, .len = OWN_BYTES};
		const struct raw_addr addr = *other;

		raw_qp_close(&rq);
		raw_qp_open(&rq, &dev, pd, 4);
		raw_qp_connect(&rq, &dev, &addr);
		raw_qp_addr(&rq, &dev, &offer.addr);
		drv_chan_send(&chan, (enum drv_msg)MSG_ADDR, &offer, sizeof(offer));
		drv_chan_pump_out(&chan);
		n++;
	}
	printf("{\"program\": \"victim\", \"queue_pairs\": %llu}\n", (unsigned long long)n);
	return 0;
}

struct attack {
	struct raw_dev dev;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	uint8_t *at;
	struct drv_chan chan;
	struct raw_qp rq;
	bool usable;
	struct offer offer;
	uint32_t keys[MAX_KEYS];
	uint64_t offsets[MAX_OFFSETS];
	unsigned n_keys, n_offsets;
	uint64_t tried, refused, succeeded, unclear;
};

static void renew(struct attack *a)
{
	const struct offer *offer;
	struct raw_addr addr;

	raw_qp_close(&a->rq);
	raw_qp_open(&a->rq, &a->dev, a->pd, 4);
	raw_qp_addr(&a->rq, &a->dev, &addr);
	drv_chan_send(&a->chan, (enum drv_msg)MSG_ADDR, &addr, sizeof(addr));
	offer = receive(&a->chan, sizeof(*offer));
	if (offer == NULL)
		drv_die("the other side has ended");
	a->offer = *offer;
	raw_qp_connect(&a->rq, &a->dev, &a->offer.addr);
	a->usable = true;
}

static int attempt(struct attack *a, bool write, uint32_t rkey, uint64_t remote, uint32_t len)
{
	const struct raw_op op = {write, a->mr->lkey, rkey, len, a->at, remote};
	int status;

	if (!a->usable)
		renew(a);
	raw_post(&a->rq, &op);
	status = raw_wait(&a->rq, WAIT_MS);
	a->usable = status == IBV_WC_SUCCESS;
	return status;
}

static void must_fail(struct attack *a, uint32_t rkey, uint64_t remote, uint32_t len)
{
	for (int write = 0; write <= 1; write++) {
		int status = attempt(a, write, rkey, remote, len);

		a->tried++;
		a->succeeded += status == IBV_WC_SUCCESS;
		a->refused += status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_INV_REQ_ERR ||
			      status == IBV_WC_REM_OP_ERR;
		if (status == IBV_WC_SUCCESS)
			drv_say("bad=breach write=%d rkey=%x remote=%llx", write, rkey,
				(unsigned long long)remote);
	}
	a->unclear = a->tried - a->refused - a->succeeded;
}

static unsigned parse_list(const char *text, uint64_t *values, unsigned max)
{
	char *copy = strdup(text);
	char *save = NULL;
	unsigned n = 0;

	if (copy == NULL)
		drv_die("no memory");
	for (char *part = strtok_r(copy, ",", &save); part != NULL && n < max;
	     part = strtok_r(NULL, ",", &save))
		values[n++] = drv_parse_u64(part, "list");
	free(copy);
	return n;
}

static void parse_targets(struct attack *a, struct drv_args *args)
{
	uint64_t keys[MAX_KEYS];

	a->n_keys = parse_list(drv_arg_str(args, "--keys", ""), keys, MAX_KEYS);
	for (unsigned i = 0; i < a->n_keys; i++)
		a->keys[i] = (uint32_t)keys[i];
	a->n_offsets = parse_list(drv_arg_str(args, "--at", "0,4096"), a->offsets, MAX_OFFSETS);
}

/* The own region of victim: what works, and what does not although the key is right. */
static bool control(struct attack *a)
{
	bool works;

	renew(a);
	works = attempt(a, true, a->offer.rkey, a->offer.at, TRY_BYTES) == IBV_WC_SUCCESS &&
		attempt(a, false, a->offer.rkey, a->offer.at, TRY_BYTES) == IBV_WC_SUCCESS;
	must_fail(a, a->offer.rkey, a->offer.at + a->offer.len - TRY_BYTES + 1, TRY_BYTES);
	must_fail(a, a->offer.rkey, a->offer.at - 1, TRY_BYTES);
	must_fail(a, a->offer.rkey ^ 1, a->offer.at, TRY_BYTES);
	return works;
}

static void all_attempts(struct attack *a, uint64_t spray, struct drv_random *random)
{
	for (unsigned k = 0; k < a->n_keys; k++)
		for (unsigned i = 0; i < a->n_offsets; i++)
			must_fail(a, a->keys[k], a->offsets[i], TRY_BYTES);
	/* Keys near the known ones: an index and a few bits are all that differs on some devices.
	 */
	for (uint64_t i = 0; i < spray && a->n_keys > 0; i++) {
		uint32_t key = a->keys[drv_random_below(random, a->n_keys)];

		key += (uint32_t)(drv_random_below(random, 9) << 8) - (4u << 8);
		key = (key & ~0xffu) | (uint32_t)drv_random_below(random, 256);
		if (key >> 8 != a->offer.rkey >> 8)
			must_fail(a, key, a->offsets[drv_random_below(random, a->n_offsets)],
				  TRY_BYTES);
	}
}

int raw_attack_main(struct drv_args *args)
{
	static struct drv_report report;
	static struct attack a;
	struct drv_random random = {drv_arg_u64(args, "--seed", drv_now_ns())};
	const char *peer = drv_arg_str(args, "--connect", "127.0.0.1:9901");
	uint64_t spray = drv_arg_u64(args, "--spray", 100);
	bool works;
	bool good;

	parse_targets(&a, args);
	raw_dev_open(&a.dev, args);
	drv_args_end(args);
	a.pd = ibv_alloc_pd(a.dev.ctx);
	a.mr = own_memory(a.pd, &a.at);
	memset(a.at, 0xa5, OWN_BYTES);
	if (drv_chan_connect(&a.chan, peer, 5000) != 0)
		drv_die("connect to %s", peer);
	works = control(&a);
	all_attempts(&a, spray, &random);
	drv_chan_send(&a.chan, (enum drv_msg)MSG_END, NULL, 0);
	drv_chan_pump_out(&a.chan);
	good = works && a.succeeded == 0 && a.unclear == 0;
	drv_report_str(&report, "program", "attack");
	drv_report_u64(&report, "control_works", works);
	drv_report_u64(&report, "tried", a.tried);
	drv_report_u64(&report, "refused", a.refused);
	drv_report_u64(&report, "succeeded", a.succeeded);
	drv_report_u64(&report, "unclear", a.unclear);
	drv_report_u64(&report, "good", good);
	drv_report_print(&report);
	return good ? 0 : DRV_FAILED;
}

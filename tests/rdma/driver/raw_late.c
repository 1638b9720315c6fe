/* `rdma_raw late`: which verb is a fence? A queue pair writes into memory of another one of the
 * same device; in the middle of it the owner of the memory does what --fence says, fills the memory
 * with the canary at once and looks again later. Without a fence late bytes must show, or this test
 * sees nothing; after destroy_qp and dereg_mr none may. */
#include "raw.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "drv_mem.h"

#define WRITE_BYTES (1u << 20)
#define N_WRITES    4u

#define WRITER_WAIT_MS 500u

enum fence { FENCE_NONE, FENCE_ERROR, FENCE_DESTROY, FENCE_DEREG };

struct late {
	enum fence fence;
	uint64_t watch_ms;
	struct ibv_pd *pd;
	struct ibv_mr *source, *target;
	uint8_t *from, *to;
	struct raw_qp writer;
	uint32_t rkey;
	atomic_bool stop;
	uint64_t trials, hits, late_trials, late_bytes;
	struct drv_samples fence_ms;
};

static uint8_t *map(void)
{
	void *at =
	    mmap(NULL, WRITE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		drv_die("mmap: %s", strerror(errno));
	return at;
}

static void register_target(struct late *late)
{
	late->target = ibv_reg_mr(late->pd, late->to, WRITE_BYTES,
				  IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	if (late->target == NULL)
		drv_die("reg_mr: %s", strerror(errno));
}

static void do_fence(struct late *late, struct raw_qp *owner)
{
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

	switch (late->fence) {
	case FENCE_NONE:
		break;
	case FENCE_ERROR:
		ibv_modify_qp(owner->qp, &attr, IBV_QP_STATE);
		break;
	case FENCE_DESTROY:
		ibv_destroy_qp(owner->qp);
		owner->qp = NULL;
		break;
	case FENCE_DEREG:
		ibv_dereg_mr(late->target);
		late->target = NULL;
		break;
	}
}

/* Writes until told to stop or refused. */
static void *write_on(void *arg)
{
	struct late *late = arg;
	const struct raw_op op = {
	    .write = true,
	    .lkey = late->source->lkey,
	    .rkey = late->rkey,
	    .len = WRITE_BYTES,
	    .local = late->from,
	    .remote = (uintptr_t)late->to,
	};
	int status = 0;

	for (unsigned i = 0; i < N_WRITES; i++)
		raw_post(&late->writer, &op);
	while (!atomic_load(&late->stop) && status == 0) {
		status = raw_wait(&late->writer, WRITER_WAIT_MS);
		if (status == 0)
			raw_post(&late->writer, &op);
	}
	return NULL;
}

static void trial(struct late *late, const struct raw_dev *dev, struct drv_random *random)
{
	struct raw_addr owner_addr, writer_addr;
	struct raw_qp owner;
	pthread_t thread;
	uint64_t start, bad;

	if (late->target == NULL)
		register_target(late);
	late->rkey = late->target->rkey;
	raw_qp_open(&owner, dev, late->pd, 4);
	raw_qp_open(&late->writer, dev, late->pd, 2 * N_WRITES);
	raw_qp_addr(&owner, dev, &owner_addr);
	raw_qp_addr(&late->writer, dev, &writer_addr);
	raw_qp_connect(&owner, dev, &writer_addr);
	raw_qp_connect(&late->writer, dev, &owner_addr);
	drv_canary_fill(late->to, WRITE_BYTES);
	atomic_store(&late->stop, false);
	if (pthread_create(&thread, NULL, write_on, late) != 0)
		drv_die("no thread");
	drv_sleep_ms(30 + drv_random_below(random, 50));
	late->hits += drv_canary_bad(late->to, WRITE_BYTES) != 0;
	start = drv_now_ns();
	do_fence(late, &owner);
	drv_samples_add(&late->fence_ms, drv_as_ms(drv_now_ns() - start));
	drv_canary_fill(late->to, WRITE_BYTES);
	drv_sleep_ms(late->watch_ms);
	bad = drv_canary_bad(late->to, WRITE_BYTES);
	late->trials++;
	late->late_trials += bad != 0;
	late->late_bytes += bad;
	atomic_store(&late->stop, true);
	pthread_join(thread, NULL);
	raw_qp_close(&late->writer);
	raw_qp_close(&owner);
}

static enum fence parse_fence(const char *text)
{
	static const char *const names[] = {"none", "error", "destroy", "dereg"};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(text, names[i]) == 0)
			return (enum fence)i;
	drv_die("--fence %s: none, error, destroy or dereg", text);
}

int raw_late_main(struct drv_args *args)
{
	static struct drv_report report;
	struct late late = {.fence = FENCE_NONE};
	struct drv_random random = {drv_now_ns()};
	uint64_t trials = drv_arg_u64(args, "--trials", 10);
	struct raw_dev dev;
	bool real;
	bool good;

	late.fence = parse_fence(drv_arg_str(args, "--fence", "destroy"));
	late.watch_ms = drv_arg_u64(args, "--watch-ms", 150);
	raw_dev_open(&dev, args);
	drv_args_end(args);
	late.pd = ibv_alloc_pd(dev.ctx);
	late.from = map();
	late.to = map();
	memset(late.from, 0xab, WRITE_BYTES);
	late.source = ibv_reg_mr(late.pd, late.from, WRITE_BYTES, 0);
	if (late.pd == NULL || late.source == NULL)
		drv_die("memory: %s", strerror(errno));
	for (uint64_t i = 0; i < trials; i++)
		trial(&late, &dev, &random);
	real = late.fence == FENCE_DESTROY || late.fence == FENCE_DEREG;
	good = late.hits > 0 && (late.fence == FENCE_ERROR || (late.late_trials == 0) == real);
	drv_report_str(&report, "program", "late");
	drv_report_u64(&report, "trials", late.trials);
	drv_report_u64(&report, "hits", late.hits);
	drv_report_u64(&report, "late_trials", late.late_trials);
	drv_report_u64(&report, "late_bytes", late.late_bytes);
	drv_report_samples(&report, "fence", &late.fence_ms);
	drv_report_u64(&report, "good", good);
	drv_report_print(&report);
	return good ? 0 : DRV_FAILED;
}

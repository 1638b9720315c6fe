/* Memory of other devices: direct access between two of them, enabled when the first region needs
 * it, by a call of the control thread. [mem] helpers. */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

struct peer_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	int peer;
	bool direct;
};

static int peer_run(struct gpu_call *call)
{
	struct peer_call *p = (struct peer_call *)(void *)call;
	struct kvx_gpu *gpu = p->dom->gpu;

	if (!gpu_dom_enter(p->dom))
		return -ENODEV;
	int err = gpu->ops->peer_can(gpu, p->dom->device, p->peer, &p->direct);
	if (err == 0 && p->direct)
		err = gpu->ops->peer_enable(gpu, p->peer);
	gpu_dom_leave(p->dom);
	return err;
}

static void peer_late(struct gpu_call *call)
{
	free((struct peer_call *)(void *)call);
}

static bool answer_is_final(int err)
{
	return err == 0 || err == -EOPNOTSUPP || err == -ENODEV;
}

/* Once for each other device, unless it failed for a reason that may pass: then the next region
 * tries again. Without it copies still work, by way of host memory. */
void gpu_dom_reach_peer(struct kvx_dom *dom, int peer)
{
	uint32_t bit = 1u << (unsigned)peer;

	if (atomic_load(&dom->peers_tried) & bit)
		return;
	struct peer_call *p = calloc(1, sizeof(*p));
	if (p == NULL)
		return;
	p->call = (struct gpu_call){.run = peer_run, .late = peer_late};
	p->dom = dom;
	p->peer = peer;
	int err = gpu_control_call(dom->control, &p->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT || err == -EBUSY) {
		if (err == -EBUSY)
			free(p);
		return; /* the next region tries again */
	}
	if (answer_is_final(err))
		atomic_fetch_or(&dom->peers_tried, bit);
	if (err == 0 && p->direct)
		atomic_fetch_or(&dom->peers_direct, bit);
	else
		kvx_warn("gpu: %s does not reach device %d directly%s: copies between them take "
			 "the way through host memory",
			 dom->name, peer, err < 0 ? " (peer access cannot be enabled)" : "");
	free(p);
}

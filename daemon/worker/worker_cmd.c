/* Commands of the loop: who runs which, and LISTEN, which names no endpoint yet. Its call may block
 * and goes through kvx_worker_call(): the part after it is here, on the worker thread. */
#include "base/assert.h"
#include "worker/worker_priv.h"

static void listen_undone(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	worker->ops->ep_close(cmd->ep);
	cmd->ep = NULL;
	kvx_worker_cmd_done(worker, cmd, cmd->status);
}

static void listen_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct kvx_ep *ep = NULL;
	size_t len = sizeof(cmd->bytes);
	cmd->call.status = worker->ops->listen(worker->dom, cmd->tenant, &ep, cmd->bytes, &len);
	if (cmd->call.status < 0)
		return;
	cmd->ep = ep;
	cmd->len = len;
}

/* An ep that is lost before it is here says so when it is to be connected. */
static void listen_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep;
	if (cmd->call.status == 0) {
		cmd->status = kvx_worker_ep_add(worker, cmd->ep, &wep);
		if (cmd->status < 0) {
			kvx_worker_call(worker, cmd, WORKER_HELPER_FENCE, kvx_worker_fence_run,
					listen_undone);
			return;
		}
	}
	kvx_worker_cmd_done(worker, cmd, cmd->call.status);
}

void kvx_worker_cmd_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	switch (cmd->work.kind) {
	case KVX_CMD_LISTEN:
		kvx_worker_call(worker, cmd, WORKER_HELPER_SETUP, listen_run, listen_back);
		return;
	case KVX_CMD_MEM_REG:
	case KVX_CMD_MEM_DEREG:
		kvx_worker_mem_run(worker, cmd);
		return;
	case KVX_CMD_RKEY_FREE:
		worker->ops->rkey_free(cmd->rkey);
		kvx_worker_cmd_done(worker, cmd, 0);
		return;
	case KVX_CMD_CONNECT:
	case KVX_CMD_EP_CLOSE:
	case KVX_CMD_FENCE:
	case KVX_CMD_LEASE:
	case KVX_CMD_RKEY_UNPACK:
		kvx_worker_ep_cmd(worker, cmd);
		return;
	case KVX_WORK_BATCH:
	case KVX_CMD_NOTE:
		break;
	}
	kvx_assert(false); /* batches do not come here, and the loop submits no notes */
}

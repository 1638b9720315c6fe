/* Commands of the loop: who runs which, and those that name no endpoint. Calls that may block
 * (registration, setting an endpoint up) go through kvx_worker_call(): the part before it and the
 * part after it are here, on the worker thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

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

static void mem_dereg_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	worker->ops->mem_dereg(cmd->mr);
}

static void mem_dereg_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	kvx_worker_cmd_done(worker, cmd, 0);
}

static void mem_reg_undone(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	cmd->mr = NULL;
	kvx_worker_cmd_done(worker, cmd, cmd->status);
}

static void mem_reg_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct kvx_mr *mr = NULL;
	cmd->mkey = NULL;
	cmd->mkey_len = 0;
	cmd->call.status =
	    worker->ops->mem_reg(worker->dom, cmd->tenant, cmd->mem, cmd->rights, &mr);
	if (cmd->call.status == 0)
		cmd->mr = mr;
}

static int mem_reg_key(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	uint8_t key[KVX_TRANSPORT_MKEY_MAX]; /* most are far shorter, and regions keep theirs */
	int len = worker->ops->mkey_pack(cmd->mr, key, sizeof(key));
	if (len == -ENOSPC)
		cmd->text = "the memory is in too many pieces: its key is longer than a key may be";
	if (len < 0)
		return len;
	kvx_assert(len > 0 && (size_t)len <= sizeof(key));
	cmd->mkey = malloc((size_t)len);
	if (cmd->mkey == NULL)
		return -ENOMEM;
	memcpy(cmd->mkey, key, (size_t)len);
	cmd->mkey_len = (size_t)len;
	return 0;
}

static void mem_reg_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	if (cmd->call.status < 0) {
		kvx_worker_cmd_done(worker, cmd, cmd->call.status);
		return;
	}
	int err = mem_reg_key(worker, cmd);
	if (err < 0) {
		cmd->status = err;
		kvx_worker_call(worker, cmd, WORKER_HELPER_DEREG, mem_dereg_run, mem_reg_undone);
		return;
	}
	kvx_worker_cmd_done(worker, cmd, 0);
}

void kvx_worker_cmd_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	switch (cmd->work.kind) {
	case KVX_CMD_LISTEN:
		kvx_worker_call(worker, cmd, WORKER_HELPER_SETUP, listen_run, listen_back);
		return;
	case KVX_CMD_MEM_REG:
		kvx_worker_call(worker, cmd, WORKER_HELPER_REG, mem_reg_run, mem_reg_back);
		return;
	case KVX_CMD_MEM_DEREG:
		kvx_worker_call(worker, cmd, WORKER_HELPER_DEREG, mem_dereg_run, mem_dereg_back);
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

/* Commands that register memory and take that back. Where these calls may block they go from the
 * loop to the worker's helpers and from there to the loop, past the worker thread: it may stand in
 * a call of its transport that does not return, and every region of the node has a part in every
 * domain. Else the worker thread (or the loop, for a worker that has none) makes them. Keys are
 * unpacked and freed on the loop where the transport takes that (KVX_CAP_KEYS_ON_LOOP), for the
 * same reason. The order between them and what uses the memory is the loop's: a key is packed
 * before MEM_REG is done, what used it has come back before RKEY_FREE, and that before MEM_DEREG
 * is submitted. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "worker/worker_priv.h"

/* ---- the calls: helpers, or whoever makes them */

static int mem_pack_key(struct kvx_worker *worker, struct kvx_cmd *cmd)
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

/* With an mr and an error: what has been registered is to be taken back. */
static void mem_reg_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct kvx_mr *mr = NULL;
	cmd->mr = NULL;
	cmd->mkey = NULL;
	cmd->mkey_len = 0;
	cmd->status = worker->ops->mem_reg(worker->dom, cmd->tenant, cmd->mem, cmd->rights, &mr);
	if (cmd->status < 0)
		return;
	cmd->mr = mr;
	cmd->status = mem_pack_key(worker, cmd);
}

static bool mem_has_to_be_undone(const struct kvx_cmd *cmd)
{
	return cmd->work.kind == KVX_CMD_MEM_REG && cmd->status < 0 && cmd->mr != NULL;
}

static void mem_undo_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	worker->ops->mem_dereg(cmd->mr);
	cmd->mr = NULL;
}

static void mem_dereg_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	worker->ops->mem_dereg(cmd->mr);
}

void kvx_worker_mem_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	if (cmd->work.kind == KVX_CMD_MEM_REG)
		mem_reg_run(worker, cmd);
	else
		mem_dereg_run(worker, cmd);
	if (mem_has_to_be_undone(cmd))
		mem_undo_run(worker, cmd);
	kvx_worker_cmd_done(worker, cmd, cmd->status);
}

/* ---- loop */

static bool kind_is_key(enum kvx_work_kind kind)
{
	return kind == KVX_CMD_RKEY_UNPACK || kind == KVX_CMD_RKEY_FREE;
}

bool kvx_worker_mem_is_past(const struct kvx_worker *worker, enum kvx_work_kind kind)
{
	if (kind_is_key(kind))
		return (worker->ops->caps & KVX_CAP_KEYS_ON_LOOP) != 0;
	return worker->helpers != NULL && (kind == KVX_CMD_MEM_REG || kind == KVX_CMD_MEM_DEREG);
}

/* Done at once, and delivered by the next drain. */
static KVX_ON_LOOP void key_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	if (cmd->work.kind == KVX_CMD_RKEY_FREE)
		worker->ops->rkey_free(cmd->rkey);
	else
		cmd->status =
		    worker->ops->rkey_unpack(cmd->ep, cmd->mkey, cmd->mkey_len, &cmd->rkey);
	if (worker->keys_head == NULL)
		worker->keys_head = &cmd->work;
	else
		worker->keys_tail->next = &cmd->work;
	worker->keys_tail = &cmd->work;
	atomic_exchange_explicit(&worker->mem_returned, true, memory_order_acq_rel);
	kvx_worker_ring_loop(worker);
}

void kvx_worker_mem_give(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	if (kind_is_key(cmd->work.kind))
		key_run(worker, cmd);
	else if (cmd->work.kind == KVX_CMD_MEM_REG)
		kvx_worker_helper_give(worker, cmd, WORKER_HELPER_REG, mem_reg_run);
	else
		kvx_worker_helper_give(worker, cmd, WORKER_HELPER_DEREG, mem_dereg_run);
}

struct kvx_cmd *kvx_worker_mem_take(struct kvx_worker *worker)
{
	struct kvx_work *work = worker->keys_head;
	struct kvx_cmd *cmd;
	if (work != NULL) {
		worker->keys_head = work->next;
		return (struct kvx_cmd *)(void *)work;
	}
	while ((cmd = kvx_worker_helper_take(worker)) != NULL) {
		if (!mem_has_to_be_undone(cmd))
			return cmd;
		kvx_worker_helper_give(worker, cmd, WORKER_HELPER_DEREG, mem_undo_run);
	}
	return NULL;
}

/* Keys of a target: what the owner gave for its region, one for each leg of the lane, unpacked by
 * the workers of the legs' rails and given back to them before the endpoints are closed. Loop
 * thread; called by peer_resolve.c (answers) and peer_remote.c (targets that go, lanes that go). */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

bool keys_are_busy(const struct peer_target *t)
{
	return t->n_keys_busy > 0;
}

bool keys_are_there(const struct peer_target *t)
{
	for (unsigned i = 0; i < t->n_keys; i++)
		if (t->target.rkey[t->keys[i].rail->dom_index] != NULL)
			return true;
	return false;
}

void keys_fini(struct peer_target *t)
{
	kvx_assert(!keys_are_busy(t) && !keys_are_there(t));
	free(t->keys);
	t->keys = NULL;
	t->n_keys = 0;
}

static KVX_ON_LOOP void key_submit(struct peer_key *key)
{
	struct peer_target *t = key->target;

	t->n_keys_busy++;
	t->lane->n_keys_busy++;
	kvx_node_submit(t->peer->peers->conf.node, key->rail->worker, &key->cmd);
}

/* A command is back. */
static KVX_ON_LOOP struct peer_key *key_of_cmd(struct kvx_cmd *cmd)
{
	struct peer_key *key = (struct peer_key *)((char *)cmd - offsetof(struct peer_key, cmd));
	struct peer_target *t = key->target;

	KVX_CHECK_MAGIC(t->peer, PEER_MAGIC);
	t->n_keys_busy--;
	t->lane->n_keys_busy--;
	peer_wake(t->peer);
	return key;
}

static void free_on_done(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	key_of_cmd(cmd);
}

void keys_free(struct peer_target *t)
{
	kvx_assert(!keys_are_busy(t));
	for (unsigned i = 0; i < t->n_keys; i++) {
		struct peer_key *key = &t->keys[i];
		struct kvx_rkey **rkey = &t->target.rkey[key->rail->dom_index];

		if (*rkey == NULL)
			continue;
		key->cmd = (struct kvx_cmd){
		    .work.kind = KVX_CMD_RKEY_FREE,
		    .done = free_on_done,
		    .rkey = *rkey,
		};
		*rkey = NULL;
		key_submit(key);
	}
	t->target.lane_generation = 0;
}

/* What the peer sent; the unpacked key is the worker's. */
static void key_forget(struct peer_key *key)
{
	free(key->cmd.mkey);
	key->cmd.mkey = NULL;
	key->cmd.mkey_len = 0;
}

static void unpack_on_done(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct peer_key *key = key_of_cmd(cmd);
	struct peer_target *t = key->target;

	key_forget(key);
	if (cmd->status == 0)
		t->target.rkey[key->rail->dom_index] = cmd->rkey;
	else if (t->key_status == 0)
		t->key_status = cmd->status;
	if (!keys_are_busy(t))
		resolve_on_keys(t);
}

static int keys_make_room(struct peer_target *t, unsigned n)
{
	struct peer_key *keys;

	if (t->n_keys == n)
		return 0;
	keys = calloc(n, sizeof(*keys));
	if (keys == NULL)
		return -ENOMEM;
	keys_fini(t);
	t->keys = keys;
	t->n_keys = n;
	return 0;
}

static void keys_name_legs(struct peer_target *t)
{
	const struct peer_lane *lane = t->lane;
	unsigned n = 0;

	for (unsigned i = 0; i < lane->n_slots; i++) {
		const struct peer_leg *leg = &lane->legs[i];

		if (!leg_is_live(leg))
			continue;
		t->keys[n++] = (struct peer_key){
		    .target = t,
		    .rail = leg->rail,
		    .cmd =
			{
			    .work.kind = KVX_CMD_RKEY_UNPACK,
			    .done = unpack_on_done,
			    .ep = leg->ep,
			},
		};
	}
	kvx_assert(n == t->n_keys);
}

/* The frame is gone when the workers look. */
static int keys_copy(struct peer_target *t, const ProtobufCBinaryData *rkeys)
{
	for (unsigned i = 0; i < t->n_keys; i++) {
		struct kvx_cmd *cmd = &t->keys[i].cmd;

		if (rkeys[i].len == 0)
			continue; /* that leg does not reach the region */
		cmd->mkey = malloc(rkeys[i].len);
		if (cmd->mkey == NULL) {
			while (i-- > 0)
				key_forget(&t->keys[i]);
			return -ENOMEM;
		}
		memcpy(cmd->mkey, rkeys[i].data, rkeys[i].len);
		cmd->mkey_len = rkeys[i].len;
	}
	return 0;
}

/* One for each live leg, not all of them empty, none longer than a key may be. */
static bool keys_are_sound(const struct peer_lane *lane, const Kvxp__PeerResolved *msg)
{
	size_t n = 0;

	if (msg->n_rkeys == 0 || msg->n_rkeys != legs_count(lane))
		return false;
	for (size_t i = 0; i < msg->n_rkeys; i++) {
		if (msg->rkeys[i].len > KVX_TRANSPORT_MKEY_MAX)
			return false;
		n += msg->rkeys[i].len > 0;
	}
	return n == msg->n_rkeys || (n > 0 && lane->peer->any_memory);
}

int keys_unpack(struct peer_target *t, const Kvxp__PeerResolved *msg)
{
	kvx_assert(!keys_are_busy(t) && !keys_are_there(t));
	if (!keys_are_sound(t->lane, msg))
		return -EPROTO;
	if (keys_make_room(t, (unsigned)msg->n_rkeys) < 0)
		return -ENOMEM;
	keys_name_legs(t);
	if (keys_copy(t, msg->rkeys) < 0)
		return -ENOMEM;
	t->key_status = 0;
	for (unsigned i = 0; i < t->n_keys; i++)
		if (t->keys[i].cmd.mkey != NULL)
			key_submit(&t->keys[i]);
	return 0;
}

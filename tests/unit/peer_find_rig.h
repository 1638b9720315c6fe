/* Finds of node a at an address, and what is told of them. */
#ifndef KVX_PEER_FIND_RIG_H
#define KVX_PEER_FIND_RIG_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "peer_rig.h"

#define RW (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

static struct peer_rig rig;

struct answer {
	unsigned n;
	int status;
	bool own;
	char text[KVX_WHY_BYTES];
	char note[64];
	struct kvx_target *target;
};

static inline void on_found(void *arg, const struct kvx_found *found)
{
	struct answer *answer = arg;

	answer->n++;
	answer->status = found->status;
	answer->own = found->own;
	answer->target = found->target;
	snprintf(answer->text, sizeof(answer->text), "%s", found->text);
	if (found->note_bytes > 0)
		memcpy(answer->note, found->note, found->note_bytes);
	cr_assert_str_eq(found->name, "engine/tp0");
}

static inline KVX_ON_LOOP struct kvx_region *publish(struct rig_side *side, uint32_t tenant,
						     const char *name, const char *note)
{
	struct kvx_region *region = rig_region_of(side, tenant, 4096, RW, NULL);
	struct kvx_why why;

	cr_assert_eq(kvx_region_publish(kvx_node_regions(side->node), region, name, note,
					(uint32_t)strlen(note), &why),
		     0);
	return region;
}

static inline KVX_ON_LOOP int start_find(const char *address, uint32_t tenant,
					 struct answer *answer, struct kvx_find **out_find)
{
	const struct kvx_find_request request = {address, "engine/tp0", tenant};
	struct kvx_why why = {""};
	int err = kvx_peers_find(rig.a.peers, &request, KVX_SEC, on_found, answer, out_find, &why);

	if (err < 0)
		snprintf(answer->text, sizeof(answer->text), "%s", why.text);
	return err;
}

static inline KVX_ON_LOOP struct answer find_as(const char *address, uint32_t tenant)
{
	struct answer answer = {0};
	struct kvx_find *find;

	answer.status = start_find(address, tenant, &answer, &find);
	if (answer.status < 0)
		return answer;
	cr_assert_eq(answer.n, 0, "answered before it returned");
	cr_assert(RIG_UNTIL(&rig, answer.n > 0, 3000), "no answer");
	rig_pass(&rig, 20);
	cr_assert_eq(answer.n, 1);
	return answer;
}

static inline KVX_ON_LOOP struct answer find(const char *address)
{
	return find_as(address, 0);
}

static inline KVX_ON_LOOP void start(void)
{
	rig_init(&rig);
	rig_start(&rig);
}

#endif

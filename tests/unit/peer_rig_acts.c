/* What tests do with the nodes of peer_rig.h, and what they look at: regions of plain memory,
 * resolving, submitting, rows. */
#include "peer_rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "test_plain_mem.h"
#include "xfer/plan.h"

static void on_region_opened(void *arg, struct kvx_region *region, int status, const char *text)
{
	cr_assert_eq(status, 0, "%s", text);
	((struct rig_side *)arg)->n_region_events++;
}

static void on_region_closed(void *arg, uint64_t region_id)
{
	((struct rig_side *)arg)->n_region_events++;
}

struct kvx_region *rig_region(struct rig_side *side, uint64_t len, uint32_t access,
			      struct kvx_layout *layout)
{
	return rig_region_of(side, 0, len, access, layout);
}

struct kvx_region *rig_region_of(struct rig_side *side, uint32_t tenant, uint64_t len,
				 uint32_t access, struct kvx_layout *layout)
{
	const struct kvx_region_request request = {.owner = 7,
						   .tenant = tenant,
						   .ops = &test_plain_ops,
						   .fd = -1,
						   .len_bytes = len,
						   .access = access,
						   .layout = layout};
	struct kvx_region *region;
	struct kvx_why why = {""};
	unsigned before = side->n_region_events;

	cr_assert_eq(kvx_region_add(kvx_node_regions(side->node), &request, &region, &why), 0, "%s",
		     why.text);
	cr_assert_eq(kvx_node_region_open(side->node, region, on_region_opened, side), 0);
	cr_assert(RIG_UNTIL(side->rig, side->n_region_events > before, 1000));
	return region;
}

void rig_region_close(struct rig_side *side, struct kvx_region *region)
{
	cr_assert_eq(kvx_node_region_close(side->node, region, -ECANCELED, "unregistered",
					   on_region_closed, side),
		     0);
}

struct kvx_desc rig_desc(const struct rig_side *side, const struct kvx_region *region)
{
	struct kvx_desc desc = {
	    .epoch = side->conf.epoch,
	    .region = region->id,
	    .len_bytes = region->mem.len_bytes,
	    .access = region->access,
	    .mem_kind = KVX_MEM_HOST,
	};

	memcpy(desc.node_id, side->conf.node_id, KVX_NODE_ID_BYTES);
	memcpy(desc.token, region->token, KVX_TOKEN_BYTES);
	snprintf(desc.addr, sizeof(desc.addr), "%s",
		 side == &side->rig->b && side->rig->wire_fd >= 0 ? side->rig->wire_addr
								  : kvx_peers_address(side->peers));
	return desc;
}

void rig_on_resolved(void *arg, int status, const char *text, struct kvx_target *target)
{
	struct rig_answer *answer = arg;

	cr_assert_not(answer->done, "told twice");
	answer->done = true;
	answer->status = status;
	answer->target = target;
	snprintf(answer->text, sizeof(answer->text), "%s", text);
}

void rig_on_reply(void *arg, int status, const char *text)
{
	rig_on_resolved(arg, status, text, NULL);
}

struct rig_answer rig_resolve(struct rig_side *side, const struct kvx_desc *desc)
{
	return rig_resolve_as(side, 0, desc);
}

struct rig_answer rig_resolve_as(struct rig_side *side, uint32_t tenant,
				 const struct kvx_desc *desc)
{
	struct rig_answer answer = {0};
	struct kvx_resolve *resolve;
	struct kvx_why why = {""};

	answer.status = kvx_peers_resolve(side->peers, desc, tenant, 2 * KVX_SEC, rig_on_resolved,
					  &answer, &resolve, &why);
	if (answer.status < 0) {
		answer.done = true;
		snprintf(answer.text, sizeof(answer.text), "%s", why.text);
	}
	cr_assert(RIG_UNTIL(side->rig, answer.done, 5000), "no answer to a resolve");
	return answer;
}

int rig_submit(struct rig_side *side, int op, struct kvx_region *region, struct kvx_target *target,
	       uint64_t len, uint64_t deadline_ms)
{
	return rig_submit_by(side, "", op, region, target, len, deadline_ms);
}

int rig_submit_by(struct rig_side *side, const char *require, int op, struct kvx_region *region,
		  struct kvx_target *target, uint64_t len, uint64_t deadline_ms)
{
	const uint64_t zero = 0;
	const struct kvx_op_list ops = {
	    .n_ops = 1, .n_lens = 1, .local_offsets = &zero, .remote_offsets = &zero, .lens = &len};
	static uint64_t number;
	const struct kvx_xfer_req req = {
	    .client = 7,
	    .number = ++number,
	    .op = op,
	    .region = region,
	    .target = target,
	    .tag = 0x7a6,
	    .deadline_ns = deadline_ms * KVX_MS,
	    .require = require,
	    .payload = "payload",
	    .payload_bytes = 7,
	    .ops = &ops,
	};
	struct kvx_xfer *xfer;
	struct kvx_why why = {""};

	return kvx_xfer_submit(kvx_node_xfers(side->node), &req, &xfer, &why);
}

struct row_walk {
	unsigned n;
	struct kvx_peer_row *row;
};

static void on_row(void *arg, const struct kvx_peer_row *row)
{
	struct row_walk *walk = arg;

	walk->n++;
	*walk->row = *row;
}

bool rig_row(const struct rig_side *side, struct kvx_peer_row *out_row)
{
	struct row_walk walk = {0, out_row};

	memset(out_row, 0, sizeof(*out_row));
	if (side->peers == NULL)
		return false;
	kvx_peers_walk(side->peers, on_row, &walk);
	return walk.n > 0;
}

bool rig_is_up(const struct rig_side *side)
{
	struct kvx_peer_row row;

	return rig_row(side, &row) && strcmp(row.state, "up") == 0;
}

bool rig_lane_is_up(const struct rig_side *side)
{
	struct kvx_peer_row row;

	return rig_row(side, &row) && strcmp(row.lane_state, "up") == 0;
}

uint64_t rig_lane_generation(const struct rig_side *side)
{
	struct kvx_peer_row row;

	return rig_row(side, &row) ? row.lane_generation : 0;
}

struct lane_walk {
	const char *tenant;
	bool found;
	struct kvx_lane_row *row;
};

static void on_lane_row(void *arg, const struct kvx_lane_row *row)
{
	struct lane_walk *walk = arg;

	if (strcmp(row->tenant, walk->tenant) != 0)
		return;
	walk->found = true;
	*walk->row = *row;
}

bool rig_lane(const struct rig_side *side, const char *tenant, struct kvx_lane_row *out_row)
{
	struct lane_walk walk = {tenant, false, out_row};

	memset(out_row, 0, sizeof(*out_row));
	out_row->state = "none";
	if (side->peers != NULL)
		kvx_peers_walk_lanes(side->peers, on_lane_row, &walk);
	return walk.found;
}

bool rig_lane_is(const struct rig_side *side, const char *tenant, const char *transport,
		 unsigned n_legs)
{
	struct kvx_lane_row row;

	return rig_lane(side, tenant, &row) && strcmp(row.state, "up") == 0 &&
	       strcmp(row.transport, transport) == 0 && row.n_legs == n_legs;
}

bool rig_lanes_are(const struct peer_rig *rig, const char *tenant, const char *transport,
		   unsigned n_legs)
{
	return rig_lane_is(&rig->a, tenant, transport, n_legs) &&
	       rig_lane_is(&rig->b, tenant, transport, n_legs);
}

/* A whole node on the fake transport in virtual time, for tests of transfers, regions and their
 * retirement: regions are plain memory, every event is written down, one thread. */
#ifndef KVX_NODE_RIG_H
#define KVX_NODE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/timer.h"
#include "transport/fake/fake.h"
#include "xfer/node.h"

#define RIG_EVENTS 4096

struct rig_end {
	struct kvx_xfer_end end;
	char text[KVX_WHY_BYTES];
};
struct rig_arrival {
	struct kvx_arrival arrival;
	char text[KVX_WHY_BYTES];
	uint8_t payload[64];
};

struct node_rig {
	struct kvx_fake_script script;
	struct kvx_timers *timers;
	struct kvx_node *node;
	struct kvx_node_conf conf;
	struct rig_end ends[RIG_EVENTS];
	struct rig_arrival arrivals[RIG_EVENTS];
	unsigned n_ends, n_arrivals;
	unsigned n_opened, n_closed; /* region callbacks */
	int open_status;
	char open_text[KVX_WHY_BYTES];
	uint64_t closed_id;
	unsigned n_mapped;
	int map_error; /* next map() fails */
	char log[512]; /* letters of what happened, in order: see rig_log() */
	void (*on_end)(struct node_rig *rig, const struct kvx_xfer_end *end);
};

extern struct node_rig *rig_current;

/* Fills conf with what tests need; change it before rig_start(). */
void rig_init(struct node_rig *rig);
void rig_start(struct node_rig *rig);
/* Regions must be closed. Checks that the fake has nothing left. */
void rig_stop(struct node_rig *rig);
/* Appends to rig->log: 'T' terminal, 'A' arrival, 'm' mapped, 'u' unmapped, 'W' withdraw, ... */
void rig_log(struct node_rig *rig, char what);
/* Passes time, then turns everything until nothing happens. */
void rig_turn(struct node_rig *rig, uint64_t ns);
/* Turns in steps of ns until there are n ends; false: it takes too long. */
bool rig_until_ends(struct node_rig *rig, unsigned n, uint64_t step_ns);

/* A region of test memory, opened; layout is taken. NULL: open failed (open_status). */
struct kvx_region *rig_region(struct node_rig *rig, uint64_t owner, uint64_t len, uint32_t access,
			      struct kvx_layout *layout);
void rig_region_close(struct node_rig *rig, struct kvx_region *region); /* and waits for it */
void rig_on_closed(void *arg, uint64_t region_id);
void rig_on_opened(void *arg, struct kvx_region *region, int status, const char *text);
struct kvx_region *rig_region_add(struct node_rig *rig, uint64_t owner, uint64_t len,
				  uint32_t access, struct kvx_layout *layout);
struct kvx_target *rig_target(struct node_rig *rig, struct kvx_region *region);
/* One explicit op from 0 to 0, or len 0: none (streaming). */
struct kvx_xfer *rig_submit(struct node_rig *rig, const struct kvx_xfer_req *req, uint64_t len);

#endif

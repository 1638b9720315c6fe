/* Node, inside: shared by node.c (open, close, drain), node_doms.c (domains), node_lane.c (the
 * lanes of the node to itself and their resets), node_reg.c (regions in), retire.c (regions out),
 * node_target.c (targets of own regions), node_gpu.c (what is special about GPU memory) and
 * node_gpu_reg.c (GPU memory in RDMA devices, whose registration may hang). */
#ifndef KVX_NODE_PRIV_H
#define KVX_NODE_PRIV_H

#include <stdatomic.h>

#include "base/sm.h"
#include "xfer/node.h"
#include "xfer/reg.h"

#define NODE_MAX_COPY_WORKERS 8
#define NODE_MAX_LANES        (1 + KVX_GPU_MAX) /* the copy lane, and one for each GPU */

/* Registrations of one GPU's memory in one domain (node_gpu_reg.c): one at a time. */
struct node_gpu_line {
	struct node_dom *dom;
	struct node_region_dom *now;            /* the worker has it; NULL: none */
	struct node_region_dom *waiting, *last; /* list */
	struct kvx_timer timer;                 /* when `now` is given up */
	bool late;                              /* it was, and has not returned */
};

/* One transport domain; its index is the dom_index. */
struct node_dom {
	struct kvx_node *node;
	struct kvx_worker *worker;
	struct kvx_node_rail *rail; /* NULL: a copy domain */
	struct node_lane *lane;     /* a GPU's domain: its own; else NULL */
	char name[KVX_RAIL_NAME_BYTES];
	bool threaded;
	struct node_gpu_line lines[KVX_GPU_MAX]; /* by the lane of the GPU */
};

/* A lane of the node to itself: UP, or in one of the steps of a reset. The order is what makes it
 * safe: no key is freed while a batch is out, no ep closed while it has keys. */
enum node_lane_state {
	NODE_LANE_UP,
	NODE_LANE_FENCING,  /* FENCE on every outlet */
	NODE_LANE_DRAINING, /* batches come back */
	NODE_LANE_KEYS,     /* targets give their rkeys back */
	NODE_LANE_CLOSING,  /* EP_CLOSE */
	NODE_LANE_LISTENING,
	NODE_LANE_DOWN, /* listening failed, or the node closes */
};
struct node_lane_cmd {
	struct kvx_cmd cmd;
	struct node_lane *nl;
	struct kvx_outlet *outlet;
};
struct node_lane {
	struct kvx_lane lane;
	struct kvx_node *node;
	unsigned index; /* in node->lanes */
	bool lost;      /* its device is: it stays down */
	uint64_t up_ns; /* since when; 0: it is not */
	struct kvx_outlet inline_outlet;
	struct kvx_sm sm;
	unsigned n_pending;
	int status; /* of the first command of a step that failed */
	bool stepping;
	unsigned n_cmds;
	struct node_lane_cmd cmds[NODE_MAX_COPY_WORKERS + 1];
};

struct node_region;

/* A target of an own region by one lane. Converges on what is wanted of it: with rkeys while it is
 * used and the lane is up, without them otherwise. Imports share one of a region; what goes by
 * another lane has a target of its own, which that one keeps. */
struct node_target {
	struct kvx_target target;
	struct kvx_node *node;
	struct node_lane *nl;
	struct node_target *first; /* who keeps this one; NULL: nobody (any more) */
	struct node_target *others[NODE_MAX_LANES]; /* that this one keeps, by lane */
	struct node_region *nr;                     /* NULL once it has let go of the region */
	bool dying;                                 /* no references */
	bool closing;                               /* the region closes, and no transfer is left */
	bool failed;                                /* a key could not be made */
	bool have_keys;
	uint64_t key_generation; /* of the lane, when the keys were asked for */
	unsigned n_pending;
	int status;
	const char *text;
	struct node_target_cmd {
		struct kvx_cmd cmd;
		struct node_target *nt;
		unsigned dom;
	} cmds[NODE_MAX_COPY_WORKERS + 1];
};

enum node_region_state {
	NODE_REGION_MAPPING,
	NODE_REGION_HOMING, /* GPUs may reach it: its home domain comes first */
	NODE_REGION_REGISTERING,
	NODE_REGION_SETTLING, /* its dma-bufs are closed: every domain has what it needs */
	NODE_REGION_LIVE,
	NODE_REGION_DRAINING,    /* its transfers end */
	NODE_REGION_WITHDRAWING, /* peers stop using it */
	NODE_REGION_KEYS,        /* same-node rkeys are freed */
	NODE_REGION_DEREG,
	NODE_REGION_UNMAPPING,
	NODE_REGION_GONE,
};

struct node_region_dom {
	struct kvx_reg reg;
	struct kvx_cmd cmd;
	struct node_region *nr;
	unsigned dom;
	struct node_region_dom *next; /* of a line */
};

/* What the node knows of a region: region->retire. From kvx_node_region_open() until it failed or
 * the region was removed, and nothing that is late uses its memory any more. */
struct node_region {
	struct kvx_node *node;
	struct kvx_region *region; /* NULL: it is gone, and its memory is left here */
	struct kvx_mem mem;        /* GPU memory: as the calls of other domains know it */
	struct kvx_sm sm;
	struct kvx_job job;
	kvx_region_cb open_cb; /* NULL once it ran */
	void *open_arg;
	kvx_region_closed_cb closed_cb;
	void *closed_arg;
	int status; /* of a failed open; else of the close */
	struct kvx_why why;
	unsigned n_pending; /* commands */
	unsigned n_late;    /* registrations that were given up and have not returned */
	bool leaving;       /* node_region_leave() */
	bool cancelled;
	bool withdrawing, withdrawn; /* peers have been told; have stopped using it */
	bool stepping;
	struct node_target *target; /* the one that is shared; NULL: none */
	unsigned n_targets;         /* that hold on to it, dying ones too */
	struct kvx_xfers_watch watch;
	int home; /* index of the domain that comes first; -1: none does */
	unsigned n_doms;
	struct node_region_dom doms[];
};

struct kvx_node {
	struct kvx_node_conf conf;
	struct node_dom doms[KVX_MAX_DOMAINS];
	unsigned n_doms;
	int inline_dom; /* -1: none */
	struct kvx_node_rail rails[KVX_NODE_TRANSPORTS * KVX_MAX_RAILS + KVX_GPU_MAX];
	unsigned n_rails;
	const struct kvx_transport_ops *peer_transports[KVX_NODE_TRANSPORTS + 1];
	struct kvx_why peer_why; /* why there are none */
	struct kvx_scheds *scheds;
	struct kvx_gates *gates;
	struct kvx_xfers *xfers;
	struct kvx_regions *regions;
	struct kvx_jobs *jobs;
	unsigned n_left; /* regions that are gone but for memory that something late may use */
	bool draining;
	_Atomic bool
	    left; /* closed, but for what a thread that hangs still uses: it rings no more */
	struct node_lane lanes[NODE_MAX_LANES]; /* the first one copies between host memory */
	unsigned n_lanes;
	const struct kvx_transport_ops *gpu_ops; /* NULL: no GPU is used */
	struct kvx_why gpu_why;                  /* why not */
	struct node_near *near;                  /* NULL: no rail is nearer to a GPU than another */
	struct kvx_target *targets;              /* of struct node_target */
	struct kvx_work *kept, *kept_last;       /* commands that found a full ring */
	struct kvx_node_peer_hooks peers;        /* all NULL: none */
};

/* node_doms.c */
int node_doms_open(struct kvx_node *node, struct kvx_why *why) KVX_ON_LOOP;
void node_doms_close(struct kvx_node *node) KVX_ON_LOOP;

/* node_near.c */
void node_near_open(struct kvx_node *node) KVX_ON_LOOP;
void node_near_close(struct kvx_node *node) KVX_ON_LOOP;
void node_near_update(struct kvx_node *node) KVX_ON_LOOP; /* rails have changed */
uint64_t node_near_doms(void *node, const struct kvx_region *local);

/* node_lane.c */
/* Workers are open. Both wait. */
int node_lanes_open(struct kvx_node *node, struct kvx_why *why) KVX_ON_LOOP;
void node_lanes_close(struct kvx_node *node) KVX_ON_LOOP;
void node_lane_reset(struct node_lane *nl, const char *cause) KVX_ON_LOOP;
void node_lane_step(struct node_lane *nl) KVX_ON_LOOP;
/* Its device is gone for good. */
void node_lane_lose(struct node_lane *nl, int status, const char *text) KVX_ON_LOOP;
/* node_gpu.c */
/* The domain that a region is registered in first; -1: none, all at once. GPU memory that no domain
 * is the home of is refused, with the reason. */
int node_gpu_home(const struct kvx_node *node, const struct kvx_region *region, int *out_home,
		  struct kvx_why *why);
/* Which lane carries what goes between the two. */
struct node_lane *node_gpu_lane(struct kvx_node *node, const struct kvx_region *local,
				const struct kvx_region *remote, int op);
/* The lane that most transfers of a region will take. */
struct node_lane *node_region_lane(struct kvx_node *node, const struct kvx_region *region);
void node_gpu_lost(struct node_dom *dom, int status, const char *text) KVX_ON_LOOP;
/* node.c */
void node_doorbell(void *arg); /* any thread */
/* Turns of everything until done(node), for start-up and shutdown only. */
void node_wait(struct kvx_node *node, bool (*done)(struct kvx_node *node)) KVX_ON_LOOP;

/* retire.c */
void node_region_step(struct node_region *nr) KVX_ON_LOOP;
/* Peers are to stop using it, once: where it cannot be used any more, before it is retired. */
void node_region_withdraw(struct node_region *nr, int status, const char *text) KVX_ON_LOOP;
/* node_reg.c */
/* The next step of undoing MEM_REG: all domains but the home at once, which may use what the home
 * has mapped; then the home. false: there is none left. */
bool node_region_deregister(struct node_region *nr) KVX_ON_LOOP;
void node_region_unmap(struct node_region *nr) KVX_ON_LOOP;
void node_region_fail_open(struct node_region *nr) KVX_ON_LOOP;
/* MEM_REG of one domain is over, d->cmd says how; or it was not begun, or given up. */
void node_region_registered(struct node_region_dom *d, int status) KVX_ON_LOOP;

/* node_gpu_reg.c */
/* Is it registered there in a call that goes into the GPU's driver? */
bool node_gpu_reg_may_hang(const struct node_region_dom *d);
/* Whose threads of a worker make its calls: struct kvx_cmd's gpu. */
uint32_t node_gpu_reg_helper(const struct node_region_dom *d);
/* The number of its GPU, for commands. */
uint32_t node_gpu_reg_number(const struct node_region_dom *d);
/* MEM_REG has been made ready: when it is its turn. Ends in node_region_registered(). */
void node_gpu_reg_submit(struct node_region_dom *d) KVX_ON_LOOP;
/* All is undone but what is late: the region goes, and its memory is kept until that is over. */
void node_region_leave(struct node_region *nr) KVX_ON_LOOP;
/* The node closes, and has no regions any more: waits a little for those whose memory was left.
 * false: some stay, with commands in flight. */
bool node_gpu_regs_stop(struct kvx_node *node) KVX_ON_LOOP;

/* node_target.c */
void node_target_step(struct node_target *nt) KVX_ON_LOOP;
/* The lane has been reset or is up again: all of its targets. Returns how many still have keys. */
unsigned node_targets_step(struct node_lane *nl) KVX_ON_LOOP;

#endif

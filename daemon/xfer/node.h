/* Node: everything of the data plane that the daemon has one of, and the way regions enter and
 * leave it. Owns workers, the job thread, the batch pool, the copy lane, the region table and the
 * transfers; knows how a region is mapped, registered in every domain, and retired in the one safe
 * order. The peer table is hooked in. Loop thread. */
#ifndef KVX_NODE_H
#define KVX_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/roles.h"
#include "base/timer.h"
#include "mem/region.h"
#include "worker/jobs.h"
#include "worker/worker.h"
#include "xfer/desc.h"
#include "xfer/xfer.h"

#define KVX_NODE_TRANSPORTS 4 /* for peers */

struct kvx_node;

struct kvx_node_conf {
	uint8_t node_id[KVX_NODE_ID_BYTES];
	uint64_t epoch;
	struct kvx_timers *timers;
	bool threaded;               /* false: tests pump with kvx_node_pump() */
	void (*doorbell)(void *arg); /* any thread: "call kvx_node_drain()" */
	void *doorbell_arg;
	struct kvx_dom_conf dom;
	unsigned copy_workers;          /* 1..8 */
	uint64_t copy_inline_max_bytes; /* transfers up to this are copied on the loop; 0: never */
	/* Transports for peers, best first, ended by NULL: each usable rail of each gets a worker.
	 * A transport of which nothing can be used is left out. */
	const struct kvx_transport_ops *peer_ops[KVX_NODE_TRANSPORTS + 1];
	unsigned spin_us;
	unsigned device_spin_us; /* of workers of rails that are devices */
	uint64_t quantum_bytes;
	unsigned n_batches; /* pool size */
	struct kvx_region_limits region_limits;
	struct kvx_xfers_conf
	    xfers; /* timers, scheds, gates, remote_* and lane_reset are filled by the node
		    */
	/* Tests: another same-node transport for copy workers; NULL: kvx_copy_ops. */
	const struct kvx_transport_ops *copy_ops;
	/* What copies from and to GPU memory on this node, a worker for each device; NULL: none. */
	const struct kvx_transport_ops *gpu_ops;
	unsigned gpu_spin_us;
	bool gpu_pin_host; /* host memory is page-locked, so that GPUs reach it */
	const char *sysfs; /* where devices are looked up; NULL: KVX_PCI_SYSFS */
	void *region_arg;
	/* The region cannot be used any more; its owner has to unregister it. NULL: nobody is told.
	 */
	void (*region_lost)(void *arg, struct kvx_region *region, int status, const char *text);
};

/* Why a region is taken away from who uses it: -EPIPE: its client is gone, and no transfer of it is
 * left; else the region alone. */
struct kvx_withdrawal {
	int status;
	const char *text;
};

/* What the peer table does for the node: installed by kvx_peers_open(), taken out (NULL) when the
 * peers are closed. Without one, regions are not withdrawn from anybody. */
struct kvx_node_peer_hooks {
	void *arg;
	/* Peer side of retiring: asks every peer that uses the region to stop; done_cb exactly once
	 * (possibly before return) when all have answered or their lanes were fenced. */
	void (*withdraw)(void *arg, struct kvx_region *region, const struct kvx_withdrawal *why,
			 void (*done_cb)(void *done_arg), void *done_arg);
	void (*lane_reset)(void *arg, struct kvx_lane *lane, const char *cause);
	/* Notes of a rail's worker: an ep or the device was lost, the device is usable again, an ep
	 * came in. */
	void (*note)(void *arg, unsigned dom_index, const struct kvx_tevent *event);
	/* As in struct kvx_xfers_conf. */
	void (*remote_open)(void *arg, struct kvx_target *target, uint64_t xfer_uid, int op,
			    uint64_t tag, const char *label);
	void (*remote_end)(void *arg, struct kvx_target *target, uint64_t xfer_uid,
			   const struct kvx_arrival *end);
};
void kvx_node_set_peers(struct kvx_node *node, const struct kvx_node_peer_hooks *hooks) KVX_ON_LOOP;

int kvx_node_open(const struct kvx_node_conf *conf, struct kvx_node **out_node,
		  struct kvx_why *why) KVX_ON_LOOP;
void kvx_node_close(struct kvx_node *node)
    KVX_ON_LOOP; /* no regions, no transfers left; stops threads */
/* Drains rings and jobs, pumps transfers. Called by the doorbell's handler and once per loop turn.
 * A call from inside a callback adds nothing: the outer one goes on. */
void kvx_node_drain(struct kvx_node *node) KVX_ON_LOOP;
/* Not threaded: one turn of every worker, then a drain. Returns whether anything happened. */
bool kvx_node_pump(struct kvx_node *node) KVX_ON_LOOP;

struct kvx_xfers *kvx_node_xfers(struct kvx_node *node);
struct kvx_regions *kvx_node_regions(struct kvx_node *node);
struct kvx_gates *kvx_node_gates(struct kvx_node *node);
struct kvx_scheds *kvx_node_scheds(struct kvx_node *node); /* for kvx_sched_create() of lanes */
/* The rails (bit set by dom_index) of the RDMA device that is nearest to a device of the node; 0:
 * none is nearer than the others. Of a lane's rails, transfers of its memory use these. */
uint64_t kvx_node_near_rails(const struct kvx_node *node, const struct kvx_gpu_id *gpu);
/* A rail of this node: a device that peers' lanes may use, or one that was found and cannot be
 * used (worker NULL; rail.reason says why). */
struct kvx_node_rail {
	const struct kvx_transport_ops *ops;
	struct kvx_rail rail;
	struct kvx_worker *worker;
	unsigned dom_index;
	bool lost; /* DEVICE_LOST: gone until the daemon starts anew */
};
static inline bool kvx_node_rail_is_usable(const struct kvx_node_rail *rail)
{
	return rail->worker != NULL && !rail->lost;
}
/* What it waits for until endpoints can be made on it (a port that is down); NULL: nothing, or it
 * cannot be used at all. A hint: DEVICE_UP follows when the wait is over. */
const char *kvx_node_rail_waits(const struct kvx_node_rail *rail);
/* For people: its worker has stood in a call for a second or more, see kvx_worker_turn_ns(). */
bool kvx_node_rail_hangs(const struct kvx_node_rail *rail) KVX_ON_LOOP;
/* All of them, in the order of conf.peer_ops and then as probe() gave them; GPUs first. */
const struct kvx_node_rail *kvx_node_rails(const struct kvx_node *node, unsigned *out_n);
/* The transports for peers that have a usable rail, best first, ended by NULL. */
const struct kvx_transport_ops *const *kvx_node_peer_transports(const struct kvx_node *node);
/* Why there is none, for people; "" when there is one. */
const char *kvx_node_peer_error(const struct kvx_node *node);
/* Submits a command; when the worker's ring is full it is kept and submitted in a later drain, so
 * that it cannot fail. For all of the data plane's own commands. */
void kvx_node_submit(struct kvx_node *node, struct kvx_worker *worker,
		     struct kvx_cmd *cmd) KVX_ON_LOOP;
/* All workers, for stats: i from 0; NULL ends. */
struct kvx_worker *kvx_node_worker(struct kvx_node *node, unsigned i, const char **out_name);
struct kvx_lane *kvx_node_copy_lane(struct kvx_node *node);
/* Lanes of the node to itself: i from 0, the copy lane; then one for each GPU; NULL ends. */
struct kvx_lane *kvx_node_own_lane(struct kvx_node *node, unsigned i);
uint64_t kvx_node_own_lane_up_ns(const struct kvx_node *node, unsigned i); /* since when; 0: not */
unsigned kvx_node_gpus(const struct kvx_node *node); /* that it uses, lost ones too */

/* Maps the region (state MAPPING, as kvx_region_add() left it) and registers it in every domain,
 * then runs cb on the loop: status 0 (state LIVE) or -errno (all undone but the table entry: call
 * kvx_region_remove()). cb runs never before return. -ENOMEM: nothing was done, cb does not run. */
typedef void (*kvx_region_cb)(void *arg, struct kvx_region *region, int status, const char *text);
int kvx_node_region_open(struct kvx_node *node, struct kvx_region *region, kvx_region_cb cb,
			 void *arg) KVX_ON_LOOP;
/* Retires a region in any state but MAPPING: no new transfers; cancels those that use it (status,
 * text) and waits for their ends, with status -EPIPE (its client is gone; all transfers of that are
 * cancelled) also for those of its owner; tells who has imported it; withdraws it from peers;
 * deregisters; unmaps; removes it from the table; cb (region is freed: only its id is passed). A
 * second call while it is closing adds nothing and returns -EALREADY: cb does not run. */
typedef void (*kvx_region_closed_cb)(void *arg, uint64_t region_id);
int kvx_node_region_close(struct kvx_node *node, struct kvx_region *region, int status,
			  const char *text, kvx_region_closed_cb cb, void *arg) KVX_ON_LOOP;

/* A target for a region of this node (one per region, shared), with a reference for the caller.
 * -EOWNERDEAD not live, -EACCES no access bits, -ENOMEM. Its rkeys are made while transfers wait.
 * The target turns lost when the region closes (kvx_target_watch()). */
int kvx_node_target_open(struct kvx_node *node, struct kvx_region *region,
			 struct kvx_target **out_target, struct kvx_why *why) KVX_ON_LOOP;
/* mkey of a region in a domain, for peers: 0 or -ENOENT. */
int kvx_node_region_mkey(const struct kvx_region *region, unsigned dom_index, const void **out_mkey,
			 size_t *out_len);

#endif

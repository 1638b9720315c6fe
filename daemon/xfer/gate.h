/* Gates: what the lists of a transfer wait for before a byte of them moves. An event of the
 * engine's GPU (its kernels have written the blocks), or a flag: a number in the engine's own host
 * memory that has reached a value.
 *
 * Nobody is told when either happens, so somebody has to look, and a look at an event may hang with
 * its device. Watchers do that: a thread for each device whose events are waited for, and one for
 * all flags, made when they are first needed. A watcher that hangs holds up its own gates and
 * nothing else. Between two looks it sleeps some 20 us, and the longer nothing has come the longer:
 * 1/256 of that time, up to 1 ms. With nothing to wait for, it sleeps. In each turn clients have a
 * bounded share of looks and opens: one with thousands of gates (or events that cannot be opened)
 * makes its own wait, not those of others. Opening and closing events waits for the device, but
 * never the watcher for them.
 *
 * A gate that is made comes back exactly once, through kvx_gates_drain(): open, failed, or dropped.
 * The client's memory that a flag lies in counts as used (n_users) until then. Loop thread. */
#ifndef KVX_GATE_H
#define KVX_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/roles.h"
#include "mem/region.h"

enum kvx_wait_kind { KVX_WAIT_NONE, KVX_WAIT_EVENT, KVX_WAIT_FLAG };

/* What to wait for; borrowed for the call. */
struct kvx_wait {
	enum kvx_wait_kind kind;
	struct kvx_region *region; /* the submitter's. EVENT: memory of the device whose event it
				      is; FLAG: host memory, where the number lies */
	const uint8_t *event;      /* EVENT: KVX_GPU_IPC_BYTES */
	uint64_t offset;           /* FLAG: of the number, a multiple of 8 */
	uint64_t value;            /* FLAG: open as soon as the number is not less */
};
const char *kvx_wait_name(enum kvx_wait_kind kind); /* "event", "flag"; "" for NONE */

struct kvx_gates;
struct kvx_gate;

struct kvx_gates_conf {
	bool threaded;               /* false: kvx_gates_drain() looks, once */
	void (*doorbell)(void *arg); /* any thread: "call kvx_gates_drain()" */
	void *doorbell_arg;
	uint64_t call_timeout_ns; /* how long a call for an event may take */
};
int kvx_gates_create(const struct kvx_gates_conf *conf, struct kvx_gates **out_gates);
/* No gate is waited for any more, but dropped ones may still be out. Closes all events, so that
 * devices can be closed after it; waits for that, some seconds. Only destroy() may follow. false: a
 * thread hangs in a call into a device, which must not be closed. */
bool kvx_gates_stop(struct kvx_gates *gates) KVX_ON_LOOP;
void kvx_gates_destroy(struct kvx_gates *gates) KVX_ON_LOOP; /* NULL is fine */

/* Runs once, unless the gate is dropped; the gate is gone. status 0: open; else -errno, and text
 * says why and what to do. */
typedef void (*kvx_gate_cb)(void *arg, int status, const char *text);
struct kvx_gate_conf {
	uint64_t client;
	const struct kvx_wait *wait;
	const struct kvx_gate *after; /* an earlier one of the same transfer that has not come back,
					 or NULL: this one is not looked at before that one is open
					 (when both are of one device, or both flags) */
	kvx_gate_cb cb;
	void *arg;
};
/* 0; -EINVAL, -ERANGE, -EOWNERDEAD, -ENODEV, -EOPNOTSUPP, -ENOMEM with *why. */
int kvx_gate_create(struct kvx_gates *gates, const struct kvx_gate_conf *conf,
		    struct kvx_gate **out_gate, struct kvx_why *why) KVX_ON_LOOP;
/* Nobody waits for it any more. */
void kvx_gate_drop(struct kvx_gate *gate) KVX_ON_LOOP;
/* Takes back what came; returns how many gates did. */
unsigned kvx_gates_drain(struct kvx_gates *gates) KVX_ON_LOOP;
/* How many have not come back; of a client. */
unsigned kvx_gates_count(const struct kvx_gates *gates) KVX_ON_LOOP;
unsigned kvx_gates_count_client(const struct kvx_gates *gates, uint64_t client) KVX_ON_LOOP;
/* The client is gone, and its gates are dropped: its events are closed, too. */
void kvx_gates_forget(struct kvx_gates *gates, uint64_t client) KVX_ON_LOOP;

#endif

/* Gates, inside: gate.c (loop: making them, taking them back), gate_watch.c (what watchers do),
 * gate_event.c (the events that they keep open), gate_thread.c (their threads). */
#ifndef KVX_GATE_PRIV_H
#define KVX_GATE_PRIV_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include "base/queue.h"
#include "mem/gpu.h"
#include "xfer/gate.h"

#define GATE_WATCHERS (KVX_GPU_MAX + 1) /* the first one is for flags */

/* Events of a client and device that are kept open: engines record the same ones again and again.
 */
#define GATE_EVENTS_IDLE 256

/* Of a client in one turn of a watcher, so that no client keeps the others waiting for long. */
#define GATE_TURN_OPENS 16 /* events that it begins to open */
#define GATE_TURN_LOOKS 512
/* Of a client at once, so that other calls of the device do not wait for long behind them. */
#define GATE_OPENING 4

/* What goes to a watcher and comes back. */
struct gate_msg {
	struct kvx_queue_node node; /* first */
	enum { GATE_MSG_GATE, GATE_MSG_FORGET } kind;
};

/* A client with gates, or whose events watchers keep. Loop. */
struct gate_owner {
	uint64_t client;
	unsigned n_gates;
	unsigned n_forgets; /* on their way */
	uint32_t watchers;  /* bit set: who may have events of it */
	bool gone;
	struct gate_forget {
		struct gate_msg msg; /* first */
		struct gate_owner *owner;
		uint64_t client;
	} forgets[GATE_WATCHERS];
	UT_hash_handle hh;
};

/* The gates of a transfer that one watcher looks at: only the first one that is closed matters.
 * n_gates and its end: loop; the rest: the watcher. */
struct gate_line {
	unsigned n_gates;
	struct kvx_gate *first, *last;
	struct gate_client *client;    /* while it has gates */
	struct gate_line *prev, *next; /* of the client, while it has gates */
};

struct kvx_gate {
	struct gate_msg msg; /* first */
	struct kvx_gates *gates;
	struct gate_watcher *watcher;
	struct gate_line *line;
	struct gate_owner *owner;
	uint64_t client;
	kvx_gate_cb cb; /* NULL: dropped */
	void *arg;
	_Atomic bool dropped;
	enum kvx_wait_kind kind;
	uint8_t ipc[KVX_GPU_IPC_BYTES]; /* EVENT */
	struct kvx_region *region;      /* FLAG: used until it is back; loop */
	const uint64_t *flag;           /* in this process */
	uint64_t value;
	/* the watcher */
	struct kvx_gate *next; /* in line */
	struct gate_event *event;
	int status;       /* an error until it was seen to be open */
	const char *text; /* static */
};

struct gate_watcher {
	struct kvx_gates *gates;
	void *device; /* NULL: flags */
	const struct kvx_gpu_access *access;
	struct kvx_queue *todo;
	/* its thread, or who looks for it */
	struct gate_client *clients; /* hash */
	struct gate_client *waiting; /* those with lines: the ones not yet looked at in this turn,
					then the others */
	uint64_t turn;
	uint64_t open_after_ns; /* the device cannot open events before */
	/* with threads */
	bool threaded;
	pthread_t thread;
	sem_t ended;
	_Atomic bool stop;
	_Atomic int call; /* enum gate_call */
};

/* Whether the thread is in a call that may hang. Who waits for its end may leave it there: from
 * then on it touches nothing of this process any more. */
enum gate_call { GATE_CALL_NONE, GATE_CALL_INSIDE, GATE_CALL_LEFT };

struct kvx_gates {
	struct kvx_gates_conf conf;
	struct kvx_queue *done;
	struct gate_owner *owners; /* hash */
	struct gate_watcher *watchers[GATE_WATCHERS];
	unsigned n_gates;    /* out */
	unsigned n_watchers; /* [0] may be NULL all the same */
	bool left;           /* a watcher hangs, and was left */
};

/* An event of a client, open here. */
struct gate_event {
	uint8_t ipc[KVX_GPU_IPC_BYTES]; /* key */
	struct kvx_gpu_event *event;    /* NULL: it is not even being opened */
	bool is_open;                   /* else it is being opened */
	unsigned n_gates;               /* that name it now */
	uint64_t looked_turn;           /* when `looked` was found */
	int looked;                     /* as event_query(), or why it cannot be opened */
	bool bad;                       /* it answered an error: nobody new gets it */
	struct gate_event *prev, *next; /* idle ones of the client, longest unused first */
	UT_hash_handle hh;
};
struct gate_client {
	uint64_t client;           /* key */
	struct gate_event *events; /* hash */
	struct gate_event *idle;
	unsigned n_idle;
	struct gate_line *lines; /* in the order in which they are looked at */
	uint64_t turn;           /* in which it was looked at */
	unsigned n_opens;        /* begun in that turn */
	unsigned n_opening;      /* under way */
	struct gate_client *prev, *next;
	UT_hash_handle hh;
};

/* gate_event.c: a watcher's thread */
struct gate_client *gate_client_get(struct gate_watcher *w, uint64_t id); /* NULL: no memory */
/* The gate gets its event. 0 or -ENOMEM. */
int gate_event_take(struct gate_watcher *w, struct kvx_gate *gate);
/* As event_query(), once a turn; one that is not open is opened by and by. */
int gate_event_look(struct gate_watcher *w, struct kvx_gate *gate);
void gate_event_leave(struct gate_watcher *w, struct kvx_gate *gate);
void gate_events_forget(struct gate_watcher *w, struct gate_client *client);
/* What its transfer is told; text is static. */
void gate_fail(struct kvx_gate *gate, int status, const char *text);
void gate_fail_event(struct kvx_gate *gate, int err); /* of a call for its event */

/* gate_watch.c: a watcher's thread, or who looks for it */
void gate_watcher_take(struct gate_watcher *w, struct kvx_queue_node *node); /* of w->todo */
bool gate_watcher_look(struct gate_watcher *w); /* one turn; has anything come back? */
void gate_watcher_end(struct gate_watcher *w);  /* drops and closes all that it has */

/* gate_thread.c; the first two: the thread, around a call that may hang with the device */
void gate_call_begin(struct gate_watcher *w);
void gate_call_end(struct gate_watcher *w); /* does not return in a thread that was left */
int gate_watcher_create(struct kvx_gates *gates, const char *name, void *device,
			const struct kvx_gpu_access *access, struct gate_watcher **out_watcher);
void gate_watcher_stop(struct gate_watcher *watcher); /* begins to end, waits for nothing */
/* After stop(): it closes its events; the gates that it still has come back dropped. false: it did
 * not return from a call until then, and keeps what it has. */
bool gate_watcher_destroy(struct gate_watcher *watcher, uint64_t until_ns);
void gate_watcher_send(struct gate_watcher *watcher, struct gate_msg *msg);
/* Without a thread: takes what was sent and looks once. */
void gate_watcher_turn(struct gate_watcher *watcher);

#endif

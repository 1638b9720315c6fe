/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file client.h
 * libkvxfer-client: move KV-cache blocks between engines through the node's kvxferd.
 *
 * An engine opens one client, registers the memory its KV cache lies in, exports it as a descriptor
 * that it hands to other engines by whatever channel it has, imports the descriptors it is given,
 * and submits transfers between a local region and an import. What becomes of a transfer is told by
 * events.
 *
 * Conventions, for every function unless it says otherwise
 *  - Returns 0 (or a count) on success and -errno on failure; errno itself is not used.
 * kvxfer_client_error() gives the reason of the last failure in words.
 *  - Thread rule: a client and everything made from it belong to one thread at a time. Different
 * clients are independent. The library has no threads, installs no signal handlers, and every call
 * is safe against EINTR and SIGPIPE. Nothing here is async-signal-safe.
 *  - Offsets, lengths and strides are bytes.
 *  - "Set-up calls" (open, register, unregister, export, import, message, query, reconnect) block
 * for the daemon's answer, at most timeout_ms of the client (kvxfer_client_options). Events that
 * arrive meanwhile are kept for the next dispatch. "Data calls" (submit, append, seal, cancel,
 * post, find, dispatch) never block.
 *  - Set-up calls and data calls must not be made from inside an event callback, except where a
 * function says so.
 *  - After fork() the child gets -EOWNERDEAD from every call (kvxfer_client_close() only frees
 * memory there); the parent is not affected.
 *  - When the daemon is gone calls return -ECONNRESET until kvxfer_client_reconnect() succeeds.
 */
#ifndef KVXFER_CLIENT_H
#define KVXFER_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVXFER_VERSION_MAJOR 0
#define KVXFER_VERSION_MINOR 1
#define KVXFER_VERSION_PATCH 0

/** Longest user payload of a transfer, and longest message, in bytes. */
#define KVXFER_PAYLOAD_MAX 4096
/** Longest descriptor, in bytes. */
#define KVXFER_DESCRIPTOR_MAX 512
/** Longest label of a transfer, in bytes. */
#define KVXFER_LABEL_MAX 64
/** Longest name that a region is published under, in bytes. */
#define KVXFER_PUBLISH_MAX 128

/** How a transfer, or anything else that is told by an event, ended. Each value but OK stands for
 * one errno. */
enum kvxfer_status {
	KVXFER_OK = 0, /**< all bytes are visible at the destination */
	KVXFER_CANCELLED =
	    1, /**< ECANCELED: by kvxfer_transfer_cancel() or the closing of the client */
	KVXFER_DEADLINE = 2,  /**< ETIMEDOUT */
	KVXFER_INVALID = 3,   /**< EINVAL */
	KVXFER_QUOTA = 4,     /**< EDQUOT: a configured limit is reached */
	KVXFER_TOO_BIG = 5,   /**< EMSGSIZE: more ops, blocks or bytes than one request may have */
	KVXFER_NOT_FOUND = 6, /**< ENOENT */
	KVXFER_ACCESS = 7,    /**< EACCES: the region was not exported for this */
	KVXFER_RANGE = 8,     /**< ERANGE: an op leaves the region; nothing was moved */
	KVXFER_LAYOUT = 9,    /**< EMEDIUMTYPE: the two layouts do not match */
	KVXFER_UNSUPPORTED = 10, /**< EOPNOTSUPP */
	KVXFER_NO_PATH = 11, /**< ENETUNREACH: the required transport does not join the two sides */
	KVXFER_REGION_LOST = 12,      /**< EOWNERDEAD: a region of the transfer was unregistered */
	KVXFER_PEER_LOST = 13,        /**< EHOSTDOWN */
	KVXFER_PEER_UNREACHABLE = 14, /**< EHOSTUNREACH */
	KVXFER_TRANSPORT = 15,        /**< EIO: see vendor_code and text */
	KVXFER_CLIENT_LOST = 16,      /**< EPIPE: the other engine is gone */
	KVXFER_DAEMON_LOST = 17,      /**< ECONNRESET */
	KVXFER_DRAINING = 18,         /**< ESHUTDOWN */
	KVXFER_PROTOCOL = 19,         /**< EPROTO */
	KVXFER_NO_MEMORY = 20,        /**< ENOMEM */
	KVXFER_BUSY = 21,             /**< EBUSY */
	KVXFER_MEMORY_FAULT = 22,     /**< EFAULT: a region's pages could not be touched */
	KVXFER_DEVICE_LOST = 23,      /**< ENODEV */
	KVXFER_EXISTS = 24,           /**< EEXIST */
	KVXFER_VERSION = 25,          /**< EPROTONOSUPPORT */
	KVXFER_INTERNAL = 26,         /**< ENOTRECOVERABLE */
	KVXFER_STALE = 27,            /**< ESTALE: a descriptor of an earlier start of its daemon */
	KVXFER_BAD_FD = 28            /**< EBADF: not a sealed memfd */
};

/** What a failure damaged: what must be made anew before trying again. */
enum kvxfer_scope {
	KVXFER_SCOPE_OP = 0,
	KVXFER_SCOPE_TRANSFER = 1,
	KVXFER_SCOPE_PEER = 2,
	KVXFER_SCOPE_DEVICE = 3,
	KVXFER_SCOPE_DAEMON = 4
};

enum kvxfer_op {
	KVXFER_READ = 1, /**< import -> local region (decode pulls) */
	KVXFER_WRITE = 2 /**< local region -> import (prefill pushes) */
};

/** What others may do with a region once they have its descriptor. */
enum kvxfer_access { KVXFER_ACCESS_READ = 1, KVXFER_ACCESS_WRITE = 2 };

struct kvxfer_client; /**< one connection of this process to the node's daemon */
struct kvxfer_region; /**< memory this client registered */
struct kvxfer_import; /**< another client's region, here or on another node */

/** "PEER_LOST" for KVXFER_PEER_LOST; "UNKNOWN" for values this version does not know. Any thread.
 * Never NULL. */
const char *kvxfer_status_name(int status);
/** One sentence for the status. Any thread. Never NULL. */
const char *kvxfer_status_text(int status);
/** 0 or -errno for a status. Any thread. */
int kvxfer_status_errno(int status);
/** 1 when the same request may succeed if it is made again, once what the scope of the failure
 * names is there again (a peer, a device, the daemon) or a limit has room; 0 when it would fail in
 * the same way, for KVXFER_OK, and for values this version does not know. What has ended is
 * repeated by nobody else. Any thread. */
int kvxfer_status_retryable(int status);
/** "0.1.0": the version of the library that runs, as opposed to the header's. Any thread. */
const char *kvxfer_version(void);

/* ---- client
 * ----------------------------------------------------------------------------------------------------
 */

/** Zero-initialise; 0 and NULL mean the default given. */
struct kvxfer_client_options {
	size_t struct_bytes;     /**< sizeof(struct kvxfer_client_options): lets the struct grow */
	const char *socket_path; /**< "@name": abstract socket. NULL: $KVXFER_SOCKET, else
				    /run/kvxfer/kvxferd.sock, else, where that does not exist,
				    $XDG_RUNTIME_DIR/kvxferd.sock of a user's own daemon */
	const char *name; /**< shown by kvxferctl; at most 64 bytes; NULL: the program's name */
	int timeout_ms;   /**< longest block of a set-up call; 0: 10,000; at most 3,600,000 */
};

/**
 * Connects to the node's daemon and agrees on a protocol version. Set-up call.
 * @param options     NULL for all defaults; not kept.
 * @param out_client  the client; close it with kvxfer_client_close().
 * @return 0; -ENOENT no such socket (is kvxferd running?); -ECONNREFUSED nobody listens on it;
 * -EACCES no permission; -EPROTONOSUPPORT no common protocol version; -EDQUOT the daemon has its
 * maximum of clients; -ETIMEDOUT; -EINVAL bad options; -ENOMEM. *out_client is untouched on
 * failure. kvxfer_open_error() has the reason.
 */
int kvxfer_client_open(const struct kvxfer_client_options *options,
		       struct kvxfer_client **out_client);

/** Reason of this thread's last failed kvxfer_client_open(), in words. Never NULL. Valid until the
 * next open. */
const char *kvxfer_open_error(void);

/**
 * Cancels what is outstanding, releases every region and import of the client and frees it. Blocks
 * until the daemon has fenced the client's memory, at most timeout_ms of the client; events are no
 * longer delivered. When the daemon cannot answer in time, region memory allocated by the library
 * stays mapped (never reused under a possible late write) and is leaked on purpose. NULL is fine.
 */
void kvxfer_client_close(struct kvxfer_client *client);

/** Reason of the last failed call on this client, in words; "" when none. Valid until the next
 * call. Never NULL. */
const char *kvxfer_client_error(const struct kvxfer_client *client);

/**
 * The one file descriptor to poll: readable (POLLIN) when kvxfer_client_dispatch() has something to
 * do, which includes sending what the socket did not take before and the loss of the daemon.
 * Constant for the client's life, across reconnects. Owned by the client: poll it, do nothing else
 * with it.
 */
int kvxfer_client_fd(const struct kvxfer_client *client);

/** Limits of the daemon, told at open. */
struct kvxfer_limits {
	uint32_t max_ops;           /**< explicit ops of one submit or append */
	uint32_t max_blocks;        /**< block ids of one block list */
	uint32_t max_planes;        /**< planes of one layout */
	uint32_t max_payload_bytes; /**< user payload, message */
	uint32_t max_transfers;     /**< unfinished transfers of one client */
};
void kvxfer_client_limits(const struct kvxfer_client *client, struct kvxfer_limits *out_limits);

/* ---- events
 * ----------------------------------------------------------------------------------------------------
 */

enum kvxfer_event_type {
	/** A transfer of this client has ended. Exactly one per transfer that a submit call
	 * accepted. After it no byte of the transfer lands in the destination or is read from the
	 * source. */
	KVXFER_EVENT_TERMINAL = 1,
	/** A transfer that another client made to (WRITE) or from (READ) a region of this client
	 * has ended, well or not. On OK all bytes are visible and the payload is the submitter's;
	 * on anything else, only the ranges that a WRITE named are undefined. In any case nothing
	 * lands in them, and nothing is read from them, any more: they can be used for something
	 * else. */
	KVXFER_EVENT_ARRIVAL = 2,
	/** A message of another client, addressed to the owner of `region`. */
	KVXFER_EVENT_MESSAGE = 3,
	/** `import_` cannot be used any more; status and text say why. Once per import, after the
	 * terminal events of this client's transfers through it. Close it.
	 *  - KVXFER_CLIENT_LOST: the client that owns the region has ended. Before this event every
	 * transfer that it had under way to or from regions of this client has ended, and its
	 * ARRIVAL was delivered: nothing of it lands in, or is read from, this client's memory any
	 * more.
	 *  - KVXFER_PEER_LOST: its node is lost (dead, cut off, or silent). The same is true of all
	 * that any client of that node had under way when it was lost. One that is heard of again
	 * begins anew: with finds or imports of its own.
	 * Both come within what G7 of docs/guarantees.md allows a transfer to take.
	 *  - Anything else (KVXFER_REGION_LOST: the region alone was unregistered; a post that was
	 * not delivered; a find that failed) says nothing of what the other client does. */
	KVXFER_EVENT_IMPORT_LOST = 4,
	/** `region` cannot be used any more (its device failed). Its transfers end by their own
	   events. Unregister it. Never sent for host memory: a fault there ends the transfer with
	   KVXFER_MEMORY_FAULT, and the region stays. */
	KVXFER_EVENT_REGION_LOST = 5,
	/** The daemon takes no new transfers; those accepted go on. */
	KVXFER_EVENT_DRAINING = 6,
	/** The connection to the daemon is gone, and with it every DMA of the daemon: it comes
	 * after the terminal events (status KVXFER_DAEMON_LOST) of all outstanding transfers. Call
	 * kvxfer_client_reconnect(). */
	KVXFER_EVENT_DAEMON_LOST = 7,
	/** `import_`, made by kvxfer_import_find(), can be used from now on; payload: the note of
	 * the region. At most once per import. */
	KVXFER_EVENT_IMPORT_UP = 8
};

/** What a client is told. Fields that the type does not name are 0 or NULL. Pointers are valid
 * inside the callback. */
struct kvxfer_event {
	int type;              /**< enum kvxfer_event_type */
	int status;            /**< enum kvxfer_status */
	int scope;             /**< enum kvxfer_scope: what a failure damaged */
	int vendor_code;       /**< the transport's own error code, 0: none */
	const char *text;      /**< cause of a failure, for people; never NULL */
	uint64_t transfer;     /**< TERMINAL: id given by the submit call */
	uint64_t tag;          /**< TERMINAL, ARRIVAL: the submitter's tag */
	int op;                /**< TERMINAL, ARRIVAL: enum kvxfer_op as the submitter named it */
	uint64_t bytes;        /**< TERMINAL, ARRIVAL: bytes moved */
	const char *transport; /**< TERMINAL, ARRIVAL: "copy", "fabric", ...; "" when no op was
				  posted; never NULL */
	struct kvxfer_region *region; /**< ARRIVAL, MESSAGE, REGION_LOST: this client's region; NULL
					 if it was unregistered */
	struct kvxfer_import *import_; /**< IMPORT_LOST, IMPORT_UP */
	const void *payload;           /**< ARRIVAL, MESSAGE, IMPORT_UP */
	size_t payload_bytes;          /**< 0..KVXFER_PAYLOAD_MAX */
	uint64_t submit_ns; /**< TERMINAL: CLOCK_MONOTONIC when the daemon read the request */
	uint64_t first_ns;  /**< TERMINAL: first op given to a transport, 0: none */
	uint64_t last_ns;   /**< TERMINAL: last op completed, 0: none */
	uint64_t end_ns;    /**< TERMINAL: the transfer ended */
};

/**
 * Receives events; runs inside kvxfer_client_dispatch() or kvxfer_client_wait(), on the caller's
 * thread, once per event. May call data calls other than dispatch and wait. Must not close the
 * client.
 */
typedef void (*kvxfer_event_cb)(struct kvxfer_client *client, const struct kvxfer_event *event,
				void *arg);

/**
 * Delivers the events that are there now. Never blocks; costs one system call when there is
 * nothing.
 * @param cb   called once per event, in the order in which the daemon sent them.
 * @param arg  passed to cb.
 * @return number of events delivered, 0 or more; -ECONNRESET when the daemon is gone and its loss
 * has been delivered.
 */
int kvxfer_client_dispatch(struct kvxfer_client *client, kvxfer_event_cb cb, void *arg);

/**
 * Blocks until at least one event was delivered or the time is over, then as
 * kvxfer_client_dispatch().
 * @param timeout_ms  0: as dispatch; < 0: no limit.
 * @return number of events delivered; 0 when the time is over; -ECONNRESET as in dispatch.
 */
int kvxfer_client_wait(struct kvxfer_client *client, int timeout_ms, kvxfer_event_cb cb, void *arg);

/**
 * After KVXFER_EVENT_DAEMON_LOST: connects again and registers every region of the client anew,
 * under the same struct kvxfer_region pointers. Imports of regions on other nodes are imported anew
 * from the descriptors they were made of; an import that cannot be had (above all one of this node,
 * whose descriptors end with the daemon) is reported by one KVXFER_EVENT_IMPORT_LOST. Transfers are
 * never retried. Descriptors exported before are void: export again and hand them out. Set-up call;
 * on failure it can be called again.
 * @return 0; as kvxfer_client_open(); -EALREADY when the daemon is not lost; -EBUSY when the events
 * of its loss have not been delivered yet.
 */
int kvxfer_client_reconnect(struct kvxfer_client *client);

/* ---- layouts
 * ---------------------------------------------------------------------------------------------------
 */

/** Block b of a plane is [offset + b * block_stride, + block_bytes) of the region. */
struct kvxfer_plane {
	const char *name; /**< at most 32 bytes, e.g. "layer3.k"; NULL: "" */
	uint64_t offset;
	uint64_t block_stride; /**< >= block_bytes */
	uint64_t block_bytes;  /**< > 0 */
	uint32_t n_blocks;     /**< 0: as many as fit from offset to the end of the region */
};

/** Planes are addressed by their index; a region has one layout or none. */
struct kvxfer_layout {
	const struct kvxfer_plane *planes;
	uint32_t n_planes;
};

/**
 * Fill `planes` for the common KV caches. Blocks of a plane are dense; the planes follow each other
 * from `offset`. split_kv: one K and one V tensor per layer, [layer][K|V][block]: plane 2*l is
 * layer l's K, 2*l+1 its V (n_planes = 2 * n_layers). interleaved_kv: [layer][block][K|V]: same
 * planes, stride 2 * block_bytes. mla: one latent tensor per layer, [layer][block] (n_planes =
 * n_layers). Plane names are static ("k", "v", "kv").
 * @param block_bytes  bytes of K (or of V, or of the latent) of one block.
 * @param planes       array of at least n_planes entries, filled.
 * @return bytes from offset to the end of the last plane, or 0 when a size is 0 or the sum
 * overflows.
 */
uint64_t kvxfer_layout_split_kv(uint64_t offset, uint32_t n_layers, uint32_t n_blocks,
				uint64_t block_bytes, struct kvxfer_plane *planes);
uint64_t kvxfer_layout_interleaved_kv(uint64_t offset, uint32_t n_layers, uint32_t n_blocks,
				      uint64_t block_bytes, struct kvxfer_plane *planes);
uint64_t kvxfer_layout_mla(uint64_t offset, uint32_t n_layers, uint32_t n_blocks,
			   uint64_t block_bytes, struct kvxfer_plane *planes);

/* ---- regions
 * ---------------------------------------------------------------------------------------------------
 */

enum kvxfer_region_flags {
	/** kvxfer_region_alloc(): back with 2 MiB huge pages; -ENOMEM when the system has too few
	   free (see kvxferctl doctor). */
	KVXFER_REGION_HUGEPAGES = 1,
	/** kvxfer_region_register_gpu(): somebody may be using the memory now: it is only read, see
	   there. */
	KVXFER_REGION_IN_USE = 2
};

/** Zero-initialise. */
struct kvxfer_region_options {
	size_t struct_bytes; /**< sizeof(struct kvxfer_region_options) */
	const char *name;    /**< for people; at most 64 bytes */
	uint32_t
	    access;     /**< enum kvxfer_access bits: what others may do; 0: nobody may import it */
	uint32_t flags; /**< enum kvxfer_region_flags */
	const struct kvxfer_layout *layout; /**< NULL: none (explicit ops only); copied */
	const char *publish; /**< NULL, or the name under which clients of the tenant, here and on
				other nodes, find it (kvxfer_import_find()): 1 to
				KVXFER_PUBLISH_MAX printable ASCII characters, none of them blank;
				needs access bits; gone with the region; copied */
	const void *note;    /**< with publish: told to who finds it; copied */
	size_t note_bytes;   /**< 0..KVXFER_PAYLOAD_MAX */
};

/**
 * Allocates shared memory (a sealed memfd), maps it and registers it. Pages are touched, so that
 * they are charged to this process. Set-up call.
 * @param len_bytes  > 0; rounded up to the page size (huge page size where asked).
 * @param options    NULL: no name, no access, no layout; not kept.
 * @return 0; -EDQUOT over the daemon's quota of regions or bytes; -EINVAL a plane leaves the
 * region; -EEXIST another region of the tenant is published on this node under the name; -EACCES
 * publish without access bits; -EMFILE this process has no file descriptor left; -ENOMEM;
 * -ETIMEDOUT; -ECONNRESET.
 */
int kvxfer_region_alloc(struct kvxfer_client *client, uint64_t len_bytes,
			const struct kvxfer_region_options *options,
			struct kvxfer_region **out_region);

/**
 * Registers part of a memfd that the caller made and mapped itself.
 * @param fd      a memfd (memfd_create(2) with MFD_ALLOW_SEALING), at least offset + len_bytes
 * long. The library adds F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL where they are missing and
 * duplicates it: the caller keeps and may close its own. Pages of the range that do not exist yet
 * are made, so that they are charged to this process.
 * @param offset  multiple of the page size (of the huge page size for hugetlb memory).
 * @return as kvxfer_region_alloc(); -EBADF not a memfd, or one whose seals can no longer be added.
 */
int kvxfer_region_register(struct kvxfer_client *client, int fd, uint64_t offset,
			   uint64_t len_bytes, const struct kvxfer_region_options *options,
			   struct kvxfer_region **out_region);

/** GPU memory: any part of an allocation. */
struct kvxfer_gpu_segment {
	void *ptr;          /**< device pointer, as the runtime gave it */
	uint64_t len_bytes; /**< > 0 */
};

/**
 * Registers GPU memory, as one region of one or several pieces: the layer tensors of a KV cache,
 * say. The pieces must be of one device; in the region they follow each other without gaps, so that
 * the second one begins at offset segments[0].len_bytes. Planes and ops may run over their ends.
 *
 * The runtime (CUDA or HIP) is the one that this process has loaded; the library links none. Each
 * allocation that a piece lies in is exported to the daemon by an IPC handle, and as a dma-buf
 * where the runtime can. The daemon maps it for as long as a region needs it: free the memory only
 * after kvxfer_region_unregister() (what is freed before keeps its pages until then). To make sure
 * that the daemon sees the right memory, some 16 bytes at up to 16 places of the region are
 * overwritten for the moment of this call and then put back; with KVXFER_REGION_IN_USE they are
 * only read and compared, which memory that has one value everywhere passes in any case. Where the
 * daemon has RDMA devices that take them, the first 250 allocations are exported as dma-bufs, which
 * takes two file descriptors for each until the call returns; without so many the region is
 * registered all the same, and the daemon's log says that RDMA may not reach it, and why. Set-up
 * call.
 * @param segments    [n_segments]; copied.
 * @param options     NULL: no name, no access, no layout; not kept.
 * @return as kvxfer_region_register(), and: -EFAULT no memory of a GPU, or the daemon does not see
 * the memory that is meant; -EINVAL pieces of several devices; -EOPNOTSUPP memory that cannot be
 * exported: of the virtual memory calls (PyTorch's expandable_segments) or of a memory pool;
 * -ENODEV the daemon does not use that device; kvxfer_client_error() says what to do.
 */
int kvxfer_region_register_gpu(struct kvxfer_client *client,
			       const struct kvxfer_gpu_segment *segments, uint32_t n_segments,
			       const struct kvxfer_region_options *options,
			       struct kvxfer_region **out_region);

/** Start of the library's mapping of an allocated region, page aligned; NULL for
 * kvxfer_region_register() and kvxfer_region_register_gpu(). */
void *kvxfer_region_data(const struct kvxfer_region *region);
uint64_t kvxfer_region_bytes(const struct kvxfer_region *region);

/**
 * Ends a region. Transfers that use it end first: FAILED with KVXFER_REGION_LOST. Returns when no
 * DMA to or from it is possible any more, on this node or any other; then unmaps what
 * kvxfer_region_alloc() mapped. Blocks at most the daemon's fence bound (2 s by default) or
 * timeout_ms of the client.
 * @return 0, and the pointer is gone; -ETIMEDOUT: not known to be fenced, the region stays and the
 * call can be repeated; -ECONNRESET: the daemon, and with it all DMA, is gone: the pointer is gone.
 */
int kvxfer_region_unregister(struct kvxfer_region *region);

/**
 * Makes a descriptor: opaque bytes with which other clients, here or on any node that reaches this
 * one, can import the region. It carries an unguessable token: who has it, has the access named at
 * registration. It is void once the region is unregistered or the daemon restarts. Every call gives
 * the same bytes.
 * @param buf      receives the descriptor.
 * @param buf_bytes  KVXFER_DESCRIPTOR_MAX always suffices.
 * @return length of the descriptor in bytes; -ENOSPC buf too small; -EACCES the region has no
 * access bits.
 */
int kvxfer_region_export(struct kvxfer_region *region, void *buf, size_t buf_bytes);

/* ---- imports
 * ---------------------------------------------------------------------------------------------------
 */

/** Zero-initialise. */
struct kvxfer_import_options {
	size_t struct_bytes; /**< sizeof(struct kvxfer_import_options) */
	const struct kvxfer_region
	    *compare; /**< refuse the import unless its layout has the same planes (count,
			 block_bytes) as this region's; NULL: no check here */
};

/**
 * Makes another client's region usable as the remote side. Connects to its node where needed; after
 * this call the first transfer finds everything warm. Set-up call.
 * @param descriptor  bytes from kvxfer_region_export(); not kept by reference.
 * @return 0; -EINVAL not a descriptor, or of a newer version; -ESTALE of an earlier start of its
 * daemon; -ENOENT the region is gone; -EACCES wrong token; -EMEDIUMTYPE the layouts differ
 * (kvxfer_client_error() says where: "plane 3: block_bytes 4096 here, 8192 there"); -EHOSTUNREACH
 * its node cannot be reached; -EDQUOT; -ETIMEDOUT.
 */
int kvxfer_import_open(struct kvxfer_client *client, const void *descriptor,
		       size_t descriptor_bytes, const struct kvxfer_import_options *options,
		       struct kvxfer_import **out_import);

/**
 * Makes a region that its owner has published (kvxfer_region_options.publish) usable as the remote
 * side, without a descriptor. Data call: what comes of it is told by one event,
 * KVXFER_EVENT_IMPORT_UP, or KVXFER_EVENT_IMPORT_LOST with the status NOT_FOUND (nobody there has
 * published the name: the engine may not be up yet, try again later), ACCESS, LAYOUT,
 * PEER_UNREACHABLE, DEADLINE (no answer within 8 s), QUOTA ... Close it after that; it can also be
 * closed before anything was told, and then nothing is. Until IMPORT_UP transfers and messages
 * through it are refused with -EAGAIN. After kvxfer_client_reconnect() such imports are IMPORT_LOST
 * (DAEMON_LOST): find them again.
 * @param address     where the daemon of the other node listens for peers: "host:port", host alone
 * for the default port; "[v6]:port". NULL, "" or this daemon's own address: this node.
 * @param name        as published.
 * @param options     NULL: no comparison; not kept.
 * @param out_import  the import, at once.
 * @return 0; -EINVAL no such name or address can be; -EAGAIN, -ENOMEM, -ECONNRESET as
 * kvxfer_transfer_submit(). After an error no event follows.
 */
int kvxfer_import_find(struct kvxfer_client *client, const char *address, const char *name,
		       const struct kvxfer_import_options *options,
		       struct kvxfer_import **out_import);

/** Releases an import. Transfers that use it end first, CANCELLED. As kvxfer_region_unregister() in
 * what it waits for. */
int kvxfer_import_close(struct kvxfer_import *import_);

/** Bytes of the remote region; planes of its layout, 0 when it has none. */
uint64_t kvxfer_import_bytes(const struct kvxfer_import *import_);
uint32_t kvxfer_import_planes(const struct kvxfer_import *import_);
/** Copies plane `index` to *out_plane; its name is valid until the import is closed. 0 or -ERANGE.
 */
int kvxfer_import_plane(const struct kvxfer_import *import_, uint32_t index,
			struct kvxfer_plane *out_plane);
/** Name of the transport that a transfer would take, as known when the import was made. Never NULL.
 */
const char *kvxfer_import_transport(const struct kvxfer_import *import_);

/* ---- transfers
 * -------------------------------------------------------------------------------------------------
 */

/** Of every block only `count` pieces: piece j is [offset + j * stride, + bytes) of the block, on
 * each side. Used where the two sides split the heads differently. */
struct kvxfer_slice {
	uint64_t local_offset;
	uint64_t remote_offset;
	uint64_t bytes;         /**< > 0 */
	uint32_t count;         /**< > 0 */
	uint64_t local_stride;  /**< >= bytes when count > 1 */
	uint64_t remote_stride; /**< >= bytes when count > 1 */
};

/** For each plane i of n_planes and each block j: block local_blocks[j] of plane local_plane + i
 * against block remote_blocks[j] of plane remote_plane + i. */
struct kvxfer_blocks {
	uint32_t local_plane;
	uint32_t remote_plane;
	uint32_t n_planes;             /**< > 0 */
	uint32_t n_blocks;             /**< > 0; at most limits.max_blocks */
	const uint32_t *local_blocks;  /**< [n_blocks]; copied during the call */
	const uint32_t *remote_blocks; /**< [n_blocks]; copied during the call */
	const struct kvxfer_slice
	    *slice; /**< NULL: whole blocks, whose block_bytes must be equal on both sides */
};

/** Explicit ops: op i moves lens[i] bytes between local_offsets[i] of the region and
 * remote_offsets[i] of the import. */
struct kvxfer_ops {
	uint32_t n_ops;                 /**< > 0; at most limits.max_ops */
	const uint64_t *local_offsets;  /**< [n_ops]; copied during the call */
	const uint64_t *remote_offsets; /**< [n_ops] */
	const uint64_t *lens;           /**< [n_ops], each > 0; NULL: all ops move len */
	uint64_t len;                   /**< when lens is NULL: > 0 */
};

/** Bytes of an event as GPU runtimes share it between processes. */
#define KVXFER_WAIT_EVENT_BYTES 64

enum kvxfer_wait_kind {
	KVXFER_WAIT_NONE = 0,
	KVXFER_WAIT_EVENT = 1, /**< what the GPU had to do before the event is done */
	KVXFER_WAIT_FLAG = 2   /**< a number in host memory has reached a value */
};

/**
 * What the daemon waits for before it touches a byte of a list of a transfer, so that the engine
 * need not: with WRITE, until its kernels have written the blocks; with READ, until they have used
 * what is overwritten. Zero-initialise.
 *
 * EVENT: an event of the GPU runtime that was made for several processes (cudaEventInterprocess |
 * cudaEventDisableTiming; the same of HIP; torch.cuda.Event(interprocess=True)). Record it first,
 * then submit: an event that was never recorded counts as reached. Recorded again while a transfer
 * that names it has not ended, it stands for the later record, also for lists that were to wait for
 * the earlier one (and where the stream itself waits for that transfer, neither comes to an end):
 * record it again only after the terminal event of the last transfer that names it. When the event
 * was reached says nothing: the daemon may not have looked yet.
 *
 * Make a few events and keep them until the client is closed. The daemon keeps up to 256 of a
 * client and device open after their transfers have ended, and knows them by their bytes alone: an
 * event that is destroyed earlier, and another one that is made in its place with the same bytes,
 * may be taken for the old one, which counts as reached. At the least, an event must live until the
 * terminal event of the last transfer that names it.
 *
 * FLAG: 8 bytes of an own region of host memory, aligned, read as a little-endian u64: the list
 * goes once it is `value` or more. For whatever can write host memory when it is done: another
 * thread (release order), a callback of a stream, a kernel that writes page-locked memory.
 *
 * The daemon looks at both about every 20 us, while something waits. Neither is waited for longer
 * than the transfer's deadline; one that cannot come any more ends the transfer:
 * - KVXFER_DEVICE_LOST (-ENODEV): the GPU of the event is lost;
 * - KVXFER_INVALID (-EINVAL): no such event, or a wait that cannot be (region of the wrong kind);
 * - KVXFER_NOT_FOUND (-ENOENT): no such region;
 * - KVXFER_RANGE (-ERANGE): the flag is not inside of its region;
 * - KVXFER_TRANSPORT (-EIO): opening the event hangs, or the runtime gave an error when asked for
 * it;
 * - KVXFER_UNSUPPORTED (-EOPNOTSUPP): its GPU runtime cannot share events: use a flag;
 * - KVXFER_MEMORY_FAULT (-EFAULT): the flag's memory cannot be read;
 * - KVXFER_REGION_LOST (-EOWNERDEAD): its region was unregistered;
 * - KVXFER_QUOTA (-EDQUOT): too many of the client's lists wait;
 * - KVXFER_NO_MEMORY (-ENOMEM): the daemon has no memory for it.
 */
struct kvxfer_wait {
	size_t struct_bytes;                    /**< sizeof(struct kvxfer_wait) */
	int kind;                               /**< enum kvxfer_wait_kind; NONE: as no wait */
	uint8_t event[KVXFER_WAIT_EVENT_BYTES]; /**< EVENT: by kvxfer_wait_for_event(), or what
						   cudaIpcGetEventHandle() gave */
	struct kvxfer_region *region; /**< EVENT: any region in memory of the event's device; NULL:
					 the transfer's own. FLAG: where the number is */
	uint64_t offset;              /**< FLAG: of the number in the region; a multiple of 8 */
	uint64_t value;               /**< FLAG */
};

/**
 * Fills a wait for an event of this process, by the runtime (CUDA or HIP) that the process has
 * loaded: that of the client's GPU regions where it has any. May be done once for an event that is
 * recorded again and again: the same bytes stand for it. Asks the runtime, but does not wait for
 * the GPU; a data call. The caller names a region where the transfer's own is of another device.
 * @param event     CUevent, cudaEvent_t or hipEvent_t.
 * @param out_wait  the caller sets struct_bytes and zeroes the rest; all but struct_bytes is
 * filled, at most so many bytes of it.
 * @return 0; -EINVAL struct_bytes is wrong, the event was not made for several processes or times
 * (kvxfer_client_error() says so), or both CUDA and HIP are loaded and no GPU region says which;
 * -EOPNOTSUPP the runtime cannot share events, or none is loaded; -ENODEV its GPU is lost;
 * -ECONNRESET. Since 0.1.
 */
int kvxfer_wait_for_event(struct kvxfer_client *client, void *event, struct kvxfer_wait *out_wait);

/** Zero-initialise. Exactly one of blocks and ops, or with `streaming` at most one. Source ranges
 * of a transfer may overlap; destination ranges must not (their content would be undefined). */
struct kvxfer_transfer {
	size_t struct_bytes;           /**< sizeof(struct kvxfer_transfer) */
	int op;                        /**< enum kvxfer_op */
	struct kvxfer_region *region;  /**< local side */
	struct kvxfer_import *import_; /**< remote side */
	const struct kvxfer_blocks *blocks;
	const struct kvxfer_ops *ops;
	uint64_t tag;         /**< any value; comes back in the events on both sides */
	const void *payload;  /**< delivered to the remote engine after the data; copied */
	size_t payload_bytes; /**< 0..KVXFER_PAYLOAD_MAX */
	uint32_t deadline_ms; /**< from submission to the end; 0: the daemon's default (30,000) */
	const char *require;  /**< NULL, or the only transport allowed: "copy", "gpu", "verbs",
				 "fabric" */
	int streaming;        /**< 1: appends follow, ended by kvxfer_transfer_seal() */
	const char *label;    /**< NULL, or the engine's name for it (its request id), at most
				 KVXFER_LABEL_MAX bytes; shown by kvxferctl on both nodes; copied */
	const struct kvxfer_wait *wait; /**< NULL, or what must have happened before a byte of
					   blocks or ops moves; copied */
};

/**
 * Submits a transfer. Data call: the list is copied to the daemon, which walks it; what the socket
 * does not take at once is sent by dispatch and wait.
 * @param out_transfer  its id: never 0, never used again by this client. May be NULL.
 * @return 0: accepted, exactly one KVXFER_EVENT_TERMINAL follows, also for what only the daemon can
 * refuse (range, layout, quota). -EINVAL arguments wrong or of another client; -EOPNOTSUPP a wait,
 * and the daemon is too old for it; -EMSGSIZE over a limit of kvxfer_client_limits(); -EAGAIN 64
 * MiB of requests wait because the daemon does not read them: dispatch, and try again; -ENOMEM;
 * -ECONNRESET. After an error nothing was submitted and no event follows.
 */
int kvxfer_transfer_submit(struct kvxfer_client *client, const struct kvxfer_transfer *transfer,
			   uint64_t *out_transfer);

/**
 * Adds to a streaming transfer, e.g. the planes of the layer just computed. Bytes may move at once.
 * Exactly one of blocks and ops. Data call.
 * @return 0; -ENOENT not a streaming transfer of this client, sealed, or ended; else as submit. An
 * append that the daemon refuses ends the transfer, FAILED.
 */
int kvxfer_transfer_append(struct kvxfer_client *client, uint64_t transfer,
			   const struct kvxfer_blocks *blocks, const struct kvxfer_ops *ops);

/**
 * As kvxfer_transfer_append(), but none of the list's bytes moves before `wait` is over: one append
 * for each layer, each with the event behind that layer's kernels, and the engine's thread never
 * waits. Lists of a transfer go in the order of their appends: what is appended later, with or
 * without a wait, goes behind it. Data call.
 * @param wait  NULL, or of kind NONE: as kvxfer_transfer_append(); copied.
 * @return as kvxfer_transfer_append(); -EINVAL a wait that cannot be; -EOPNOTSUPP the daemon is too
 * old for it. Since 0.1.
 */
int kvxfer_transfer_append_after(struct kvxfer_client *client, uint64_t transfer,
				 const struct kvxfer_blocks *blocks, const struct kvxfer_ops *ops,
				 const struct kvxfer_wait *wait);

/**
 * Ends the appending: the transfer ends when all that was appended has moved. Data call.
 * @param payload  when not empty, replaces the payload of the submit.
 * @return 0; -ENOENT, -ECONNRESET, -EMSGSIZE, -EAGAIN, -ENOMEM.
 */
int kvxfer_transfer_seal(struct kvxfer_client *client, uint64_t transfer, const void *payload,
			 size_t payload_bytes);

/**
 * Asks for an early end. The terminal event comes after the fence: CANCELLED, or what the transfer
 * had reached before. Data call. @return 0; -ENOENT it has ended, or never was; -ECONNRESET;
 * -ENOMEM.
 */
int kvxfer_transfer_cancel(struct kvxfer_client *client, uint64_t transfer);

/* ---- messages, inspection
 * -------------------------------------------------------------------------------------- */

/**
 * Sends a small message to the client that owns the region behind `import_`: KVXFER_EVENT_MESSAGE
 * there. Reliable, and in order with other messages through the same import. Set-up call: returns
 * when the receiving client's daemon has queued it.
 * @param bytes  1..KVXFER_PAYLOAD_MAX.
 * @return 0; -EMSGSIZE; -EPIPE the receiver is gone; -EDQUOT the receiver does not read its events;
 * -EHOSTDOWN; -ETIMEDOUT it may or may not have arrived (also: it waits behind posted ones).
 */
int kvxfer_message_send(struct kvxfer_import *import_, const void *data, size_t bytes);

/**
 * As kvxfer_message_send(), but a data call: returns at once, also inside event callbacks. It
 * arrives after the KVXFER_EVENT_ARRIVAL of every transfer through the same import that had ended
 * (terminal event) before, and in order with other messages through the import. While the receiver
 * has too many events unread the message waits in the daemon, and holds up nothing but messages
 * behind it. There is no confirmation: a message that cannot be delivered (the receiver is gone; it
 * has taken none for 20 s; the daemon's limit of bytes that wait, 64 MiB for each client unless
 * configured, is reached) ends the import: transfers through it are cancelled, then
 * KVXFER_EVENT_IMPORT_LOST says why. Messages posted behind it are not delivered then, nor are those
 * that still wait when the import, or the client, is closed.
 * @param bytes  1..KVXFER_PAYLOAD_MAX; copied during the call.
 * @return 0; -EMSGSIZE; -EPIPE the import was lost; -EAGAIN the import is not up yet, or 64 MiB of
 * requests wait because the daemon does not read them: dispatch, and try again; -ENOMEM;
 * -ECONNRESET. After an error nothing was posted.
 */
int kvxfer_message_post(struct kvxfer_import *import_, const void *data, size_t bytes);

/**
 * Asks the daemon about itself, as kvxferctl does.
 * @param verb  "status", "clients", "regions", "transfers", "peers", "lanes", "stats",
 * "devices", or (for the daemon's own user and root) "drain", "undrain", "ping", "config".
 * @param arg   NULL, or what the verb needs ("ping": a peer's node id or address).
 * @param out_json  a JSON object, NUL-terminated; free with free(3).
 * @return 0; -EOPNOTSUPP unknown verb; -EACCES; -EHOSTUNREACH; -ETIMEDOUT.
 */
int kvxfer_client_query(struct kvxfer_client *client, const char *verb, const char *arg,
			char **out_json);

#ifdef __cplusplus
}
#endif

#endif

/* The one table of configuration keys, and how a key is found by name or by a misspelling of it.
 * Constant data and pure functions. kvxferd.conf(5) and packaging/kvxferd.conf must name every key:
 * tests compare them with this table. */
#include "config_keys.h"

#include <string.h>

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define TIB (1ull << 40)

#define FIELD(f) offsetof(struct kvx_config, f), sizeof(((struct kvx_config *)0)->f)

#define RELOAD true
#define FIXED  false

const struct kvx_config_key kvx_config_keys[] = {
    {"daemon", "socket", KVX_CONFIG_SOCKET, FIXED, FIELD(socket), "", 0, 0,
     "Unix socket on which clients connect; @name is an abstract one. Empty: "
     "/run/kvxfer/kvxferd.sock for root, else kvxferd.sock in $XDG_RUNTIME_DIR. A socket passed by "
     "systemd is used instead."},
    {"daemon", "socket_mode", KVX_CONFIG_MODE, FIXED, FIELD(socket_mode), "0660", 0, 0777,
     "Permissions of the socket. Who may connect may register memory within the limits."},
    {"daemon", "socket_group", KVX_CONFIG_TEXT, FIXED, FIELD(socket_group), "", 0, 0,
     "Group that owns the socket. Empty: the daemon's group."},
    {"daemon", "tenants", KVX_CONFIG_TENANTS, FIXED, FIELD(tenants), "", 0, 0,
     "Tenants beside the default one, as NAME=SOCKET NAME=SOCKET, at most 7: who connects on such "
     "a "
     "socket reaches only regions of the same tenant, here and on other nodes that have a tenant "
     "of "
     "that name. A NAME alone stands for a socket passed by systemd with that FileDescriptorName."},
    {"daemon", "node_id_file", KVX_CONFIG_PATH, FIXED, FIELD(node_id_file),
     "/var/lib/kvxfer/node-id", 0, 0,
     "File that keeps the node id over restarts. Empty, or not writable: a new id at each start."},
    {"daemon", "log_level", KVX_CONFIG_LEVEL, RELOAD, FIELD(log_level), "info", 0, 0,
     "How much is logged: error, warn, info, debug or trace."},
    {"daemon", "drain_timeout_ms", KVX_CONFIG_MS, RELOAD, FIELD(drain_timeout_ms), "10s", 0,
     3600000, "How long SIGTERM waits for running transfers before it cancels them."},

    {"limits", "clients", KVX_CONFIG_COUNT, RELOAD, FIELD(clients), "1024", 1, 1000000,
     "Connected clients. Each needs a file descriptor, and one more for each region."},
    {"limits", "regions", KVX_CONFIG_COUNT, RELOAD, FIELD(regions), "65536", 1, 16777216,
     "Registered regions of all clients together."},
    {"limits", "regions_per_client", KVX_CONFIG_COUNT, RELOAD, FIELD(regions_per_client), "4096", 1,
     16777216, "Registered regions of one client."},
    {"limits", "bytes", KVX_CONFIG_BYTES, RELOAD, FIELD(bytes), "0", 0, 1024 * TIB,
     "Registered bytes of all clients together. 0: 90 % of the physical memory."},
    {"limits", "bytes_per_client", KVX_CONFIG_BYTES, RELOAD, FIELD(bytes_per_client), "0", 0,
     1024 * TIB, "Registered bytes of one client. 0: as bytes."},
    {"limits", "imports_per_client", KVX_CONFIG_COUNT, RELOAD, FIELD(imports_per_client), "16384",
     1, 16777216, "Imported descriptors of one client."},
    {"limits", "transfers", KVX_CONFIG_COUNT, RELOAD, FIELD(transfers), "65536", 1, 16777216,
     "Running transfers of all clients together."},
    {"limits", "transfers_per_client", KVX_CONFIG_COUNT, RELOAD, FIELD(transfers_per_client),
     "4096", 1, 16777216, "Running transfers of one client."},
    {"limits", "queued_bytes_per_client", KVX_CONFIG_BYTES, RELOAD, FIELD(queued_bytes_per_client),
     "64M", 1 * MIB, 1 * TIB,
     "Memory for the block and op lists of one client that wait for their turn, as those of a "
     "stream whose peer is slow."},
    {"limits", "posted_bytes_per_client", KVX_CONFIG_BYTES, RELOAD, FIELD(posted_bytes_per_client),
     "64M", 64 * KIB, 1 * TIB,
     "Memory for posted messages of one client that their receivers have not taken yet: 512 bytes "
     "each, and what is in it. One that goes beyond is not delivered, and ends its import."},
    {"limits", "waits_per_client", KVX_CONFIG_COUNT, RELOAD, FIELD(waits_per_client), "4096", 1,
     16777216, "Lists of one client that wait for an event of its GPU, or for a flag."},
    {"limits", "ops", KVX_CONFIG_COUNT, RELOAD, FIELD(ops), "262144", 1, 16777216,
     "Explicit ops in one request. Each needs 24 bytes of frame_bytes."},
    {"limits", "blocks", KVX_CONFIG_COUNT, RELOAD, FIELD(blocks), "1048576", 1, 67108864,
     "Block ids in one block list. Each needs 8 bytes of frame_bytes."},
    {"limits", "planes", KVX_CONFIG_COUNT, RELOAD, FIELD(planes), "4096", 1, 65536,
     "Planes in one layout."},
    {"limits", "frame_bytes", KVX_CONFIG_BYTES32, RELOAD, FIELD(frame_bytes), "16M", 64 * KIB,
     1 * GIB, "Largest frame that a client may send. A longer one ends its connection."},
    {"limits", "events_bytes", KVX_CONFIG_BYTES32, RELOAD, FIELD(events_bytes), "4M", 64 * KIB,
     1 * GIB, "Events that a client may leave unread. Over it the client is disconnected."},
    {"limits", "peers", KVX_CONFIG_COUNT, RELOAD, FIELD(peers), "1024", 0, 65536,
     "Nodes that this one is connected to."},

    {"transfer", "deadline_ms", KVX_CONFIG_MS, RELOAD, FIELD(deadline_ms), "30s", 1, 86400000,
     "Deadline of transfers that name none."},
    {"transfer", "fence_bound_ms", KVX_CONFIG_MS, FIXED, FIELD(fence_bound_ms), "2s", 10, 60000,
     "How long a cancelled or failed transfer waits for its ops before its lane is reset."},
    {"transfer", "lane_retries", KVX_CONFIG_COUNT, FIXED, FIELD(lane_retries), "1", 0, 8,
     "How often a transfer goes on after its lane was torn down under it. Then it has failed."},
    {"transfer", "history", KVX_CONFIG_COUNT, FIXED, FIELD(history), "256", 0, 65536,
     "Ended transfers that are kept for kvxferctl transfers."},
    {"transfer", "quantum_bytes", KVX_CONFIG_BYTES, FIXED, FIELD(quantum_bytes), "1M", 4 * KIB,
     1 * GIB, "Bytes that a transfer may send before the next one has its turn."},
    {"transfer", "batches", KVX_CONFIG_COUNT, FIXED, FIELD(batches), "512", 16, 65536,
     "Batches of ops in flight, of all lanes together. Each needs 10 KiB of memory."},

    {"copy", "workers", KVX_CONFIG_COUNT, FIXED, FIELD(copy_workers), "0", 0, 8,
     "Threads that copy between clients of this node. 0: half of the cores, 1 to 4."},
    {"copy", "nt_min_bytes", KVX_CONFIG_BYTES, FIXED, FIELD(copy_nt_min_bytes), "16K", 0, 1 * TIB,
     "Ops of at least this size are copied past the caches (non-temporal stores)."},
    {"copy", "inline_max_bytes", KVX_CONFIG_BYTES, FIXED, FIELD(copy_inline_max_bytes), "32K", 0,
     16 * MIB, "Transfers up to this size are copied at once, without a worker. 0: none."},
    {"copy", "spin_us", KVX_CONFIG_US, FIXED, FIELD(spin_us), "50", 0, 1000000,
     "How long an idle worker polls before it sleeps. More costs CPU, less costs latency."},

    {"peer", "enable", KVX_CONFIG_BOOL, FIXED, FIELD(peer_enable), "true", 0, 1,
     "Whether this node talks to other nodes."},
    {"peer", "listen", KVX_CONFIG_ADDRESS, FIXED, FIELD(peer_listen), "127.0.0.1:7717", 0, 0,
     "TCP address for other nodes; port 0 takes a free one."},
    {"peer", "advertise", KVX_CONFIG_ADDRESS, FIXED, FIELD(peer_advertise), "", 0, 0,
     "Address that descriptors name for this node. Empty: the listen address."},
    {"peer", "insecure_peers", KVX_CONFIG_BOOL, FIXED, FIELD(insecure_peers), "false", 0, 1,
     "Allows a listen address other than loopback although peers are not authenticated: whoever "
     "reaches the port can read and write exported regions. Only for a network of trusted nodes."},
    {"peer", "secret_file", KVX_CONFIG_PATH, FIXED, FIELD(peer_secret_file), "", 0, 0,
     "File with a secret of 32 to 4096 bytes that is the same on all nodes: peers prove that they "
     "have it, and what they say is encrypted (TLS 1.3). No others may read the file."},
    {"peer", "tls_ca", KVX_CONFIG_PATH, FIXED, FIELD(peer_tls_ca), "", 0, 0,
     "Certificates (PEM) of who signs those of the nodes. With tls_cert and tls_key, instead of "
     "secret_file: peers need a certificate signed by one of these."},
    {"peer", "tls_cert", KVX_CONFIG_PATH, FIXED, FIELD(peer_tls_cert), "", 0, 0,
     "Certificate (PEM) of this node, with the chain up to one of tls_ca."},
    {"peer", "tls_key", KVX_CONFIG_PATH, FIXED, FIELD(peer_tls_key), "", 0, 0,
     "Private key (PEM) of tls_cert. No others may read the file."},
    {"peer", "heartbeat_ms", KVX_CONFIG_MS, FIXED, FIELD(heartbeat_ms), "1s", 10, 60000,
     "Time between two heartbeats to each peer."},
    {"peer", "lost_ms", KVX_CONFIG_MS, FIXED, FIELD(lost_ms), "3s", 20, 600000,
     "A peer that is silent for so long is lost; at least twice heartbeat_ms."},
    {"peer", "reconnect_min_ms", KVX_CONFIG_MS, FIXED, FIELD(reconnect_min_ms), "100", 1, 600000,
     "First pause before a lost peer is tried again; it doubles up to reconnect_max_ms."},
    {"peer", "reconnect_max_ms", KVX_CONFIG_MS, FIXED, FIELD(reconnect_max_ms), "5s", 1, 600000,
     "Longest pause before a lost peer is tried again."},

    {"peer", "transports", KVX_CONFIG_NAMES, FIXED, FIELD(peer_transports), "verbs fabric", 0, 0,
     "Transports between nodes, best first; each has a section of its name. The first one that "
     "both "
     "nodes have and can use is taken."},
    {"peer", "fallback", KVX_CONFIG_BOOL, FIXED, FIELD(peer_fallback), "true", 0, 1,
     "Whether the next transport is taken when a lane cannot be made by the best one. false: "
     "transfers wait for it, and fail at their deadline."},

    {"fabric", "enable", KVX_CONFIG_BOOL, FIXED, FIELD(fabric_enable), "true", 0, 1,
     "Whether transfers between nodes may use libfabric."},
    {"fabric", "provider", KVX_CONFIG_TEXT, FIXED, FIELD(fabric_provider), "tcp", 0, 0,
     "libfabric provider; fi_info lists them."},
    {"fabric", "message_bytes", KVX_CONFIG_BYTES, FIXED, FIELD(fabric_message_bytes), "256K",
     4 * KIB, 16 * MIB, "Size of the messages into which small ops are packed."},
    {"fabric", "queue", KVX_CONFIG_COUNT, FIXED, FIELD(fabric_queue), "16", 2, 256,
     "Messages in flight to each peer."},
    {"fabric", "rma_min_bytes", KVX_CONFIG_BYTES, FIXED, FIELD(fabric_rma_min_bytes), "1T", 0,
     1 * TIB,
     "Ops of at least this size, up to message_bytes, go by remote memory access instead of "
     "messages."},

#define VERBS(f) FIELD(verbs.f)
    {"verbs", "enable", KVX_CONFIG_BOOL, FIXED, FIELD(verbs_enable), "true", 0, 1,
     "Whether transfers between nodes may use RDMA devices (InfiniBand, RoCE)."},
    {"verbs", "devices", KVX_CONFIG_DEVICES, FIXED, VERBS(devices), "", 0, 0,
     "Devices to use, as DEVICE or DEVICE:PORT with commas between them; with ^ at the beginning, "
     "all but these. Empty: all. kvxferctl devices lists them."},
    {"verbs", "gid_index", KVX_CONFIG_AUTO, FIXED, VERBS(gid_index), "auto", 0, 65535,
     "Index in the GID table of each port. auto: RoCE v2 with an IPv4-mapped or a global IPv6 "
     "address; on InfiniBand the first one."},
    {"verbs", "mtu_bytes", KVX_CONFIG_COUNT, FIXED, VERBS(mtu_bytes), "0", 0, 4096,
     "Path MTU: 256, 512, 1024, 2048 or 4096. 0: what the ports of both sides have."},
    {"verbs", "qps_per_lane", KVX_CONFIG_COUNT, FIXED, VERBS(qps_per_lane), "2", 1, 16,
     "Queue pairs for each peer, tenant and pair of devices."},
    {"verbs", "sq_depth", KVX_CONFIG_COUNT, FIXED, VERBS(sq_depth), "512", 16, 32768,
     "Work requests in flight on each queue pair."},
    {"verbs", "cq_depth", KVX_CONFIG_COUNT, FIXED, VERBS(cq_depth), "0", 0, 4194304,
     "Entries of the completion queue of each device; each lane needs qps_per_lane times sq_depth "
     "of them. 0: enough for 64 lanes, or what the device has."},
    {"verbs", "post_batch", KVX_CONFIG_COUNT, FIXED, VERBS(post_batch), "64", 1, 1024,
     "Most work requests given to the device at once; less than sq_depth."},
    {"verbs", "max_sge", KVX_CONFIG_COUNT, FIXED, VERBS(max_sge), "0", 0, 64,
     "Most local pieces in one work request. 0: 8, or what the device has."},
    {"verbs", "inline_bytes", KVX_CONFIG_COUNT, FIXED, VERBS(inline_bytes), "128", 0, 4096,
     "Writes up to this size carry their data in the work request. 0: none."},
    {"verbs", "stripe_bytes", KVX_CONFIG_BYTES, FIXED, VERBS(stripe_bytes), "1M", 4 * KIB, 1 * GIB,
     "Longer ops are cut into pieces of this size, spread over queue pairs and devices."},
    {"verbs", "max_rd_atomic", KVX_CONFIG_COUNT, FIXED, VERBS(max_rd_atomic), "16", 1, 255,
     "Reads in flight on each queue pair, at most what both devices have."},
    {"verbs", "timeout", KVX_CONFIG_COUNT, FIXED, VERBS(timeout), "16", 1, 31,
     "How long an acknowledgement is waited for before a packet is sent again: 4.096 us times 2 to "
     "the power of this, so that 16 is 268 ms. Devices round up."},
    {"verbs", "retry_count", KVX_CONFIG_COUNT, FIXED, VERBS(retry_count), "6", 0, 7,
     "How often a packet is sent again before the lane is given up. Soft-RoCE takes 7 for without "
     "end."},
    {"verbs", "rnr_retry", KVX_CONFIG_COUNT, FIXED, VERBS(rnr_retry), "7", 0, 7,
     "How often it is tried again when the other side is not ready. 7: without end."},
    {"verbs", "min_rnr_timer", KVX_CONFIG_COUNT, FIXED, VERBS(min_rnr_timer), "12", 0, 31,
     "Code of the pause that the other side is asked for before such a try; 12 is 0.64 ms."},
    {"verbs", "traffic_class", KVX_CONFIG_COUNT, FIXED, VERBS(traffic_class), "0", 0, 255,
     "Traffic class of RoCE v2 packets: four times the DSCP, as the switches expect it."},
    {"verbs", "service_level", KVX_CONFIG_COUNT, FIXED, VERBS(service_level), "0", 0, 15,
     "InfiniBand service level; on RoCE v1 the priority."},
    {"verbs", "hop_limit", KVX_CONFIG_COUNT, FIXED, VERBS(hop_limit), "64", 1, 255,
     "Hops that a packet may take."},
    {"verbs", "pkey_index", KVX_CONFIG_COUNT, FIXED, VERBS(pkey_index), "0", 0, 65535,
     "Index in the partition key table of each port."},
    {"verbs", "flush", KVX_CONFIG_BOOL, FIXED, VERBS(flush), "true", 0, 1,
     "Whether a small read after writes makes sure that their data is visible before the transfer "
     "ends. Without it that depends on the device and the platform. Host memory only: writes into "
     "GPU memory are always flushed, by the GPU's own memory."},
    {"verbs", "settle_ms", KVX_CONFIG_MS, FIXED, VERBS(settle_ms), "100ms", 0, 10000,
     "How long a packet can be under way in the network: a transfer that failed ends so much "
     "later, "
     "so that nothing lands after its end."},
    {"verbs", "spin_us", KVX_CONFIG_US, FIXED, FIELD(verbs_spin_us), "50", 0, 1000000,
     "How long the worker of a device polls after the last completion before it sleeps. More costs "
     "CPU, less costs latency."},
#undef VERBS

#define GPU(f) FIELD(gpu.f)
    {"gpu", "enable", KVX_CONFIG_BOOL, FIXED, FIELD(gpu_enable), "true", 0, 1,
     "Whether clients may register memory of GPUs. A node without GPUs needs no false."},
    {"gpu", "runtime", KVX_CONFIG_TEXT, FIXED, GPU(runtime), "auto", 0, 0,
     "Which runtime is used: cuda, hip, or auto: the first of them that has a device."},
    {"gpu", "library_dir", KVX_CONFIG_PATH, FIXED, GPU(library_dir), "", 0, 0,
     "Directory in which the runtime's library is looked for first. Empty: only where the system "
     "has its libraries, and in /opt/rocm/lib."},
    {"gpu", "bytes", KVX_CONFIG_BYTES, RELOAD, FIELD(gpu_bytes), "0", 0, 1024 * TIB,
     "Registered GPU memory of all clients together; limits.bytes does not count it. 0: no limit."},
    {"gpu", "segments", KVX_CONFIG_COUNT, RELOAD, FIELD(gpu_segments), "4096", 1, 65536,
     "Pieces of GPU memory in one region."},
    {"gpu", "pin_host", KVX_CONFIG_BOOL, FIXED, FIELD(gpu_pin_host), "true", 0, 1,
     "Whether registered host memory is page-locked for the GPUs. Without it nothing is copied "
     "between GPUs and host memory."},
    {"gpu", "streams", KVX_CONFIG_COUNT, FIXED, GPU(streams), "4", 1, 16,
     "Streams of each device that copies are spread over."},
    {"gpu", "gather_max_bytes", KVX_CONFIG_AUTO, FIXED, GPU(gather_max_bytes), "auto", 0, 1048576,
     "Ops up to this size are gathered into one kernel instead of being copied one by one. 0: "
     "none. auto: up to the size that is faster so, as measured at the start."},
    {"gpu", "call_timeout_ms", KVX_CONFIG_MS, FIXED, GPU(call_timeout_ms), "5s", 10, 600000,
     "How long the runtime may take to map or unmap memory. After that the registration fails, and "
     "the device takes no more of them until the call returns."},
    {"gpu", "fence_timeout_ms", KVX_CONFIG_MS, FIXED, GPU(fence_timeout_ms), "2s", 10, 600000,
     "How long copies of a cancelled transfer may go on before the device is reset, and lost. "
     "Messages to other nodes fail when no copy of theirs has ended for as long."},
    {"gpu", "bounce_bytes", KVX_CONFIG_BYTES, FIXED, GPU(bounce_bytes), "256M", 4 * MIB, 1 * TIB,
     "Page-locked memory through which GPU memory goes where the network does not reach it by "
     "itself. When it is used up, transfers wait for each other."},
    {"gpu", "bounce_slots", KVX_CONFIG_COUNT, FIXED, GPU(bounce_slots), "4", 1, 64,
     "Messages of a GPU's memory under way to each peer, and from it, while their data is copied "
     "between the device and page-locked memory."},
    {"gpu", "spin_us", KVX_CONFIG_US, FIXED, FIELD(gpu_spin_us), "20", 0, 1000000,
     "How long the worker of a device polls after the last copy before it sleeps. More costs CPU, "
     "less costs latency."},
#undef GPU
};
const unsigned kvx_config_n_keys = sizeof(kvx_config_keys) / sizeof(kvx_config_keys[0]);

const struct kvx_config_key *kvx_config_key_find(const char *section, const char *name)
{
	for (unsigned i = 0; i < kvx_config_n_keys; i++)
		if (strcmp(kvx_config_keys[i].section, section) == 0 &&
		    strcmp(kvx_config_keys[i].name, name) == 0)
			return &kvx_config_keys[i];
	return NULL;
}

bool kvx_config_section_exists(const char *section)
{
	for (unsigned i = 0; i < kvx_config_n_keys; i++)
		if (strcmp(kvx_config_keys[i].section, section) == 0)
			return true;
	return false;
}

#define MAX_WORD 40u

/* Edits (insert, delete, replace) that make b of a; MAX_WORD when a word is too long to be one of
 * ours. */
static unsigned word_distance(const char *a, const char *b)
{
	unsigned row[MAX_WORD + 1];
	size_t len_a = strlen(a), len_b = strlen(b);

	if (len_a > MAX_WORD || len_b > MAX_WORD)
		return MAX_WORD;
	for (unsigned j = 0; j <= len_b; j++)
		row[j] = j;
	for (unsigned i = 1; i <= len_a; i++) {
		unsigned diagonal = row[0];

		row[0] = i;
		for (unsigned j = 1; j <= len_b; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);

			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = row[j];
			row[j] = best;
		}
	}
	return row[len_b];
}

static unsigned word_max_distance(const char *word)
{
	size_t len = strlen(word);

	return len < 4 ? 1 : len < 9 ? 2 : 3;
}

/* "settle" for "settle_ms" */
static bool word_lacks_unit(const char *word, const char *name)
{
	size_t len = strlen(word);

	return len > 0 && strncmp(word, name, len) == 0 && name[len] == '_';
}

const struct kvx_config_key *kvx_config_key_guess(const char *section, const char *name)
{
	const struct kvx_config_key *best = NULL;
	unsigned best_distance = 2 * (word_max_distance(name) + 1);

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];
		unsigned distance =
		    word_lacks_unit(name, key->name) ? 0 : 2 * word_distance(name, key->name);

		if (strcmp(section, key->section) != 0)
			distance++; /* of two equally similar ones, that of the same section */
		if (distance < best_distance) {
			best = key;
			best_distance = distance;
		}
	}
	return best;
}

const char *kvx_config_section_guess(const char *section)
{
	const char *best = NULL;
	unsigned best_distance = word_max_distance(section) + 1;

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		unsigned distance = word_distance(section, kvx_config_keys[i].section);

		if (distance < best_distance) {
			best = kvx_config_keys[i].section;
			best_distance = distance;
		}
	}
	return best;
}

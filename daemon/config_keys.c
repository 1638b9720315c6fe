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
    {"peer", "heartbeat_ms", KVX_CONFIG_MS, FIXED, FIELD(heartbeat_ms), "1s", 10, 60000,
     "Time between two heartbeats to each peer."},
    {"peer", "lost_ms", KVX_CONFIG_MS, FIXED, FIELD(lost_ms), "3s", 20, 600000,
     "A peer that is silent for so long is lost; at least twice heartbeat_ms."},
    {"peer", "reconnect_min_ms", KVX_CONFIG_MS, FIXED, FIELD(reconnect_min_ms), "100", 1, 600000,
     "First pause before a lost peer is tried again; it doubles up to reconnect_max_ms."},
    {"peer", "reconnect_max_ms", KVX_CONFIG_MS, FIXED, FIELD(reconnect_max_ms), "5s", 1, 600000,
     "Longest pause before a lost peer is tried again."},

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

const struct kvx_config_key *kvx_config_key_guess(const char *section, const char *name)
{
	const struct kvx_config_key *best = NULL;
	unsigned best_distance = 2 * (word_max_distance(name) + 1);

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];
		unsigned distance = 2 * word_distance(name, key->name);

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

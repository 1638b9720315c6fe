/* Configuration: the one reader of the file, the environment and the flags. Gives one validated,
 * immutable struct. Every key is described once, in the table of config_keys.c: name, type, unit,
 * default, range, what it is for; kvxferd.conf(5), `kvxferd --print-config` and `kvxferctl config
 * check` come from that table. */
#ifndef KVX_CONFIG_H
#define KVX_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/region.h"
#include "proto/kvx_err.h"
#include "transport/transport.h"

#define KVX_CONFIG_STR             256
#define KVX_CONFIG_TRANSPORTS      4 /* for peers */
#define KVX_CONFIG_TRANSPORT_BYTES 16

struct kvx_config {
	/* [daemon] */
	char socket[KVX_CONFIG_STR];  /* /run/kvxfer/kvxferd.sock, or $XDG_RUNTIME_DIR/kvxferd.sock
					 when not root */
	uint32_t socket_mode;         /* 0660, octal */
	char socket_group[64];        /* "": leave */
	char tenants[KVX_CONFIG_STR]; /* "NAME=SOCKET ..."; "": only the default one */
	char node_id_file[KVX_CONFIG_STR]; /* where the node id is kept; default
					      /var/lib/kvxfer/node-id, "" or unwritable: random */
	char log_level[16];                /* info; reloadable */
	uint32_t drain_timeout_ms; /* 10000: SIGTERM waits this long for transfers; reloadable */
	/* [limits]; all reloadable, they hold for what comes after */
	uint32_t clients;                 /* 1024 */
	uint32_t regions;                 /* 65536 */
	uint32_t regions_per_client;      /* 4096 */
	uint64_t bytes;                   /* 0: 90 % of physical memory */
	uint64_t bytes_per_client;        /* 0: as bytes */
	uint32_t imports_per_client;      /* 16384 */
	uint32_t transfers;               /* 65536 */
	uint32_t transfers_per_client;    /* 4096 */
	uint64_t queued_bytes_per_client; /* 64 MiB: of lists that wait for their turn */
	uint64_t posted_bytes_per_client; /* 64 MiB: of messages that receivers have not taken */
	uint32_t waits_per_client;        /* 4096: lists that wait for an event or a flag */
	uint32_t ops;                     /* 262144: explicit ops per request */
	uint32_t blocks;                  /* 1048576: block ids per list */
	uint32_t planes;                  /* 4096 */
	uint32_t frame_bytes;             /* 16 MiB */
	uint32_t events_bytes; /* 4 MiB of unread events: then the client is disconnected */
	uint32_t peers;        /* 1024 */
	/* [transfer] */
	uint32_t deadline_ms;    /* 30000; reloadable */
	uint32_t fence_bound_ms; /* 2000 */
	uint32_t lane_retries;   /* 1 */
	uint32_t history;        /* 256 ended transfers kept for kvxferctl */
	uint64_t quantum_bytes;  /* 1 MiB */
	uint32_t batches;        /* 512 */
	/* [copy] */
	uint32_t copy_workers;          /* 0: half of the cores, 1..4 */
	uint64_t copy_nt_min_bytes;     /* 16 KiB */
	uint64_t copy_inline_max_bytes; /* 32 KiB */
	uint32_t spin_us;               /* 50 */
	/* [peer] */
	bool peer_enable;                      /* true */
	char peer_listen[KVX_CONFIG_STR];      /* 127.0.0.1:7717 */
	char peer_advertise[KVX_CONFIG_STR];   /* "" */
	bool insecure_peers;                   /* false */
	char peer_transports[64];              /* "verbs fabric": best first */
	bool peer_fallback;                    /* true */
	char peer_secret_file[KVX_CONFIG_STR]; /* "" */
	char peer_tls_ca[KVX_CONFIG_STR], peer_tls_cert[KVX_CONFIG_STR],
	    peer_tls_key[KVX_CONFIG_STR];
	uint32_t heartbeat_ms;     /* 1000 */
	uint32_t lost_ms;          /* 3000 */
	uint32_t reconnect_min_ms; /* 100 */
	uint32_t reconnect_max_ms; /* 5000 */
	/* [fabric] */
	bool fabric_enable;            /* true */
	char fabric_provider[64];      /* tcp */
	uint64_t fabric_message_bytes; /* 256 KiB */
	uint32_t fabric_queue;         /* 16 */
	uint64_t fabric_rma_min_bytes; /* 1 TiB: above message_bytes nothing goes by RMA */
	/* [verbs] */
	bool verbs_enable; /* true */
	struct kvx_verbs_conf verbs;
	uint32_t verbs_spin_us; /* 50 */
	/* [gpu] */
	bool gpu_enable; /* true */
	struct kvx_gpu_conf gpu;
	uint64_t gpu_bytes;    /* 0: no limit; reloadable */
	uint32_t gpu_segments; /* 4096: allocations of one region; reloadable */
	bool gpu_pin_host;     /* true */
	uint32_t gpu_spin_us;  /* 20 */
};

/* A tenant: its clients connect on a socket of its own. */
struct kvx_config_tenant {
	char name[KVX_TENANT_NAME_BYTES];
	char socket[KVX_CONFIG_STR]; /* "": handed over by the service manager */
};

void kvx_config_defaults(struct kvx_config *out_config);
/* Reads an INI file over *config. 0; -ENOENT, -EACCES; -EINVAL with "FILE:LINE: reason" in *why:
 * unknown section or key, value of the wrong form or out of range, key given twice. */
int kvx_config_load(const char *path, struct kvx_config *config, struct kvx_why *why);
/* One "section.key=value" (command line --set, tests). -EINVAL with the reason. */
int kvx_config_set(struct kvx_config *config, const char *assignment, struct kvx_why *why);
/* Checks across keys (lost_ms > heartbeat_ms, ...), and fills what depends on the machine. */
int kvx_config_finish(struct kvx_config *config, struct kvx_why *why);
/* The tenants of a finished configuration by their index: 0 is "default", on daemon.socket. How
 * many. */
unsigned kvx_config_tenants(const struct kvx_config *config,
			    struct kvx_config_tenant out_tenants[KVX_MAX_TENANTS]);
/* Names of the transports for peers, best first, without those that are disabled. How many. */
unsigned kvx_config_transports(const struct kvx_config *config,
			       char out_names[KVX_CONFIG_TRANSPORTS][KVX_CONFIG_TRANSPORT_BYTES]);
/* Takes over what may change while running; counts what differs but may not (named in *why). */
unsigned kvx_config_reload(struct kvx_config *running, const struct kvx_config *fresh,
			   struct kvx_why *why);
/* Calls visit with each "section.key" and its value as text, in the order of the file. */
typedef void (*kvx_config_visit_fn)(void *arg, const char *name, const char *value);
void kvx_config_visit(const struct kvx_config *config, kvx_config_visit_fn visit, void *arg);
/* The documented file with all values, to f. */
struct _IO_FILE;
void kvx_config_print(const struct kvx_config *config, struct _IO_FILE *f);

#endif

/* Inside control: the answers to queries, one function per verb. Each fills a JSON object; names
 * and units are those of docs/protocol.md, section Queries. Loop thread. */
#ifndef KVX_QUERY_H
#define KVX_QUERY_H

#include <json-c/json.h>

#include "control/control_priv.h"

#define KVX_QUERY_ROWS 4096 /* most rows of one list; the rest is counted as "omitted" */

/* Who asks, and so what is shown: administrators see all, others the clients, regions, transfers
 * and lanes of their own tenant. */
struct kvx_query {
	struct kvx_control *control;
	bool admin;
	uint32_t tenant;
};
static inline bool kvx_query_sees(const struct kvx_query *query, uint32_t tenant)
{
	return query->admin || query->tenant == tenant;
}

void kvx_query_status(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_clients(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_regions(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_transfers(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_peers(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_lanes(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_stats(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_config(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
void kvx_query_devices(const struct kvx_query *query, struct json_object *out) KVX_ON_LOOP;
/* query_devices.c: what a domain has counted; nothing when it counts nothing. */
void kvx_query_dom_counters(const struct kvx_worker *worker, struct json_object *row);

/* Members; a name is given once. */
void kvx_json_text(struct json_object *obj, const char *name, const char *value);
void kvx_json_u64(struct json_object *obj, const char *name, uint64_t value);
void kvx_json_int(struct json_object *obj, const char *name, int value);
void kvx_json_bool(struct json_object *obj, const char *name, bool value);
void kvx_json_id(struct json_object *obj, const char *name, uint64_t id); /* a decimal string */
/* 16 bytes as 32 hex digits. */
void kvx_json_node_id(struct json_object *obj, const char *name, const uint8_t *id);
struct json_object *kvx_json_list(struct json_object *obj, const char *name);
struct json_object *kvx_json_object(struct json_object *obj, const char *name);
/* A new row of a list; NULL when it has KVX_QUERY_ROWS: then *omitted is counted up. */
struct json_object *kvx_json_row(struct json_object *list, uint64_t *omitted);
void kvx_json_omitted(struct json_object *obj, uint64_t omitted); /* nothing for 0 */

#endif

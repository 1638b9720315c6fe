/* Inside control: the answers to queries, one function per verb. Each fills a JSON object; names
 * and units are those of docs/protocol.md, section Queries. Loop thread. */
#ifndef KVX_QUERY_H
#define KVX_QUERY_H

#include <json-c/json.h>

#include "control/control_priv.h"

#define KVX_QUERY_ROWS 4096 /* most rows of one list; the rest is counted as "omitted" */

void kvx_query_status(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_clients(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_regions(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_transfers(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_peers(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_stats(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_config(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;
void kvx_query_devices(struct kvx_control *control, struct json_object *out) KVX_ON_LOOP;

/* Members; a name is given once. */
void kvx_json_text(struct json_object *obj, const char *name, const char *value);
void kvx_json_u64(struct json_object *obj, const char *name, uint64_t value);
void kvx_json_bool(struct json_object *obj, const char *name, bool value);
void kvx_json_id(struct json_object *obj, const char *name, uint64_t id); /* a decimal string */
/* 16 bytes as 32 hex digits. */
void kvx_json_node_id(struct json_object *obj, const char *name, const uint8_t *id);
struct json_object *kvx_json_list(struct json_object *obj, const char *name);
struct json_object *kvx_json_object(struct json_object *obj, const char *name);
/* A new row of a list; NULL when it has KVX_QUERY_ROWS: then *omitted is counted up. */
struct json_object *kvx_json_row(struct json_object *list, uint64_t *omitted);

#endif

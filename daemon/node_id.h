/* Who this node is: an id that stays, and a boot epoch that is new at each start of the daemon. */
#ifndef KVX_NODE_ID_H
#define KVX_NODE_ID_H

#include <stdint.h>

#include "xfer/desc.h"

/* 32 hex digits, with or without the dashes of a UUID. 0 or -EINVAL. */
int kvx_node_id_parse(const char *text, uint8_t out_id[KVX_NODE_ID_BYTES]);
void kvx_node_id_format(const uint8_t id[KVX_NODE_ID_BYTES], char out[33]);
/* Reads the id from the file, or makes one and tries to keep it there. The file stays locked while
 * *out_lock_fd is open, so that two daemons of one machine never have the same id; -1 when there is
 * nothing to lock. Never fails: what goes wrong is logged and the id is a random one. */
void kvx_node_id_get(const char *path, uint8_t out_id[KVX_NODE_ID_BYTES], int *out_lock_fd);
/* Random, never 0. */
uint64_t kvx_node_epoch(void);

#endif

/* Events in their wire form, without the generic packer: two of them end every transfer. */
#ifndef KVX_EVENT_PACK_H
#define KVX_EVENT_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "kvxfer.pb-c.h"

/* The same bytes as kvxp__event__pack(). Length, or 0 when they do not fit. */
size_t kvx_event_pack(const Kvxp__Event *event, uint8_t *out, size_t out_bytes);

#endif

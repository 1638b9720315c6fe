/* Two nodes with a region each, and b's resolved on a: what most tests of lanes begin with. */
#ifndef KVX_PEER_PAIR_H
#define KVX_PEER_PAIR_H

#include "peer_rig.h"

#define RW  (KVX_ACCESS_READ | KVX_ACCESS_WRITE)
#define LEN 65536

extern struct peer_rig rig;
extern struct kvx_region *here, *there; /* full of 0x11 and of 0x22 */
extern struct kvx_target *target;

/* After rig_init(&rig). */
void pair_start(void) KVX_ON_LOOP;
void pair_stop(void) KVX_ON_LOOP;
/* Gives a a fresh target of the same region, after a loss. */
void pair_resolve_again(void) KVX_ON_LOOP;
bool pair_all_are(const uint8_t *p, uint8_t value);
/* A write of all of it, deadline 1 s: how it ended, with its bytes at the other side. */
void pair_assert_write_works(void) KVX_ON_LOOP;
/* Much virtual time in great steps; heartbeats must be rarer than that. */
void pair_leap(unsigned seconds) KVX_ON_LOOP;
void pair_init_slow(void) KVX_ROLE_ATTR(assert_capability(kvx_role_loop)); /* rig_init for it */

#endif

/* Small rules about rails: which ones the configuration wants, how fast a link is, which of many
 * are told. Pure. Any thread. */
#ifndef KVX_VERBS_RAIL_H
#define KVX_VERBS_RAIL_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/transport.h"

/* Does verbs.devices want this port? "" wants all, "mlx5_0,mlx5_1:1" these, "^mlx5_2" all but
 * these. Port 0 asks for the device: is there any port of it that may be wanted? */
bool verbs_devices_want(const char *list, const char *device, uint32_t port);
/* Calls each(arg, name) for every name in the list, without its port. */
void verbs_devices_each(const char *list, void (*each)(void *arg, const char *name), void *arg);
/* Megabits per second of a link, from the codes of struct ibv_port_attr; 0: codes not known. */
uint64_t verbs_link_mbps(uint8_t active_width, uint8_t active_speed);
/* The same from the kernel's words: "400 Gb/sec (4X NDR)"; 0: not a rate. */
uint64_t verbs_rate_mbps(const char *rate);
/* Those that can be used now first, then those that wait, each kind by name (mlx5_2 before
 * mlx5_10), so that two nodes of the same make have the same order. */
void verbs_rails_sort(struct kvx_rail *rails, unsigned n);

#endif

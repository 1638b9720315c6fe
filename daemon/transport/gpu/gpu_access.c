/* The table of what other threads may do with a device; see mem/gpu_access.h. What it names is in
 * gpu_copier.c (copies), gpu_event.c (events) and gpu_flush.c (memory to flush by). */
#include "transport/gpu/gpu_copier.h"
#include "transport/gpu/gpu_priv.h"

const struct kvx_gpu_access gpu_access = {
    .host_alloc = gpu_host_alloc,
    .host_free = gpu_host_free,
    .copier_open = gpu_copier_open,
    .copier_close = gpu_copier_close,
    .copier_start = gpu_copier_start,
    .copier_poll = gpu_copier_poll,
    .copier_cut = gpu_copier_cut,
    .event_open = gpu_event_open_ipc,
    .event_ready = gpu_event_ready_ipc,
    .event_close = gpu_event_close_ipc,
    .event_query = gpu_event_query_ipc,
    .flush_memory = gpu_flush_memory,
};

/* The service manager, through libsystemd. Without one every call does nothing. */
#ifndef KVX_SERVICE_H
#define KVX_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "control/control.h"
#include "proto/kvx_err.h"

/* Is stderr the journal's? Then log lines carry its priority prefix. */
bool kvx_service_has_journal(void);
/* Listening sockets that were handed over, with their FileDescriptorName=. Number, or -EINVAL when
 * one is not a listening stream Unix socket. */
int kvx_service_listen_fds(struct kvx_listen_fd out_fds[KVX_LISTEN_FDS], struct kvx_why *why);
void kvx_service_ready(const char *status);
void kvx_service_reloading(void);
void kvx_service_stopping(const char *status);
void kvx_service_status(const char *status);
/* How often kvx_service_alive() must be called; 0: never. */
uint64_t kvx_service_watchdog_ns(void);
void kvx_service_alive(void);

#endif

/* The place of the listening socket: who may have it, and how it is made and removed. */
#ifndef KVX_SOCKET_PATH_H
#define KVX_SOCKET_PATH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/kvx_err.h"

struct kvx_socket_conf {
	const char *path; /* "@name": abstract */
	uint32_t mode;
	const char *group; /* "": leave */
	bool make_dir;     /* create the parent directory when it is missing */
};
struct kvx_socket {
	int fd;      /* listening, non-blocking */
	int lock_fd; /* -1: abstract */
	dev_t dev;
	ino_t ino;
};
/* Takes the place: a socket that a dead daemon has left is removed, that of a living one is not.
 * -EADDRINUSE: another daemon; -EEXIST: something that is no socket lies there; -ENAMETOOLONG,
 * -ENOENT, -EACCES, ...; all said in *why. */
int kvx_socket_open(const struct kvx_socket_conf *conf, struct kvx_socket *out_socket,
		    struct kvx_why *why);
/* Closes it and removes its files, unless the path is not this socket any more. */
void kvx_socket_close(struct kvx_socket *sock, const char *path);

#endif

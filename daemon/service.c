/* What the daemon and the service manager tell each other: sockets, readiness, status, watchdog.
 * The only user of libsystemd. Loop thread. It decides nothing. */
#include "service.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/clock.h"

bool kvx_service_has_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream != NULL && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

static int listen_fd_check(struct kvx_listen_fd *out, int fd, const char *name, struct kvx_why *why)
{
	out->fd = fd;
	if (sd_is_socket(fd, AF_UNIX, SOCK_STREAM, 1) <= 0)
		return kvx_why(why, -EINVAL,
			       "descriptor %d that was handed over is not a listening stream Unix "
			       "socket (ListenStream= of the socket unit)",
			       fd);
	if (strlen(name) >= sizeof(out->name))
		return kvx_why(why, -EINVAL,
			       "the name of socket %.40s... that was handed over is too long",
			       name);
	snprintf(out->name, sizeof(out->name), "%s", name);
	return 0;
}

int kvx_service_listen_fds(struct kvx_listen_fd out_fds[KVX_LISTEN_FDS], struct kvx_why *why)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);
	int err = 0;
	int i;

	if (n < 0)
		return kvx_why(why, n, "sd_listen_fds: %s", strerror(-n));
	if (n > KVX_LISTEN_FDS)
		err = kvx_why(why, -EINVAL, "%d sockets were handed over, at most %d are taken", n,
			      KVX_LISTEN_FDS);
	for (i = 0; err == 0 && i < n; i++)
		err = listen_fd_check(&out_fds[i], SD_LISTEN_FDS_START + i, names[i], why);
	for (i = 0; i < n; i++)
		free(names[i]);
	free(names);
	return err < 0 ? err : n;
}

void kvx_service_ready(const char *status)
{
	sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void kvx_service_reloading(void)
{
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu",
		   (unsigned long long)(kvx_now_ns() / 1000));
}

void kvx_service_stopping(const char *status)
{
	sd_notifyf(0, "STOPPING=1\nSTATUS=%s", status);
}

void kvx_service_status(const char *status)
{
	sd_notifyf(0, "STATUS=%s", status);
}

uint64_t kvx_service_watchdog_ns(void)
{
	uint64_t usec = 0;

	return sd_watchdog_enabled(0, &usec) > 0 ? usec * 1000 / 3 : 0;
}

void kvx_service_alive(void)
{
	sd_notify(0, "WATCHDOG=1");
}

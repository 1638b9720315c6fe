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

int kvx_service_listen_fds(int out_fds[KVX_SERVICE_FDS], struct kvx_why *why)
{
	int n = sd_listen_fds(1);
	int i;

	if (n < 0)
		return kvx_why(why, n, "sd_listen_fds: %s", strerror(-n));
	if (n > KVX_SERVICE_FDS)
		return kvx_why(why, -EINVAL, "%d sockets were handed over, at most %d are taken", n,
			       KVX_SERVICE_FDS);
	for (i = 0; i < n; i++) {
		out_fds[i] = SD_LISTEN_FDS_START + i;
		if (sd_is_socket(out_fds[i], AF_UNIX, SOCK_STREAM, 1) <= 0)
			return kvx_why(why, -EINVAL,
				       "descriptor %d that was handed over is not a listening "
				       "stream Unix socket (ListenStream= of the socket unit)",
				       out_fds[i]);
	}
	return n;
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

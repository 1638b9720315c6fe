/* Taking and leaving the path of the client socket. A lock file beside it decides between two
 * daemons that start at the same time and tells a stale socket from one in use; a connect finds
 * those that listen without the lock. Blocking calls on local files: start and end of the daemon
 * only. It never removes what is not a socket. */
#include "control/socket_path.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

#define LISTEN_BACKLOG 4096
#define LOCK_TRIES     16

static int path_to_address(const char *path, struct sockaddr_un *out, socklen_t *out_len,
			   struct kvx_why *why)
{
	size_t len = strlen(path);

	if (len == 0 || len >= sizeof(out->sun_path) - sizeof(".lock"))
		return kvx_why(why, len == 0 ? -EINVAL : -ENAMETOOLONG,
			       "socket path %s: must have 1 to %zu bytes", path,
			       sizeof(out->sun_path) - sizeof(".lock") - 1);
	memset(out, 0, sizeof(*out));
	out->sun_family = AF_UNIX;
	memcpy(out->sun_path, path, len);
	if (path[0] == '@')
		out->sun_path[0] = '\0';
	*out_len =
	    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (path[0] == '@' ? 0 : 1));
	return 0;
}

static void lock_path(const char *path, char *out, size_t size)
{
	snprintf(out, size, "%s.lock", path);
}

static int lock_refused(int fd, const char *path, struct kvx_why *why)
{
	char pid[16] = "?";
	ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);

	if (n > 0)
		pid[strspn(pid, "0123456789")] = '\0';
	return kvx_why(why, -EADDRINUSE,
		       "another kvxferd (pid %s) has %s: stop it first, or give this one another "
		       "--socket",
		       n > 0 ? pid : "unknown", path);
}

/* The other daemon removes the lock file when it ends: a lock on a file that is no longer at its
 * path is worth nothing. 1: try again. */
static int lock_try(const char *path, const char *name, int *out_fd, struct kvx_why *why)
{
	struct stat by_fd, by_path;
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int err;

	if (fd < 0)
		return kvx_why(why, -errno, "cannot open %s: %s%s", name, strerror(errno),
			       errno == ENOENT ? " (create the directory)" : "");
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		err = errno == EWOULDBLOCK
			  ? lock_refused(fd, path, why)
			  : kvx_why(why, -errno, "cannot lock %s: %s", name, strerror(errno));
		close(fd);
		return err;
	}
	if (fstat(fd, &by_fd) < 0 || stat(name, &by_path) < 0 || by_fd.st_ino != by_path.st_ino ||
	    by_fd.st_dev != by_path.st_dev) {
		close(fd);
		return 1;
	}
	*out_fd = fd;
	return 0;
}

static int lock_take(const char *path, int *out_fd, struct kvx_why *why)
{
	char name[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
	char pid[16];
	int tries = 0;
	int rc;

	lock_path(path, name, sizeof(name));
	do {
		rc = lock_try(path, name, out_fd, why);
	} while (rc > 0 && ++tries < LOCK_TRIES);
	if (rc > 0)
		return kvx_why(why, -EBUSY, "%s is made and removed again and again", name);
	if (rc < 0)
		return rc;
	snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
	if (ftruncate(*out_fd, 0) < 0 || pwrite(*out_fd, pid, strlen(pid), 0) < 0)
		kvx_debug("control: cannot write %s: %s", name, strerror(errno)); /* for people */
	return 0;
}

/* Does somebody listen there? 0: no; a connect that would block counts as yes. */
static int path_is_served(const struct sockaddr_un *addr, socklen_t len)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0)
		return 0; /* bind will say what is wrong */
	rc = connect(fd, (const struct sockaddr *)addr, len);
	rc = rc == 0 || errno == EAGAIN || errno == EINPROGRESS || errno == EACCES;
	close(fd);
	return rc;
}

static int path_clear(const char *path, const struct sockaddr_un *addr, socklen_t len,
		      struct kvx_why *why)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT
			   ? 0
			   : kvx_why(why, -errno, "cannot look at %s: %s", path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return kvx_why(why, -EEXIST,
			       "%s exists and is not a socket: remove it, or give another --socket",
			       path);
	if (path_is_served(addr, len))
		return kvx_why(why, -EADDRINUSE,
			       "another process listens on %s: stop it first, or give another "
			       "--socket",
			       path);
	kvx_info("control: %s was left by a daemon that is gone: taking it over", path);
	if (unlink(path) < 0 && errno != ENOENT)
		return kvx_why(why, -errno, "cannot remove the stale socket %s: %s", path,
			       strerror(errno));
	return 0;
}

/* The socket is closed to others until its group and mode are right. */
static int path_open_up(const struct kvx_socket_conf *conf, struct kvx_why *why)
{
	const struct group *group = NULL;

	if (conf->group[0] != '\0') {
		group = getgrnam(conf->group);
		if (group == NULL)
			return kvx_why(why, -EINVAL, "socket_group: there is no group %s",
				       conf->group);
		if (chown(conf->path, (uid_t)-1, group->gr_gid) < 0)
			return kvx_why(why, -errno, "cannot give %s to group %s: %s", conf->path,
				       conf->group, strerror(errno));
	}
	if (chmod(conf->path, (mode_t)conf->mode) < 0)
		return kvx_why(why, -errno, "cannot set the mode of %s: %s", conf->path,
			       strerror(errno));
	return 0;
}

static int socket_bind(const struct kvx_socket_conf *conf, const struct sockaddr_un *addr,
		       socklen_t len, struct kvx_socket *sock, struct kvx_why *why)
{
	bool abstract = conf->path[0] == '@';
	struct stat st;
	int err;

	sock->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock->fd < 0)
		return kvx_why(why, -errno, "cannot make a socket: %s", strerror(errno));
	if (fchmod(sock->fd, 0600) < 0)
		kvx_debug("control: fchmod: %s", strerror(errno));
	if (bind(sock->fd, (const struct sockaddr *)addr, len) < 0) {
		err = kvx_why(why, -errno, "cannot bind %s: %s", conf->path,
			      errno == EADDRINUSE ? "another process has it" : strerror(errno));
		goto err_close;
	}
	if (!abstract && stat(conf->path, &st) == 0) {
		sock->dev = st.st_dev;
		sock->ino = st.st_ino;
	}
	err = abstract ? 0 : path_open_up(conf, why);
	if (err < 0)
		goto err_unlink;
	if (listen(sock->fd, LISTEN_BACKLOG) < 0) {
		err = kvx_why(why, -errno, "cannot listen on %s: %s", conf->path, strerror(errno));
		goto err_unlink;
	}
	return 0;

err_unlink:
	if (!abstract)
		unlink(conf->path);
err_close:
	close(sock->fd);
	return err;
}

static int parent_make(const char *path, struct kvx_why *why)
{
	char dir[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct stat st;
	char *slash;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	if (slash == NULL || slash == dir)
		return 0;
	*slash = '\0';
	if (mkdir(dir, 0755) == 0)
		return 0;
	if (errno != EEXIST)
		return kvx_why(why, -errno, "cannot make the directory %s: %s", dir,
			       strerror(errno));
	/* Under /tmp anybody could have made it first, to put a socket of his own there. */
	if (lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode) ||
	    (st.st_uid != geteuid() && st.st_uid != 0))
		return kvx_why(why, -EACCES,
			       "%s is not a directory of this user or root: remove it, or give "
			       "another --socket",
			       dir);
	return 0;
}

int kvx_socket_open(const struct kvx_socket_conf *conf, struct kvx_socket *out_socket,
		    struct kvx_why *why)
{
	char name[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
	struct kvx_socket sock = {.fd = -1, .lock_fd = -1};
	struct sockaddr_un addr;
	socklen_t len = 0;
	int err;

	err = path_to_address(conf->path, &addr, &len, why);
	if (err == 0 && conf->make_dir && conf->path[0] != '@')
		err = parent_make(conf->path, why);
	if (err == 0 && conf->path[0] != '@')
		err = lock_take(conf->path, &sock.lock_fd, why);
	if (err < 0)
		return err;
	if (conf->path[0] != '@')
		err = path_clear(conf->path, &addr, len, why);
	if (err == 0)
		err = socket_bind(conf, &addr, len, &sock, why);
	if (err < 0) {
		if (sock.lock_fd < 0)
			return err;
		lock_path(conf->path, name, sizeof(name));
		unlink(name); /* while it is still locked */
		close(sock.lock_fd);
		return err;
	}
	*out_socket = sock;
	return 0;
}

void kvx_socket_close(struct kvx_socket *sock, const char *path)
{
	char name[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
	struct stat st;

	if (path[0] != '@' && lstat(path, &st) == 0 && st.st_ino == sock->ino &&
	    st.st_dev == sock->dev)
		unlink(path);
	close(sock->fd);
	if (sock->lock_fd < 0)
		return;
	lock_path(path, name, sizeof(name));
	unlink(name); /* while it is still locked */
	close(sock->lock_fd);
}

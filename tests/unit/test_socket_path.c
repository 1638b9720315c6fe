/* Who gets the path of the client socket. */
#include "control/socket_path.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "test_end.h"

static char dir[] = "/tmp/kvxsock-XXXXXX";
static char path[64];
static struct kvx_socket_conf conf;
static struct kvx_why why;

static void place(void)
{
	cr_assert_neq(mkdtemp(dir), NULL);
	snprintf(path, sizeof(path), "%s/s", dir);
	conf = (struct kvx_socket_conf){.path = path, .mode = 0640, .group = ""};
}

static bool can_connect(const char *to)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int rc;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", to);
	rc = connect(fd, (struct sockaddr *)&addr, sizeof(addr));
	close(fd);
	return rc == 0;
}

static void gone(void)
{
	cr_assert_eq(rmdir(dir), 0, "something was left in %s", dir);
}

Test(socket_path, listens_with_the_mode_asked_for_and_leaves_nothing, .init = place)
{
	struct kvx_socket sock;
	struct stat st;

	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0, "%s", why.text);
	cr_assert(can_connect(path));
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0640);
	kvx_socket_close(&sock, path);
	gone();
	KVX_TEST_END();
}

Test(socket_path, second_one_is_refused_and_the_first_is_not_disturbed, .init = place)
{
	struct kvx_socket sock, other;
	char pid[32];

	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0);
	cr_assert_eq(kvx_socket_open(&conf, &other, &why), -EADDRINUSE);
	snprintf(pid, sizeof(pid), "another kvxferd (pid %d)", (int)getpid());
	cr_assert(strstr(why.text, pid) != NULL, "%s", why.text);
	cr_assert(can_connect(path));
	kvx_socket_close(&sock, path);
	cr_assert_eq(kvx_socket_open(&conf, &other, &why), 0, "free again");
	kvx_socket_close(&other, path);
	gone();
	KVX_TEST_END();
}

Test(socket_path, stale_socket_is_taken_over, .init = place)
{
	struct kvx_socket sock;

	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0);
	close(sock.fd); /* as a killed daemon leaves it */
	close(sock.lock_fd);
	cr_assert_not(can_connect(path));
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0, "%s", why.text);
	cr_assert(can_connect(path));
	kvx_socket_close(&sock, path);
	gone();
	KVX_TEST_END();
}

Test(socket_path, one_that_listens_without_the_lock_is_found, .init = place)
{
	struct kvx_socket sock, other;
	char lock[80];

	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0);
	close(sock.lock_fd);
	snprintf(lock, sizeof(lock), "%s.lock", path);
	unlink(lock);
	cr_assert_eq(kvx_socket_open(&conf, &other, &why), -EADDRINUSE);
	cr_assert(strstr(why.text, "another process listens") != NULL, "%s", why.text);
	cr_assert(can_connect(path));
	close(sock.fd);
	unlink(path);
	unlink(lock);
	gone();
	KVX_TEST_END();
}

Test(socket_path, what_is_no_socket_is_never_removed, .init = place)
{
	struct kvx_socket sock;
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	close(fd);
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), -EEXIST);
	cr_assert(strstr(why.text, "is not a socket") != NULL, "%s", why.text);
	cr_assert_eq(access(path, F_OK), 0);
	unlink(path);
	gone();
	KVX_TEST_END();
}

Test(socket_path, missing_directory_is_named_or_made, .init = place)
{
	struct kvx_socket sock;
	char sub[80], deep[96];

	snprintf(sub, sizeof(sub), "%s/d", dir);
	snprintf(deep, sizeof(deep), "%s/s", sub);
	conf.path = deep;
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), -ENOENT);
	cr_assert(strstr(why.text, "create the directory") != NULL, "%s", why.text);
	conf.make_dir = true;
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0, "%s", why.text);
	kvx_socket_close(&sock, deep);
	rmdir(sub);
	gone();
	KVX_TEST_END();
}

Test(socket_path, directory_that_is_a_link_is_not_trusted, .init = place)
{
	struct kvx_socket sock;
	char sub[80], deep[96];

	snprintf(sub, sizeof(sub), "%s/d", dir);
	snprintf(deep, sizeof(deep), "%s/s", sub);
	cr_assert_eq(symlink("/tmp", sub), 0);
	conf.path = deep;
	conf.make_dir = true;
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), -EACCES);
	unlink(sub);
	gone();
	KVX_TEST_END();
}

Test(socket_path, group_that_is_not_there_is_refused, .init = place)
{
	struct kvx_socket sock;
	char lock[80];

	conf.group = "no-such-group-here";
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), -EINVAL);
	cr_assert(strstr(why.text, "no-such-group-here") != NULL, "%s", why.text);
	cr_assert_neq(access(path, F_OK), 0, "the socket was left");
	snprintf(lock, sizeof(lock), "%s.lock", path);
	unlink(lock);
	gone();
	KVX_TEST_END();
}

Test(socket_path, abstract_name_has_no_files_and_one_owner, .init = place)
{
	struct kvx_socket sock, other;
	char name[64];

	snprintf(name, sizeof(name), "@kvx%s", dir);
	conf.path = name;
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), 0, "%s", why.text);
	cr_assert_eq(kvx_socket_open(&conf, &other, &why), -EADDRINUSE);
	kvx_socket_close(&sock, name);
	gone();
	KVX_TEST_END();
}

Test(socket_path, too_long_a_path_is_refused_by_name, .init = place)
{
	struct kvx_socket sock;
	char name[256];

	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	conf.path = name;
	cr_assert_eq(kvx_socket_open(&conf, &sock, &why), -ENAMETOOLONG);
	gone();
	KVX_TEST_END();
}

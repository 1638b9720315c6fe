/* See direct_rig.h. */
#include "direct_rig.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIR "/tmp/kvx-direct-XXXXXX"

char direct_tell(struct direct_rig *d, const char *marks)
{
	char answer = '?';

	for (; *marks != '\0'; marks++) {
		cr_assert_eq(write(d->mark_fd, marks, 1), 1);
		cr_assert_eq(read(d->ack_fd, &answer, 1), 1, "the daemons have ended");
	}
	return answer;
}

static void daemons_exec(const struct direct_rig *d, const char *transports, int mark_fd,
			 int ack_fd)
{
	char mark[16], ack[16];

	if (fcntl(mark_fd, F_SETFD, 0) < 0 || fcntl(ack_fd, F_SETFD, 0) < 0)
		_exit(126);
	if (transports != NULL)
		setenv("KVX_DIRECT_TRANSPORTS", transports, 1);
	snprintf(mark, sizeof(mark), "%d", mark_fd);
	snprintf(ack, sizeof(ack), "%d", ack_fd);
	execl(getenv("KVX_DIRECT_DAEMONS"), "direct_daemons", d->dir, mark, ack, NULL);
	_exit(127);
}

bool direct_start(struct direct_rig *d, const char *transports, const char *marks)
{
	int mark_fds[2], ack_fds[2];
	char go;

	memset(d, 0, sizeof(*d));
	if (!test_gpu_is_standin()) {
		cr_skip_test("its RDMA device is a stand-in, which reaches no real GPU");
		return false;
	}
	standin_create(2, RIG_VRAM);
	strcpy(d->dir, DIR);
	cr_assert_neq(mkdtemp(d->dir), NULL);
	cr_assert(pipe2(mark_fds, O_CLOEXEC) == 0 && pipe2(ack_fds, O_CLOEXEC) == 0);
	d->mark_fd = mark_fds[1];
	d->ack_fd = ack_fds[0];
	for (unsigned i = 0; i < 2; i++)
		snprintf(d->nodes[i].socket, sizeof(d->nodes[i].socket), "%s/%u", d->dir, i);
	d->pid = fork();
	cr_assert_geq(d->pid, 0);
	if (d->pid == 0)
		daemons_exec(d, transports, mark_fds[0], ack_fds[1]);
	close(mark_fds[0]);
	close(ack_fds[1]);
	cr_assert_eq(read(d->ack_fd, &go, 1), 1, "the daemons do not start");
	direct_tell(d, marks);
	return true;
}

void direct_stop(struct direct_rig *d)
{
	int status;

	close(d->mark_fd);
	cr_assert_eq(waitpid(d->pid, &status, 0), d->pid);
	close(d->ack_fd);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the daemons ended with %#x",
		  (unsigned)status);
	cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	rig_end();
}

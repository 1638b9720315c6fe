/* The client program of the documentation, built as C and as C++, against a real daemon. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test_node.h"

Test(example, moves_its_blocks_as_c_and_as_cxx)
{
	struct test_node node;
	char *paths = strdup(getenv("KVXFER_EXAMPLES"));
	char *save = NULL;
	int n = 0;

	test_node_start(&node, NULL);
	for (char *path = strtok_r(paths, ":", &save); path != NULL;
	     path = strtok_r(NULL, ":", &save)) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			dup2(STDERR_FILENO, STDOUT_FILENO);
			execl(path, path, node.socket, (char *)NULL);
			_exit(127);
		}
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %#x", path,
			  (unsigned)status);
		n++;
	}
	cr_assert_geq(n, 1);
	cr_assert_eq(test_node_wait_number(&node, "status", "regions", 0, 3000), 0);
	free(paths);
	test_node_fini(&node);
}

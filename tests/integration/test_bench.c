/* The benchmark as a user runs it: the demo and the replay verify every byte, and notice when one
 * is wrong; the trace test plays the first requests of a public trace. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ARGS 32u

struct run {
	int status; /* exit status, or 128 + signal */
	char out[65536];
};

/* Runs kvxfer-bench with the words of `line` and keeps its output; stderr goes to the test's. */
static void bench(const char *line, struct run *run)
{
	const char *argv[MAX_ARGS] = {getenv("KVXFER_BENCH")};
	char *words = strdup(line), *next, *word;
	unsigned n = 1;
	size_t len = 0;
	int fds[2], status;
	pid_t pid;

	for (word = strtok_r(words, " ", &next); word && n < MAX_ARGS - 3;
	     word = strtok_r(NULL, " ", &next))
		argv[n++] = word;
	argv[n++] = "--kvxferd";
	argv[n++] = getenv("KVXFERD");
	argv[n] = NULL;
	cr_assert_not_null(argv[0], "KVXFER_BENCH is not set");
	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		execv(argv[0], (char *const *)argv);
		_exit(127);
	}
	close(fds[1]);
	for (;;) {
		ssize_t got = read(fds[0], run->out + len, sizeof(run->out) - 1 - len);

		if (got <= 0)
			break;
		len += (size_t)got;
	}
	run->out[len] = '\0';
	close(fds[0]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	run->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	free(words);
}

static unsigned count(const char *text, const char *what)
{
	unsigned n = 0;

	while ((text = strstr(text, what))) {
		text += strlen(what);
		n++;
	}
	return n;
}

/* A trace whose requests share prefixes; removed by the caller. */
static char *trace_write(char *path)
{
	int fd = mkstemp(path);
	FILE *f = fdopen(fd, "w");

	for (unsigned i = 0; i < 12; i++)
		fprintf(f,
			"{\"timestamp\": %u, \"input_length\": %u, \"output_length\": 1, "
			"\"hash_ids\": [1, %u, %u]}\n",
			i, 1024 + 40 * (i + 1), 2 + i / 4, 100 + i);
	fclose(f);
	return path;
}

Test(bench, demo_moves_and_verifies_on_every_path)
{
	static struct run run;

	bench("demo --json --planes 6 --block-bytes 4096 --tokens 200 --requests 3", &run);
	cr_assert_eq(run.status, 0, "%s", run.out);
	cr_assert_eq(count(run.out, "\"verified\":true"), 5, "%s", run.out);
	cr_assert_eq(count(run.out, "\"transport\":\"copy\""), 2);
	cr_assert_eq(count(run.out, "\"transport\":\"fabric\""), 2);
}

Test(bench, demo_with_blocks_of_an_odd_size)
{
	static struct run run;

	bench("demo --json --planes 3 --block-bytes 1001 --tokens 100 --requests 2", &run);
	cr_assert_eq(run.status, 0, "%s", run.out);
}

Test(bench, demo_notices_wrong_bytes)
{
	static struct run run;

	bench("demo --json --self-test --planes 2 --block-bytes 4096 --tokens 64 --requests 2",
	      &run);
	cr_assert_eq(run.status, 1, "%s", run.out);
	cr_assert_eq(count(run.out, "\"verified\":true"), 0, "%s", run.out);
}

Test(bench, replay_in_both_modes_does_not_move_shared_prefixes_again)
{
	static const char *const modes[] = {"write", "read", "write --two-nodes",
					    "read --two-nodes"};
	static struct run run;
	char path[] = "/tmp/kvx-trace-XXXXXX", line[256];

	trace_write(path);
	for (unsigned i = 0; i < 4; i++) {
		snprintf(line, sizeof(line),
			 "replay --json --trace %s --scale 0 --planes 4 --block-bytes 2048 "
			 "--cache-bytes "
			 "4M --mode %s",
			 path, modes[i]);
		bench(line, &run);
		cr_assert_eq(run.status, 0, "%s: %s", modes[i], run.out);
		cr_assert_eq(count(run.out, "\"requests_verified\":12"), 1, "%s", run.out);
		/* Of 12 x 2 shared ids of 32 blocks of 8 KiB only 4 are new. */
		cr_assert_eq(count(run.out, "\"cached_bytes\":5242880"), 1, "%s", run.out);
	}
	unlink(path);
}

Test(bench, replay_in_a_pool_that_is_too_small_for_all_at_once)
{
	static struct run run;
	char path[] = "/tmp/kvx-trace-XXXXXX", line[256];

	trace_write(path);
	/* 130 blocks: one request of at most 95 and a few prefixes. */
	snprintf(
	    line, sizeof(line),
	    "replay --json --trace %s --scale 0 --planes 4 --block-bytes 2048 --cache-bytes 1040K "
	    "--concurrency 12",
	    path);
	bench(line, &run);
	cr_assert_eq(run.status, 0, "%s", run.out);
	cr_assert_eq(count(run.out, "\"requests_verified\":12"), 1, "%s", run.out);
	unlink(path);
}

Test(bench, replay_notices_wrong_bytes)
{
	static struct run run;
	char path[] = "/tmp/kvx-trace-XXXXXX", line[256];

	trace_write(path);
	snprintf(line, sizeof(line),
		 "replay --json --self-test --trace %s --scale 0 --planes 2 --block-bytes 2048 "
		 "--cache-bytes 4M",
		 path);
	bench(line, &run);
	cr_assert_eq(run.status, 1, "%s", run.out);
	unlink(path);
}

Test(bench, sweep_reports_every_path_with_its_limit)
{
	static struct run run;

	bench("sweep --json --runs 1 --region 16M --sizes 4K,64K --batch 32", &run);
	cr_assert_eq(run.status, 0, "%s", run.out);
	/* 2 sizes x 2 ops x (copy with 1 and 2 workers, fabric) */
	cr_assert_eq(count(run.out, "\"ratio\":"), 12, "%s", run.out);
	cr_assert_eq(count(run.out, "\"limit\":\"tcp\""), 4);
}

/* KVX_TRACE, or the trace beside the repository; NULL: neither is there. */
static const char *trace_find(char *path, size_t path_bytes)
{
	const char *named = getenv("KVX_TRACE"), *root = getenv("KVX_SOURCE_ROOT");

	if (named && *named)
		return named;
	snprintf(path, path_bytes, "%s/../shared/data/conversation_trace.jsonl", root ? root : ".");
	return access(path, R_OK) == 0 ? path : NULL;
}

Test(bench, trace_of_200_requests_is_verified)
{
	static struct run run;
	char found[512], line[768];
	const char *path = trace_find(found, sizeof(found));

	if (!path)
		cr_skip_test("no trace: set KVX_TRACE to one");
	/* Prompts a 32nd as long: 4 GiB of KV cache. */
	snprintf(
	    line, sizeof(line),
	    "replay --json --trace %s --requests 200 --shrink 32 --scale 0.05 --cache-bytes 512M "
	    "--two-nodes",
	    path);
	bench(line, &run);
	cr_assert_eq(run.status, 0, "%s", run.out);
	cr_assert_eq(count(run.out, "\"requests_verified\":200"), 1, "%s", run.out);
	cr_assert_eq(count(run.out, "\"requests_left_out\":0"), 1, "%s", run.out);
}

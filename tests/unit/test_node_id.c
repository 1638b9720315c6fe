/* The node id: its file, its forms, and that no disk keeps the daemon from starting. */
#include "node_id.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test_end.h"

static char dir[] = "/tmp/kvxnid-XXXXXX";
static char path[64];

static void place(void)
{
	cr_assert_neq(mkdtemp(dir), NULL);
	snprintf(path, sizeof(path), "%s/node-id", dir);
}

static void gone(void)
{
	unlink(path);
	cr_assert_eq(rmdir(dir), 0);
}

Test(node_id, text_forms)
{
	uint8_t id[16], other[16];
	char text[33];

	cr_assert_eq(kvx_node_id_parse("00112233445566778899aabbccddeeff", id), 0);
	cr_assert(id[0] == 0 && id[1] == 0x11 && id[15] == 0xff);
	cr_assert_eq(kvx_node_id_parse("00112233-4455-6677-8899-AABBCCDDEEFF", other), 0);
	cr_assert_eq(memcmp(id, other, 16), 0);
	kvx_node_id_format(id, text);
	cr_assert_str_eq(text, "00112233445566778899aabbccddeeff");
	cr_assert_eq(kvx_node_id_parse("", id), -EINVAL);
	cr_assert_eq(kvx_node_id_parse("0011", id), -EINVAL);
	cr_assert_eq(kvx_node_id_parse("00112233445566778899aabbccddeeff00", id), -EINVAL);
	cr_assert_eq(kvx_node_id_parse("0011223344556677z899aabbccddeeff", id), -EINVAL);
	KVX_TEST_END();
}

Test(node_id, stays_over_starts, .init = place)
{
	uint8_t first[16], second[16];
	int lock;

	kvx_node_id_get(path, first, &lock);
	cr_assert_geq(lock, 0);
	close(lock);
	kvx_node_id_get(path, second, &lock);
	close(lock);
	cr_assert_eq(memcmp(first, second, 16), 0);
	gone();
	KVX_TEST_END();
}

Test(node_id, two_daemons_at_once_have_two, .init = place)
{
	uint8_t first[16], second[16];
	int lock, other;

	kvx_node_id_get(path, first, &lock);
	kvx_node_id_get(path, second, &other);
	cr_assert_eq(other, -1);
	cr_assert_neq(memcmp(first, second, 16), 0);
	close(lock);
	gone();
	KVX_TEST_END();
}

Test(node_id, is_random_where_there_is_no_place_for_it, .init = place)
{
	uint8_t first[16], second[16];
	char nowhere[96];
	int lock;

	snprintf(nowhere, sizeof(nowhere), "/proc/%d/none/node-id", (int)getpid());
	kvx_node_id_get(nowhere, first, &lock);
	cr_assert_eq(lock, -1);
	kvx_node_id_get("", second, &lock);
	cr_assert_eq(lock, -1);
	cr_assert_neq(memcmp(first, second, 16), 0);
	gone();
	KVX_TEST_END();
}

Test(node_id, file_with_something_else_is_left_alone, .init = place)
{
	uint8_t id[16];
	char text[16] = "";
	FILE *f = fopen(path, "we");
	int lock;

	fputs("my notes\n", f);
	fclose(f);
	kvx_node_id_get(path, id, &lock);
	close(lock);
	f = fopen(path, "re");
	cr_assert_neq(fgets(text, sizeof(text), f), NULL);
	fclose(f);
	cr_assert_str_eq(text, "my notes\n");
	gone();
	KVX_TEST_END();
}

/* What people read: units, parsed numbers, tables, JSON that lacks things. */
#include <criterion/criterion.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/tool.h"
#include "test_end.h"

Test(tools, units_are_short_and_exact)
{
	char buf[KVX_UNIT_BYTES];

	cr_assert_str_eq(kvx_unit_bytes(buf, 0), "0 B");
	cr_assert_str_eq(kvx_unit_bytes(buf, 1023), "1023 B");
	cr_assert_str_eq(kvx_unit_bytes(buf, 4096), "4 KiB");
	cr_assert_str_eq(kvx_unit_bytes(buf, 1610612736), "1.50 GiB");
	cr_assert_str_eq(kvx_unit_ns(buf, 999), "999 ns");
	cr_assert_str_eq(kvx_unit_ns(buf, 12345), "12.3 us");
	cr_assert_str_eq(kvx_unit_ns(buf, 3000000000ull), "3.00 s");
	cr_assert_str_eq(kvx_unit_age(buf, 3 * 86400000000000ull + 3600000000000ull), "3d 1h");
	cr_assert_str_eq(kvx_unit_count(buf, 0), "0");
	cr_assert_str_eq(kvx_unit_count(buf, 999), "999");
	cr_assert_str_eq(kvx_unit_count(buf, 1234567), "1,234,567");
	cr_assert_str_eq(kvx_unit_count(buf, UINT64_MAX), "18,446,744,073,709,551,615");
	cr_assert_str_eq(kvx_unit_rate(buf, 12.3e9), "12.30 GB/s");
	KVX_TEST_END();
}

Test(tools, numbers_are_read_whole_or_refused)
{
	uint64_t value = 7;
	double number = 7;

	cr_assert_eq(kvx_parse_bytes("64K", &value), 0);
	cr_assert_eq(value, 65536);
	cr_assert_eq(kvx_parse_bytes("1.5GiB", &value), 0);
	cr_assert_eq(value, 1610612736);
	cr_assert_eq(kvx_parse_bytes("12", &value), 0);
	cr_assert_eq(value, 12);
	cr_assert_eq(kvx_parse_bytes("64Q", &value), -EINVAL);
	cr_assert_eq(kvx_parse_bytes("-1", &value), -EINVAL);
	cr_assert_eq(kvx_parse_bytes("", &value), -EINVAL);
	cr_assert_eq(kvx_parse_bytes("9999999T", &value), -ERANGE);
	cr_assert_eq(value, 12, "left alone on failure");
	cr_assert_eq(kvx_parse_u64("18446744073709551616", 0, UINT64_MAX, &value), -ERANGE);
	cr_assert_eq(kvx_parse_u64("5x", 0, 9, &value), -EINVAL);
	cr_assert_eq(kvx_parse_u64("10", 0, 9, &value), -ERANGE);
	cr_assert_eq(kvx_parse_u64("9", 0, 9, &value), 0);
	cr_assert_eq(value, 9);
	cr_assert_eq(kvx_parse_double("nan", 0, 9, &number), -EINVAL);
	cr_assert_eq(kvx_parse_double("0.5", 0, 9, &number), 0);
	cr_assert_float_eq(number, 0.5, 1e-9);
	KVX_TEST_END();
}

Test(tools, keys_tell_their_unit)
{
	cr_assert(kvx_is_ns_key("latency_ns"));
	cr_assert_not(kvx_is_ns_key("insane"));
	cr_assert(kvx_is_bytes_key("bytes"));
	cr_assert(kvx_is_bytes_key("frame_bytes"));
	cr_assert(kvx_is_bytes_key("queued_bytes_per_client"));
	cr_assert_not(kvx_is_bytes_key("clients"));
	KVX_TEST_END();
}

Test(tools, table_aligns_and_shows_control_characters_as_question_marks)
{
	static const struct kvx_column columns[] = {{"NAME", KVX_LEFT, KVX_CUT},
						    {"N", KVX_RIGHT, KVX_KEEP}};
	struct kvx_table *table = kvx_table_create(columns, 2);
	char *text = NULL;
	size_t bytes;
	FILE *f = tmpfile();

	kvx_table_cell(table, "evil\033[2J");
	kvx_table_cell(table, "%d", 1);
	kvx_table_cell(table, "x");
	kvx_table_cell(table, "%d", 1000);
	cr_assert_eq(kvx_table_rows(table), 2);
	kvx_table_print(table, f);
	bytes = (size_t)ftell(f);
	rewind(f);
	text = kvx_tool_alloc(bytes + 1);
	cr_assert_eq(fread(text, 1, bytes, f), bytes);
	cr_assert_str_eq(text, "NAME         N\n"
			       "evil?[2J     1\n"
			       "x         1000\n");
	fclose(f);
	free(text);
	kvx_table_destroy(table);
	KVX_TEST_END();
}

Test(tools, json_that_lacks_things_reads_as_nothing)
{
	struct json_object *obj =
	    json_tokener_parse("{\"id\": \"12884901888\", \"n\": 3, \"a\": [1]}");

	cr_assert_eq(kvx_json_u64(obj, "id"), 12884901888ull);
	cr_assert_eq(kvx_json_u64(obj, "n"), 3);
	cr_assert_eq(kvx_json_u64(obj, "gone"), 0);
	cr_assert_str_eq(kvx_json_str(obj, "gone"), "");
	cr_assert_null(kvx_json_array(obj, "n"));
	cr_assert_eq(kvx_json_length(kvx_json_array(obj, "a")), 1);
	cr_assert_null(kvx_json_get(NULL, "a"));
	cr_assert_null(kvx_json_get(kvx_json_get(obj, "n"), "a"));
	json_object_put(obj);
	KVX_TEST_END();
}

/* The error table: conversions are lossless and fail closed. */
#include "proto/kvx_err.h"

#include <errno.h>
#include <string.h>

#include "test_end.h"

Test(err, each_status_converts_to_errno_and_back)
{
	for (uint32_t s = 0; s < KVX_STATUS_N; s++)
		cr_assert_eq(kvx_status_from_errno(kvx_status_to_errno(s)), s, "status %u", s);
	cr_assert_eq(kvx_status_to_errno(KVX_STATUS_OK), 0);
	cr_assert_eq(kvx_status_to_errno(KVX_STATUS_PEER_LOST), -EHOSTDOWN);
	KVX_TEST_END();
}

Test(err, unknown_values_are_failures)
{
	cr_assert_eq(kvx_status_from_errno(-ENOTTY), KVX_STATUS_INTERNAL);
	cr_assert_eq(kvx_status_from_errno(EINVAL), KVX_STATUS_INTERNAL);
	cr_assert_eq(kvx_status_to_errno(KVX_STATUS_N), -ENOTRECOVERABLE);
	cr_assert_eq(kvx_status_to_errno(UINT32_MAX), -ENOTRECOVERABLE);
	cr_assert_str_eq(kvx_status_name(12345), "UNKNOWN");
	cr_assert_str_eq(kvx_status_text(12345), "unknown status");
	cr_assert_str_eq(kvx_scope_name(99), "unknown");
	cr_assert_eq(kvx_status_scope(12345), KVX_SCOPE_DAEMON);
	cr_assert_not(kvx_status_retryable(12345));
	KVX_TEST_END();
}

Test(err, each_status_has_words)
{
	for (uint32_t s = 0; s < KVX_STATUS_N; s++) {
		cr_assert_gt(strlen(kvx_status_name(s)), 1);
		cr_assert_gt(strlen(kvx_status_text(s)), 3);
		cr_assert_str_neq(kvx_scope_name(kvx_status_scope(s)), "unknown");
	}
	cr_assert(kvx_status_retryable(KVX_STATUS_QUOTA));
	cr_assert_eq(kvx_status_scope(KVX_STATUS_DEVICE_LOST), KVX_SCOPE_DEVICE);
	KVX_TEST_END();
}

Test(err, why_writes_the_reason_and_gives_the_code_back)
{
	struct kvx_why why;
	char longer[2 * KVX_WHY_BYTES];

	cr_assert_eq(kvx_why(&why, -EINVAL, "block_bytes %d here, %d there", 1, 2), -EINVAL);
	cr_assert_str_eq(why.text, "block_bytes 1 here, 2 there");
	cr_assert_eq(kvx_why(NULL, -EIO, "nobody reads this"), -EIO);
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	kvx_why(&why, -EINVAL, "%s", longer);
	cr_assert_eq(strlen(why.text), KVX_WHY_BYTES - 1);
	KVX_TEST_END();
}

/* The short packer of events against the generic one, field by field and all together. */
#include "control/event_pack.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"

static void same(const Kvxp__Event *event, const char *what)
{
	static uint8_t want[16384], got[16384];
	size_t want_len = kvxp__event__pack(event, want);
	size_t len = kvx_event_pack(event, got, sizeof(got));

	cr_assert_eq(len, want_len, "%s: %zu bytes, not %zu", what, len, want_len);
	cr_assert_eq(memcmp(got, want, len), 0, "%s", what);
}

static uint64_t number(void)
{
	uint64_t value = (uint64_t)rand() << 33 ^ (uint64_t)rand() << 11 ^ (uint64_t)rand();

	return rand() % 4 == 0 ? 0 : value >> rand() % 64;
}

Test(event_pack, gives_the_bytes_of_the_generic_packer)
{
	static uint8_t payload[4096];
	char text[240], transport[16];

	srand(11);
	memset(payload, 0x5a, sizeof(payload));
	for (int i = 0; i < 20000; i++) {
		Kvxp__Event e = KVXP__EVENT__INIT;

		memset(text, 't', sizeof(text));
		text[rand() % 3 == 0 ? 0 : rand() % (int)sizeof(text)] = '\0';
		memset(transport, 'c', sizeof(transport));
		transport[rand() % (int)sizeof(transport)] = '\0';
		e.type = (Kvxp__EventType)(rand() % 8);
		e.xfer = number();
		e.tag = number();
		e.status = (uint32_t)number();
		e.scope = (uint32_t)number();
		e.vendor_code = (int32_t)number();
		e.text = text;
		e.bytes = number();
		e.transport = transport;
		e.region = number();
		e.import = number();
		e.payload = (ProtobufCBinaryData){(size_t)(rand() % 2 * (rand() % 4097)), payload};
		e.op = (Kvxp__Op)(rand() % 3);
		e.t_submit_ns = number();
		e.t_first_ns = number();
		e.t_last_ns = number();
		e.t_end_ns = number();
		text[sizeof(text) - 1] = '\0';
		transport[sizeof(transport) - 1] = '\0';
		same(&e, "random event");
	}
	KVX_TEST_END();
}

Test(event_pack, empty_event_has_no_bytes_and_no_field_is_unknown)
{
	Kvxp__Event e = KVXP__EVENT__INIT;
	uint8_t out[512];

	cr_assert_eq(kvx_event_pack(&e, out, sizeof(out)), 0);
	/* a new field must be added to the packer too */
	cr_assert_eq(kvxp__event__descriptor.n_fields, 17);
	KVX_TEST_END();
}

Test(event_pack, what_does_not_fit_is_not_written)
{
	Kvxp__Event e = KVXP__EVENT__INIT;
	uint8_t payload[64] = {0}, out[256];

	e.payload = (ProtobufCBinaryData){sizeof(payload), payload};
	memset(out, 0xee, sizeof(out));
	cr_assert_eq(kvx_event_pack(&e, out, sizeof(out)), 0);
	cr_assert_eq(out[0], 0xee);
	KVX_TEST_END();
}

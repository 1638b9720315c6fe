/* Writes an Event message field by field, in the order of its numbers, leaving out defaults as
 * proto3 does. Pure; the generic packer walks its tables twice for each event, which is more work
 * than a small transfer is. A test compares the two for every field. */
#include "control/event_pack.h"

#include <string.h>

#define VARINT_BYTES   10u
#define TAG_BYTES      2u
#define FIXED_ROOM     (17u * (TAG_BYTES + VARINT_BYTES)) /* every field's tag and number or length */
#define WIRE_VARINT    0u
#define WIRE_FIXED64   1u
#define WIRE_BYTES     2u
#define TAG(num, wire) ((num) << 3 | (wire))

static uint8_t *put_varint(uint8_t *p, uint64_t value)
{
	while (value >= 0x80) {
		*p++ = (uint8_t)(value | 0x80);
		value >>= 7;
	}
	*p++ = (uint8_t)value;
	return p;
}

static uint8_t *put_number(uint8_t *p, uint32_t field, uint64_t value)
{
	if (value == 0)
		return p;
	return put_varint(put_varint(p, TAG(field, WIRE_VARINT)), value);
}

static uint8_t *put_fixed64(uint8_t *p, uint32_t field, uint64_t value)
{
	unsigned i;

	if (value == 0)
		return p;
	p = put_varint(p, TAG(field, WIRE_FIXED64));
	for (i = 0; i < 8; i++)
		*p++ = (uint8_t)(value >> 8 * i);
	return p;
}

static uint8_t *put_bytes(uint8_t *p, uint32_t field, const void *data, size_t len)
{
	if (len == 0)
		return p;
	p = put_varint(put_varint(p, TAG(field, WIRE_BYTES)), len);
	memcpy(p, data, len);
	return p + len;
}

size_t kvx_event_pack(const Kvxp__Event *event, uint8_t *out, size_t out_bytes)
{
	size_t text_bytes = strlen(event->text);
	size_t transport_bytes = strlen(event->transport);
	uint32_t vendor = (uint32_t)event->vendor_code;
	uint8_t *p = out;

	if (text_bytes + transport_bytes + event->payload.len + FIXED_ROOM > out_bytes)
		return 0;
	p = put_number(p, 1, (uint64_t)event->type);
	p = put_fixed64(p, 2, event->xfer);
	p = put_fixed64(p, 3, event->tag);
	p = put_number(p, 4, event->status);
	p = put_number(p, 5, event->scope);
	p = put_number(p, 6, (vendor << 1) ^ (event->vendor_code < 0 ? UINT32_MAX : 0));
	p = put_bytes(p, 7, event->text, text_bytes);
	p = put_fixed64(p, 8, event->bytes);
	p = put_bytes(p, 9, event->transport, transport_bytes);
	p = put_fixed64(p, 10, event->region);
	p = put_fixed64(p, 11, event->import);
	p = put_bytes(p, 12, event->payload.data, event->payload.len);
	p = put_number(p, 13, (uint64_t)event->op);
	p = put_fixed64(p, 14, event->t_submit_ns);
	p = put_fixed64(p, 15, event->t_first_ns);
	p = put_fixed64(p, 16, event->t_last_ns);
	p = put_fixed64(p, 17, event->t_end_ns);
	return (size_t)(p - out);
}

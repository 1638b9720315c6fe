/* Each allocation on the way of a client's requests fails once: the client is told or disconnected,
 * nothing is lost, and the daemon and the other client go on. */
#include "control_fixture.h"
#include "fault_alloc.h"

static uint64_t region_a, import_a;

static void send_with_fault(unsigned n, uint16_t type, const ProtobufCMessage *message, int fd)
{
	uint8_t body[2048];
	uint32_t len = (uint32_t)protobuf_c_message_get_packed_size(message);

	cr_assert_leq(len, sizeof(body));
	protobuf_c_message_pack(message, body);
	fault_alloc_arm(n);
	rig_send_raw(&a, type, body, len, fd);
}

static void request_register(unsigned n)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	Kvxp__Plane plane = KVXP__PLANE__INIT;
	Kvxp__Plane *planes = &plane;

	plane.block_stride = plane.block_bytes = 4096;
	layout.n_planes = 1;
	layout.planes = &planes;
	req.kind = KVX_MEM_HOST;
	req.len = 8192;
	req.layout = &layout;
	send_with_fault(n, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, rig_memfd(8192));
}

static void request_unregister(unsigned n)
{
	Kvxp__RegionUnregister req = KVXP__REGION_UNREGISTER__INIT;

	req.region = region_a;
	send_with_fault(n, KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER, &req.base, -1);
}

static void request_import(unsigned n)
{
	Kvxp__Import req = KVXP__IMPORT__INIT;
	uint8_t desc[KVX_DESC_BYTES];

	rig_export(&b, rig_register(&b, 4, KVX_ACCESS_READ | KVX_ACCESS_WRITE), desc);
	req.descriptor = (ProtobufCBinaryData){sizeof(desc), desc};
	send_with_fault(n, KVXP__FRAME_TYPE__FRAME_IMPORT, &req.base, -1);
}

static void request_submit(unsigned n)
{
	Kvxp__XferSubmit req = KVXP__XFER_SUBMIT__INIT;
	Kvxp__OpList ops = KVXP__OP_LIST__INIT;
	uint64_t offset = 0, len = 4096;

	ops.n_local_offsets = ops.n_remote_offsets = ops.n_lens = 1;
	ops.local_offsets = ops.remote_offsets = &offset;
	ops.lens = &len;
	req.xfer = 1;
	req.op = KVXP__OP__OP_WRITE;
	req.region = region_a;
	req.import = import_a;
	req.ops = &ops;
	req.payload = (ProtobufCBinaryData){4, (uint8_t *)(uintptr_t) "done"};
	send_with_fault(n, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &req.base, -1);
}

static void request_query(unsigned n)
{
	Kvxp__Query req = KVXP__QUERY__INIT;

	req.verb = (char *)(uintptr_t) "status";
	send_with_fault(n, KVXP__FRAME_TYPE__FRAME_QUERY, &req.base, -1);
}

/* Was the client told anything at all, or ended? Silence would leave it waiting. */
static void sweep(void (*request)(unsigned n))
{
	unsigned n_hits = 0;
	bool hit = true;

	for (unsigned n = 1; hit; n++) {
		two_clients();
		region_a = rig_register(&a, 4, 0);
		import_a = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
		request(n);
		hit = fault_alloc_disarm();
		n_hits += hit ? 1 : 0;
		cr_assert(a.n_frames > 0 || a.client == NULL || a.closing,
			  "allocation %u failed and nobody was told", n);
		cr_assert(kvx_client_takes_frames(b.client) || b.closing);
		rig_client_close(&a);
		rig_client_close(&b);
		cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
		rig_close(&rig);
		cr_assert_lt(n, 200);
	}
	cr_assert_gt(n_hits, 0, "no allocation was reached: the sweep tests nothing");
	uv_library_shutdown();
	KVX_TEST_END();
}

Test(control_alloc, register_survives_each_failed_allocation)
{
	sweep(request_register);
}

Test(control_alloc, unregister_survives_each_failed_allocation)
{
	sweep(request_unregister);
}

Test(control_alloc, import_survives_each_failed_allocation)
{
	sweep(request_import);
}

Test(control_alloc, submit_survives_each_failed_allocation)
{
	sweep(request_submit);
}

Test(control_alloc, query_survives_each_failed_allocation)
{
	sweep(request_query);
}

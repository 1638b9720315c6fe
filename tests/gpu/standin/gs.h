/* The GPU stand-in as its front libraries call it: one set of functions, to which CUDA's and HIP's
 * names are mapped. Devices are numbered as this process sees them. Every function gives an enum
 * standin_error as int; outputs are written on success only. Any thread; the current device is the
 * thread's. */
#ifndef KVX_GS_H
#define KVX_GS_H

#include <stddef.h>
#include <stdint.h>

#include "standin.h"

#define GS_API __attribute__((visibility("default")))

#define GS_HANDLE_BYTES 64

enum gs_flavor { GS_CUDA, GS_HIP };
/* Which front this process has loaded: decides which variable hides devices, and small habits. */
GS_API void gs_set_flavor(enum gs_flavor flavor);
/* For fronts whose call needs no other function here: counts, waits, blocks, fails as told. */
GS_API int gs_enter(enum standin_call call);
GS_API const char *gs_error_name(int err);
GS_API const char *gs_error_text(int err);

/* --- devices --- */

enum gs_attr { GS_ATTR_DMABUF, GS_ATTR_IPC_EVENTS, GS_ATTR_UVA, GS_ATTR_COPY_ENGINES, GS_ATTR_SMS };
GS_API int gs_device_count(int *out_n);
GS_API int gs_device_set(int dev);
GS_API int gs_device_get(int *out_dev);
GS_API int gs_device_sync(void);
/* Drops all that this process has on the current device: queued work, memory, mappings. */
GS_API int gs_device_reset(int dev);
GS_API int gs_device_pci(int dev, char *buf, size_t buf_bytes);
GS_API int gs_device_uuid(int dev, uint8_t out_uuid[16]);
GS_API int gs_device_attr(int dev, enum gs_attr attr, int *out_value);
GS_API int gs_device_bytes(int dev, size_t *out_bytes);
GS_API int gs_mem_info(size_t *out_free, size_t *out_total);
GS_API int gs_peer_can(int dev, int peer, int *out_can);
GS_API int gs_peer_enable(int peer); /* from the current device */
GS_API int gs_peer_disable(int peer);

/* --- memory --- */

enum gs_kind { GS_UNKNOWN, GS_DEVICE, GS_IPC, GS_VMM, GS_HOST };
struct gs_pointer {
	enum gs_kind kind;
	int dev; /* as this process sees it; -1: hidden from it, or host memory */
	void *base;
	size_t bytes;
	uint64_t id; /* of the allocation or mapping: no other of this process ever has it */
};
GS_API int gs_malloc(size_t bytes, void **out_ptr);
GS_API int gs_free(void *ptr);
GS_API int gs_host_alloc(size_t bytes, void **out_ptr);
GS_API int gs_host_free(void *ptr);
GS_API int gs_host_register(void *ptr, size_t bytes);
GS_API int gs_host_unregister(void *ptr);
GS_API int gs_host_pointer(void *host, void **out_ptr);
/* Unknown pointers are kind GS_UNKNOWN, no error. */
GS_API int gs_pointer_info(const void *ptr, struct gs_pointer *out_pointer);
GS_API int gs_address_range(const void *ptr, void **out_base, size_t *out_bytes);
/* A file descriptor of the whole allocation, and where in it ptr is. */
GS_API int gs_dmabuf(const void *ptr, size_t bytes, int *out_fd, uint64_t *out_offset);

GS_API int gs_ipc_get(void *ptr, uint8_t out_handle[GS_HANDLE_BYTES]);
GS_API int gs_ipc_open(const uint8_t handle[GS_HANDLE_BYTES], void **out_ptr);
GS_API int gs_ipc_close(void *ptr);

/* --- streams and events; NULL stream: the current device's own --- */

struct gs_stream;
struct gs_event;
enum gs_event_flags { GS_EVENT_IPC = 1 };

GS_API int gs_stream_create(struct gs_stream **out_stream);
GS_API int gs_stream_destroy(struct gs_stream *stream);
GS_API int gs_stream_query(struct gs_stream *stream);
GS_API int gs_stream_sync(struct gs_stream *stream);
GS_API int gs_stream_wait(struct gs_stream *stream, struct gs_event *event);
GS_API int gs_event_create(unsigned flags, struct gs_event **out_event);
GS_API int gs_event_destroy(struct gs_event *event);
GS_API int gs_event_record(struct gs_event *event, struct gs_stream *stream);
GS_API int gs_event_query(struct gs_event *event);
GS_API int gs_event_sync(struct gs_event *event);
GS_API int gs_event_elapsed(float *out_ms, struct gs_event *start, struct gs_event *end);
GS_API int gs_ipc_event_get(struct gs_event *event, uint8_t out_handle[GS_HANDLE_BYTES]);
GS_API int gs_ipc_event_open(const uint8_t handle[GS_HANDLE_BYTES], struct gs_event **out_event);

/* --- copies --- */

enum gs_direction { GS_H2H, GS_H2D, GS_D2H, GS_D2D, GS_ANY };
struct gs_copy {
	void *dst;
	const void *src;
	size_t bytes; /* of a row */
	size_t rows;  /* 1: not a 2-D copy */
	size_t dst_pitch, src_pitch;
};
/* All of them as one op of the stream. call: which of the COPY calls this is. */
GS_API int gs_copy_async(enum standin_call call, const struct gs_copy *copies, size_t n,
			 enum gs_direction direction, struct gs_stream *stream);
/* CUDA's and HIP's batch: addresses as numbers. */
GS_API int gs_copy_batch(const unsigned long long *dsts, const unsigned long long *srcs,
			 const size_t *sizes, size_t n, struct gs_stream *stream);
/* With the waiting for its end. */
GS_API int gs_copy_sync(const struct gs_copy *copy, enum gs_direction direction);
GS_API int gs_memset(void *ptr, int value, size_t bytes, struct gs_stream *stream, int wait);

/* --- kernels: those that this project has, by their name --- */

struct gs_module;
/* image: any; what a function does is known by its name. */
GS_API int gs_module_load(const void *image, struct gs_module **out_module);
GS_API int gs_module_unload(struct gs_module *module);
GS_API int gs_module_function(struct gs_module *module, const char *name, void **out_function);
/* "kvx_copy_list": params[0] the address of an array of {dst, src, len}, 8 bytes each, params[1]
 * their number, 4 bytes. */
GS_API int gs_launch(void *function, void **params, struct gs_stream *stream);

#endif

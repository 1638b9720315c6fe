/* The GPU stand-in's copies, fills and its one kernel: checked when they are queued, done by the
 * stream's thread. Memory of another device needs peer access, and nothing leaves an allocation.
 * Host memory that is not page-locked makes the call wait, as it does on a real GPU. Any thread. */
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "gs_priv.h"

#define MAX_PITCH    0x7fffffffu
#define MODULE_MAGIC 0x67734d4fu
#define KERNEL_ITEM  24u /* bytes of {dst, src, len} */

struct gs_module {
	uint32_t magic;
	struct gs_module *next; /* of all that this process ever loaded */
};
static struct gs_module *_Atomic modules;
static const char kernel_copy_list[] = "kvx_copy_list";

int gs_resolve(const void *ptr, size_t bytes, unsigned dev, struct gs_range **out_range)
{
	struct gs_range *range = gs_range_take(ptr, bytes);
	int err;

	*out_range = range;
	if (range == NULL) {
		range = gs_range_take(ptr, 1);
		if (range == NULL)
			return 0;
		gs_violate("a copy of %zu bytes leaves its allocation of %zu at %zu", bytes,
			   range->len, (size_t)((const uint8_t *)ptr - range->base));
		gs_range_put(range);
		return STANDIN_INVALID_VALUE;
	}
	if (range->kind == GS_HOST)
		return 0;
	err = gs_dev_error(range->dev);
	if (err == 0 && !gs_dev_reaches(dev, range->dev) && gs_dev_can_reach(dev, range->dev))
		err = STANDIN_PEER_NOT_ENABLED;
	if (err != 0) {
		gs_range_put(range);
		*out_range = NULL;
	}
	return err;
}

static bool is_host(const struct gs_range *range)
{
	return range == NULL || range->kind == GS_HOST;
}

static int check_direction(const struct gs_piece *piece, enum gs_direction direction)
{
	bool from_host = is_host(piece->src), to_host = is_host(piece->dst);

	switch (direction) {
	case GS_H2H:
		return from_host && to_host ? 0 : STANDIN_INVALID_DIRECTION;
	case GS_H2D:
		return from_host && !to_host ? 0 : STANDIN_INVALID_DIRECTION;
	case GS_D2H:
		return !from_host && to_host ? 0 : STANDIN_INVALID_DIRECTION;
	case GS_D2D:
		return !from_host && !to_host ? 0 : STANDIN_INVALID_DIRECTION;
	case GS_ANY:
		break;
	}
	return 0;
}

static size_t extent(size_t rows, size_t pitch, size_t bytes)
{
	return rows == 0 ? 0 : (rows - 1) * pitch + bytes;
}

static int piece_make(struct gs_piece *piece, const struct gs_copy *copy,
		      enum gs_direction direction, unsigned dev)
{
	int err;

	piece->copy = *copy;
	if (copy->rows > 1 && (copy->dst_pitch < copy->bytes || copy->src_pitch < copy->bytes ||
			       copy->dst_pitch > MAX_PITCH || copy->src_pitch > MAX_PITCH))
		return STANDIN_INVALID_PITCH;
	err = gs_resolve(copy->dst, extent(copy->rows, copy->dst_pitch, copy->bytes), dev,
			 &piece->dst);
	if (err == 0)
		err = gs_resolve(copy->src, extent(copy->rows, copy->src_pitch, copy->bytes), dev,
				 &piece->src);
	return err != 0 ? err : check_direction(piece, direction);
}

/* A device's copy: no call of libc's, which a sanitizer would take for an access of this thread. */
static void device_copy(uint8_t *dst, const uint8_t *src, size_t bytes)
{
#ifdef __x86_64__
	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(bytes) : : "memory");
#else
	for (size_t i = 0; i < bytes; i++) /* volatile: or the compiler calls memcpy() */
		((volatile uint8_t *)dst)[i] = src[i];
#endif
}

static void half_copied(void)
{
	struct gs_node *node = gs_node();

	if (atomic_load(&node->torn))
		gs_wait_us(atomic_load(&node->delay_min_us));
}

static void piece_run(const struct gs_piece *piece)
{
	const struct gs_copy *copy = &piece->copy;
	uint8_t *dst = gs_range_at(piece->dst, copy->dst);
	const uint8_t *src = gs_range_at(piece->src, copy->src);

	if (copy->rows == 1) {
		device_copy(dst, src, copy->bytes / 2);
		half_copied();
		device_copy(dst + copy->bytes / 2, src + copy->bytes / 2,
			    copy->bytes - copy->bytes / 2);
		return;
	}
	for (size_t row = 0; row < copy->rows; row++) {
		if (row == copy->rows / 2)
			half_copied();
		device_copy(dst + row * copy->dst_pitch, src + row * copy->src_pitch, copy->bytes);
	}
}

static void note_done(uint64_t bytes)
{
	struct gs_proc *self = gs_self();

	atomic_fetch_add_explicit(&self->copies, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&self->bytes, bytes, memory_order_relaxed);
}

/* By way of host memory no kernel goes. */
static bool kernel_reaches(unsigned dev, const struct gs_range *range)
{
	return range != NULL && (range->kind == GS_HOST || gs_dev_reaches(dev, range->dev));
}

/* The kernel sees what the list says now, and may touch what a copy may. */
static int list_run(const struct gs_op *op, unsigned dev)
{
	const uint8_t *at = gs_range_at(op->pieces[0].src, op->pieces[0].copy.src);

	for (uint64_t i = 0; i < op->value; i++, at += KERNEL_ITEM) {
		struct gs_piece piece = {.copy.rows = 1};
		uint64_t item[3];
		int err;

		device_copy((uint8_t *)item, at, sizeof(item));
		piece.copy.dst = (void *)(uintptr_t)item[0];
		piece.copy.src = (const void *)(uintptr_t)item[1];
		piece.copy.bytes = item[2];
		err = piece_make(&piece, &piece.copy, GS_ANY, dev);
		if (err == 0 && kernel_reaches(dev, piece.dst) && kernel_reaches(dev, piece.src)) {
			piece_run(&piece);
			note_done(item[2]);
		} else {
			err = STANDIN_ILLEGAL_ADDRESS;
		}
		gs_range_put(piece.dst);
		gs_range_put(piece.src);
		if (err != 0)
			return err;
	}
	return 0;
}

static int event_run(const struct gs_op *op, const struct gs_stream *stream)
{
	unsigned turn = 0;

	while (!gs_event_reached(op->event, op->seq) && !gs_stream_dropped(stream) &&
	       gs_dev_error(gs_stream_dev(stream)) == 0) {
		gs_wait_us(50);
		if (++turn % 1024 == 0 && op->event->shared != NULL) {
			gs_lock(gs_node());
			gs_reap(gs_node()); /* its maker may be dead */
			gs_unlock(gs_node());
		}
	}
	return 0;
}

int gs_op_run(struct gs_op *op, const struct gs_stream *stream)
{
	bool copying = atomic_load(&gs_node()->copying);

	switch (op->kind) {
	case GS_OP_COPY:
		/* Copies of one op have no order: the last one is done first. */
		for (size_t i = op->n_pieces; i-- > 0;) {
			if (copying)
				piece_run(&op->pieces[i]);
			note_done(op->pieces[i].copy.bytes * op->pieces[i].copy.rows);
		}
		return 0;
	case GS_OP_SET:
		memset(gs_range_at(op->pieces[0].dst, op->pieces[0].copy.dst), (int)op->value,
		       op->pieces[0].copy.bytes);
		return 0;
	case GS_OP_WAIT:
		return event_run(op, stream);
	case GS_OP_LIST:
		return copying ? list_run(op, gs_stream_dev(stream)) : 0;
	case GS_OP_RECORD:
		break;
	}
	return 0;
}

/* With the CPU and the kernel's help: an address that is not there is an error, no crash. */
static int copy_pageable(const struct gs_piece *piece)
{
	const struct gs_copy *copy = &piece->copy;

	for (size_t row = 0; row < copy->rows; row++) {
		uint8_t *dst = (uint8_t *)copy->dst + row * copy->dst_pitch;
		const uint8_t *src = (const uint8_t *)copy->src + row * copy->src_pitch;
		struct iovec to = {.iov_len = copy->bytes}, from = {.iov_len = copy->bytes};
		ssize_t n;

		to.iov_base = piece->dst != NULL ? gs_range_at(piece->dst, dst) : dst;
		from.iov_base =
		    piece->src != NULL ? gs_range_at(piece->src, src) : (void *)(uintptr_t)src;
		n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
		if (n != (ssize_t)copy->bytes)
			return STANDIN_INVALID_VALUE;
	}
	note_done(copy->bytes * copy->rows);
	return 0;
}

static int run_pageable(struct gs_op *op, struct gs_stream *stream)
{
	int err = 0;

	atomic_fetch_add(&gs_self()->pageable_copies, 1);
	gs_stream_drain(stream);
	for (size_t i = 0; i < op->n_pieces && err == 0; i++)
		err = copy_pageable(&op->pieces[i]);
	gs_op_drop(op);
	return err;
}

int gs_copy_async(enum standin_call call, const struct gs_copy *copies, size_t n,
		  enum gs_direction direction, struct gs_stream *stream)
{
	int err = gs_enter(call);
	bool pageable = false;
	struct gs_op *op;
	unsigned dev;

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL)
		return STANDIN_INVALID_HANDLE;
	dev = gs_stream_dev(stream);
	err = gs_dev_error(dev);
	if (err != 0)
		return err;
	op = gs_op_make(GS_OP_COPY, n);
	for (size_t i = 0; i < n && err == 0; i++) {
		err = piece_make(&op->pieces[i], &copies[i], direction, dev);
		pageable = pageable || op->pieces[i].dst == NULL || op->pieces[i].src == NULL;
	}
	if (err != 0) {
		gs_op_drop(op);
		return err;
	}
	if (pageable)
		return run_pageable(op, stream);
	gs_stream_put_op(stream, op);
	return 0;
}

int gs_copy_batch(const unsigned long long *dsts, const unsigned long long *srcs,
		  const size_t *sizes, size_t n, struct gs_stream *stream)
{
	struct gs_copy *copies;
	int err;

	if (atomic_load(&gs_node()->lacks) & STANDIN_LACK_BATCH)
		return STANDIN_NOT_SUPPORTED;
	if (stream == NULL || n == 0)
		return STANDIN_INVALID_VALUE;
	copies = calloc(n, sizeof(*copies));
	if (copies == NULL)
		return STANDIN_OUT_OF_MEMORY;
	for (size_t i = 0; i < n; i++)
		copies[i] = (struct gs_copy){.dst = (void *)(uintptr_t)dsts[i],
					     .src = (const void *)(uintptr_t)srcs[i],
					     .bytes = sizes[i],
					     .rows = 1};
	err = gs_copy_async(STANDIN_COPY_BATCH, copies, n, GS_ANY, stream);
	free(copies);
	return err;
}

int gs_copy_sync(const struct gs_copy *copy, enum gs_direction direction)
{
	int err = gs_copy_async(STANDIN_COPY, copy, 1, direction, NULL);

	if (err != 0)
		return err;
	gs_stream_drain(gs_stream_get(NULL));
	return gs_dev_error(gs_dev_current());
}

int gs_memset(void *ptr, int value, size_t bytes, struct gs_stream *stream, int wait)
{
	int err = gs_enter(STANDIN_MEMSET);
	struct gs_op *op;

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL)
		return STANDIN_INVALID_HANDLE;
	op = gs_op_make(GS_OP_SET, 1);
	op->value = (uint8_t)value;
	op->pieces[0].copy = (struct gs_copy){.dst = ptr, .bytes = bytes, .rows = 1};
	err = gs_resolve(ptr, bytes, gs_stream_dev(stream), &op->pieces[0].dst);
	if (err == 0 && op->pieces[0].dst == NULL)
		err = STANDIN_INVALID_VALUE;
	if (err != 0) {
		gs_op_drop(op);
		return err;
	}
	gs_stream_put_op(stream, op);
	if (wait)
		gs_stream_drain(stream);
	return gs_dev_error(gs_stream_dev(stream));
}

int gs_module_load(const void *image, struct gs_module **out_module)
{
	int err = gs_enter_dev(STANDIN_MODULE, gs_dev_current());
	struct gs_module *module;

	if (err != 0)
		return err;
	if (atomic_load(&gs_node()->lacks) & STANDIN_LACK_KERNELS)
		return STANDIN_NOT_SUPPORTED;
	if (image == NULL)
		return STANDIN_INVALID_VALUE;
	module = calloc(1, sizeof(*module));
	if (module == NULL)
		return STANDIN_OUT_OF_MEMORY;
	module->magic = MODULE_MAGIC;
	module->next = atomic_load(&modules);
	while (!atomic_compare_exchange_weak(&modules, &module->next, module))
		;
	atomic_fetch_add(&gs_self()->n_modules, 1);
	*out_module = module;
	return 0;
}

int gs_module_unload(struct gs_module *module)
{
	int err = gs_enter(STANDIN_MODULE);

	if (err != 0)
		return err;
	if (module == NULL || module->magic != MODULE_MAGIC)
		return STANDIN_INVALID_HANDLE;
	module->magic = 0; /* kept, so that its use is noticed */
	atomic_fetch_sub(&gs_self()->n_modules, 1);
	return 0;
}

int gs_module_function(struct gs_module *module, const char *name, void **out_function)
{
	int err = gs_enter(STANDIN_MODULE);

	if (err != 0)
		return err;
	if (module == NULL || module->magic != MODULE_MAGIC)
		return STANDIN_INVALID_HANDLE;
	if (strcmp(name, kernel_copy_list) != 0)
		return STANDIN_NOT_FOUND;
	*out_function = (void *)(uintptr_t)kernel_copy_list;
	return 0;
}

int gs_launch(void *function, void **params, struct gs_stream *stream)
{
	int err = gs_enter(STANDIN_LAUNCH);
	uint64_t list;
	struct gs_op *op;
	uint32_t n;

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL || function != kernel_copy_list)
		return STANDIN_INVALID_HANDLE;
	err = gs_dev_error(gs_stream_dev(stream));
	if (err != 0)
		return err;
	memcpy(&list, params[0], sizeof(list));
	memcpy(&n, params[1], sizeof(n));
	op = gs_op_make(GS_OP_LIST, 1);
	op->value = n;
	op->pieces[0].copy.src = (const void *)(uintptr_t)list;
	err = gs_resolve(op->pieces[0].copy.src, (size_t)n * KERNEL_ITEM, gs_stream_dev(stream),
			 &op->pieces[0].src);
	if (err != 0 || op->pieces[0].src == NULL) {
		gs_op_drop(op);
		gs_violate("the kernel's list of %u is not where a GPU can read it", n);
		return err != 0 ? err : STANDIN_INVALID_VALUE;
	}
	gs_stream_put_op(stream, op);
	return 0;
}

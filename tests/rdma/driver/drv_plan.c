/* Extents, plans and cells. No state of its own. */
#include "drv_plan.h"

#include <stdlib.h>
#include <string.h>

#include "drv.h"

static const struct kvxfer_plane planes[] = {
    {.name = "cells", .block_stride = DRV_CELL, .block_bytes = DRV_CELL},
    {.name = "large", .block_stride = DRV_LARGE, .block_bytes = DRV_LARGE},
};
const struct kvxfer_layout drv_layout = {planes, 2};

uint32_t drv_ext_cells(const struct drv_ext *ext)
{
	return (ext->edge + ext->len + DRV_CELL - 1) / DRV_CELL;
}

uint64_t drv_ext_offset(const struct drv_ext *ext)
{
	return (uint64_t)ext->cell * DRV_CELL + ext->edge;
}

size_t drv_plan_pack(const struct drv_plan *plan, void *buf)
{
	uint8_t *at = buf;

	memcpy(at, &plan->tag, 8);
	memcpy(at + 8, &plan->generation, 8);
	memcpy(at + 16, &plan->op, 4);
	memcpy(at + 20, &plan->n, 4);
	memcpy(at + 24, plan->exts, plan->n * sizeof(plan->exts[0]));
	return 24 + plan->n * sizeof(plan->exts[0]);
}

bool drv_plan_unpack(struct drv_plan *plan, const void *buf, size_t len, uint32_t n_cells)
{
	const uint8_t *at = buf;

	if (len < 24)
		return false;
	memcpy(&plan->tag, at, 8);
	memcpy(&plan->generation, at + 8, 8);
	memcpy(&plan->op, at + 16, 4);
	memcpy(&plan->n, at + 20, 4);
	if (plan->n > DRV_MAX_EXTS || len != 24 + plan->n * sizeof(plan->exts[0]))
		return false;
	memcpy(plan->exts, at + 24, plan->n * sizeof(plan->exts[0]));
	for (uint32_t i = 0; i < plan->n; i++) {
		const struct drv_ext *ext = &plan->exts[i];

		if (ext->len < 8 || ext->len > DRV_MAX_EXTENT || ext->edge >= DRV_CELL ||
		    ext->cell >= n_cells || drv_ext_cells(ext) > n_cells - ext->cell)
			return false;
	}
	return true;
}

void drv_cells_init(struct drv_cells *cells, uint32_t n)
{
	memset(cells, 0, sizeof(*cells));
	cells->n = n;
	cells->bits = calloc((n + 63) / 64, sizeof(*cells->bits));
	if (cells->bits == NULL)
		drv_die("no memory for %u cells", n);
}

void drv_cells_reset(struct drv_cells *cells)
{
	memset(cells->bits, 0, (cells->n + 63) / 64 * sizeof(*cells->bits));
	cells->n_used = 0;
}

void drv_cells_fini(struct drv_cells *cells)
{
	free(cells->bits);
	memset(cells, 0, sizeof(*cells));
}

static bool cell_used(const struct drv_cells *cells, uint32_t i)
{
	return (cells->bits[i / 64] >> (i % 64)) & 1;
}

/* First cell of [first, first + n) that is in use, as a count from first; n: none. */
static uint32_t run_free(const struct drv_cells *cells, uint32_t first, uint32_t n)
{
	uint32_t i = 0;

	while (i < n && !cell_used(cells, first + i))
		i++;
	return i;
}

uint32_t drv_cells_take(struct drv_cells *cells, uint32_t n, uint32_t align)
{
	uint32_t first = (cells->next + align - 1) / align * align;
	uint32_t seen = 0;

	if (n > cells->n - cells->n_used)
		return UINT32_MAX;
	while (seen <= cells->n + n) {
		uint32_t got;
		uint32_t step;

		if (first + n > cells->n) {
			seen += first < cells->n ? cells->n - first : 1;
			first = 0;
			if (n > cells->n)
				return UINT32_MAX;
		}
		got = run_free(cells, first, n);
		if (got == n) {
			for (uint32_t i = first; i < first + n; i++)
				cells->bits[i / 64] |= 1ull << (i % 64);
			cells->n_used += n;
			cells->next = first + n;
			return first;
		}
		step = (got + align) / align * align;
		seen += step;
		first += step;
	}
	return UINT32_MAX;
}

void drv_cells_give(struct drv_cells *cells, uint32_t first, uint32_t n)
{
	for (uint32_t i = first; i < first + n; i++) {
		if (!cell_used(cells, i))
			drv_die("cell %u is given back twice", i);
		cells->bits[i / 64] &= ~(1ull << (i % 64));
	}
	cells->n_used -= n;
}

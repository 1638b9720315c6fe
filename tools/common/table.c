/* Tables and the terminal they are printed to. A table keeps its cells as strings, measures the
 * columns when it is printed and cuts the shrinkable ones to the terminal's width; into a file or
 * pipe nothing is cut. */
#include "common/tool.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MIN_SHRUNK 6u

struct cell {
	char *text;
	enum kvx_color color;
};
struct kvx_table {
	const struct kvx_column *columns;
	unsigned n_columns;
	struct cell *cells;
	unsigned n_cells, max_cells;
};

unsigned kvx_term_width(FILE *f)
{
	struct winsize size;

	if (!isatty(fileno(f)))
		return 0;
	if (ioctl(fileno(f), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
		return size.ws_col;
	return 80;
}

bool kvx_term_colors(FILE *f)
{
	const char *no_color = getenv("NO_COLOR");
	const char *term = getenv("TERM");

	if (no_color && *no_color)
		return false;
	if (!term || strcmp(term, "dumb") == 0)
		return false;
	return isatty(fileno(f));
}

const char *kvx_color_on(FILE *f, enum kvx_color color)
{
	static const char *const codes[] = {"",         "\033[31m", "\033[32m",
					    "\033[33m", "\033[1m",  "\033[2m"};

	return kvx_term_colors(f) ? codes[color] : "";
}

const char *kvx_color_off(FILE *f)
{
	return kvx_term_colors(f) ? "\033[0m" : "";
}

struct kvx_table *kvx_table_create(const struct kvx_column *columns, unsigned n_columns)
{
	struct kvx_table *table = kvx_tool_alloc(sizeof(*table));

	table->columns = columns;
	table->n_columns = n_columns;
	return table;
}

void kvx_table_destroy(struct kvx_table *table)
{
	if (!table)
		return;
	for (unsigned i = 0; i < table->n_cells; i++)
		free(table->cells[i].text);
	free(table->cells);
	free(table);
}

void kvx_table_cell(struct kvx_table *table, const char *fmt, ...)
{
	char *text = NULL;
	va_list args;

	if (table->n_cells == table->max_cells) {
		table->max_cells = table->max_cells ? 2 * table->max_cells : 64;
		table->cells =
		    kvx_tool_realloc(table->cells, table->max_cells * sizeof(*table->cells));
	}
	va_start(args, fmt);
	if (vasprintf(&text, fmt, args) < 0)
		text = kvx_tool_strdup("?");
	va_end(args);
	/* Names come from clients: a terminal must not obey them. */
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	table->cells[table->n_cells++] = (struct cell){.text = text};
}

void kvx_table_color(struct kvx_table *table, enum kvx_color color)
{
	if (table->n_cells > 0)
		table->cells[table->n_cells - 1].color = color;
}

unsigned kvx_table_rows(const struct kvx_table *table)
{
	return table->n_cells / table->n_columns;
}

/* A hidden column has width 0. */
static unsigned table_total(const struct kvx_table *table, const unsigned *widths)
{
	unsigned total = 0;

	for (unsigned c = 0; c < table->n_columns; c++)
		if (widths[c] > 0)
			total += widths[c] + (total > 0 ? 2 : 0);
	return total;
}

/* Takes one character off the widest column that may be cut, or hides one; false: nothing is left
 * to do. */
static bool table_narrow(const struct kvx_table *table, unsigned *widths)
{
	unsigned widest = table->n_columns;

	for (unsigned c = 0; c < table->n_columns; c++)
		if (table->columns[c].fit == KVX_CUT && widths[c] > MIN_SHRUNK &&
		    (widest == table->n_columns || widths[c] > widths[widest]))
			widest = c;
	if (widest < table->n_columns) {
		widths[widest]--;
		return true;
	}
	for (unsigned c = table->n_columns; c-- > 0;) {
		if (table->columns[c].fit == KVX_HIDE && widths[c] > 0) {
			widths[c] = 0;
			return true;
		}
	}
	return false;
}

static void table_measure(const struct kvx_table *table, unsigned *widths, unsigned limit)
{
	for (unsigned c = 0; c < table->n_columns; c++)
		widths[c] = (unsigned)strlen(table->columns[c].title);
	for (unsigned i = 0; i < table->n_cells; i++) {
		unsigned len = (unsigned)strlen(table->cells[i].text);
		unsigned c = i % table->n_columns;

		if (len > widths[c])
			widths[c] = len;
	}
	while (limit > 0 && table_total(table, widths) > limit && table_narrow(table, widths))
		;
}

static void table_put(const struct kvx_table *table, unsigned column, const unsigned *widths,
		      const struct cell *cell, FILE *f)
{
	unsigned width = widths[column];
	unsigned len = (unsigned)strlen(cell->text);
	bool cut = len > width;
	unsigned shown = cut ? width : len;
	bool last = column + 1 == table->n_columns;

	if (width == 0) {
		fputs(last ? "\n" : "", f);
		return;
	}

	if (table->columns[column].align == KVX_RIGHT)
		fprintf(f, "%*s", (int)(width - shown), "");
	fputs(kvx_color_on(f, cell->color), f);
	fprintf(f, "%.*s%s", (int)(cut ? shown - 1 : shown), cell->text, cut ? "~" : "");
	if (cell->color != KVX_COLOR_NONE)
		fputs(kvx_color_off(f), f);
	if (table->columns[column].align == KVX_LEFT && !last)
		fprintf(f, "%*s", (int)(width - shown), "");
	fputs(last ? "\n" : "  ", f);
}

void kvx_table_print(const struct kvx_table *table, FILE *f)
{
	unsigned *widths = kvx_tool_alloc(table->n_columns * sizeof(*widths));

	table_measure(table, widths, kvx_term_width(f));
	for (unsigned c = 0; c < table->n_columns; c++) {
		struct cell title = {.text = (char *)(uintptr_t)table->columns[c].title,
				     .color = KVX_COLOR_BOLD};

		table_put(table, c, widths, &title, f);
	}
	for (unsigned i = 0; i < table->n_cells; i++)
		table_put(table, i % table->n_columns, widths, &table->cells[i], f);
	free(widths);
}

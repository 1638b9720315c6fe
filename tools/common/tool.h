/* What both command-line tools share: tables, numbers with units, the terminal, JSON reading.
 * Errors of memory end the program: these are short-lived tools. One thread. */
#ifndef KVX_TOOL_H
#define KVX_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct json_object;

/* ---- memory: never NULL, ends the program with a message instead */
void *kvx_tool_alloc(size_t bytes); /* zeroed */
void *kvx_tool_realloc(void *mem, size_t bytes);
char *kvx_tool_strdup(const char *text);
char *kvx_tool_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Writes "PROGRAM: " and the message to stderr. */
void kvx_tool_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
extern const char *kvx_tool_program;

/* ---- numbers for people; each returns buf */
#define KVX_UNIT_BYTES 32
char *kvx_unit_bytes(char *buf, uint64_t n_bytes);       /* "1.50 GiB" */
char *kvx_unit_ns(char *buf, uint64_t ns);               /* "12.3 us" */
char *kvx_unit_age(char *buf, uint64_t ns);              /* "3d 4h", "12 s" */
char *kvx_unit_count(char *buf, uint64_t n);             /* "1,234,567" */
char *kvx_unit_rate(char *buf, double bytes_per_second); /* "12.3 GB/s" */
/* What a value is, by its name: "..._ns", "..._bytes", "..._bytes_...", "bytes_...", "bytes". */
bool kvx_is_ns_key(const char *name);
bool kvx_is_bytes_key(const char *name);
/* "64K", "1.5G", "4096"; binary units. 0 or -EINVAL, -ERANGE. */
int kvx_parse_bytes(const char *text, uint64_t *out_bytes);
/* Decimal number in [min, max]; nothing may follow it. 0 or -EINVAL, -ERANGE. */
int kvx_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out_value);
int kvx_parse_double(const char *text, double min, double max, double *out_value);

/* ---- terminal */
enum kvx_color {
	KVX_COLOR_NONE,
	KVX_COLOR_RED,
	KVX_COLOR_GREEN,
	KVX_COLOR_YELLOW,
	KVX_COLOR_BOLD,
	KVX_COLOR_DIM
};
/* Columns of the terminal behind f; 0: not a terminal, lines may have any length. */
unsigned kvx_term_width(FILE *f);
/* Colours are for terminals, and not with NO_COLOR set or TERM=dumb. */
bool kvx_term_colors(FILE *f);
const char *kvx_color_on(FILE *f, enum kvx_color color);
const char *kvx_color_off(FILE *f);

/* ---- tables */
enum kvx_align { KVX_LEFT, KVX_RIGHT };
/* What becomes of a column where the terminal is too narrow: long cells are cut first, then columns
 * left out, the last one first. */
enum kvx_fit { KVX_KEEP, KVX_CUT, KVX_HIDE };
struct kvx_column {
	const char *title;
	enum kvx_align align;
	enum kvx_fit fit;
};
struct kvx_table;
/* columns must outlive the table. */
struct kvx_table *kvx_table_create(const struct kvx_column *columns, unsigned n_columns);
void kvx_table_destroy(struct kvx_table *table);
/* Cells come row by row; control characters are shown as '?'. */
void kvx_table_cell(struct kvx_table *table, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void kvx_table_color(struct kvx_table *table, enum kvx_color color); /* of the last cell */
unsigned kvx_table_rows(const struct kvx_table *table);
/* Prints title line and rows, made to fit the terminal's width when f is one. */
void kvx_table_print(const struct kvx_table *table, FILE *f);

/* ---- JSON; what is absent or of another type reads as "", 0, false, NULL */
const char *kvx_json_str(struct json_object *obj, const char *key);
uint64_t kvx_json_u64(struct json_object *obj, const char *key); /* also decimal strings */
double kvx_json_double(struct json_object *obj, const char *key);
bool kvx_json_bool(struct json_object *obj, const char *key);
struct json_object *kvx_json_get(struct json_object *obj, const char *key);
struct json_object *kvx_json_array(struct json_object *obj, const char *key);
size_t kvx_json_length(struct json_object *array); /* 0 for NULL */
struct json_object *kvx_json_at(struct json_object *array, size_t i);
/* Setters for output; keys are literals. */
void kvx_json_set_str(struct json_object *obj, const char *key, const char *value);
void kvx_json_set_u64(struct json_object *obj, const char *key, uint64_t value);
void kvx_json_set_double(struct json_object *obj, const char *key, double value);
void kvx_json_set_bool(struct json_object *obj, const char *key, bool value);
void kvx_json_print(struct json_object *obj, FILE *f); /* pretty, with a newline */

#endif

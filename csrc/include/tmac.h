/* tmac: low-bit matrix products by table lookup (T-MAC, arXiv 2407.00088).
 *
 * The one public header: the cffi declarations of the Python package are generated from it.
 * Conventions: m rows out, k columns in, n tokens. Matrices are row-major. Every function returns
 * TMAC_OK (0) or a negative tmac_status unless it says otherwise. Not thread-safe on one matrix during
 * free; tmac_matmul serialises concurrent callers itself. */
#ifndef TMAC_H
#define TMAC_H
#ifndef TMAC_CDEF
#include <stddef.h>
#include <stdint.h>
#define TMAC_API __attribute__((visibility("default")))
#else
#define TMAC_API
#endif

enum tmac_status {
    TMAC_OK = 0,
    TMAC_ERR_ARGUMENT = -1,  /* a shape, pointer or enum value outside its contract */
    TMAC_ERR_MEMORY = -2,    /* allocation failed */
    TMAC_ERR_ISA = -3,       /* unknown or unsupported instruction set */
    TMAC_ERR_NONFINITE = -4, /* NaN or infinity among activations or weights */
    TMAC_ERR_CODE = -5,      /* a stored code outside 0 .. 2^bits - 1, or 0 .. 2 where ternary */
    TMAC_ERR_THREADS = -6,   /* threads could not be started */
    TMAC_ERR_RANGE = -7      /* a scale would exceed float16 */
};

enum tmac_type { TMAC_F32 = 0, TMAC_F16 = 1, TMAC_BF16 = 2, TMAC_I8 = 3 };

/* How activations become tables.
 * TMAC_TABLES_INT8   float activations; one float scale per segment of columns, entries rounded to int8.
 * TMAC_TABLES_EXACT  int8 activations (float ones are first quantised per token by absmax, as BitNet trains);
 *                    entries are exact, split over two byte tables.
 * TMAC_TABLES_FAST   as TMAC_TABLES_INT8, but entries are averaged with rounding instead of summed ("fast aggregation"):
 *                    an estimate of the product, quicker where products are bound by instructions. Only instruction
 *                    sets of tmac_has_fast_aggregation; on these its results are equal bits too. */
enum tmac_tables { TMAC_TABLES_INT8 = 0, TMAC_TABLES_EXACT = 1, TMAC_TABLES_FAST = 2 };

/* How codes become bytes; drawn in layout.h.
 * TMAC_PLANES   one bit plane per bit of a code.
 * TMAC_TERNARY  codes 0, 1, 2, five in a byte; bits 2, group_size 0, no zeros, zero 1. Products are always exact:
 *               tables are TMAC_TABLES_EXACT, whatever was asked for. */
enum tmac_encoding { TMAC_PLANES = 0, TMAC_TERNARY = 1 };

/* Geometry of the packed layout; drawn in layout.h. */
enum tmac_geometry {
    TMAC_LAYOUT_VERSION = 2, /* 1: without TMAC_TERNARY, the same otherwise */
    TMAC_ROWS_PER_BLOCK = 64,
    TMAC_ROWS_PER_TILE = 16,
    TMAC_COLUMNS_PER_STEP = 32,
    TMAC_COLUMN_ALIGNMENT = 128,
    TMAC_MAX_BITS = 8,
    TMAC_MAX_COLUMNS = 65536
};

/* What a packed matrix is. W[r][c] = (code[r][c] - zero[r][group(c)]) * scale[r][group(c)]. */
typedef struct {
    int32_t m, k;       /* logical rows and columns; both >= 1, k <= TMAC_MAX_COLUMNS */
    int32_t bits;       /* 1 .. 8 */
    int32_t group_size; /* 32, 64 or 128 columns share a float16 scale; 0: one float32 scale per row */
    int32_t has_zeros;  /* 1: a zero point stored beside each scale; 0: `zero` holds for all */
    float zero;         /* the common zero point where has_zeros is 0, in code units */
    int32_t encoding;   /* enum tmac_encoding */
} tmac_shape;

/* How a matrix is multiplied, for speed alone: no choice changes a result. A field of 0 is the default. */
typedef struct {
    int32_t prefetch;    /* one token: bytes ahead that weights are asked for, where the kernel asks; -1: none ahead */
    int32_t panel_bytes; /* several tokens: tables that are live at once */
} tmac_tuning;

/* A matrix in memory, in the order that the running instruction set reads. */
typedef struct tmac_matrix tmac_matrix;

/* ---- the library ------------------------------------------------------------------------------------- */

/* Select the instruction set and start the threads. isa: a name of tmac_isa_name, or NULL for the best that the
 * CPU supports. n_threads >= 1 counts the caller. May be called again while no other call is running; matrices keep
 * the instruction set that they were loaded for. */
TMAC_API int tmac_init(const char *isa, int n_threads);
/* Name of compiled-in instruction set i, best first; NULL past the end. */
TMAC_API const char *tmac_isa_name(int i);
/* 1 if this CPU and operating system can run instruction set i, else 0. */
TMAC_API int tmac_isa_supported(int i);
/* What instruction set i needs, for people: "AVX-512 F, BW, VL, VBMI, VNNI". */
TMAC_API const char *tmac_isa_requires(int i);
/* Name of the selected one (NULL before tmac_init). */
TMAC_API const char *tmac_isa_selected(void);
/* 1 if the selected instruction set knows TMAC_TABLES_FAST, else 0. */
TMAC_API int tmac_has_fast_aggregation(void);
TMAC_API int tmac_n_threads(void);
/* From now on a program that touches a page of a mapped file that is gone (cut short, failed disk) writes this line to
 * standard error and exits with 1; at most 1000 bytes. For programs, not for libraries. */
TMAC_API int tmac_explain_bus_errors(const char *message);
TMAC_API const char *tmac_status_text(int status);

/* ---- packed tiles (ISA-neutral bytes, as stored on disk) ----------------------------------------------- */

/* Bytes of the packed matrix, or a negative status for an impossible shape. */
TMAC_API int64_t tmac_packed_size(const tmac_shape *shape);
/* codes: uint8 (m, k). scales, zeros: float16 bits (m, ceil(k / group_size)) where group_size > 0, else float32 (m).
 * zeros may be NULL where has_zeros is 0. tiles: tmac_packed_size bytes. Padding rows and columns get code 0 (ternary:
 * code 1, the weight 0), scale 0.
 * Rows [row_begin, row_end) only; row_begin is a multiple of TMAC_ROWS_PER_BLOCK, row_end too or m; codes, scales and
 * zeros start at row_begin, tiles at the block of row_begin. */
TMAC_API int tmac_pack(const tmac_shape *shape, int32_t row_begin, int32_t row_end, const uint8_t *codes,
                       const void *scales, const void *zeros, uint8_t *tiles);
/* The inverse of tmac_pack, for the whole matrix. */
TMAC_API int tmac_unpack(const tmac_shape *shape, const uint8_t *tiles, uint8_t *codes, void *scales, void *zeros);
/* out: float32 (n_rows, k), the weights of the given rows. Reads only what it needs of tiles. */
TMAC_API int tmac_dequantize_rows(const tmac_shape *shape, const uint8_t *tiles, const int32_t *rows, int32_t n_rows,
                                  float *out);

/* ---- quantisation of float matrices --------------------------------------------------------------------- */

/* Quantise rows of float weights by groups with a search for the scale (and zero point) of least squared error.
 * weights: (n_rows, k) of type F32, F16 or BF16. codes: uint8 (n_rows, k). scales, zeros: float16 bits
 * (n_rows, ceil(k / group_size)); group_size > 0. has_zeros 1: zero points are searched too; 0: shape->zero is used.
 * error: double[3], the summed squared error of plain min-max rounding and of the search, and of the weights
 * themselves (all added to).
 * A group whose scale would underflow float16 becomes zeros. Works on all threads. TMAC_ERR_NONFINITE for NaN or
 * infinity, TMAC_ERR_RANGE for a scale above 65504. */
TMAC_API int tmac_quantize(const tmac_shape *shape, int32_t n_rows, const void *weights, int type, uint8_t *codes,
                           uint16_t *scales, uint16_t *zeros, double *error);

/* ---- run time -------------------------------------------------------------------------------------------- */

/* Bytes that tmac_matrix_load takes for a matrix with the running instruction set, or a negative status. */
TMAC_API int64_t tmac_memory_size(const tmac_shape *shape);
/* Copy packed tiles into huge-page-backed memory, in the order of the running instruction set, on all threads. A
 * ternary matrix is cut for the number of threads that run now. */
TMAC_API int tmac_matrix_load(const tmac_shape *shape, const uint8_t *tiles, tmac_matrix **out);
TMAC_API void tmac_matrix_free(tmac_matrix *matrix);

/* The bytes of a loaded matrix in the running instruction set's order, *slabs (below) beside them. */
TMAC_API const uint8_t *tmac_matrix_data(const tmac_matrix *matrix, int32_t *slabs);
/* A matrix over memory of the caller, such as a mapped file, which must outlive it: nothing is copied. data: 64-byte
 * aligned, the bytes that tmac_matrix_data gave for this shape and the same instruction set; slabs: what it said then.
 * Where tmac_matrix_keeps_order, the packed tiles themselves are these bytes (slabs 0). */
TMAC_API int tmac_matrix_view(const tmac_shape *shape, const uint8_t *data, int64_t n_bytes, int32_t slabs,
                              tmac_matrix **out);
/* 1 if the running instruction set reads this shape in the order of the packed tiles, else 0. */
TMAC_API int tmac_matrix_keeps_order(const tmac_shape *shape);
/* Choose how the matrix is multiplied. Not while a product runs. */
TMAC_API int tmac_matrix_tune(tmac_matrix *matrix, const tmac_tuning *tuning);

/* Bytes of its memory; *huge gets how many of them asked for huge pages (0: the system refused, or the memory is the
 * caller's). */
TMAC_API int64_t tmac_matrix_bytes(const tmac_matrix *matrix, int64_t *huge);

/* Read every byte of the matrix once, on all threads, and do nothing else: the ceiling that a product with one token is
 * measured against. Each thread reads 1, 2, 4 or 8 streams side by side: hardware follows each by itself, so that the best
 * number is the machine's. checksum: the exclusive or of all 64-bit words, so that the reads cannot be left out. */
TMAC_API int tmac_matrix_read(const tmac_matrix *matrix, int n_streams, uint64_t *checksum);

/* Nanoseconds that n_jobs jobs take one after the other in which every thread works for `work` nanoseconds: n_jobs * work,
 * and the cost of starting and ending them. */
TMAC_API int64_t tmac_fork_join_time(int32_t n_jobs, int64_t work);

/* y[t][r] = sum_c W[r][c] * x[t][c].
 * x: (n, k) of type F32, F16 or I8, ldx elements from token to token. x_scales: float32 (n), what one unit of an I8
 * activation is worth (NULL: 1); must be NULL for other types. tables: enum tmac_tables; I8 needs TMAC_TABLES_EXACT,
 * TMAC_TABLES_FAST a matrix that was loaded where tmac_has_fast_aggregation (TMAC_ERR_ISA otherwise).
 * y: float32 (n, m), ldy elements from token to token. The result does not depend on instruction set or threads.
 * next: the matrix whose product will come next, or NULL. After a product of one token the threads that wait begin to read
 * its weights, so that memory is busy while the caller does other work. */
TMAC_API int tmac_matmul(const tmac_matrix *matrix, const void *x, int type, int64_t ldx, const float *x_scales,
                         int32_t n, int tables, float *y, int64_t ldy, const tmac_matrix *next);

#endif

/* tmac_matmul on every compiled-in instruction set against a plain product of decoded weights: shapes with tails, strides,
 * types, passes and panels; equal bits for every instruction set and number of threads; refusals. */
#include <math.h>

#include "check.h"
#include "half.h"
#include "layout.h"

/* One matrix and one input, in every form that the calls want. */
typedef struct {
    tmac_shape shape;
    int32_t n;
    int64_t ldx, ldy;
    uint8_t *tiles;
    float *weights, *x, *y, *first; /* weights (m, k); x (n, ldx); y, first (n, ldy) */
    int8_t *ints;                   /* x as int8 (n, ldx) */
    float *int_scales;
} problem;

static char where[200]; /* the parameters of the running case */

static void name_case(const problem *p, size_t mode, int threads)
{
    const tmac_shape *s = &p->shape;
    snprintf(where, sizeof where, "%s, %d threads, mode %zu, m %d k %d n %d bits %d group_size %d has_zeros %d",
             tmac_isa_selected(), threads, mode, s->m, s->k, p->n, s->bits, s->group_size, s->has_zeros);
}

static problem make(tmac_shape s, int32_t n)
{
    problem p = {.shape = s, .n = n, .ldx = s.k + n % 3, .ldy = s.m + n % 2};
    const size_t n_groups = s.group_size ? (size_t)((s.k + s.group_size - 1) / s.group_size) : 1;
    const size_t n_values = (size_t)s.m * n_groups, n_weights = (size_t)s.m * (size_t)s.k;
    uint8_t *codes = canary_alloc(n_weights, 0);
    void *scales = canary_alloc(n_values * 4, 0), *zeros = canary_alloc(n_values * 4, 0);
    for (size_t i = 0; i < n_weights; i++) codes[i] = (uint8_t)random_below(1 << s.bits);
    for (size_t i = 0; i < n_values; i++) {
        const float scale = 0.01f + 0.01f * (float)random_below(100), zero = 0.5f * (float)random_below(2 << s.bits);
        if (s.group_size) ((uint16_t *)scales)[i] = tmac_half_of_float(scale);
        else ((float *)scales)[i] = scale;
        if (s.group_size) ((uint16_t *)zeros)[i] = tmac_half_of_float(zero);
        else ((float *)zeros)[i] = zero;
    }
    p.tiles = canary_alloc((size_t)tmac_packed_size(&s), 0);
    CHECK(tmac_pack(&s, 0, s.m, codes, scales, zeros, p.tiles) == TMAC_OK, "m %d k %d", s.m, s.k);
    p.weights = canary_alloc(n_weights * 4, 0);
    int32_t *rows = canary_alloc((size_t)s.m * 4, 0);
    for (int32_t r = 0; r < s.m; r++) rows[r] = r;
    CHECK(tmac_dequantize_rows(&s, p.tiles, rows, s.m, p.weights) == TMAC_OK, "m %d k %d", s.m, s.k);
    p.x = canary_alloc((size_t)(n * p.ldx) * 4, 0xff); /* NaN between the rows */
    p.ints = canary_alloc((size_t)(n * p.ldx), 0x7f);
    p.int_scales = canary_alloc((size_t)n * 4, 0);
    for (int32_t t = 0; t < n; t++) {
        p.int_scales[t] = 0.001f * (float)(1 + t);
        for (int32_t c = 0; c < s.k; c++) {
            p.x[t * p.ldx + c] = random_normal() * (random_below(50) ? 1 : 20);
            p.ints[t * p.ldx + c] = (int8_t)(random_below(256) - 128);
        }
    }
    p.y = canary_alloc((size_t)(n * p.ldy) * 4, 0xff);
    p.first = canary_alloc((size_t)(n * p.ldy) * 4, 0xff);
    canary_free(codes);
    canary_free(scales);
    canary_free(zeros);
    canary_free(rows);
    return p;
}

static void drop(problem *p)
{
    void *all[] = {p->tiles, p->weights, p->x, p->y, p->first, p->ints, p->int_scales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) canary_free(all[i]);
}

/* Squared error over all tokens and rows, relative to the summed squares of the addends, so that cancellation does not
 * count; also that nothing beside y was written. */
static double relative_error(const problem *p, int type)
{
    double error = 0, total = 0;
    CHECK(canary_intact(p->y, (size_t)(p->n * p->ldy) * 4), "%s", where);
    for (int32_t t = 0; t < p->n; t++) {
        for (int32_t r = 0; r < p->shape.m; r++) {
            double sum = 0;
            for (int32_t c = 0; c < p->shape.k; c++) {
                const double x = type == TMAC_I8 ? p->ints[t * p->ldx + c] * (double)p->int_scales[t]
                                                 : (double)p->x[t * p->ldx + c];
                const double addend = x * (double)p->weights[(int64_t)r * p->shape.k + c];
                sum += addend;
                total += addend * addend;
            }
            const double d = sum - (double)p->y[t * p->ldy + r];
            error += d * d;
        }
        for (int64_t i = p->shape.m; i < p->ldy; i++) CHECK(isnan(p->y[t * p->ldy + i]), "%s", where);
    }
    return total > 0 ? error / total : error;
}

typedef struct {
    int type, tables;
    double bound; /* of the relative error; outliers in x make its int8 forms coarse */
} mode;

static const mode modes[] = {{TMAC_F32, TMAC_TABLES_INT8, 5e-3},
                             {TMAC_F32, TMAC_TABLES_FAST, HUGE_VAL}, /* test_specification has its bound */
                             {TMAC_F32, TMAC_TABLES_EXACT, 5e-3},
                             {TMAC_I8, TMAC_TABLES_EXACT, 1e-10}};

/* Returns 0 where the instruction set does not know these tables and says so. */
static int multiply(const problem *p, const tmac_matrix *matrix, mode how)
{
    const int known = how.tables != TMAC_TABLES_FAST || tmac_has_fast_aggregation();
    memset(p->y, 0xff, (size_t)(p->n * p->ldy) * 4);
    const void *x = how.type == TMAC_I8 ? (const void *)p->ints : p->x;
    const int status = tmac_matmul(matrix, x, how.type, p->ldx, how.type == TMAC_I8 ? p->int_scales : NULL, p->n,
                                   how.tables, p->y, p->ldy, matrix);
    CHECK(status == (known ? TMAC_OK : TMAC_ERR_ISA), "%s", where);
    return known;
}

/* Right on the first instruction set, the same bits on the others and with other numbers of threads. */
static void check_problem(problem *p)
{
    const size_t bytes = (size_t)(p->n * p->ldy) * 4;
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
        for (int isa = 0, n_done = 0; tmac_isa_name(isa); isa++) {
            if (!tmac_isa_supported(isa)) continue;
            for (int threads = 1; threads <= 3; threads += 2) {
                tmac_matrix *matrix = NULL;
                CHECK(tmac_init(tmac_isa_name(isa), threads) == TMAC_OK, "threads %d", threads);
                name_case(p, m, threads);
                CHECK(tmac_matrix_load(&p->shape, p->tiles, &matrix) == TMAC_OK, "%s", where);
                CHECK(tmac_matrix_bytes(matrix, NULL) == tmac_packed_size(&p->shape), "%s", where);
                const int done = multiply(p, matrix, modes[m]);
                tmac_matrix_free(matrix);
                if (!done) continue;
                if (n_done++ == 0) {
                    const double error = relative_error(p, modes[m].type);
                    CHECK(error <= modes[m].bound, "error %g; %s", error, where);
                    memcpy(p->first, p->y, bytes);
                }
                CHECK(!memcmp(p->first, p->y, bytes), "%s", where);
            }
        }
}

static void test_every_shape(void)
{
    static const int32_t rows[] = {1, 64, 67, 130}, columns[] = {1, 32, 130, 260}, tokens[] = {1, 2, 9};
    static const int32_t groups[] = {0, 32, 64, 128};
    for (int32_t bits = 1; bits <= 8; bits++)
        for (int32_t g = 0; g < 4; g++)
            for (int32_t i = 0; i < 6; i++) {
                const int32_t pick = random_below(48);
                problem p = make((tmac_shape){rows[pick % 4], columns[pick / 4 % 4], bits, groups[g], i % 2,
                                              (float)((1 << bits) - 1) / 2}, tokens[pick / 16]);
                check_problem(&p);
                drop(&p);
            }
}

/* More tokens than one pass takes, more columns than one panel of tables, more row blocks than threads. */
static void test_passes_and_panels(void)
{
    const tmac_shape shapes[] = {{70, 2700, 2, 128, 1, 0}, {70, 2700, 2, 0, 0, 1}, {400, 130, 4, 32, 0, 8}};
    const int32_t tokens[] = {63, 64, 65, 130};
    for (int s = 0; s < 3; s++)
        for (int t = 0; t < 4; t++) {
            if ((s == 0 && t != 1 && t != 2) || (s == 1 && t != 1)) continue; /* the long ones take a second each */
            problem p = make(shapes[s], tokens[t]);
            check_problem(&p);
            drop(&p);
        }
}

/* float16 activations give what their float32 values give. */
static void test_float16(void)
{
    problem p = make((tmac_shape){67, 130, 3, 64, 1, 0}, 3);
    uint16_t *half = canary_alloc((size_t)(p.n * p.ldx) * 2, 0xff);
    tmac_matrix *matrix;
    CHECK(tmac_init(NULL, 2) == TMAC_OK && tmac_matrix_load(&p.shape, p.tiles, &matrix) == TMAC_OK, "load");
    for (int32_t t = 0; t < p.n; t++)
        for (int32_t c = 0; c < p.shape.k; c++) {
            half[t * p.ldx + c] = tmac_half_of_float(p.x[t * p.ldx + c]);
            p.x[t * p.ldx + c] = tmac_float_of_half(half[t * p.ldx + c]);
        }
    for (int tables = 0; tables <= 1; tables++) {
        CHECK(tmac_matmul(matrix, p.x, TMAC_F32, p.ldx, NULL, p.n, tables, p.first, p.ldy, NULL) == TMAC_OK, "float32");
        CHECK(tmac_matmul(matrix, half, TMAC_F16, p.ldx, NULL, p.n, tables, p.y, p.ldy, NULL) == TMAC_OK, "float16");
        CHECK(!memcmp(p.first, p.y, (size_t)(p.n * p.ldy) * 4), "tables %d", tables);
    }
    tmac_matrix_free(matrix);
    canary_free(half);
    drop(&p);
}

/* Threads may read ahead in a matrix that is freed: the next one, or another; rows without end fill the memory. */
static void test_reading_ahead(void)
{
    CHECK(tmac_init(NULL, 4) == TMAC_OK, "four threads");
    for (int i = 0; i < 200; i++) {
        problem p = make((tmac_shape){1 + i % 4 * 700, 128, 1 + i % 4, 32, 0, 0}, 1);
        tmac_matrix *first = NULL, *next = NULL;
        CHECK(tmac_matrix_load(&p.shape, p.tiles, &first) == TMAC_OK, "load");
        CHECK(tmac_matrix_load(&p.shape, p.tiles, &next) == TMAC_OK, "load");
        for (int j = 0; j < 3; j++)
            CHECK(!tmac_matmul(first, p.x, TMAC_F32, p.ldx, NULL, 1, TMAC_TABLES_INT8, p.y, p.ldy, next), "product");
        tmac_matrix_free(next);
        CHECK(!tmac_matmul(first, p.x, TMAC_F32, p.ldx, NULL, 1, TMAC_TABLES_INT8, p.first, p.ldy, first), "product");
        CHECK(!memcmp(p.y, p.first, (size_t)p.shape.m * 4), "the same product");
        tmac_matrix_free(first);
        drop(&p);
    }
}

static void test_refusals(void)
{
    problem p = make((tmac_shape){67, 130, 2, 32, 1, 0}, 3);
    tmac_matrix *w = NULL;
    CHECK(tmac_init("nope", 1) == TMAC_ERR_ISA, "unknown instruction set");
    CHECK(tmac_init(NULL, 0) == TMAC_ERR_ARGUMENT && tmac_init(NULL, 100000) == TMAC_ERR_ARGUMENT, "threads");
    CHECK(tmac_init(NULL, 2) == TMAC_OK && tmac_n_threads() == 2, "best instruction set");
    for (int i = 0; tmac_isa_name(i); i++)
        if (!tmac_isa_supported(i)) CHECK(tmac_init(tmac_isa_name(i), 1) == TMAC_ERR_ISA, "%s", tmac_isa_name(i));
    CHECK(!tmac_isa_name(-1) && !tmac_isa_supported(99) && !tmac_isa_requires(99), "past the end");
    CHECK(tmac_matrix_load(NULL, p.tiles, &w) == TMAC_ERR_ARGUMENT, "no shape");
    CHECK(tmac_matrix_load(&p.shape, NULL, &w) == TMAC_ERR_ARGUMENT, "no tiles");
    CHECK(tmac_matrix_load(&p.shape, p.tiles, &w) == TMAC_OK, "load");
    tmac_matrix_free(NULL);
    const int64_t x = p.ldx, y = p.ldy;
    CHECK(tmac_matmul(NULL, p.x, TMAC_F32, x, NULL, 3, 0, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "no matrix");
    CHECK(tmac_matmul(w, p.x, TMAC_F32, x, NULL, 0, 0, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "no tokens");
    CHECK(tmac_matmul(w, p.x, TMAC_F32, 129, NULL, 3, 0, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "ldx");
    CHECK(tmac_matmul(w, p.x, TMAC_F32, x, NULL, 3, 0, p.y, 66, NULL) == TMAC_ERR_ARGUMENT, "ldy");
    CHECK(tmac_matmul(w, p.x, TMAC_F32, x, NULL, 3, 3, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "tables");
    CHECK(tmac_matmul(w, p.x, TMAC_F32, x, NULL, 3, -1, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "tables");
    CHECK(tmac_matmul(w, p.x, TMAC_BF16, x, NULL, 3, 0, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "type");
    CHECK(tmac_matmul(w, p.ints, TMAC_I8, x, NULL, 3, 0, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "int8 wants exact tables");
    CHECK(tmac_matmul(w, p.x, TMAC_F32, x, p.int_scales, 3, 1, p.y, y, NULL) == TMAC_ERR_ARGUMENT, "x_scales");
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int tables = 0; tables <= 1; tables++) {
            const float kept = p.x[x + 129];
            p.x[x + 129] = bad[i]; /* the last column, in a segment that is mostly padding */
            CHECK(tmac_matmul(w, p.x, TMAC_F32, x, NULL, 3, tables, p.y, y, NULL) == TMAC_ERR_NONFINITE, "%d", i);
            CHECK(tmac_matmul(w, p.x + x, TMAC_F32, x, NULL, 1, tables, p.y, y, NULL) == TMAC_ERR_NONFINITE, "%d", i);
            p.x[x + 129] = kept;
            CHECK(tmac_matmul(w, p.x, TMAC_F32, x, NULL, 3, tables, p.y, y, NULL) == TMAC_OK, "and works again");
        }
    for (int status = 0; status > -8; status--) CHECK(strcmp(tmac_status_text(status), "unknown status"), "%d", status);
    tmac_matrix_free(w);
    drop(&p);
}

int main(void)
{
    const tmac_shape shape = {1, 1, 1, 32, 0, 0};
    const uint8_t tiles[8192] = {0};
    tmac_matrix *matrix;
    CHECK(!tmac_isa_selected() && tmac_matrix_load(&shape, tiles, &matrix) == TMAC_ERR_ISA, "before tmac_init");
    test_every_shape();
    test_passes_and_panels();
    test_float16();
    test_reading_ahead();
    test_refusals();
    return tmac_init(NULL, 1);
}

/* Matrices over memory of the caller, tunings and plain reads: the same bits as a loaded matrix, on every instruction set;
 * refusals. */
#include "check.h"
#include "layout.h"

enum { N = 9 };

static const tmac_shape shapes[] = {{130, 260, 2, 32, 1, 0, TMAC_PLANES},
                                    {130, 260, 5, 0, 0, 3, TMAC_PLANES},
                                    {128, 128, 1, 128, 0, 1, TMAC_PLANES}, /* not a multiple of 8 streams */
                                    {200, 330, 2, 0, 0, 1, TMAC_TERNARY}};

static char where[100];

static uint8_t *make_tiles(const tmac_shape *s)
{
    uint8_t *codes = canary_alloc((size_t)(s->m * s->k), 0), *tiles = canary_alloc((size_t)tmac_packed_size(s), 0);
    const size_t n_scales = (size_t)s->m * (s->group_size ? (size_t)((s->k - 1) / s->group_size + 1) : 1);
    uint16_t *halves = canary_alloc(n_scales * 2, 0);
    float *floats = canary_alloc(n_scales * 4, 0);
    for (int32_t i = 0; i < s->m * s->k; i++)
        codes[i] = (uint8_t)random_below(s->encoding == TMAC_TERNARY ? 3 : 1 << s->bits);
    for (size_t i = 0; i < n_scales; i++) halves[i] = (uint16_t)(0x2c00 + random_below(1024)), floats[i] = 0.1f;
    CHECK(tmac_pack(s, 0, s->m, codes, s->group_size ? (void *)halves : floats, halves, tiles) == TMAC_OK, "pack");
    canary_free(codes);
    canary_free(halves);
    canary_free(floats);
    return tiles;
}

static void multiply(const tmac_matrix *matrix, const tmac_shape *s, const float *x, int32_t n, float *y)
{
    memset(y, 0xff, (size_t)(n * s->m) * 4);
    CHECK(tmac_matmul(matrix, x, TMAC_F32, s->k, NULL, n, 0, y, s->m, NULL) == TMAC_OK, "%s", where);
}

/* Views and tunings of one loaded matrix. */
static void check_shape(const tmac_shape *s)
{
    static const tmac_tuning tunings[] = {{0, 0}, {-1, 0}, {1 << 20, 1}, {64, 1 << 20}};
    const size_t bytes = (size_t)(N * s->m) * 4;
    uint8_t *tiles = make_tiles(s);
    float *x = canary_alloc((size_t)(N * s->k) * 4, 0), *want = canary_alloc(bytes, 0), *y = canary_alloc(bytes, 0);
    tmac_matrix *loaded, *view;
    int32_t slabs;
    for (int32_t i = 0; i < N * s->k; i++) x[i] = random_normal();
    CHECK(tmac_matrix_load(s, tiles, &loaded) == TMAC_OK, "%s", where);
    const int64_t n_bytes = tmac_matrix_bytes(loaded, NULL);
    uint8_t *data = canary_alloc((size_t)n_bytes, 0);
    memcpy(data, tmac_matrix_data(loaded, &slabs), (size_t)n_bytes);
    CHECK(tmac_matrix_view(s, data, n_bytes, slabs, &view) == TMAC_OK, "%s", where);
    for (int32_t n = 1; n <= N; n += N - 1) {
        multiply(loaded, s, x, n, want);
        for (size_t t = 0; t < sizeof tunings / sizeof *tunings; t++) {
            CHECK(tmac_matrix_tune(view, &tunings[t]) == TMAC_OK, "%s", where);
            multiply(view, s, x, n, y);
            CHECK(!memcmp(y, want, (size_t)(n * s->m) * 4), "tuning %zu, n %d, %s", t, n, where);
        }
    }
    if (tmac_matrix_keeps_order(s)) CHECK(!memcmp(data, tiles, (size_t)n_bytes) && slabs == 0, "%s", where);
    int64_t huge = 1;
    CHECK(tmac_matrix_bytes(view, &huge) == n_bytes && huge == 0, "%s", where);

    uint64_t sum = 0, found;
    for (int64_t i = 0; i < n_bytes; i += 8) sum ^= *(const uint64_t *)(data + i);
    for (int streams = 1; streams <= 8; streams *= 2)
        CHECK(tmac_matrix_read(view, streams, &found) == TMAC_OK && found == sum, "%d streams, %s", streams, where);
    tmac_matrix_free(view); /* the memory stays the caller's */
    CHECK(canary_intact(data, (size_t)n_bytes), "%s", where);

    CHECK(tmac_matrix_view(s, data + 32, n_bytes, slabs, &view) == TMAC_ERR_ARGUMENT, "not aligned, %s", where);
    CHECK(tmac_matrix_view(s, data, n_bytes - 64, slabs, &view) == TMAC_ERR_ARGUMENT, "too short, %s", where);
    CHECK(tmac_matrix_view(s, data, n_bytes + 64, slabs, &view) == TMAC_ERR_ARGUMENT, "too long, %s", where);
    for (int32_t wrong = -1; wrong < 1000; wrong += 500)
        if (wrong != slabs) CHECK(tmac_matrix_view(s, data, n_bytes, wrong, &view) < 0, "%d slabs, %s", wrong, where);
    tmac_matrix_free(loaded);
    void *all[] = {tiles, x, want, y, data};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) canary_free(all[i]);
}

static void test_refusals(void)
{
    static const tmac_tuning bad[] = {{-2, 0}, {(1 << 20) + 1, 0}, {0, -1}};
    uint8_t *tiles = make_tiles(shapes);
    tmac_matrix *matrix;
    uint64_t sum;
    CHECK(tmac_matrix_load(shapes, tiles, &matrix) == TMAC_OK, "load");
    for (int i = 0; i < 3; i++) CHECK(tmac_matrix_tune(matrix, &bad[i]) == TMAC_ERR_ARGUMENT, "tuning %d", i);
    CHECK(tmac_matrix_tune(matrix, NULL) < 0 && tmac_matrix_tune(NULL, bad) < 0, "nothing to tune");
    static const int streams[] = {-1, 0, 3, 5, 16};
    for (int i = 0; i < 5; i++) CHECK(tmac_matrix_read(matrix, streams[i], &sum) == TMAC_ERR_ARGUMENT, "%d", streams[i]);
    CHECK(tmac_matrix_view(NULL, tiles, 64, 0, &matrix) == TMAC_ERR_ARGUMENT, "no shape");
    CHECK(tmac_matrix_view(shapes, NULL, 64, 0, &matrix) == TMAC_ERR_ARGUMENT, "no memory");
    CHECK(!tmac_matrix_data(NULL, NULL) && !tmac_matrix_keeps_order(NULL), "nothing");
    CHECK(tmac_fork_join_time(0, 1) == TMAC_ERR_ARGUMENT && tmac_fork_join_time(1, -1) == TMAC_ERR_ARGUMENT, "no jobs");
    CHECK(tmac_fork_join_time(10, 1000) >= 10 * 1000, "every job works");
    CHECK(tmac_explain_bus_errors(NULL) == TMAC_ERR_ARGUMENT, "no message");
    tmac_matrix_free(matrix);
    canary_free(tiles);
}

int main(void)
{
    for (int isa = 0; tmac_isa_name(isa); isa++)
        for (int threads = 1; threads <= 3; threads += 2)
            for (int s = 0; s < 4; s++) {
                if (!tmac_isa_supported(isa)) continue;
                CHECK(tmac_init(tmac_isa_name(isa), threads) == TMAC_OK, "threads %d", threads);
                snprintf(where, sizeof where, "%s, %d threads, shape %d", tmac_isa_name(isa), threads, s);
                check_shape(&shapes[s]);
            }
    test_refusals();
    return tmac_init(NULL, 1);
}

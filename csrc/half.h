/* Conversions between float32 and the two 16-bit floats, without branches, for any CPU. */
#ifndef TMAC_HALF_H
#define TMAC_HALF_H
#include <stdint.h>
#include <string.h>

static inline float tmac_float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t tmac_bits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float tmac_float_of_bf16(uint16_t h) { return tmac_float_of_bits((uint32_t)h << 16); }

/* Exponent and mantissa move to their float32 place; 2^112 corrects the bias, for subnormals too. */
static inline float tmac_float_of_half(uint16_t h)
{
    const uint32_t magnitude = h & 0x7fffu, sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t finite = tmac_bits_of_float(tmac_float_of_bits(magnitude << 13) * 0x1p112f);
    return tmac_float_of_bits((magnitude >= 0x7c00u ? 0x7f800000u | magnitude << 13 : finite) | sign);
}

/* Rounds to nearest even; above 65519 infinity; NaN stays NaN. */
static inline uint16_t tmac_half_of_float(float f)
{
    const uint32_t bits = tmac_bits_of_float(f), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    const uint32_t normal = (rounded - 0x38000000u) >> 13;
    const uint32_t subnormal = tmac_bits_of_float(tmac_float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    return (uint16_t)(sign | (magnitude >= 0x47800000u ? special : finite));
}
#endif

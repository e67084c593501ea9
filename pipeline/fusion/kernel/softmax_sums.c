/* Softmax of logits, and weighted sums over the members of an ensemble, a few pixels at a time.

   The logits of LANES pixels of all classes stay in a core's first-level cache from their conversion to the label.
   Every pixel is computed alone, by the same operations in the same order, so that neither the vector width of a
   processor nor a pixel's neighbours change its bits; softmax.py has the same operations for NumPy. Products are
   fused with additions only where fmaf stands, so this is compiled with -ffp-contract=off.

   With a temperature T and scale = log2(e) / T, exp((z - max z) / T) is 2 to the power of (z - max z) * scale. That is
   2^k * 2^-g, with a whole k and g in [-0.5, 0.5] (Muller, Elementary Functions, 3rd edition, chapter 11), and 2^-g is
   a polynomial of fifth degree with the least maximum of the relative error, 1.8e-7 in single precision.
*/

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

#define LANES 128
#define PARTS 8
#define ROUNDER 12582912.0f /* 1.5 * 2^23: a sum with it has no digits behind the point */

enum { SOFTMAX, LOGITS, MINIMUM, MAXIMUM, KINDS };

/* What sums are computed of which pixels; rows of the same class are `stride` numbers apart. See library.py. */
struct job {
    int64_t members, classes, first, last;
    const void *const *logits;   /* of each member: (classes, pixels), uint16_t bits of halves, or float */
    const int64_t *strides;      /* of each member */
    const int32_t *halves;       /* of each member: whether its logits are halves */
    const float *temperatures, *scales, *shares; /* of each member */
    float *sums[KINDS];          /* (classes, pixels), NULL for those that are not kept */
    int64_t stride;              /* of the sums */
    int32_t needs;               /* bits of the sums that are computed */
    int32_t continues;           /* whether the kept sums hold those of members before */
    int32_t labelled;            /* the sum that the label is the highest class of, -1 for no label */
    uint8_t *label;              /* (pixels); as many as there are classes where the highest is NaN */
    float *highest;              /* (pixels) */
};

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
/* Too many rows are read at once for a processor to foresee the next lanes. */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#define INLINE static inline
#define PREFETCH(address)
#endif

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* A half's exponent is 112 less than a float's; the product is exact for denormal numbers, too. */
INLINE float float_of_half(uint16_t half)
{
    uint32_t rest = (half & 0x7fffu) << 13;
    uint32_t bits = bits_of(float_of(rest) * 0x1p112f);
    bits |= rest >= 0x0f800000u ? 0x7f800000u : 0u; /* infinity and NaN */
    return float_of(bits | (half & 0x8000u) << 16);
}

/* Rows of logits (classes, LANES), 0 in the lanes from `count` on. */
INLINE void read_logits(const void *logits, int64_t stride, int halves, int64_t classes, int64_t first, int64_t count,
                        float *restrict z)
{
    for (int64_t c = 0; c < classes; c++) {
        float *restrict row = z + c * LANES;
        if (halves) {
            const uint16_t *from = (const uint16_t *)logits + c * stride + first;
            uint16_t few[LANES] = {0};
            if (count < LANES)
                from = memcpy(few, from, (size_t)count * sizeof few[0]);
            PREFETCH(from + LANES);
            PREFETCH(from + LANES + LANES / 2);
            for (int i = 0; i < LANES; i++)
                row[i] = float_of_half(from[i]);
        } else {
            memset(row, 0, LANES * sizeof *row);
            memcpy(row, (const float *)logits + c * stride + first, (size_t)count * sizeof *row);
        }
    }
}

/* Powers 2^((z - max z) * scale) in place of z (classes, LANES), and 1 / their sum. A NaN makes all of its pixel NaN. */
INLINE void powers(float *restrict z, int64_t classes, float scale, float *restrict work, float *restrict inverse)
{
    float *restrict highest = inverse;
    memcpy(highest, z, LANES * sizeof *z);
    for (int64_t c = 1; c < classes; c++) {
        const float *restrict row = z + c * LANES;
        for (int i = 0; i < LANES; i++)
            highest[i] = row[i] > highest[i] ? row[i] : highest[i];
    }
    memset(work, 0, PARTS * LANES * sizeof *work);
    for (int64_t c = 0; c < classes; c++) {
        float *restrict row = z + c * LANES;
        float *restrict part = work + c % PARTS * LANES;
        for (int i = 0; i < LANES; i++) {
            float t = (row[i] - highest[i]) * scale;
            t = t < -150.0f ? -150.0f : t; /* 2^-150 becomes 0 */
            float rounded = t + ROUNDER;
            float k = rounded - ROUNDER;
            float g = k - t;
            float r = g * -0x1.5b7694p-10f;
            r = r + 0x1.3cee94p-7f;
            r = r * g - 0x1.c6b846p-5f;
            r = r * g + 0x1.ebf9aep-3f;
            r = r * g - 0x1.62e428p-1f;
            r = r * g + 1.0f;
            /* The last digits of `rounded` are k, which becomes an exponent; denormal numbers come last. */
            row[i] = r * float_of((bits_of(rounded) << 23) + (191u << 23)) * 0x1p-64f;
            part[i] += row[i];
        }
    }
    for (int half = PARTS / 2; half > 0; half /= 2)
        for (int i = 0; i < half * LANES; i++)
            work[i] += work[i + half * LANES];
    for (int i = 0; i < LANES; i++)
        inverse[i] = 1.0f / work[i];
}

/* Add a member's row of logits to a sum's row. */
INLINE void add_logits(int begins, float share, float temperature, const float *restrict z, float *restrict sum)
{
    float row[LANES];
    memcpy(row, z, sizeof row);
    if (temperature != 1.0f)
        for (int i = 0; i < LANES; i++)
            row[i] /= temperature;
    if (begins)
        for (int i = 0; i < LANES; i++)
            sum[i] = row[i] * share;
    else
        for (int i = 0; i < LANES; i++)
            sum[i] = fmaf(row[i], share, sum[i]);
}

/* Add a member's row of probabilities, power * inverse, to a sum's row; NaN stays NaN. */
INLINE void add_probabilities(int kind, int begins, float share, const float *restrict power,
                              const float *restrict inverse, float *restrict sum)
{
    if (begins && kind == SOFTMAX)
        for (int i = 0; i < LANES; i++)
            sum[i] = power[i] * inverse[i] * share;
    else if (kind == SOFTMAX)
        for (int i = 0; i < LANES; i++)
            sum[i] = fmaf(power[i] * inverse[i], share, sum[i]);
    else if (begins)
        for (int i = 0; i < LANES; i++)
            sum[i] = power[i] * inverse[i];
    else
        for (int i = 0; i < LANES; i++) {
            float p = power[i] * inverse[i];
            int takes = kind == MINIMUM ? p < sum[i] : p > sum[i];
            sum[i] = takes | (p != p) ? p : sum[i];
        }
}

/* The first class of the highest score, and that score; NaN is higher than any. */
INLINE void first_highest(const float *restrict scores, int64_t classes, int64_t count, uint8_t *label, float *highest)
{
    float best[LANES];
    uint8_t found[LANES];
    int32_t which[LANES];
    memcpy(best, scores, sizeof best);
    memset(which, 0, sizeof which);
    for (int64_t c = 1; c < classes; c++) {
        const float *restrict row = scores + c * LANES;
        for (int i = 0; i < LANES; i++) {
            int higher = (row[i] > best[i]) | (row[i] != row[i]);
            best[i] = higher ? row[i] : best[i];
            which[i] = higher ? (int32_t)c : which[i];
        }
    }
    for (int i = 0; i < LANES; i++)
        found[i] = (uint8_t)(best[i] != best[i] ? (int32_t)classes : which[i]);
    memcpy(label, found, (size_t)count * sizeof *label);
    memcpy(highest, best, (size_t)count * sizeof *highest);
}

INLINE int add_members(const struct job *job)
{
    const int64_t classes = job->classes, plane = classes * LANES;
    float *room = malloc((size_t)(plane * (1 + KINDS) + (PARTS + 1) * LANES) * sizeof *room);
    if (room == NULL)
        return -1;
    float *z = room, *sums = z + plane, *work = sums + KINDS * plane;
    float *inverse = work + PARTS * LANES;
    for (int64_t first = job->first; first < job->last; first += LANES) {
        const int64_t left = job->last - first, count = left < LANES ? left : LANES;
        for (int kind = 0; job->continues && kind < KINDS; kind++)
            for (int64_t c = 0; (job->needs >> kind & 1) && c < classes; c++)
                memcpy(sums + kind * plane + c * LANES, job->sums[kind] + c * job->stride + first,
                       (size_t)count * sizeof *sums);
        for (int64_t m = 0; m < job->members; m++) {
            const int begins = m == 0 && !job->continues;
            const float share = job->shares[m];
            read_logits(job->logits[m], job->strides[m], job->halves[m], classes, first, count, z);
            for (int64_t c = 0; (job->needs >> LOGITS & 1) && c < classes; c++)
                add_logits(begins, share, job->temperatures[m], z + c * LANES, sums + LOGITS * plane + c * LANES);
            if (job->needs == 1 << LOGITS)
                continue;
            powers(z, classes, job->scales[m], work, inverse);
            for (int kind = 0; kind < KINDS; kind++)
                for (int64_t c = 0; kind != LOGITS && (job->needs >> kind & 1) && c < classes; c++)
                    add_probabilities(kind, begins, share, z + c * LANES, inverse,
                                      sums + kind * plane + c * LANES);
        }
        for (int kind = 0; kind < KINDS; kind++)
            for (int64_t c = 0; job->sums[kind] != NULL && c < classes; c++)
                memcpy(job->sums[kind] + c * job->stride + first, sums + kind * plane + c * LANES,
                       (size_t)count * sizeof *sums);
        if (job->labelled >= 0)
            first_highest(sums + job->labelled * plane, classes, count, job->label + first, job->highest + first);
    }
    free(room);
    return 0;
}

/* Where fmaf is one instruction; elsewhere PyTorch is faster. */
#if defined(__x86_64__) && defined(__GNUC__)

__attribute__((target("avx2,fma"))) static int add_members_avx2(const struct job *job)
{
    return add_members(job);
}

PUBLIC int hmsa_is_usable(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

PUBLIC int hmsa_add_members(const struct job *job)
{
    return add_members_avx2(job);
}

#elif defined(FP_FAST_FMAF)

PUBLIC int hmsa_is_usable(void)
{
    return FLT_EVAL_METHOD == 0;
}

PUBLIC int hmsa_add_members(const struct job *job)
{
    return add_members(job);
}

#else

PUBLIC int hmsa_is_usable(void)
{
    return 0;
}

PUBLIC int hmsa_add_members(const struct job *job)
{
    (void)job;
    return -1;
}

#endif

/* Of this file, to tell a library that was built from another version. */
PUBLIC uint32_t hmsa_source_crc32(void)
{
    return SOURCE_CRC32;
}

/* tables.h - code books on their way to the device. Private to cuda/. */
#ifndef DSV4_CUDA_TABLES_H
#define DSV4_CUDA_TABLES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of IQ2_XXS's words in shared memory: for many tokens; for few, whose book may have fewer. */
enum { CU_IQ2_COPIES = 8, CU_IQ2_LANES = 32, CU_IQ2_FEW = 16 };

/* A book, then signs, as they lie in shared memory. */
typedef struct {
    uint32_t many[(256 + 128) * CU_IQ2_COPIES];
    uint32_t lanes[(256 + 128) * CU_IQ2_LANES];
    uint32_t few[256 * CU_IQ2_FEW + 128 * CU_IQ2_LANES];
} cu_iq2_tables;

void cu_iq2_xxs_book(uint64_t book[256]); /* eight bytes an entry */
/* A nibble a column: levels 0, 1, 2 of the book's entries; 4 where the sign byte has a bit. Every
 * word several times, beside each other: [256][book_copies], then signs [128][sign_copies]. */
void cu_iq2_xxs_words(uint32_t *words, int book_copies, int sign_copies);

#ifdef __cplusplus
}
#endif

#endif

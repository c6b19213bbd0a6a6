/* tables.h - code books on their way to the device. Private to cuda/. */
#ifndef DSV4_CUDA_TABLES_H
#define DSV4_CUDA_TABLES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CU_IQ2_COPIES = 8 }; /* of IQ2_XXS's words in shared memory */

void cu_iq2_xxs_book(uint64_t book[256]); /* eight bytes an entry */
/* A nibble a column: levels 0, 1, 2 of the book's entries; 4 where the sign byte has a bit. Every
 * word is there `copies` times: book [256][copies], signs [128][copies]. */
void cu_iq2_xxs_words(uint32_t *book, uint32_t *signs, int copies);

#ifdef __cplusplus
}
#endif

#endif

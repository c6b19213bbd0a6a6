/* tables.h - code books on their way to the device. Private to cuda/. */
#ifndef DSV4_CUDA_TABLES_H
#define DSV4_CUDA_TABLES_H

#include <stdint.h>

typedef struct {
    uint16_t book[256][8]; /* bf16 values */
    uint16_t signs[128][8];
} cu_iq2_tables;

void cu_iq2_xxs_book(uint64_t book[256]); /* eight bytes an entry */
void cu_iq2_xxs_tables(cu_iq2_tables *t);
/* A nibble a column: levels 0, 1, 2 of the book's entries; 4 where the sign byte has a bit. Every
 * word is there `copies` times: book [256][copies], signs [128][copies]. */
void cu_iq2_xxs_words(uint32_t *book, uint32_t *signs, int copies);

#endif

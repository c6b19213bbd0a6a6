/* write_metadata.h - the metadata section of a GGUF file, as write_gguf.c puts it in front. */
#ifndef DSV4_WRITE_METADATA_H
#define DSV4_WRITE_METADATA_H

#include "recipes.h"

/* Bytes that grow; `status` keeps the first failure, so that callers check once. */
typedef struct {
    uint8_t *data;
    size_t size, capacity;
    uint64_t keys; /* written so far */
    dsv4_status status;
    dsv4_error *err;
} byte_buffer;

void buffer_append(byte_buffer *b, const void *data, size_t n);
void buffer_u32(byte_buffer *b, uint32_t v);
void buffer_u64(byte_buffer *b, uint64_t v);
void buffer_string(byte_buffer *b, const char *s); /* u64 length, then the bytes */
void buffer_free(byte_buffer *b);

void key_u16(byte_buffer *b, const char *key, uint16_t v);
void key_u32(byte_buffer *b, const char *key, uint32_t v);
void key_i32(byte_buffer *b, const char *key, int32_t v);
void key_string(byte_buffer *b, const char *key, const char *v);

/* general.*, deepseek4.*, tokenizer.*, quantize.*: the keys of the published files. The tokenizer
 * is the source's: the keys of a GGUF file, tokenizer.json beside a config.json, else none. */
void write_model_keys(byte_buffer *b, const model_output *o);

/* A small file beside the source's config.json (or in its directory); false = there is none. */
bool source_file(const dsv4_model *source, const char *name, char *path, size_t room);

#endif

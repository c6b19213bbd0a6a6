/* metadata.h - what a model file says about itself besides its tensors: the keys of a GGUF file.
 * Other containers have none; their config.json is read by dsv4_config_parse. */
#ifndef DSV4_METADATA_H
#define DSV4_METADATA_H

#include "../dsv4.h"

/* Every key in the file's order, until `each` returns false. `type` is as in "u32" or "arr[str]";
 * `value` is text of at most 120 characters, arrays shortened, control characters as '?'. */
void dsv4_model_each_key(const dsv4_model *m,
                         bool (*each)(void *ctx, const char *key, const char *type,
                                      const char *value),
                         void *ctx);

/* One key's value as it lies in the file, little-endian (strings: u64 length, then bytes; arrays:
 * their items, one after the other). */
typedef struct {
    int type;       /* GGUF's number of the value's type; 9 = array */
    int item_type;  /* arrays: type of the items; else = type */
    uint64_t count; /* arrays: number of items; else 1 */
    const uint8_t *data;
    uint64_t bytes;
} dsv4_key_value;

/* False when the model has no such key. The data lives as long as the model. */
bool dsv4_model_key(const dsv4_model *m, const char *key, dsv4_key_value *out);

#endif

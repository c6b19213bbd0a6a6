/* fuzz_config.c - config.json text: parsed, written back, parsed again to the same thing. */
#include <string.h>

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dsv4_error err = {""};
    dsv4_config a, b;
    char *text = NULL;
    if (dsv4_config_parse((const char *)data, size, "config.json", &a, &err) != DSV4_OK) {
        if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL)
            abort(); /* bad input gets one line */
        return 0;
    }
    if (dsv4_config_write(&a, &text, &err) != DSV4_OK ||
        dsv4_config_parse(text, strlen(text), "again", &b, &err) != DSV4_OK ||
        a.hidden_size != b.hidden_size || a.num_hidden_layers != b.num_hidden_layers ||
        a.yarn_factor != b.yarn_factor || a.index_topk != b.index_topk)
        abort();
    dsv4_config_free(&a);
    dsv4_config_free(&b);
    free(text);
    return 0;
}

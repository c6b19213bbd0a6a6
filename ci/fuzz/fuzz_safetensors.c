/* fuzz_safetensors.c - a safetensors file beside a valid config.json. The first byte chooses: the
 * input is the weight file, or a weight index that names it. */
#include <string.h>

#include "fuzz.h"

#ifndef SEED_CONFIG
#error "SEED_CONFIG is the path of the seeds' config.json"
#endif

static void install_config(void)
{
    static bool done;
    char path[256], text[8192];
    if (done)
        return;
    FILE *f = fopen(SEED_CONFIG, "rb");
    if (f == NULL)
        abort();
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    fuzz_file("config.json", text, n, path);
    done = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[256], index[256];
    install_config();
    if (size == 0)
        return 0;
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", fuzz_folder());
    if (data[0] == '{') { /* JSON: an index */
        fuzz_file("model.safetensors.index.json", data, size, path);
        fuzz_model(fuzz_folder());
        unlink(index);
        return 0;
    }
    fuzz_file("model.safetensors", data, size, path);
    fuzz_model(path);
    return 0;
}

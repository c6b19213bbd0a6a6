/* fuzz_gguf.c - a GGUF file, whole. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[256];
    fuzz_file("model.gguf", data, size, path);
    fuzz_model(path);
    return 0;
}

/* digest.c - sha256 of a file. */
#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "harness/harness.h"

#define BLOCK ((size_t)1 << 20)

/* The digest of a stream as 64 hex digits. */
static dsv4_status digest_stream(FILE *file, const char *path, char hex[65], dsv4_error *err)
{
    dsv4_status status = DSV4_E_MACHINE;
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    unsigned char *block = dsv4_alloc(BLOCK, 1, "read buffer", err);
    if (!block)
        goto done;
    if (!context || EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1) {
        dsv4_fail(err, status, "%s: cannot compute sha256: the crypto library refused", path);
        goto done;
    }
    for (size_t n = BLOCK; n == BLOCK;) {
        errno = 0;
        n = fread(block, 1, BLOCK, file);
        if (n < BLOCK && ferror(file)) {
            dsv4_fail(err, status, "%s: cannot read it: %s", path, strerror(errno));
            goto done;
        }
        if (n && EVP_DigestUpdate(context, block, n) != 1) {
            dsv4_fail(err, status, "%s: cannot compute sha256: the crypto library refused", path);
            goto done;
        }
    }
    if (EVP_DigestFinal_ex(context, digest, &length) != 1 || length != 32) {
        dsv4_fail(err, status, "%s: cannot compute sha256: the crypto library refused", path);
        goto done;
    }
    for (unsigned i = 0; i < length; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    status = DSV4_OK;
done:
    EVP_MD_CTX_free(context);
    free(block);
    return status;
}

dsv4_status file_sha256(const char *path, char hex[65], dsv4_error *err)
{
    struct stat info;
    hex[0] = '\0';
    FILE *file = fopen(path, "rb");
    if (!file) {
        int code = errno;
        bool machine = code == EIO || code == ENOMEM || code == EMFILE || code == ENFILE;
        return dsv4_fail(err, machine ? DSV4_E_MACHINE : DSV4_E_INPUT, "%s: cannot open it: %s",
                         path, strerror(code));
    }
    if (fstat(fileno(file), &info) == 0 && S_ISDIR(info.st_mode)) {
        fclose(file);
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected a file, found a directory", path);
    }
    dsv4_status status = digest_stream(file, path, hex, err);
    fclose(file);
    return status;
}

/* Finds the default model that the golden data was made with, for tests that need its vocabulary.
 */
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The path where scripts/get-model keeps it; false, and a line that says so, if it is not there. */
static inline bool golden_model(char path[4096]) {
    const char *file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    const char *folder = getenv("BATON_CACHE"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    if (folder)
        snprintf(path, 4096, "%s/%s", folder, file);
    else if (cache)
        snprintf(path, 4096, "%s/baton/%s", cache, file);
    else
        snprintf(path, 4096, "%s/.cache/baton/%s", home ? home : "", file);
    if (access(path, R_OK) == 0)
        return true;
    printf("skipped: %s is not there (scripts/get-model)\n", path);
    return false;
}

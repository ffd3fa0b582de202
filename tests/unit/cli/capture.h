/* Runs a command with its standard output or error going to a file, and reads that back. */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CAPTURE_BYTES = 1 << 16 };

/* The exit code of run(argc, argv); what it wrote on `fd` is in out, NUL-terminated. */
static inline int capture(int fd, int (*run)(int argc, char **argv), char **argv,
                          char out[CAPTURE_BYTES]) {
    int argc = 0;
    while (argv[argc])
        argc++;
    FILE *file = tmpfile();
    fflush(stdout);
    int saved = dup(fd);
    if (!file || saved < 0 || dup2(fileno(file), fd) < 0)
        abort();
    int code = run(argc, argv);
    fflush(stdout);
    dup2(saved, fd);
    close(saved);
    rewind(file);
    out[fread(out, 1, CAPTURE_BYTES - 1, file)] = 0;
    fclose(file);
    return code;
}

/* Reads expected results: JSON by jansson, and the F32 and I64 tensors of a safetensors file. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "common/base/bytes.h"

struct tensor_file {
    uint8_t *bytes;
    size_t n_bytes;
    json_t *header;
};

static inline struct tensor_file open_tensor_file(const char *path) {
    struct tensor_file file = {0};
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    file.n_bytes = (size_t)ftell(f);
    rewind(f);
    file.bytes = malloc(file.n_bytes);
    assert_non_null(file.bytes);
    assert_int_equal(fread(file.bytes, 1, file.n_bytes, f), file.n_bytes);
    fclose(f);
    uint64_t n_header = bt_load_u64(file.bytes);
    assert_true(file.n_bytes > 8 && n_header <= file.n_bytes - 8);
    json_error_t error;
    file.header = json_loadb((const char *)file.bytes + 8, n_header, 0, &error);
    if (!file.header)
        fail_msg("%s: %s", path, error.text);
    return file;
}

/* The first value of an F32 tensor of n_elements; borrowed from the file. */
static inline const float *tensor_f32(const struct tensor_file *file, const char *name,
                                      size_t n_elements) {
    json_t *entry = json_object_get(file->header, name);
    if (!entry)
        fail_msg("no tensor %s", name);
    assert_string_equal(json_string_value(json_object_get(entry, "dtype")), "F32");
    json_t *offsets = json_object_get(entry, "data_offsets");
    size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t end = (size_t)json_integer_value(json_array_get(offsets, 1));
    size_t start = 8 + (size_t)bt_load_u64(file->bytes);
    assert_int_equal(end - begin, n_elements * sizeof(float));
    assert_true(start + end <= file->n_bytes && (start + begin) % sizeof(float) == 0);
    return (const float *)(const void *)(file->bytes + start + begin);
}

static inline void close_tensor_file(struct tensor_file *file) {
    json_decref(file->header);
    free(file->bytes);
}

static inline json_t *open_json(const char *path) {
    json_error_t error;
    json_t *json = json_load_file(path, 0, &error);
    if (!json)
        fail_msg("%s, line %d: %s", path, error.line, error.text);
    return json;
}

/* An array of integers under a key; free it. */
static inline int32_t *json_ids(const json_t *object, const char *key, uint32_t *n) {
    json_t *array = json_object_get(object, key);
    assert_true(json_is_array(array));
    *n = (uint32_t)json_array_size(array);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static inline double json_number_at(const json_t *object, const char *key, size_t i) {
    json_t *value = json_array_get(json_object_get(object, key), i);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

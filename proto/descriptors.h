/* The descriptors of the public services, made from the .proto files when Baton is built. */
#pragma once
#include <stddef.h>

/* A FileDescriptorSet with one FileDescriptorProto in it. */
struct bt_descriptor_set {
    const unsigned char *bytes;
    size_t n_bytes;
};

extern const struct bt_descriptor_set bt_descriptor_sets[];
extern const unsigned bt_n_descriptor_sets;

/* Finds files and symbols in the descriptors that were made when Baton was built. */
#include "common/rpc/public_reflection.h"

#include <grpc/status.h>
#include <stdlib.h>
#include <string.h>

#include "common/rpc/public_status.h"
#include "proto/descriptors.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest request_message;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_message;

enum { SERVICES_MAX = 16, NAME_BYTES = 256, WIRE_BYTES = 2 };

/* Fields of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    SERVICE_METHOD = 2,
};

struct span {
    const uint8_t *data;
    size_t n;
};

/* ---- reading our own descriptors: trusted, but read within bounds all the same ---- */

static bool read_varint(struct span *in, uint64_t *out) {
    *out = 0;
    for (unsigned shift = 0; in->n && shift < 64; shift += 7) {
        uint8_t byte = *in->data++;
        in->n--;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* The next field that has a length; others are skipped. False at the end. */
static bool next_field(struct span *in, uint32_t *field, struct span *value) {
    uint64_t key, n;
    while (read_varint(in, &key)) {
        if (!read_varint(in, &n))
            return false;
        if ((key & 7) != WIRE_BYTES)
            continue; /* descriptors have numbers as varints only */
        if (n > in->n)
            return false;
        *field = (uint32_t)(key >> 3);
        *value = (struct span){in->data, (size_t)n};
        in->data += n;
        in->n -= (size_t)n;
        return true;
    }
    return false;
}

static struct span first_of(struct span in, uint32_t wanted) {
    uint32_t field;
    struct span value;
    while (next_field(&in, &field, &value))
        if (field == wanted)
            return value;
    return (struct span){(const uint8_t *)"", 0};
}

static struct span file_of(unsigned i) {
    const struct bt_descriptor_set *set = &bt_descriptor_sets[i];
    return first_of((struct span){set->bytes, set->n_bytes}, SET_FILE);
}

static bool equal(struct span a, struct span b) {
    return a.n == b.n && (!a.n || memcmp(a.data, b.data, a.n) == 0);
}

/* Takes "name" or "name." off the front of *rest; *more says whether a '.' followed. */
static bool take_name(struct span *rest, struct span name, bool *more) {
    if (!name.n || rest->n < name.n || memcmp(rest->data, name.data, name.n) != 0)
        return false;
    *more = rest->n > name.n;
    if (*more && rest->data[name.n] != '.')
        return false;
    size_t n = name.n + *more;
    *rest = (struct span){rest->data + n, rest->n - n};
    return true;
}

/* A member of a message or service with this name, `members` deep. */
static bool has_member(struct span of, struct span name, uint32_t kind_a, uint32_t kind_b) {
    uint32_t field;
    struct span value;
    while (next_field(&of, &field, &value))
        if ((field == kind_a || field == kind_b) && equal(first_of(value, ANY_NAME), name))
            return true;
    return false;
}

/* symbol: of a service, method, message, enum, or of what is nested once in a message. */
static bool file_has(struct span file, struct span symbol) {
    uint32_t field;
    struct span value;
    bool more;
    if (!take_name(&symbol, first_of(file, FILE_PACKAGE), &more) || !more)
        return false;
    for (struct span in = file; next_field(&in, &field, &value);) {
        struct span rest = symbol;
        if (field != FILE_MESSAGE && field != FILE_ENUM && field != FILE_SERVICE)
            continue;
        if (!take_name(&rest, first_of(value, ANY_NAME), &more))
            continue;
        if (!more)
            return true;
        if (field == FILE_SERVICE && has_member(value, rest, SERVICE_METHOD, SERVICE_METHOD))
            return true;
        if (field == FILE_MESSAGE && has_member(value, rest, MESSAGE_NESTED, MESSAGE_ENUM))
            return true;
    }
    return false;
}

/* ---- answers ---- */

static void send_response(struct bt_public_call *call, response_message *response,
                          request_message *request) {
    response->valid_host = request->host;
    response->original_request = request;
    size_t n = grpc__reflection__v1__server_reflection_response__get_packed_size(response);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) {
        bt_public_fail(call, &(struct bt_public_fault){.code = GRPC_STATUS_RESOURCE_EXHAUSTED,
                                                       .message = "no memory for an answer",
                                                       .reason = "",
                                                       .field = ""});
        return;
    }
    grpc__reflection__v1__server_reflection_response__pack(response, bytes);
    bt_public_send(call, bytes, n);
    free(bytes);
}

static void send_error(struct bt_public_call *call, request_message *request, const char *text) {
    response_message response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = GRPC_STATUS_NOT_FOUND;
    error.error_message = (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response.error_response = &error;
    send_response(call, &response, request);
}

/* None of our files imports another, so a file is described by itself alone. */
static void send_file(struct bt_public_call *call, request_message *request, unsigned i) {
    response_message response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1__FileDescriptorResponse files =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    struct span file = file_of(i);
    ProtobufCBinaryData bytes = {file.n, (uint8_t *)(uintptr_t)file.data};
    files.n_file_descriptor_proto = 1;
    files.file_descriptor_proto = &bytes;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response.file_descriptor_response = &files;
    send_response(call, &response, request);
}

static void send_services(struct bt_public_call *call, request_message *request) {
    response_message response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1__ListServiceResponse list =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    Grpc__Reflection__V1__ServiceResponse rows[SERVICES_MAX], *pointers[SERVICES_MAX];
    char names[SERVICES_MAX][NAME_BYTES];
    size_t n = 0;
    for (unsigned i = 0; i < bt_n_descriptor_sets; i++) {
        struct span file = file_of(i), package = first_of(file, FILE_PACKAGE), value;
        uint32_t field;
        for (struct span in = file; next_field(&in, &field, &value) && n < SERVICES_MAX;) {
            struct span name = first_of(value, ANY_NAME);
            if (field != FILE_SERVICE || package.n + 1 + name.n > NAME_BYTES)
                continue;
            memcpy(names[n], package.data, package.n);
            names[n][package.n] = '.';
            memcpy(names[n] + package.n + 1, name.data, name.n);
            grpc__reflection__v1__service_response__init(&rows[n]);
            rows[n].name = (ProtobufCBinaryData){package.n + 1 + name.n, (uint8_t *)names[n]};
            pointers[n] = &rows[n];
            n++;
        }
    }
    list.n_service = n;
    list.service = pointers;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response.list_services_response = &list;
    send_response(call, &response, request);
}

static struct span text_of(ProtobufCBinaryData text) {
    return (struct span){text.data, text.len};
}

/* Which file has it; bt_n_descriptor_sets: none. */
static unsigned find_symbol(ProtobufCBinaryData symbol) {
    unsigned i = 0;
    while (i < bt_n_descriptor_sets && !file_has(file_of(i), text_of(symbol)))
        i++;
    return i;
}

static unsigned find_file(ProtobufCBinaryData name) {
    unsigned i = 0;
    while (i < bt_n_descriptor_sets && !equal(first_of(file_of(i), FILE_NAME), text_of(name)))
        i++;
    return i;
}

/* Proto3 has no extensions of messages like ours: of a known type there are none. */
static void send_extensions(struct bt_public_call *call, request_message *request) {
    response_message response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1__ExtensionNumberResponse numbers =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    numbers.base_type_name = request->all_extension_numbers_of_type;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    response.all_extension_numbers_response = &numbers;
    send_response(call, &response, request);
}

static void answer(struct bt_public_call *call, request_message *request) {
    unsigned i = bt_n_descriptor_sets;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        send_services(call, request);
        return;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        i = find_file(request->file_by_filename);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        i = find_symbol(request->file_containing_symbol);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        if (find_symbol(request->all_extension_numbers_of_type) < bt_n_descriptor_sets) {
            send_extensions(call, request);
            return;
        }
        break;
    default: /* an extension, or nothing at all */
        break;
    }
    if (i < bt_n_descriptor_sets)
        send_file(call, request, i);
    else
        send_error(call, request, "there is no such file, symbol or extension");
}

void bt_public_reflect(struct bt_public_call *call, const uint8_t *bytes, size_t n_bytes) {
    request_message *request =
        grpc__reflection__v1__server_reflection_request__unpack(NULL, n_bytes, bytes);
    if (!request) {
        bt_public_fail(call, &(struct bt_public_fault){
                                 .code = GRPC_STATUS_INVALID_ARGUMENT,
                                 .message = "the message is not a ServerReflectionRequest",
                                 .reason = "",
                                 .field = ""});
        return;
    }
    answer(call, request);
    grpc__reflection__v1__server_reflection_request__free_unpacked(request, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's configuration on its way from the supervisor to a worker: lines of key=value, with
 * \xx (two hexadecimal digits) for a backslash and for control characters. Every field appears
 * exactly once; a device type's own keys appear as "key.<name>", if they were set, and those of its
 * parts as "part.<part>.<name>".
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_file.h"

#define TEXT_BYTES_MAX (64u * 1024u)
#define KEY_PREFIX "key."
#define PART_PREFIX "part." /* "part.<part>.<key>" */
#define VIRTIO_ID_BLOCK 2u

/* A number in struct device_config. */
struct field {
    const char *name;
    size_t offset, size;
    uint64_t min, max;
    bool power_of_two;
    bool block; /* only block devices have it */
    bool optional; /* 0 if it is missing: a version before this one wrote the text */
};

#define FIELD(name, member, min, max, power_of_two, block)                                         \
    {                                                                                              \
        name, offsetof(struct device_config, member),                                              \
            sizeof(((struct device_config *)0)->member), min, max, power_of_two, block, false      \
    }

static const struct field fields[] = {
    FIELD("virtio-id", virtio_id, 1, 63, false, false),
    FIELD("base", base, 0x200, UINT64_C(0xfffffffffe00), false, false),
    FIELD("irq", irq, 32, 1019, false, false),
    FIELD("grant-usage", grant_usage, 0, 1, false, false),
    FIELD("vcpus", n_vcpus, 0, 4096, false, false), /* 0: the worker finds out */
    FIELD("block.size", block.size, 0, INT64_MAX, false, true),
    FIELD("block.logical-block", block.logical_block, 512, 65536, true, true),
    FIELD("block.physical-block", block.physical_block, 512, 1u << 31, true, true),
    FIELD("block.optimal-io", block.optimal_io, 0, UINT32_MAX, false, true),
    FIELD("block.discard-granularity", block.discard_granularity, 0, UINT32_MAX, false, true),
    FIELD("block.is-block-device", block.is_block_device, 0, 1, false, true),
    FIELD("block.read-only", block.read_only, 0, 1, false, true),
    FIELD("block.can-write-zeroes", block.can_write_zeroes, 0, 1, false, true),
    FIELD("block.can-secure-erase", block.can_secure_erase, 0, 1, false, true),
    FIELD("block.write-through", block.write_through, 0, 1, false, true),
    FIELD("block.cache", block.cache, BLOCK_CACHE_NONE, BLOCK_CACHE_WRITEBACK, false, true),
    {"block.identity", offsetof(struct device_config, block.identity), sizeof(uint64_t), 0, UINT64_MAX,
     false, true, true},
};
static_assert(ARRAY_SIZE(fields) < 32, "one bit each in a uint32_t");

static uint64_t field_get(const struct device_config *config, const struct field *field)
{
    const char *p = (const char *)config + field->offset;
    uint64_t value = 0;

    switch (field->size) {
    case 1: value = *(const uint8_t *)p; break;
    case 2: value = *(const uint16_t *)(const void *)p; break;
    case 4: value = *(const uint32_t *)(const void *)p; break;
    case 8: value = *(const uint64_t *)(const void *)p; break;
    default: assert(false && "a field of this size");
    }
    return value;
}

static void field_set(struct device_config *config, const struct field *field, uint64_t value)
{
    char *p = (char *)config + field->offset;

    switch (field->size) {
    case 1: *(uint8_t *)p = (uint8_t)value; break;
    case 2: *(uint16_t *)(void *)p = (uint16_t)value; break;
    case 4: *(uint32_t *)(void *)p = (uint32_t)value; break;
    case 8: *(uint64_t *)(void *)p = value; break;
    default: assert(false && "a field of this size");
    }
}

static bool field_valid(const struct field *field, uint64_t value)
{
    return value >= field->min && value <= field->max &&
           (!field->power_of_two || (value & (value - 1)) == 0);
}

static bool name_valid(const char *name)
{
    size_t len = strlen(name);

    if (len == 0 || len >= sizeof(((struct device_config *)0)->name))
        return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("-_.", *name))
            return false;
    return true;
}

/* ---- encode ---- */

struct writer {
    char *out;
    size_t len, used;
    bool full;
};

static void put_char(struct writer *writer, char c)
{
    if (writer->used + 1 < writer->len)
        writer->out[writer->used++] = c;
    else
        writer->full = true;
}

static void put_text(struct writer *writer, const char *text)
{
    while (*text)
        put_char(writer, *text++);
}

static void put_line(struct writer *writer, const char *prefix, const char *key, const char *value)
{
    static const char digits[] = "0123456789abcdef";

    put_text(writer, prefix);
    put_text(writer, key);
    put_char(writer, '=');
    for (; *value; value++) {
        unsigned char c = (unsigned char)*value;

        if (c < ' ' || c == '\\' || c == 0x7f) {
            put_char(writer, '\\');
            put_char(writer, digits[c >> 4]);
            put_char(writer, digits[c & 15]);
        } else {
            put_char(writer, *value);
        }
    }
    put_char(writer, '\n');
}

static int encode(const struct device_config *config, bool paths, char *out, size_t out_len)
{
    struct writer writer = {.out = out, .len = out_len};

    if (out_len == 0)
        return -ENOSPC;
    put_line(&writer, "", "name", config->name);
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        char number[24];

        if (fields[i].block && config->virtio_id != VIRTIO_ID_BLOCK)
            continue;
        snprintf(number, sizeof(number), "%" PRIu64, field_get(config, &fields[i]));
        put_line(&writer, "", fields[i].name, number);
    }
    for (size_t i = 0; i < config->n_values; i++)
        if (config->values[i].value)
            put_line(&writer, KEY_PREFIX, config->values[i].key->name, config->values[i].value);
    for (size_t i = 0; i < config->n_parts; i++) {
        const struct config_value *values = config->parts[i].values;
        char prefix[sizeof(PART_PREFIX) + CONFIG_PART_NAME_MAX + 1];

        snprintf(prefix, sizeof(prefix), PART_PREFIX "%s.", config->parts[i].name);
        for (size_t j = 0; values[j].key; j++)
            if (values[j].value && (paths || values[j].key->type != KEY_PATH))
                put_line(&writer, prefix, values[j].key->name, values[j].value);
    }
    out[writer.used] = '\0';
    return writer.full ? -ENOSPC : (int)writer.used;
}

int device_config_encode(const struct device_config *config, char *out, size_t out_len)
{
    return encode(config, false, out, out_len);
}

int device_config_encode_all(const struct device_config *config, char *out, size_t out_len)
{
    return encode(config, true, out, out_len);
}

/* ---- decode ---- */

/* In place. False: something that put_line does not write. */
static bool unescape(char *text)
{
    char *out = text;

    while (*text) {
        unsigned char c = (unsigned char)*text++;

        if (c == '\\') {
            unsigned value = 0;

            for (int i = 0; i < 2; i++, text++) {
                if (*text >= '0' && *text <= '9')
                    value = value * 16 + (unsigned)(*text - '0');
                else if (*text >= 'a' && *text <= 'f')
                    value = value * 16 + 10 + (unsigned)(*text - 'a');
                else
                    return false;
            }
            if (value == 0)
                return false;
            c = (unsigned char)value;
        }
        *out++ = (char)c;
    }
    *out = '\0';
    return true;
}

static bool parse_number(const char *text, uint64_t *out)
{
    uint64_t value = 0;

    if (!*text || (text[0] == '0' && text[1]))
        return false;
    for (; *text; text++)
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    *out = value;
    return true;
}

struct decoder {
    struct device_config *config;
    uint32_t seen; /* one bit for each of fields[] */
    bool name_seen;
    const char *presets[512]; /* "key=value" and "part.key=value", into the text */
    size_t n_presets;
    int line;
};

static int decode_line(struct decoder *decoder, char *line, char *error, size_t error_len)
{
    struct device_config *config = decoder->config;
    char *equals = strchr(line, '=');
    char *value = equals ? equals + 1 : NULL;
    size_t key_len = equals ? (size_t)(equals - line) : 0;
    uint64_t number;

    if (!equals || !unescape(value))
        goto malformed;
    if (!strncmp(line, KEY_PREFIX, sizeof(KEY_PREFIX) - 1) ||
        !strncmp(line, PART_PREFIX, sizeof(PART_PREFIX) - 1)) {
        const char *preset = strchr(line, '.') + 1;
        size_t same_len = key_len + 1 - (size_t)(preset - line); /* with the = */

        /* Only the keys of parts have a dot. */
        if ((memchr(preset, '.', same_len) != NULL) != (line[0] == PART_PREFIX[0]))
            goto malformed;

        for (size_t i = 0; i < decoder->n_presets; i++)
            if (!strncmp(decoder->presets[i], preset, same_len))
                goto malformed;
        if (decoder->n_presets + 1 == ARRAY_SIZE(decoder->presets))
            goto malformed;
        decoder->presets[decoder->n_presets++] = preset;
        return 0;
    }
    if (key_len == 4 && !memcmp(line, "name", 4)) {
        if (decoder->name_seen || !name_valid(value))
            goto malformed;
        memcpy(config->name, value, strlen(value) + 1);
        decoder->name_seen = true;
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        if (strlen(fields[i].name) != key_len || memcmp(fields[i].name, line, key_len))
            continue;
        if (decoder->seen & (1u << i) || !parse_number(value, &number) ||
            !field_valid(&fields[i], number))
            goto malformed;
        field_set(config, &fields[i], number);
        decoder->seen |= 1u << i;
        return 0;
    }
malformed:
    return config_fail(error, error_len, "device configuration, line %d: \"%.60s\" is not valid",
                       decoder->line, line);
}

static int decode_finish(struct decoder *decoder, char *error, size_t error_len)
{
    struct device_config *config = decoder->config;
    const struct device_type *type = device_type_by_id(config->virtio_id);

    if (!decoder->name_seen)
        return config_fail(error, error_len, "device configuration: no name");
    if (!type)
        return config_fail(error, error_len, "device configuration: unknown device type %u",
                           config->virtio_id);
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        bool wanted = !fields[i].block || config->virtio_id == VIRTIO_ID_BLOCK;

        if (wanted && fields[i].optional)
            continue;
        if (wanted != ((decoder->seen >> i & 1) != 0))
            return config_fail(error, error_len, "device configuration: %s %s", fields[i].name,
                               wanted ? "is missing" : "is not for this device type");
    }
    if (config->base % 0x200)
        return config_fail(error, error_len, "device configuration: base is not aligned");
    for (size_t i = 0; i < decoder->n_presets; i++) {
        size_t len = strcspn(decoder->presets[i], "=");
        const struct config_key *key = type->keys;

        if (type->parts_key && memchr(decoder->presets[i], '.', len))
            continue; /* config_fill_parts looks at it */
        while (key->name && (strlen(key->name) != len || memcmp(key->name, decoder->presets[i], len)))
            key++;
        if (!key->name)
            return config_fail(error, error_len, "device configuration: unknown key \"%.60s\"",
                               decoder->presets[i]);
    }
    return device_config_restore(config, type, decoder->presets, error, error_len);
}

int device_config_decode(const char *text, size_t len, struct device_config *config, char *error,
                         size_t error_len)
{
    struct decoder decoder = {.config = config};
    char *copy, *line;
    int ret = 0;

    *config = (struct device_config){0};
    if (len > TEXT_BYTES_MAX || memchr(text, '\0', len) || (len && text[len - 1] != '\n'))
        return config_fail(error, error_len, "device configuration: not a text of lines");
    copy = strndup(text, len);
    if (!copy) {
        snprintf(error, error_len, "device configuration: out of memory");
        return -ENOMEM;
    }
    for (line = copy; !ret && *line;) {
        char *end = strchr(line, '\n');

        *end = '\0';
        decoder.line++;
        ret = decode_line(&decoder, line, error, error_len);
        line = end + 1;
    }
    if (!ret)
        ret = decode_finish(&decoder, error, error_len);
    free(copy);
    if (ret)
        *config = (struct device_config){0};
    return ret;
}

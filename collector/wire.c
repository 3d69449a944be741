/* OTLP trace requests to Arrow buffers, without Python: the fast half of check.py and decode.py.

   wire_check   is this request plain, valid OTLP, how many spans does it hold, and what is its checksum?
   wire_decode  requests to the columns of `spans`, sorted by (trace, start)
   wire_crc32c  checksum of any stretch of memory, where the processor has an instruction for it

   The first two say yes only to what is plain: known fields once, in their own wire type, nested less than MAX_DEPTH.
   Whatever else protobuf would also read (a message sent in two halves, a group, an over-long varint) is left
   to the Python path, which is the definition: the answer here is then -1 and nothing is decided. So this file
   can be slow to say yes, never wrong.

   Plain C11 without the Python API, called through ctypes, which lets other threads run meanwhile. What comes in
   is hostile: every read is bounds-checked, nothing is quadratic in its input, recursion is bounded. */

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define WIRE_ABI 4
#define MAX_DEPTH 20
/* Ordinary sizes; what is larger is for the Python path to judge. */
#define MANY 10000          /* attributes, events and links of one span together */
#define LONG (1 << 20)      /* bytes of one text */
#define TOO_MANY (1 << 20)  /* attributes that are not even decoded here: each costs 90 bytes meanwhile */
#define INT32_LIMIT 0x7fffffff
#define SPARE_BYTES (256 << 20)
#define AHEAD 512 /* bytes */
#define SMALL_LIST 8 /* up to so many keys are compared with each other, more go through a hash table */
#define MANY_KEYS (1 << 16) /* different keys of attributes that are remembered from span to span */

enum { NONE, TEXT, BOOL, INT, DOUBLE, ARRAY, KVLIST, BYTES, STRINDEX }; /* AnyValue's field numbers */

typedef struct { const uint8_t *p; size_t n; } Str;
typedef struct { Str key, text; int kind, dead; int64_t number; double real; uint64_t hash; uint32_t which; } Kv;
typedef struct { const uint8_t *p, *end; uint32_t field, wire; uint64_t v; Str s; } It;
typedef struct { uint8_t *p; int64_t n, room; } Buf;
typedef struct { uint32_t hash, id; } Slot; /* id is one more than the text's place; 0 is an empty slot */
/* One leaf of the table. A string column has offsets; `valid` is one byte a row until it is packed to bits. Agents send
   their history again with every call: while `shared`, data and offsets hold each text once, in order of appearance,
   and `index` says which one a row has; `last` is one more than the one put last where the next is likely the same. */
typedef struct { Buf data, offsets, valid, index; int64_t rows, nulls, count, shared; Slot *slots; int64_t slot_room, last; } Column;
typedef struct { Str body; uint64_t received, seq; } Frame;
typedef struct { Str text[8]; int has[8]; int64_t id[8]; } Context; /* id: place among the shared texts, -1 before */
typedef struct { Str span; uint64_t trace[2], start, seq, received; int64_t context; } Row;
enum { SHARED_TEXT, NUMBER, OWN_TEXT };
typedef struct { Str key; int kind; } Moved; /* sorted by the key's length */

/* The order in which the Python side expects the columns; the moved ones follow. */
enum {
    C_SEQ, C_RECEIVED, C_TRACE, C_SPAN, C_PARENT, C_STATE, C_FLAGS, C_NAME, C_KIND, C_START, C_END, C_STATUS,
    C_STATUS_MESSAGE, C_CONTEXT, /* eight of them */
    C_MAP_STR = C_CONTEXT + 8, C_MAP_INT = C_MAP_STR + 2, C_MAP_DBL = C_MAP_INT + 2, C_MAP_BOOL = C_MAP_DBL + 2,
    C_MAP_JSON = C_MAP_BOOL + 2, /* keys with the map's offsets, then items; items' offsets are their own */
    C_EVENTS = C_MAP_JSON + 2, C_EVENT_TIME, C_EVENT_NAME, C_EVENT_ATTRIBUTES, C_EVENT_DROPPED,
    C_LINKS, C_LINK_TRACE, C_LINK_SPAN, C_LINK_STATE, C_LINK_FLAGS, C_LINK_ATTRIBUTES, C_LINK_DROPPED,
    C_DROPPED_ATTRIBUTES, C_DROPPED_EVENTS, C_DROPPED_LINKS,
    C_PROMPT_IDS, C_PROMPT_VALUES, C_CHOICES, C_CHOICE_IDS, C_CHOICE_ID_VALUES, C_CHOICE_LOGPROBS, C_CHOICE_LOGPROB_VALUES,
    C_MAP_OFFSETS, /* five */
    C_MOVED = C_MAP_OFFSETS + 5
};

/* A key that spans have, of one group of types: what was found out about it holds for every span. */
typedef struct {
    Str text;
    uint64_t hash;
    int64_t row, place, id; /* the last span that had it, where in its attributes; its place among the shared keys */
    int group, moved;
    uint32_t next;          /* one more than the key that came after it last time, very likely again: 0 before */
    int64_t last;           /* one more than the place of its last value among the shared texts, very likely again */
} Key;

typedef struct {
    Column *columns;
    int64_t column_count, rows, slow_doubles;
    Buf doubles;             /* what only Python writes as JSON: shortest digits of a double */
    /* private */
    const char *written;     /* those doubles as text, one NUL-ended piece after another, or NULL in the first pass */
    Kv *kvs; int64_t kv_room;
    uint32_t *table; int64_t table_room;
    Key *keys; int64_t key_count, key_room;
    Slot *key_slots; int64_t key_slot_room;
    uint32_t first_key;
    Row *row; int64_t row_room;
    Context *contexts; int64_t context_count, context_room;
    const Moved *moved; int64_t moved_count; Str prompt_key, choice_prefix;
    int moved_of_length[64]; /* where the keys of a length begin in `moved`, which is sorted by length */
    int64_t at;              /* the row being written */
    int64_t shared_bytes, shared_rows; /* up to so much of different texts in a column, of so many rows, is shared */
    Buf texts;               /* JSON of contexts, referred to by offset until it stops growing */
    uint64_t seed;
} Decoder;

#define TRY(x) do { if (!(x)) return 0; } while (0)

/* ---- reading ---- */

static inline int varint(const uint8_t **p, const uint8_t *end, uint64_t *out) {
    uint64_t v = 0;
    for (int shift = 0; shift < 63; shift += 7) {
        TRY(*p < end);
        uint8_t b = *(*p)++;
        v |= (uint64_t)(b & 127) << shift;
        if (b < 128) { *out = v; return 1; }
    }
    TRY(*p < end && **p <= 1);
    *out = v | (uint64_t)*(*p)++ << 63;
    return 1;
}

/* The next field: 1, 0 at the end, -1 when the bytes are not plain protobuf. */
static inline int next(It *it) {
    uint64_t tag, n;
    if (it->p == it->end) return 0;
    if (!varint(&it->p, it->end, &tag) || tag > UINT32_MAX || tag < 8) return -1;
    it->field = (uint32_t)(tag >> 3);
    it->wire = (uint32_t)(tag & 7);
    switch (it->wire) {
    case 0:
        return varint(&it->p, it->end, &it->v) ? 1 : -1;
    case 1:
        if (it->end - it->p < 8) return -1;
        memcpy(&it->v, it->p, 8);
        it->p += 8;
        return 1;
    case 2:
        if (!varint(&it->p, it->end, &n) || n > (uint64_t)(it->end - it->p)) return -1;
        it->s = (Str){it->p, (size_t)n};
        it->p += n;
        return 1;
    case 5: {
        uint32_t v;
        if (it->end - it->p < 4) return -1;
        memcpy(&v, it->p, 4);
        it->v = v;
        it->p += 4;
        return 1;
    }
    default:
        return -1;
    }
}

#define FIELDS(message) It it = {(message).p, (message).p + (message).n, 0, 0, 0, {0, 0}}; int more; while ((more = next(&it)) > 0)
#define ONCE(wanted) TRY(it.wire == (wanted) && !(seen & 1u << it.field)); seen |= 1u << it.field

static inline uint64_t eight(const uint8_t *p) { uint64_t w; memcpy(&w, p, 8); return w; }
static inline uint64_t four(const uint8_t *p) { uint32_t w; memcpy(&w, p, 4); return w; }

#define HIGH_BITS 0x8080808080808080u

static inline int is_ascii(Str s) {
    const uint8_t *p = s.p, *end = s.p + s.n;
    uint64_t all = 0;
    if (s.n >= 8) {
        for (; end - p >= 64; p += 64) {
            for (int i = 0; i < 64; i += 8) all |= eight(p + i);
            TRY(!(all & HIGH_BITS));
        }
        for (; end - p >= 8; p += 8) all |= eight(p);
        all |= eight(end - 8);
    } else if (s.n >= 4) all = four(p) | four(end - 4);
    else while (p < end) all |= *p++;
    return !(all & HIGH_BITS);
}

static int utf8(Str s) {
    if (is_ascii(s)) return 1;
    const uint8_t *p = s.p, *end = s.p + s.n;
    while (p < end) {
        while (end - p >= 16 && !((eight(p) | eight(p + 8)) & HIGH_BITS)) p += 16;
        if (p == end) return 1;
        uint8_t a = *p++;
        if (a < 0x80) continue;
        int more = a >= 0xf0 ? 3 : a >= 0xe0 ? 2 : 1;
        TRY(a >= 0xc2 && a <= 0xf4 && end - p >= more);
        uint8_t b = p[0];
        TRY((b & 0xc0) == 0x80);
        TRY(!(a == 0xe0 && b < 0xa0) && !(a == 0xed && b > 0x9f) && !(a == 0xf0 && b < 0x90) && !(a == 0xf4 && b > 0x8f));
        for (int i = 1; i < more; i++) TRY((p[i] & 0xc0) == 0x80);
        p += more;
    }
    return 1;
}

static int any(Str message, Kv *out) {
    out->kind = NONE;
    FIELDS(message) {
        if (it.field > STRINDEX) continue;
        TRY(out->kind == NONE);
        static const uint32_t wires[] = {9, 2, 0, 0, 1, 2, 2, 2, 0};
        TRY(it.wire == wires[it.field]);
        out->kind = (int)it.field;
        if (it.wire == 2) out->text = it.s;
        else if (out->kind == DOUBLE) memcpy(&out->real, &it.v, 8);
        else out->number = (int64_t)it.v;
        if (out->kind == BOOL) TRY(it.v <= 1);
    }
    return more == 0;
}

/* A length of up to three bytes; where it ends, or NULL. */
static inline const uint8_t *length_at(const uint8_t *p, const uint8_t *end, size_t *n) {
    size_t v = 0;
    for (int shift = 0; shift < 21; shift += 7) {
        if (p == end) return NULL;
        uint8_t b = *p++;
        v |= (size_t)(b & 127) << shift;
        if (b < 128) { *n = v; return p; }
    }
    return NULL;
}

/* What nearly every attribute is, byte for byte: a key and a scalar, nothing else. 0 says nothing: `key_value` looks. */
static inline int usual_key_value(Str message, Kv *out) {
    const uint8_t *p = message.p, *end = message.p + message.n;
    size_t n;
    TRY(message.n >= 6 && p[0] == (1 << 3 | 2) && p[1] < 128 && (size_t)p[1] + 6 <= message.n);
    out->key = (Str){p + 2, p[1]};
    p += 2 + p[1];
    TRY(p[0] == (2 << 3 | 2));
    TRY((p = length_at(p + 1, end, &n)) && n >= 2 && n == (size_t)(end - p));
    out->dead = 0;
    switch (*p++) {
    case TEXT << 3 | 2:
        out->kind = TEXT;
        TRY((p = length_at(p, end, &n)) && n == (size_t)(end - p));
        out->text = (Str){p, n};
        return 1;
    case BOOL << 3:
        out->kind = BOOL;
        out->number = *p;
        return *p <= 1 && end - p == 1;
    case INT << 3: {
        uint64_t v;
        out->kind = INT;
        TRY(varint(&p, end, &v) && p == end);
        out->number = (int64_t)v;
        return 1;
    }
    case DOUBLE << 3 | 1:
        out->kind = DOUBLE;
        TRY(end - p == 8);
        memcpy(&out->real, p, 8);
        return 1;
    default:
        return 0;
    }
}

static int key_value(Str message, Kv *out) {
    if (usual_key_value(message, out)) return 1;
    uint32_t seen = 0;
    out->key = (Str){(const uint8_t *)"", 0};
    out->kind = NONE;
    out->dead = 0;
    FIELDS(message) {
        if (it.field == 1) { ONCE(2); out->key = it.s; }
        else if (it.field == 2) { ONCE(2); TRY(any(it.s, out)); }
        else if (it.field == 3) { ONCE(0); }
    }
    return more == 0;
}

/* ---- checksums ---- */

/* CRC32C of n bytes behind bytes whose checksum is `crc`; -1 where the processor cannot.

   The instruction takes three cycles but starts one each cycle: three lanes of LANE bytes run side by side, and what
   LANE bytes of zeros do to a checksum, which joins them, is looked up. */
#if defined(__x86_64__)
#define LANE 2048
static uint32_t behind_zeros[4][256];

__attribute__((target("sse4.2"))) static void look_up_zeros(void) {
    static atomic_int known;
    if (atomic_load(&known)) return;
    for (int part = 0; part < 4; part++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint64_t c = (uint64_t)byte << 8 * part;
            for (int i = 0; i < LANE / 8; i++) c = _mm_crc32_u64(c, 0);
            behind_zeros[part][byte] = (uint32_t)c;
        }
    atomic_store(&known, 1);
}

static uint32_t shifted(uint32_t c) {
    return behind_zeros[0][c & 255] ^ behind_zeros[1][c >> 8 & 255] ^ behind_zeros[2][c >> 16 & 255] ^ behind_zeros[3][c >> 24];
}

__attribute__((target("sse4.2"))) static uint32_t crc32c(uint32_t crc, const uint8_t *p, int64_t n) {
    uint64_t c = ~crc, w[3];
    for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE) {
        uint64_t second = 0, third = 0;
        for (int line = 0; line < LANE; line += 64) {
            /* Each lane's next turn lies elsewhere, where the processor does not look ahead by itself. */
            for (int lane = 0; lane < 3; lane++) __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)(3 + lane) * LANE + (uintptr_t)line));
            for (int i = line; i < line + 64; i += 8) {
                memcpy(&w[0], p + i, 8);
                memcpy(&w[1], p + LANE + i, 8);
                memcpy(&w[2], p + 2 * LANE + i, 8);
                c = _mm_crc32_u64(c, w[0]);
                second = _mm_crc32_u64(second, w[1]);
                third = _mm_crc32_u64(third, w[2]);
            }
        }
        c = shifted(shifted((uint32_t)c) ^ (uint32_t)second) ^ (uint32_t)third;
    }
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(w, p, 8);
        c = _mm_crc32_u64(c, w[0]);
    }
    for (; n > 0; n--) c = _mm_crc32_u8((uint32_t)c, *p++);
    return ~(uint32_t)c;
}

static int can_crc32c(void) {
    if (!__builtin_cpu_supports("sse4.2")) return 0;
    look_up_zeros();
    return 1;
}
#else
#define LANE 2048
static uint32_t crc32c(uint32_t crc, const uint8_t *p, int64_t n) { (void)crc, (void)p, (void)n; return 0; }
static int can_crc32c(void) { return 0; }
#endif

EXPORT int64_t wire_crc32c(uint32_t crc, const uint8_t *p, int64_t n) { return can_crc32c() ? (int64_t)crc32c(crc, p, n) : -1; }

/* The product of two polynomials, as checksums are: lowest power in the highest bit. */
static uint32_t times(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b >> 1 ^ (b & 1 ? 0x82f63b78u : 0);
    }
    return product;
}

/* CRC32C of n bytes whose own checksum is `crc`, behind bytes whose checksum is `before`. */
EXPORT uint32_t wire_crc32c_behind(uint32_t before, uint32_t crc, int64_t n) {
    uint32_t power = 1u << 23; /* one byte of zeros: x to the eighth */
    for (; n > 0; n >>= 1, power = times(power, power)) if (n & 1) before = times(before, power);
    return before ^ crc;
}

/* ---- checking: what is stored must parse again ---- */

#define FRESH (24 << 10) /* bytes: what was just checked is summed up while it is near the processor */
typedef struct { int64_t spans; const uint8_t *summed; uint32_t crc; int sums; } Checked;

static void sum_up(Checked *c, const uint8_t *end) {
    int64_t n = end - c->summed;
    if (!c->sums || n < FRESH) return;
    n -= n % (3 * LANE);
    c->crc = crc32c(c->crc, c->summed, n);
    c->summed += n;
}

static int check_kv(Str message, int depth);

static int check_any(const Kv *value, int depth) {
    TRY(depth < MAX_DEPTH);
    if (value->kind == TEXT) return value->text.n <= LONG && utf8(value->text);
    if (value->kind == KVLIST || value->kind == ARRAY) {
        FIELDS(value->text) {
            if (it.field != 1) continue;
            TRY(it.wire == 2);
            Kv item;
            if (value->kind == KVLIST) TRY(check_kv(it.s, depth + 1));
            else TRY(any(it.s, &item) && check_any(&item, depth + 1));
        }
        return more == 0;
    }
    return 1;
}

static int check_kv(Str message, int depth) {
    Kv kv;
    return key_value(message, &kv) && utf8(kv.key) && check_any(&kv, depth);
}

static int check_entity(Str message) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field > 4) continue;
        if (it.field <= 2) { ONCE(2); }
        TRY(it.wire == 2 && utf8(it.s));
    }
    return more == 0;
}

static int check_resource(Str message) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1) TRY(it.wire == 2 && check_kv(it.s, 0));
        else if (it.field == 2) { ONCE(0); }
        else if (it.field == 3) TRY(it.wire == 2 && check_entity(it.s));
    }
    return more == 0;
}

static int check_scope(Str message) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1 || it.field == 2) { ONCE(2); TRY(utf8(it.s)); }
        else if (it.field == 3) TRY(it.wire == 2 && check_kv(it.s, 0));
        else if (it.field == 4) { ONCE(0); }
    }
    return more == 0;
}

static int check_event(Str message) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1) { ONCE(1); }
        else if (it.field == 2) { ONCE(2); TRY(utf8(it.s)); }
        else if (it.field == 3) TRY(it.wire == 2 && check_kv(it.s, 0));
        else if (it.field == 4) { ONCE(0); TRY(it.v <= UINT32_MAX); }
    }
    return more == 0;
}

static int check_link(Str message) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1 || it.field == 2) { ONCE(2); }
        else if (it.field == 3) { ONCE(2); TRY(utf8(it.s)); }
        else if (it.field == 4) TRY(it.wire == 2 && check_kv(it.s, 0));
        else if (it.field == 5) { ONCE(0); TRY(it.v <= UINT32_MAX); }
        else if (it.field == 6) { ONCE(5); }
    }
    return more == 0;
}

static int check_status(Str message) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 2) { ONCE(2); TRY(utf8(it.s)); }
        else if (it.field == 3) { ONCE(0); TRY(it.v <= INT32_LIMIT); }
    }
    return more == 0;
}

static int is_id(Str s, size_t length) {
    static const uint8_t zero[16];
    return s.n == length && memcmp(s.p, zero, length) != 0;
}

static int check_span(Str message) {
    uint32_t seen = 0;
    int trace = 0, span = 0, many = 0;
    FIELDS(message) {
        switch (it.field) {
        case 1: ONCE(2); trace = is_id(it.s, 16); break;
        case 2: ONCE(2); span = is_id(it.s, 8); break;
        case 3: case 5: ONCE(2); TRY(it.s.n <= LONG && utf8(it.s)); break;
        case 4: ONCE(2); TRY(it.s.n == 0 || it.s.n == 8); break;
        case 6: ONCE(0); TRY(it.v <= INT32_LIMIT); break;
        case 7: case 8: ONCE(1); break;
        case 9: TRY(it.wire == 2 && check_kv(it.s, 0) && ++many <= MANY); break;
        case 10: case 12: case 14: ONCE(0); TRY(it.v <= UINT32_MAX); break;
        case 11: TRY(it.wire == 2 && check_event(it.s) && ++many <= MANY); break;
        case 13: TRY(it.wire == 2 && check_link(it.s) && ++many <= MANY); break;
        case 15: ONCE(2); TRY(check_status(it.s)); break;
        case 16: ONCE(5); break;
        }
    }
    return more == 0 && trace && span;
}

static int check_scope_spans(Str message, Checked *c) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1) { ONCE(2); TRY(check_scope(it.s)); }
        else if (it.field == 2) { TRY(it.wire == 2 && check_span(it.s)); c->spans++; sum_up(c, it.p); }
        else if (it.field == 3) { ONCE(2); TRY(utf8(it.s)); }
    }
    return more == 0;
}

static int check_resource_spans(Str message, Checked *c) {
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1) { ONCE(2); TRY(check_resource(it.s)); }
        else if (it.field == 2) TRY(it.wire == 2 && check_scope_spans(it.s, c));
        else if (it.field == 3) { ONCE(2); TRY(utf8(it.s)); }
    }
    return more == 0;
}

static int check_request(Str message, Checked *c) {
    FIELDS(message) if (it.field == 1) TRY(it.wire == 2 && check_resource_spans(it.s, c));
    return more == 0;
}

/* Spans in a plain, valid request, whose CRC32C goes to `crc` (-1 where the processor cannot); -1 to let the Python path look. */
EXPORT int64_t wire_check(const uint8_t *body, int64_t length, int64_t *crc) {
    Checked c = {0, body, 0, can_crc32c()};
    if (!check_request((Str){body, (size_t)length}, &c)) return -1;
    *crc = c.sums ? (int64_t)crc32c(c.crc, c.summed, body + length - c.summed) : -1;
    return c.spans;
}

EXPORT int wire_abi(void) { return WIRE_ABI; }

/* ---- writing columns ---- */

static int grow(Buf *b, int64_t more) {
    int64_t room = b->room ? b->room : 4096;
    while (room - b->n < more) room *= 2;
    uint8_t *p = realloc(b->p, (size_t)room);
    TRY(p);
    b->p = p;
    b->room = room;
    return 1;
}

static inline int reserve(Buf *b, int64_t more) { return b->room - b->n >= more || grow(b, more); }

static inline int put(Buf *b, const void *from, int64_t n) {
    TRY(reserve(b, n));
    if (n) memcpy(b->p + b->n, from, (size_t)n);
    b->n += n;
    return 1;
}

static inline int put_byte(Buf *b, uint8_t byte) { return put(b, &byte, 1); }

static int put_offset(Column *c, int64_t n) {
    TRY(n <= INT32_LIMIT);
    int32_t offset = (int32_t)n;
    return put(&c->offsets, &offset, 4);
}

static int put_valid(Column *c, int ok) {
    c->rows++;
    c->nulls += !ok;
    return put_byte(&c->valid, ok != 0);
}

static int put_text(Column *c, Str s) {
    c->rows++;
    return put(&c->data, s.p, (int64_t)s.n) && put_offset(c, c->data.n);
}

static int put_text_or_null(Column *c, Str s, int ok) {
    return put(&c->data, s.p, ok ? (int64_t)s.n : 0) && put_offset(c, c->data.n) && put_valid(c, ok);
}

#define PUT_NUMBER(name, type) static int name(Column *c, type v) { c->rows++; return put(&c->data, &v, sizeof v); }
PUT_NUMBER(put_u64, uint64_t)
PUT_NUMBER(put_i64, int64_t)
PUT_NUMBER(put_f64, double)
PUT_NUMBER(put_u32, uint32_t)
PUT_NUMBER(put_i32, int32_t)
PUT_NUMBER(put_u8, uint8_t)

static int put_hex(Column *c, Str s) {
    static const char digits[] = "0123456789abcdef";
    TRY(reserve(&c->data, 2 * (int64_t)s.n));
    uint8_t *out = c->data.p + c->data.n;
    size_t i = 0;
    for (; i + 4 <= s.n; i += 4, out += 8) { /* four bytes at once: each digit in a byte, its letter beside it */
        uint64_t x = four(s.p + i);
        x = (x | x << 16) & 0x0000ffff0000ffffu;
        x = (x | x << 8) & 0x00ff00ff00ff00ffu;
        x = (x >> 4 & 0x000f000f000f000fu) | (x & 0x000f000f000f000fu) << 8;
        x += 0x3030303030303030u + ((x + 0x0606060606060606u) >> 4 & 0x0101010101010101u) * ('a' - '0' - 10);
        memcpy(out, &x, 8);
    }
    for (; i < s.n; i++) {
        *out++ = (uint8_t)digits[s.p[i] >> 4];
        *out++ = (uint8_t)digits[s.p[i] & 15];
    }
    c->data.n += 2 * (int64_t)s.n;
    c->rows++;
    return put_offset(c, c->data.n);
}

/* ---- texts that many rows have ---- */

static inline uint64_t mix(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t h = (a ^ (b << 29 | b >> 35)) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 32 ^ b) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 29;
#endif
}

/* Three chains side by side: texts are long, and a multiplication takes longer than the next one has to wait. */
static uint64_t hash(Str s, uint64_t seed) {
    static const uint64_t k[] = {0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu, 0xd6e8feb86659fd93u};
    const uint8_t *p = s.p;
    size_t n = s.n;
    uint64_t a = 0, b = 0;
    seed ^= k[0];
    if (n > 16) {
        uint64_t second = seed, third = seed;
        for (; n > 48; n -= 48, p += 48) {
            seed = mix(eight(p) ^ k[1], eight(p + 8) ^ seed);
            second = mix(eight(p + 16) ^ k[2], eight(p + 24) ^ second);
            third = mix(eight(p + 32) ^ k[3], eight(p + 40) ^ third);
        }
        seed ^= second ^ third;
        for (; n > 16; n -= 16, p += 16) seed = mix(eight(p) ^ k[1], eight(p + 8) ^ seed);
        a = eight(p + n - 16); /* the last sixteen, some of them for the second time */
        b = eight(p + n - 8);
    } else if (n >= 8) { a = eight(p); b = eight(p + n - 8); }
    else if (n >= 4) { a = four(p); b = four(p + n - 4); }
    else if (n) a = (uint64_t)p[0] << 16 | (uint64_t)p[n / 2] << 8 | p[n - 1];
    return mix(k[1] ^ s.n, mix(a ^ k[1], b ^ seed));
}

/* Every row its own text again. */
static int stop_sharing(Column *c) {
    Buf data = {0}, offsets = {0}, old[2] = {c->data, c->offsets};
    const int32_t *ends = (const int32_t *)(const void *)c->offsets.p, *ids = (const int32_t *)(const void *)c->index.p;
    int64_t rows = c->index.n / 4;
    c->data = data;
    c->offsets = offsets;
    c->shared = 0;
    int done = put_offset(c, 0);
    for (int64_t i = 0; done && i < rows; i++) {
        int there = !c->valid.n || c->valid.p[i];
        if (there) done = put(&c->data, old[0].p + ends[ids[i]], ends[ids[i] + 1] - ends[ids[i]]);
        done = done && put_offset(c, c->data.n);
    }
    free(old[0].p);
    free(old[1].p);
    c->index.n = c->count = 0;
    return done;
}

static int more_slots(Slot **before, int64_t *before_room) {
    int64_t room = *before_room ? 2 * *before_room : 256;
    Slot *slots = calloc((size_t)room, sizeof *slots);
    TRY(slots);
    for (int64_t i = 0; i < *before_room; i++) {
        Slot slot = (*before)[i];
        if (!slot.id) continue;
        uint64_t at = slot.hash & (uint64_t)(room - 1);
        while (slots[at].id) at = (at + 1) & (uint64_t)(room - 1);
        slots[at] = slot;
    }
    free(*before);
    *before = slots;
    *before_room = room;
    return 1;
}

static int put_id(Column *c, int64_t id) {
    int32_t index = (int32_t)id;
    return put(&c->index, &index, 4);
}

/* The text of one row, as put_likely does it. The place of the text, if it is shared, goes to `id`. */
static int put_shared(const Decoder *d, Column *c, Str s, uint64_t h, int64_t *id) {
    if (c->shared) {
        if (2 * c->count >= c->slot_room) TRY(more_slots(&c->slots, &c->slot_room));
        const int32_t *ends = (const int32_t *)(const void *)c->offsets.p;
        uint64_t mask = (uint64_t)(c->slot_room - 1), at = (uint32_t)h & mask;
        for (; c->slots[at].id; at = (at + 1) & mask) {
            if (c->slots[at].hash != (uint32_t)h) continue;
            int64_t found = c->slots[at].id - 1;
            if (ends[found + 1] - ends[found] != (int64_t)s.n || (s.n && memcmp(c->data.p + ends[found], s.p, s.n))) continue;
            *id = found;
            return put_id(c, found);
        }
        if (c->data.n + (int64_t)s.n + 4 * (c->count + 1) < d->shared_bytes) {
            TRY(put(&c->data, s.p, (int64_t)s.n) && put_offset(c, c->data.n));
            *id = c->count++;
            c->slots[at] = (Slot){(uint32_t)h, (uint32_t)c->count};
            return put_id(c, *id);
        }
        TRY(stop_sharing(c));
    }
    return put(&c->data, s.p, (int64_t)s.n) && put_offset(c, c->data.n);
}

/* The text of one row, whose validity the caller sees to. `last` is one more than the place of the text that is likely:
   comparing is cheaper than looking for it. */
static inline int put_likely(const Decoder *d, Column *c, Str s, int64_t *last) {
    if (c->shared && *last) {
        const int32_t *ends = (const int32_t *)(const void *)c->offsets.p + *last - 1;
        if (ends[1] - ends[0] == (int64_t)s.n && (!s.n || !memcmp(c->data.p + ends[0], s.p, s.n))) return put_id(c, *last - 1);
    }
    int64_t id = -1;
    TRY(put_shared(d, c, s, hash(s, d->seed), &id));
    *last = id + 1;
    return 1;
}

/* Rows up to `row` that have no value, all at once: most columns have none in most rows. */
static int put_nulls(Column *c, int64_t row, int is_number) {
    int64_t n = row - c->rows;
    if (n <= 0) return 1;
    Buf *b = is_number ? &c->data : c->shared ? &c->index : &c->offsets;
    int64_t bytes = n * (is_number ? 8 : 4);
    TRY(reserve(b, bytes) && reserve(&c->valid, n));
    if (b == &c->offsets) {
        int32_t end = (int32_t)c->data.n;
        for (int64_t i = 0; i < n; i++) memcpy(b->p + b->n + 4 * i, &end, 4);
    } else memset(b->p + b->n, 0, (size_t)bytes);
    memset(c->valid.p + c->valid.n, 0, (size_t)n);
    b->n += bytes;
    c->valid.n += n;
    c->rows = row;
    c->nulls += n;
    return 1;
}

/* This row's text, where most rows have none. */
static int put_seldom(const Decoder *d, Column *c, Str s) {
    return put_nulls(c, d->at, 0) && put_likely(d, c, s, &c->last) && put_valid(c, 1);
}

/* ---- keys: of one sent twice the last value stands, at the first one's place ---- */

/* What by_type keeps apart: texts, ints, doubles, bools, others. */
static int group(int kind) { return kind >= TEXT && kind <= DOUBLE ? kind : 0; }

static int same(Str a, Str b) { return a.n == b.n && !memcmp(a.p, b.p, a.n); }

static void replace(Kv *first, Kv *later) {
    Str key = first->key;
    *first = *later;
    first->key = key;
    later->dead = 1;
}

static int unique(Decoder *d, Kv *kv, int64_t n) {
    if (n <= SMALL_LIST) {
        for (int64_t i = 1; i < n; i++)
            for (int64_t j = 0; j < i; j++)
                if (!kv[j].dead && same(kv[j].key, kv[i].key)) { replace(&kv[j], &kv[i]); break; }
        return 1;
    }
    int64_t size = 64;
    while (size < 2 * n) size *= 2;
    if (size > d->table_room) {
        free(d->table);
        d->table = malloc((size_t)size * sizeof *d->table);
        d->table_room = d->table ? size : 0;
        TRY(d->table);
    }
    memset(d->table, 0, (size_t)size * sizeof *d->table);
    for (int64_t i = 0; i < n; i++) {
        uint64_t h = hash(kv[i].key, d->seed), at = h & (uint64_t)(size - 1);
        for (; d->table[at]; at = (at + 1) & (uint64_t)(size - 1)) {
            Kv *other = &kv[d->table[at] - 1];
            if (other->hash == h && same(other->key, kv[i].key)) { replace(other, &kv[i]); other->hash = h; break; }
        }
        if (kv[i].dead) continue;
        kv[i].hash = h;
        d->table[at] = (uint32_t)i + 1;
    }
    return 1;
}

/* The slot of a key of one group of types, empty when it is not known. */
static Slot *key_slot(Decoder *d, Str text, int group, uint64_t h) {
    uint64_t mask = (uint64_t)(d->key_slot_room - 1), at = h & mask;
    for (; d->key_slots[at].id; at = (at + 1) & mask) {
        const Key *key = &d->keys[d->key_slots[at].id - 1];
        if (key->hash == h && key->group == group && same(key->text, text)) break;
    }
    return &d->key_slots[at];
}

static int moved_index(const Decoder *d, const Kv *kv);

/* The known key of an attribute, as kv->which; `before` is one more than that of the attribute before it, or 0. */
static int know_key(Decoder *d, Kv *kv, uint32_t before) {
    int g = group(kv->kind);
    uint32_t likely = before ? d->keys[before - 1].next : d->first_key;
    if (likely && d->keys[likely - 1].group == g && same(d->keys[likely - 1].text, kv->key)) {
        kv->which = likely - 1;
        return 1;
    }
    if (2 * d->key_count >= d->key_slot_room) TRY(more_slots(&d->key_slots, &d->key_slot_room));
    uint64_t h = hash(kv->key, d->seed + (uint64_t)g);
    Slot *slot = key_slot(d, kv->key, g, h);
    if (!slot->id) {
        if (d->key_count == d->key_room) {
            int64_t room = d->key_room ? 2 * d->key_room : 256;
            Key *keys = realloc(d->keys, (size_t)room * sizeof *keys);
            TRY(keys);
            d->keys = keys;
            d->key_room = room;
        }
        d->keys[d->key_count] = (Key){kv->key, h, -1, 0, -1, g, moved_index(d, kv), 0, 0};
        *slot = (Slot){(uint32_t)h, (uint32_t)++d->key_count};
    }
    kv->which = slot->id - 1;
    *(before ? &d->keys[before - 1].next : &d->first_key) = slot->id;
    return 1;
}

/* Of a key sent twice the last value of a group of types stands: the attributes d->kvs[0..n) of the span d->at. */
static int know_keys(Decoder *d, int64_t n) {
    if (d->key_count > MANY_KEYS) { /* keys that are made up as they go: nothing to remember */
        memset(d->key_slots, 0, (size_t)d->key_slot_room * sizeof *d->key_slots);
        d->key_count = d->first_key = 0;
    }
    uint32_t before = 0; /* one more than the key of the attribute before */
    for (int64_t i = 0; i < n; i++) {
        TRY(know_key(d, &d->kvs[i], before));
        before = d->kvs[i].which + 1;
        Key *key = &d->keys[before - 1];
        if (key->row == d->at) replace(&d->kvs[key->place], &d->kvs[i]);
        else { key->row = d->at; key->place = i; }
    }
    return 1;
}

static Kv *push_kv(Decoder *d, int64_t *n) {
    if (*n >= TOO_MANY) return NULL;
    if (*n == d->kv_room) {
        int64_t room = d->kv_room ? 2 * d->kv_room : 256;
        Kv *kvs = realloc(d->kvs, (size_t)room * sizeof *kvs);
        if (!kvs) return NULL;
        d->kvs = kvs;
        d->kv_room = room;
    }
    return &d->kvs[(*n)++];
}

/* ---- JSON text, letter for letter as orjson writes it ---- */

static int json_text(Buf *b, Str s) {
    static const char digits[] = "0123456789abcdef";
    const uint8_t *p = s.p, *end = s.p + s.n, *from = p;
    TRY(put_byte(b, '"'));
    for (; p < end; p++) {
        if (*p >= 0x20 && *p != '"' && *p != '\\') continue;
        TRY(put(b, from, p - from));
        from = p + 1;
        char out[6] = {'\\', (char)*p, '0', '0', digits[*p >> 4], digits[*p & 15]};
        static const char named[] = "btn\0fr"; /* 8 to 13 */
        if (*p >= 0x20) TRY(put(b, out, 2));
        else if (*p >= 8 && *p <= 13 && *p != 11) { out[1] = named[*p - 8]; TRY(put(b, out, 2)); }
        else { out[1] = 'u'; TRY(put(b, out, 6)); }
    }
    return put(b, from, end - from) && put_byte(b, '"');
}

static int json_literal(Buf *b, const char *text) { return put(b, text, (int64_t)strlen(text)); }

static int json_bytes(Buf *b, Str s) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    TRY(json_literal(b, "{\"bytesValue\":\""));
    for (size_t i = 0; i < s.n; i += 3) {
        size_t left = s.n - i;
        uint32_t w = (uint32_t)s.p[i] << 16 | (left > 1 ? (uint32_t)s.p[i + 1] << 8 : 0) | (left > 2 ? s.p[i + 2] : 0);
        char out[4] = {letters[w >> 18], letters[w >> 12 & 63], left > 1 ? letters[w >> 6 & 63] : '=',
                       left > 2 ? letters[w & 63] : '='};
        TRY(put(b, out, 4));
    }
    return json_literal(b, "\"}");
}

static int json_double(Decoder *d, Buf *b, double v) {
    char text[40];
    if (v != v) return json_literal(b, "\"NaN\"");
    if (v > 1.7976931348623157e308) return json_literal(b, "\"Infinity\"");
    if (v < -1.7976931348623157e308) return json_literal(b, "\"-Infinity\"");
    /* A number with few digits behind the point: n / 10^k exactly, and 15 digits name one double only. */
    double scale = 1, size = v < 0 ? -v : v;
    if (v == 0) return json_literal(b, 1 / v < 0 ? "-0.0" : "0.0");
    if (size < 1e9 && size >= 1e-3)
        for (int k = 0; k <= 6; k++, scale *= 10) {
            double scaled = size * scale;
            int64_t n = (int64_t)(scaled + 0.5);
            if ((double)n / scale != size) continue;
            int64_t whole = n / (int64_t)scale, rest = n % (int64_t)scale;
            int length = snprintf(text, sizeof text, "%s%lld.%0*lld", v < 0 ? "-" : "", (long long)whole, k ? k : 1, (long long)rest);
            return put(b, text, length);
        }
    /* The rest needs the shortest digits that read back: orjson writes them, and we are called again. */
    d->slow_doubles++;
    if (!d->written) return put(&d->doubles, &v, sizeof v);
    size_t n = strlen(d->written);
    TRY(put(b, d->written, (int64_t)n));
    d->written += n + 1;
    return 1;
}

static int json_object(Decoder *d, Buf *b, int64_t from, int64_t to, int depth);

static int json_any(Decoder *d, Buf *b, const Kv *value, int depth, int64_t top) {
    char text[32];
    TRY(depth < MAX_DEPTH);
    switch (value->kind) {
    case TEXT: return json_text(b, value->text);
    case BOOL: return json_literal(b, value->number ? "true" : "false");
    case INT: return put(b, text, snprintf(text, sizeof text, "%lld", (long long)value->number));
    case DOUBLE: return json_double(d, b, value->real);
    case BYTES: return json_bytes(b, value->text);
    case ARRAY: {
        int first = 1;
        TRY(put_byte(b, '['));
        FIELDS(value->text) {
            if (it.field != 1) continue;
            Kv item;
            TRY(it.wire == 2 && (first || put_byte(b, ',')) && any(it.s, &item) && json_any(d, b, &item, depth + 1, top));
            first = 0;
        }
        return more == 0 && put_byte(b, ']');
    }
    case KVLIST: {
        int64_t n = top;
        FIELDS(value->text) {
            if (it.field != 1) continue;
            TRY(it.wire == 2);
            Kv kv, *place;
            TRY(key_value(it.s, &kv) && (place = push_kv(d, &n)));
            *place = kv;
        }
        return more == 0 && json_object(d, b, top, n, depth + 1);
    }
    default: return json_literal(b, "null");
    }
}

/* The key-values d->kvs[from..to) as one object. */
static int json_object(Decoder *d, Buf *b, int64_t from, int64_t to, int depth) {
    TRY(unique(d, d->kvs + from, to - from));
    int first = 1;
    TRY(put_byte(b, '{'));
    for (int64_t i = from; i < to; i++) {
        Kv kv = d->kvs[i]; /* a copy: the array may move while nested lists are read */
        if (kv.dead) continue;
        TRY((first || put_byte(b, ',')) && json_text(b, kv.key) && put_byte(b, ':') && json_any(d, b, &kv, depth, to));
        first = 0;
    }
    return put_byte(b, '}');
}

/* The repeated KeyValue `field` of a message into d->kvs from `top`; its new end, or -1. */
static int64_t attributes(Decoder *d, Str message, uint32_t field, int64_t top) {
    FIELDS(message) {
        if (it.field != field) continue;
        Kv kv, *place;
        if (it.wire != 2 || !key_value(it.s, &kv) || !(place = push_kv(d, &top))) return -1;
        *place = kv;
    }
    return more == 0 ? top : -1;
}

static int put_json(Decoder *d, Column *c, Str message, uint32_t field, int64_t top) {
    int64_t end = attributes(d, message, field, top);
    TRY(end >= 0 && json_object(d, &c->data, top, end, 0));
    c->rows++;
    return put_offset(c, c->data.n);
}

/* ---- requests to rows ---- */

enum { X_SERVICE, X_INSTANCE, X_SCOPE, X_SCOPE_VERSION, X_RESOURCE_ATTRIBUTES, X_SCOPE_ATTRIBUTES, X_RESOURCE_URL, X_SCOPE_URL };

static void context_text(Context *x, int which, Str s) {
    x->text[which] = s;
    x->has[which] = s.n > 0;
}

/* JSON written since `from` belongs to the context; the pointer is set when all texts are written. */
static void context_json(Decoder *d, Context *x, int which, int64_t from) {
    x->text[which] = (Str){NULL, (size_t)(d->texts.n - from)};
    x->has[which] = 2;
}

static int context_named(Decoder *d, Context *x, int which, const char *key, int64_t end) {
    for (int64_t i = end - 1; i >= 0; i--) {
        Kv kv = d->kvs[i];
        if (kv.key.n != strlen(key) || memcmp(kv.key.p, key, kv.key.n)) continue;
        if (kv.kind == TEXT) { x->text[which] = kv.text; x->has[which] = 1; }
        else if (kv.kind != NONE && kv.kind != STRINDEX) {
            int64_t from = d->texts.n;
            TRY(json_any(d, &d->texts, &kv, 0, end));
            context_json(d, x, which, from);
        }
        return 1;
    }
    return 1;
}

static int read_context(Decoder *d, Context *x, Str resource, Str scope, Str resource_url, Str scope_url) {
    memset(x, 0, sizeof *x);
    for (int i = 0; i < 8; i++) x->id[i] = -1;
    int64_t n = attributes(d, resource, 1, 0), from;
    TRY(n >= 0);
    TRY(context_named(d, x, X_SERVICE, "service.name", n) && context_named(d, x, X_INSTANCE, "service.instance.id", n));
    from = d->texts.n;
    TRY(json_object(d, &d->texts, 0, n, 0));
    context_json(d, x, X_RESOURCE_ATTRIBUTES, from);
    TRY((n = attributes(d, scope, 3, 0)) >= 0);
    from = d->texts.n;
    TRY(json_object(d, &d->texts, 0, n, 0));
    context_json(d, x, X_SCOPE_ATTRIBUTES, from);
    context_text(x, X_RESOURCE_URL, resource_url);
    context_text(x, X_SCOPE_URL, scope_url);
    uint32_t seen = 0;
    FIELDS(scope) {
        if (it.field == 1) { ONCE(2); context_text(x, X_SCOPE, it.s); }
        else if (it.field == 2) { ONCE(2); context_text(x, X_SCOPE_VERSION, it.s); }
    }
    return more == 0;
}

static uint64_t big_endian(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 0; i < 8; i++) v = v << 8 | p[i];
    return v;
}

/* A span's sort key, as far as its first fields say; the full reading happens in order. */
static int find_span(Str span, Row *row) {
    uint32_t seen = 0;
    FIELDS(span) {
        if (it.field == 1) {
            ONCE(2);
            TRY(it.s.n == 16);
            row->trace[0] = big_endian(it.s.p);
            row->trace[1] = big_endian(it.s.p + 8);
        }
        else if (it.field == 7) { ONCE(1); row->start = it.v; }
        if ((seen & 0x82) == 0x82) return 1; /* a second one of either is found in read_span */
    }
    return more == 0 && seen & 2;
}

static int read_scope_spans(Decoder *d, Str message, Str resource, Str resource_url, uint64_t *seq, uint64_t received) {
    uint32_t seen = 0;
    Str scope = {0, 0}, url = {0, 0};
    int64_t first = d->rows;
    {
        FIELDS(message) {
            if (it.field == 1) { ONCE(2); scope = it.s; }
            else if (it.field == 3) { ONCE(2); url = it.s; }
            else if (it.field == 2) {
                TRY(it.wire == 2);
                if (d->rows == d->row_room) {
                    int64_t room = d->row_room ? 2 * d->row_room : 1024;
                    Row *rows = realloc(d->row, (size_t)room * sizeof *rows);
                    TRY(rows);
                    d->row = rows;
                    d->row_room = room;
                }
                Row *row = &d->row[d->rows];
                *row = (Row){it.s, {0, 0}, 0, (*seq)++, received, d->context_count};
                TRY(find_span(it.s, row));
                d->rows++;
            }
        }
        TRY(more == 0);
    }
    if (d->rows == first) return 1;
    if (d->context_count == d->context_room) {
        int64_t room = d->context_room ? 2 * d->context_room : 64;
        Context *contexts = realloc(d->contexts, (size_t)room * sizeof *contexts);
        TRY(contexts);
        d->contexts = contexts;
        d->context_room = room;
    }
    return read_context(d, &d->contexts[d->context_count++], resource, scope, resource_url, url);
}

static int read_request(Decoder *d, Frame frame) {
    uint64_t seq = frame.seq;
    FIELDS(frame.body) {
        if (it.field != 1) continue;
        TRY(it.wire == 2);
        Str resource = {0, 0}, url = {0, 0}, of = it.s;
        uint32_t seen = 0;
        {
            FIELDS(of) {
                if (it.field == 1) { ONCE(2); resource = it.s; }
                else if (it.field == 3) { ONCE(2); url = it.s; }
            }
            TRY(more == 0);
        }
        FIELDS(of) if (it.field == 2) TRY(it.wire == 2 && read_scope_spans(d, it.s, resource, url, &seq, frame.received));
        TRY(more == 0);
    }
    return more == 0;
}

static int by_trace_and_start(const void *left, const void *right) {
    const Row *a = left, *b = right;
    if (a->trace[0] != b->trace[0]) return a->trace[0] < b->trace[0] ? -1 : 1;
    if (a->trace[1] != b->trace[1]) return a->trace[1] < b->trace[1] ? -1 : 1;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    return a->seq < b->seq ? -1 : a->seq > b->seq;
}

/* ---- rows to columns ---- */

static int put_event(Decoder *d, Str message, int64_t top) {
    Column *c = d->columns;
    uint64_t time = 0, dropped = 0;
    Str name = {0, 0};
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1) { ONCE(1); time = it.v; }
        else if (it.field == 2) { ONCE(2); name = it.s; }
        else if (it.field == 4) { ONCE(0); TRY(it.v <= UINT32_MAX); dropped = it.v; }
    }
    TRY(more == 0);
    return put_u64(c + C_EVENT_TIME, time) && put_text(c + C_EVENT_NAME, name) &&
           put_json(d, c + C_EVENT_ATTRIBUTES, message, 3, top) && put_u32(c + C_EVENT_DROPPED, (uint32_t)dropped);
}

static int put_link(Decoder *d, Str message, int64_t top) {
    Column *c = d->columns;
    uint64_t flags = 0, dropped = 0;
    Str trace = {0, 0}, span = {0, 0}, state = {0, 0};
    uint32_t seen = 0;
    FIELDS(message) {
        if (it.field == 1) { ONCE(2); trace = it.s; }
        else if (it.field == 2) { ONCE(2); span = it.s; }
        else if (it.field == 3) { ONCE(2); state = it.s; }
        else if (it.field == 5) { ONCE(0); TRY(it.v <= UINT32_MAX); dropped = it.v; }
        else if (it.field == 6) { ONCE(5); flags = it.v; }
    }
    TRY(more == 0);
    return put_hex(c + C_LINK_TRACE, trace) && put_hex(c + C_LINK_SPAN, span) &&
           put_text_or_null(c + C_LINK_STATE, state, state.n > 0) && put_u32(c + C_LINK_FLAGS, (uint32_t)flags) &&
           put_json(d, c + C_LINK_ATTRIBUTES, message, 4, top) && put_u32(c + C_LINK_DROPPED, (uint32_t)dropped);
}

/* 1: the array went into `c` as ids (or doubles); 0: it is no such list and `c` is as before; -1: not plain. */
static int put_list(Column *c, const Kv *value, int doubles) {
    if (value->kind != ARRAY) return 0;
    int64_t bytes = c->data.n, rows = c->rows;
    int fits = 1;
    FIELDS(value->text) {
        if (it.field != 1) continue;
        Kv item;
        if (it.wire != 2 || !any(it.s, &item)) return -1;
        if (!fits) continue;
        if (doubles) {
            fits = item.kind == DOUBLE || item.kind == INT;
            if (fits && !put_f64(c, item.kind == INT ? (double)item.number : item.real)) return -1;
        } else {
            fits = item.kind == INT && item.number >= 0 && item.number <= INT32_LIMIT;
            if (fits && !put_i32(c, (int32_t)item.number)) return -1;
        }
    }
    if (more < 0) return -1;
    if (!fits) { c->data.n = bytes; c->rows = rows; }
    return fits;
}

/* An attribute of the span d->at whose value is no scalar. */
static Kv *other_named(Decoder *d, Str text) {
    uint32_t id = key_slot(d, text, 0, hash(text, d->seed))->id;
    return id && d->keys[id - 1].row == d->at ? &d->kvs[d->keys[id - 1].place] : NULL;
}

/* lightning.choice.N.token_ids and .logprobs, N from 0, as the list of choices; what fits no list stays an attribute. */
static int put_choices(Decoder *d) {
    Column *c = d->columns;
    int64_t count = 0;
    for (;; count++) {
        char key[160];
        int taken = 0;
        static const char *const names[] = {"token_ids", "logprobs"};
        Kv *found[2];
        for (int i = 0; i < 2; i++) {
            int length = snprintf(key, sizeof key, "%.*s%lld.%s", (int)d->choice_prefix.n, (const char *)d->choice_prefix.p, (long long)count, names[i]);
            found[i] = other_named(d, (Str){(const uint8_t *)key, (size_t)length});
        }
        int fits[2] = {0, 0};
        for (int i = 0; i < 2; i++) {
            if (!found[i]) continue;
            fits[i] = put_list(c + (i ? C_CHOICE_LOGPROB_VALUES : C_CHOICE_ID_VALUES), found[i], i);
            TRY(fits[i] >= 0);
            taken += fits[i];
        }
        if (!taken) break;
        for (int i = 0; i < 2; i++) {
            Column *list = c + (i ? C_CHOICE_LOGPROBS : C_CHOICE_IDS), *values = list + 1;
            if (fits[i]) found[i]->dead = 1;
            TRY(put_valid(list, fits[i]) && put_offset(list, values->rows));
        }
    }
    return put_valid(c + C_CHOICES, count > 0) && put_offset(c + C_CHOICES, c[C_CHOICE_IDS].rows);
}

static int moved_index(const Decoder *d, const Kv *kv) {
    if (kv->key.n > 63 || (kv->kind != TEXT && kv->kind != INT)) return -1;
    for (int64_t i = d->moved_of_length[kv->key.n]; i < d->moved_count && d->moved[i].key.n == kv->key.n; i++) {
        const Moved *m = &d->moved[i];
        if ((m->kind == NUMBER) == (kv->kind == INT) && !memcmp(m->key.p, kv->key.p, kv->key.n)) return (int)i;
    }
    return -1;
}

static int put_moved(Decoder *d, int which, const Kv *kv) {
    Column *c = d->columns + C_MOVED + which;
    if (d->moved[which].kind != NUMBER) return put_seldom(d, c, kv->text);
    return put_nulls(c, d->at, 1) && put(&c->data, &kv->number, 8) && put_valid(c, 1);
}

static int put_context(Decoder *d, Context *x, int which) {
    Column *c = d->columns + C_CONTEXT + which;
    if (which == X_RESOURCE_ATTRIBUTES || which == X_SCOPE_ATTRIBUTES) c->rows++;
    else if (!x->has[which]) return 1;
    else TRY(put_nulls(c, d->at, 0) && put_valid(c, 1));
    if (c->shared && x->id[which] >= 0) return put_id(c, x->id[which]);
    return put_shared(d, c, x->text[which], hash(x->text[which], d->seed), &x->id[which]);
}

static int put_attributes(Decoder *d, int64_t n) {
    Column *c = d->columns;
    TRY(know_keys(d, n));
    int others = 0;
    for (int64_t i = 0; i < n; i++) others += !d->kvs[i].dead && !group(d->kvs[i].kind);
    if (others) {
        Kv *prompt = other_named(d, d->prompt_key);
        int fits = prompt ? put_list(c + C_PROMPT_VALUES, prompt, 0) : 0;
        TRY(fits >= 0);
        if (fits) prompt->dead = 1;
        TRY(put_valid(c + C_PROMPT_IDS, fits) && put_choices(d));
    } else TRY(put_valid(c + C_PROMPT_IDS, 0) && put_valid(c + C_CHOICES, 0) && put_offset(c + C_CHOICES, c[C_CHOICE_IDS].rows));
    TRY(put_offset(c + C_PROMPT_IDS, c[C_PROMPT_VALUES].rows));
    for (int64_t i = 0; i < n; i++) {
        const Kv *kv = &d->kvs[i];
        if (kv->dead) continue;
        Key *key = &d->keys[kv->which];
        if (key->moved >= 0) { TRY(put_moved(d, key->moved, kv)); continue; }
        int map = kv->kind == TEXT ? C_MAP_STR : kv->kind == INT ? C_MAP_INT : kv->kind == DOUBLE ? C_MAP_DBL : kv->kind == BOOL ? C_MAP_BOOL : C_MAP_JSON;
        c[map].rows++;
        if (c[map].shared && key->id >= 0) TRY(put_id(c + map, key->id));
        else TRY(put_shared(d, c + map, kv->key, key->hash, &key->id));
        switch (map) {
        case C_MAP_STR: c[map + 1].rows++; TRY(put_likely(d, c + map + 1, kv->text, &key->last)); break;
        case C_MAP_INT: TRY(put_i64(c + map + 1, kv->number)); break;
        case C_MAP_DBL: TRY(put_f64(c + map + 1, kv->real)); break;
        case C_MAP_BOOL: TRY(put_u8(c + map + 1, (uint8_t)kv->number)); break;
        default: {
            Kv value = *kv; /* the array may move while nested lists are read */
            TRY(json_any(d, &c[map + 1].data, &value, 0, n));
            c[map + 1].rows++;
            TRY(put_offset(c + map + 1, c[map + 1].data.n));
        }
        }
    }
    for (int i = 0; i < 5; i++) TRY(put_offset(c + C_MAP_OFFSETS + i, c[C_MAP_STR + 2 * i].rows));
    return 1;
}

/* Have 256 bytes on their way. Any address will do: nothing is read. */
static inline void ahead(const uint8_t *p, uintptr_t far) {
    for (uintptr_t i = far; i < far + 256; i += 64) __builtin_prefetch((const void *)((uintptr_t)p + i));
}

static int tiny(uint64_t v) { return v <= 127 ? (int)v : 0; }

static int read_span(Decoder *d, const Row *row) {
    Column *c = d->columns;
    uint64_t end = 0, flags = 0, kind = 0, code = 0, dropped[3] = {0, 0, 0};
    Str trace = {0, 0}, span = {0, 0}, parent = {0, 0}, state = {0, 0}, name = {0, 0}, message = {0, 0};
    int64_t n = 0, events = 0, links = 0;
    uint32_t seen = 0;
    FIELDS(row->span) {
        switch (it.field) {
        case 1: ONCE(2); trace = it.s; break;
        case 2: ONCE(2); span = it.s; break;
        case 3: ONCE(2); state = it.s; break;
        case 4: ONCE(2); parent = it.s; break;
        case 5: ONCE(2); name = it.s; break;
        case 6: ONCE(0); TRY(it.v <= INT32_LIMIT); kind = it.v; break;
        case 7: ONCE(1); break;
        case 8: ONCE(1); end = it.v; break;
        case 9: {
            Kv kv, *place;
            ahead(it.p, AHEAD); /* the processor does not see in time how far a span goes on */
            TRY(it.wire == 2 && key_value(it.s, &kv) && (place = push_kv(d, &n)));
            *place = kv;
            break;
        }
        case 10: case 12: case 14: ONCE(0); TRY(it.v <= UINT32_MAX); dropped[(it.field - 10) / 2] = it.v; break;
        case 11: TRY(it.wire == 2); events++; break;
        case 13: TRY(it.wire == 2); links++; break;
        case 15: {
            ONCE(2);
            Str status = it.s;
            uint32_t seen = 0;
            FIELDS(status) {
                if (it.field == 2) { ONCE(2); message = it.s; }
                else if (it.field == 3) { ONCE(0); TRY(it.v <= INT32_LIMIT); code = it.v; }
            }
            TRY(more == 0);
            break;
        }
        case 16: ONCE(5); flags = it.v; break;
        }
    }
    TRY(more == 0 && put_attributes(d, n));
    if (events || links) {
        FIELDS(row->span) {
            if (it.field == 11) TRY(put_event(d, it.s, 0));
            else if (it.field == 13) TRY(put_link(d, it.s, 0));
        }
        TRY(more == 0);
    }
    TRY(put_offset(c + C_EVENTS, c[C_EVENT_TIME].rows) && put_offset(c + C_LINKS, c[C_LINK_FLAGS].rows));
    int has_parent = is_id(parent, 8);
    TRY(put_u64(c + C_SEQ, row->seq) && put_u64(c + C_RECEIVED, row->received) && put_hex(c + C_TRACE, trace) && put_hex(c + C_SPAN, span));
    TRY(put_hex(c + C_PARENT, has_parent ? parent : (Str){0, 0}));
    c[C_PARENT].rows--; /* counted once more by its validity */
    TRY(put_valid(c + C_PARENT, has_parent) && (!state.n || put_seldom(d, c + C_STATE, state)) && put_u32(c + C_FLAGS, (uint32_t)flags));
    c[C_NAME].rows++;
    TRY(put_likely(d, c + C_NAME, name, &c[C_NAME].last) && put_u8(c + C_KIND, (uint8_t)tiny(kind)) && put_u64(c + C_START, row->start) && put_u64(c + C_END, end));
    TRY(put_u8(c + C_STATUS, (uint8_t)tiny(code)) && (!message.n || put_seldom(d, c + C_STATUS_MESSAGE, message)));
    for (int i = 0; i < 8; i++) TRY(put_context(d, &d->contexts[row->context], i));
    return put_u32(c + C_DROPPED_ATTRIBUTES, (uint32_t)dropped[0]) && put_u32(c + C_DROPPED_EVENTS, (uint32_t)dropped[1]) &&
           put_u32(c + C_DROPPED_LINKS, (uint32_t)dropped[2]);
}

static void pack_bits(Buf *b) {
    int64_t n = b->n, bytes = (n + 7) / 8;
    for (int64_t i = 0; i < bytes; i++) {
        uint8_t byte = 0;
        for (int64_t j = 8 * i; j < 8 * i + 8 && j < n; j++) byte |= (uint8_t)(b->p[j] << (j & 7));
        b->p[i] = byte;
    }
    b->n = bytes;
}

static int decode(Decoder *d, const Frame *frames, int64_t count) {
    for (int64_t i = 0; i < count; i++) TRY(read_request(d, frames[i]));
    const uint8_t *text = d->texts.p;
    for (int64_t i = 0; i < d->context_count; i++) /* JSON lies in the order in which it was written */
        for (int k = 0; k < 8; k++)
            if (d->contexts[i].has[k] == 2) { d->contexts[i].text[k].p = text; text += d->contexts[i].text[k].n; }
    if (d->rows) qsort(d->row, (size_t)d->rows, sizeof *d->row, by_trace_and_start);
    static const int with_offsets[] = {
        C_TRACE, C_SPAN, C_PARENT, C_STATE, C_NAME, C_STATUS_MESSAGE, C_EVENTS, C_EVENT_NAME, C_EVENT_ATTRIBUTES, C_LINKS,
        C_LINK_TRACE, C_LINK_SPAN, C_LINK_STATE, C_LINK_ATTRIBUTES, C_PROMPT_IDS, C_CHOICES, C_CHOICE_IDS, C_CHOICE_LOGPROBS,
        C_MAP_STR, C_MAP_STR + 1, C_MAP_INT, C_MAP_DBL, C_MAP_BOOL, C_MAP_JSON, C_MAP_JSON + 1};
    for (size_t i = 0; i < sizeof with_offsets / sizeof *with_offsets; i++) TRY(put_offset(d->columns + with_offsets[i], 0));
    for (int i = 0; i < 8; i++) TRY(put_offset(d->columns + C_CONTEXT + i, 0));
    for (int i = 0; i < 5; i++) TRY(put_offset(d->columns + C_MAP_OFFSETS + i, 0));
    for (int64_t i = 0; i < d->moved_count; i++) if (d->moved[i].kind != NUMBER) TRY(put_offset(d->columns + C_MOVED + i, 0));
    static const int shared[] = {C_STATE, C_NAME, C_STATUS_MESSAGE, C_MAP_STR, C_MAP_STR + 1, C_MAP_INT, C_MAP_DBL, C_MAP_BOOL, C_MAP_JSON};
    int sharing = d->rows <= d->shared_rows;
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) d->columns[shared[i]].shared = sharing;
    for (int i = 0; i < 8; i++) d->columns[C_CONTEXT + i].shared = sharing;
    for (int64_t i = 0; i < d->moved_count; i++) d->columns[C_MOVED + i].shared = sharing && d->moved[i].kind == SHARED_TEXT;
    for (d->at = 0; d->at < d->rows; d->at++) TRY(read_span(d, &d->row[d->at]));
    for (int64_t i = 0; i < d->column_count; i++) {
        Column *column = d->columns + i;
        int is_number = i >= C_MOVED && d->moved[i - C_MOVED].kind == NUMBER;
        int is_seldom = i >= C_MOVED || i == C_STATE || i == C_STATUS_MESSAGE ||
                        (i >= C_CONTEXT && i < C_CONTEXT + 8 && i != C_CONTEXT + X_RESOURCE_ATTRIBUTES && i != C_CONTEXT + X_SCOPE_ATTRIBUTES);
        if (column->shared && !column->count) TRY(stop_sharing(column)); /* nothing but nulls, or no rows */
        if (is_seldom) TRY(put_nulls(column, d->rows, is_number));
    }
    for (int64_t i = 0; i < d->column_count; i++) pack_bits(&d->columns[i].valid);
    pack_bits(&d->columns[C_MAP_BOOL + 1].data);
    return 1;
}

static void free_columns(Column *columns, int64_t count) {
    for (int64_t i = 0; columns && i < count; i++) {
        free(columns[i].data.p);
        free(columns[i].offsets.p);
        free(columns[i].valid.p);
        free(columns[i].index.p);
        free(columns[i].slots);
    }
    free(columns);
}

/* The columns of one decoding serve the next: fresh memory would be zeroed by the kernel, page for page, each time. */
static _Atomic(Column *) spare;
static _Atomic(int64_t) spare_count;

static Column *take_columns(int64_t count) {
    Column *columns = atomic_exchange(&spare, NULL);
    if (columns && atomic_load(&spare_count) == count) {
        for (int64_t i = 0; i < count; i++) {
            Column *c = columns + i;
            c->data.n = c->offsets.n = c->valid.n = c->index.n = 0;
            c->rows = c->nulls = c->count = c->shared = c->last = 0;
            if (c->slots) memset(c->slots, 0, (size_t)c->slot_room * sizeof *c->slots);
        }
        return columns;
    }
    free_columns(columns, atomic_load(&spare_count));
    return calloc((size_t)count, sizeof *columns);
}

static void give_columns(Column *columns, int64_t count) {
    int64_t room = 0, before = 0;
    for (int64_t i = 0; columns && i < count; i++) 
        room += columns[i].data.room + columns[i].offsets.room + columns[i].valid.room + columns[i].index.room + columns[i].slot_room * (int64_t)sizeof(Slot);
    /* One table's shape is all there is in a process; a huge one is not kept. */
    Column *none = NULL;
    int fits = columns && room <= SPARE_BYTES && (atomic_compare_exchange_strong(&spare_count, &before, count) || before == count);
    if (!fits || !atomic_compare_exchange_strong(&spare, &none, columns)) free_columns(columns, count);
}

EXPORT void wire_free(Decoder *d) {
    if (!d) return;
    give_columns(d->columns, d->column_count);
    free(d->doubles.p);
    free(d);
}

/* Columns of all spans in `frames`, to be freed with wire_free; NULL to let the Python path do it. When slow_doubles
   is not 0 and `written` was NULL, the columns are not complete: write the doubles and call again. */
EXPORT Decoder *wire_decode(const Frame *frames, int64_t count, const Moved *moved, int64_t moved_count, Str prompt_key,
                            Str choice_prefix, uint64_t seed, int64_t shared_bytes, int64_t shared_rows, const char *written) {
    Decoder *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->column_count = C_MOVED + moved_count;
    d->columns = take_columns(d->column_count);
    d->moved = moved;
    d->moved_count = moved_count;
    d->shared_bytes = shared_bytes;
    d->shared_rows = shared_rows;
    d->prompt_key = prompt_key;
    d->choice_prefix = choice_prefix;
    d->seed = seed;
    d->written = written;
    for (int64_t n = 63, i = moved_count; n >= 0; n--) { /* sorted: i goes down to the first key of n bytes or more */
        while (i > 0 && moved[i - 1].key.n >= (size_t)n) i--;
        d->moved_of_length[n] = (int)i;
    }
    int done = d->columns && choice_prefix.n < 100 && decode(d, frames, count);
    free(d->kvs);
    free(d->table);
    free(d->keys);
    free(d->key_slots);
    free(d->row);
    free(d->contexts);
    free(d->texts.p);
    if (done) return d;
    wire_free(d);
    return NULL;
}

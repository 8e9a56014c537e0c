/* The classifier that ships with crdtchain, as a WebAssembly module without imports.
 *
 * Softmax regression, or with `hidden` > 0 a network with one ReLU layer, in float64, by mini-batch SGD with
 * momentum or by Adam. Everything random comes from the seed. A part of the training rows is held out; the model
 * with the lowest loss on them is the one that is written. The byte layout of inputs and outputs is
 * docs/reference/wasm-abi.md. There is no C library here: exp, log, memcpy and memset are below.
 *
 * Parameters (text values are decimal numbers such as "0.05"):
 *   epochs int, batch int, hidden int (0: none), optimizer "adam" | "sgd", learning_rate text, momentum text,
 *   l2 text, noise text (uniform noise on scaled features), scale text (features are multiplied by it),
 *   holdout_percent int (0 .. 50; 0 judges by the training loss).
 *
 * Files: data/train/ *_x.npy and *_y.npy; data/test/ *_x.npy; model/model.raw, the arrays bias1[h] bias2[c]
 * weights1[d,h] weights2[h,c], or without a hidden layer bias[c] weights[d,c], as float64.
 */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef double f64;

#define EXPORT(name) __attribute__((export_name(name), visibility("default")))
#define PAGE 65536u
#define FAILED (-1)
#define NO_MEMORY (-2)
#define DONE 0
#define MORE 1

enum kind { KIND_FILE = 1, KIND_TEXT = 2, KIND_INT = 3, KIND_BOOL = 4 };

struct entry { u32 kind, name_at, name_len, data_at, data_len, reserved; };
struct slice { const u8 *at; u32 len; };

/* ---- memory: a bump allocator above the data segment; a run is one instance, nothing is ever freed ---- */

extern u8 __heap_base;
static u64 heap_end = 0;

EXPORT("alloc") void *alloc(u32 size) {
    if (heap_end == 0) heap_end = ((u64)(unsigned long)&__heap_base + 15) & ~15ull;
    u64 start = heap_end, end = (start + size + 15) & ~15ull;
    u64 have = (u64)__builtin_wasm_memory_size(0) * PAGE;
    if (end > have) {
        u64 pages = (end - have + PAGE - 1) / PAGE;
        if (pages > 65536 || __builtin_wasm_memory_grow(0, (unsigned long)pages) == (unsigned long)-1) return 0;
    }
    heap_end = end;
    return (void *)(unsigned long)start;
}

static f64 *alloc_f64(u64 count) {
    if (count > 0x10000000u) return 0;
    f64 *at = alloc((u32)count * 8);
    if (at) for (u64 i = 0; i < count; i++) at[i] = 0;
    return at;
}

static void copy_f64(f64 *to, const f64 *from, u32 count) {
    for (u32 i = 0; i < count; i++) to[i] = from[i];
}

static void copy_bytes(u8 *to, const void *from, u32 count) {
    for (u32 i = 0; i < count; i++) to[i] = ((const u8 *)from)[i];
}

/* ---- output: a frame, or the text of a failure ---- */

static const u8 *out_at = 0;
static u32 out_len = 0;

EXPORT("output_ptr") const u8 *output_ptr(void) { return out_at; }
EXPORT("output_len") u32 output_len(void) { return out_len; }

static u32 text_length(const char *text) {
    u32 n = 0;
    while (text[n]) n++;
    return n;
}

static int fail(const char *text) {
    out_at = (const u8 *)text;
    out_len = text_length(text);
    return FAILED;
}

static int fail_memory(void) {
    fail("The memory limit is too small for this data.");
    return NO_MEMORY;
}

/* Starts an output frame of one file and returns where its bytes go, or 0. */
static u8 *begin_frame(const char *name, u32 data_len) {
    u32 name_len = text_length(name);
    u32 name_at = 16 + sizeof(struct entry);
    u32 data_at = (name_at + name_len + 15) & ~15u;
    u32 total = (data_at + data_len + 15) & ~15u;
    u8 *frame = alloc(total);
    if (!frame) return 0;
    for (u32 i = 0; i < data_at; i++) frame[i] = 0;
    for (u32 i = data_at + data_len; i < total; i++) frame[i] = 0;
    copy_bytes(frame, "CCWF", 4);
    ((u32 *)frame)[1] = 1;
    ((u32 *)frame)[2] = 1;
    *(struct entry *)(frame + 16) = (struct entry){KIND_FILE, name_at, name_len, data_at, data_len, 0};
    copy_bytes(frame + name_at, name, name_len);
    out_at = frame;
    out_len = total;
    return frame + data_at;
}

/* ---- input frame; the host wrote it, so offsets are trusted ---- */

static const u8 *frame_at = 0;
static u32 frame_count = 0;

static int open_frame(const u8 *at, u32 len) {
    if (len < 16 || at[0] != 'C' || at[1] != 'C' || at[2] != 'W' || at[3] != 'F' || ((const u32 *)at)[1] != 1)
        return fail("The input is not a version 1 frame.");
    frame_at = at;
    frame_count = ((const u32 *)at)[2];
    return DONE;
}

static const struct entry *entry_at(u32 index) { return (const struct entry *)(frame_at + 16) + index; }

static int matches(const u8 *at, const char *text, u32 len) {
    for (u32 i = 0; i < len; i++) if (at[i] != (u8)text[i]) return 0;
    return 1;
}

static const struct entry *find_entry(const char *name) {
    u32 len = text_length(name);
    for (u32 i = 0; i < frame_count; i++) {
        const struct entry *e = entry_at(i);
        if (e->name_len == len && matches(frame_at + e->name_at, name, len)) return e;
    }
    return 0;
}

static struct slice find_file(const char *prefix, const char *suffix) {
    u32 before = text_length(prefix), after = text_length(suffix);
    for (u32 i = 0; i < frame_count; i++) {
        const struct entry *e = entry_at(i);
        const u8 *name = frame_at + e->name_at;
        if (e->kind == KIND_FILE && e->name_len >= before + after && matches(name, prefix, before) &&
            matches(name + e->name_len - after, suffix, after))
            return (struct slice){frame_at + e->data_at, e->data_len};
    }
    return (struct slice){0, 0};
}

static i64 int_param(const char *name, i64 otherwise) {
    const struct entry *e = find_entry(name);
    return e && e->kind == KIND_INT ? *(const i64 *)(frame_at + e->data_at) : otherwise;
}

static int has_bad_param = 0;

static f64 refuse_param(void) {
    has_bad_param = 1;
    return 0;
}

static int check_params(void) {
    return has_bad_param ? fail("A parameter that must be a decimal number such as \"0.05\" is none.") : DONE;
}

/* Reads digits with at most one point, and an optional sign. */
static f64 decimal_param(const char *name, f64 otherwise) {
    const struct entry *e = find_entry(name);
    if (!e) return otherwise;
    if (e->kind == KIND_INT) return (f64)*(const i64 *)(frame_at + e->data_at);
    if (e->kind != KIND_TEXT || e->data_len == 0) return refuse_param();
    const u8 *text = frame_at + e->data_at;
    u32 at = text[0] == '-';
    f64 value = 0, unit = 1;
    int seen_point = 0;
    if (text[e->data_len - 1] < '0' || text[e->data_len - 1] > '9') return refuse_param();
    for (; at < e->data_len; at++) {
        if (text[at] == '.' && !seen_point) { seen_point = 1; continue; }
        if (text[at] < '0' || text[at] > '9') return refuse_param();
        value = value * 10 + (text[at] - '0');
        if (seen_point) unit *= 10;
    }
    return text[0] == '-' ? -value / unit : value / unit;
}

static int text_param_is(const char *name, const char *value) {
    const struct entry *e = find_entry(name);
    u32 len = text_length(value);
    return e && e->kind == KIND_TEXT && e->data_len == len && matches(frame_at + e->data_at, value, len);
}

/* ---- npy ---- */

struct array { u32 rows, columns, size; char type; const u8 *at; };

static const char *find_text(const char *at, const char *end, const char *text) {
    u32 len = text_length(text);
    for (; at + len <= end; at++) if (matches((const u8 *)at, text, len)) return at + len;
    return 0;
}

/* Reads a 1-D or 2-D array in C order; 1-D has one column. */
static int read_npy(struct slice file, struct array *out) {
    if (!file.at || file.len < 12 || file.at[0] != 0x93 || !matches(file.at + 1, "NUMPY", 5)) return 0;
    u32 start = file.at[6] == 1 ? 10 : 12;
    u32 header = file.at[8] | (u32)file.at[9] << 8;
    if (start == 12) header |= (u32)file.at[10] << 16 | (u32)file.at[11] << 24;
    if (header > file.len - start) return 0;
    const char *text = (const char *)file.at + start, *end = text + header;
    const char *type = find_text(text, end, "'descr': '");
    const char *shape = find_text(text, end, "'shape': (");
    if (!type || !shape || type + 3 > end || !find_text(text, end, "'fortran_order': False") || type[0] == '>') return 0;
    u64 dims[2] = {0, 1};
    u32 count = 0;
    for (; shape < end && *shape != ')'; shape++) {
        if (*shape >= '0' && *shape <= '9') {
            if (count > 1) return 0;
            if (shape[-1] == '(' || shape[-1] == ' ' || shape[-1] == ',') dims[count] = 0;
            dims[count] = dims[count] * 10 + (u64)(*shape - '0');
            if (dims[count] > 0x7fffffffu) return 0;
        } else if (*shape == ',') count++;
        else if (*shape != ' ') return 0;
    }
    out->type = type[1];
    out->size = (u32)(type[2] - '0');
    out->rows = (u32)dims[0];
    out->columns = (u32)dims[1];
    out->at = file.at + start + header;
    return dims[0] * dims[1] * out->size == file.len - start - header;
}

static f64 number_at(const struct array *a, u64 i) {
    const u8 *at = a->at + i * a->size;
    if (a->type == 'f' && a->size == 8) { f64 v; __builtin_memcpy(&v, at, 8); return v; }
    if (a->type == 'f' && a->size == 4) { float v; __builtin_memcpy(&v, at, 4); return v; }
    if (a->type == 'i' && a->size == 8) { i64 v; __builtin_memcpy(&v, at, 8); return (f64)v; }
    if (a->type == 'i' && a->size == 4) { int v; __builtin_memcpy(&v, at, 4); return v; }
    return at[0];
}

static int is_readable(const struct array *a) {
    return (a->type == 'f' && (a->size == 4 || a->size == 8)) || (a->type == 'i' && (a->size == 4 || a->size == 8)) ||
           ((a->type == 'u' || a->type == 'b') && a->size == 1);
}

static int read_features(struct slice file, f64 scale, f64 **into, u32 *rows, u32 *columns) {
    struct array a;
    if (!read_npy(file, &a) || !is_readable(&a)) return fail("The features are not a readable npy matrix.");
    f64 *x = *into = alloc_f64((u64)a.rows * a.columns);
    if (!x) return fail_memory();
    for (u64 i = 0; i < (u64)a.rows * a.columns; i++) x[i] = number_at(&a, i) * scale;
    *rows = a.rows;
    *columns = a.columns;
    return DONE;
}

/* ---- numbers ---- */

/* exp by 2^k * e^r with |r| <= ln2 / 2 and the series of e^r to r^13: within 2 units in the last place. */
static f64 exp_f64(f64 x) {
    if (x != x) return x;
    if (x > 709) return __builtin_inf();
    if (x < -708) return 0;
    f64 k = __builtin_floor(x * 1.4426950408889634 + 0.5);
    f64 r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    f64 sum = 1;
    for (int i = 13; i >= 1; i--) sum = 1 + sum * r / i;
    u64 bits = (u64)((i64)k + 1023) << 52;
    f64 power;
    __builtin_memcpy(&power, &bits, 8);
    return sum * power;
}

/* log by the series of atanh on the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0. */
static f64 log_f64(f64 x) {
    u64 bits;
    __builtin_memcpy(&bits, &x, 8);
    f64 exponent = (f64)((i64)(bits >> 52) - 1023);
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    f64 m;
    __builtin_memcpy(&m, &bits, 8);
    if (m > 1.4142135623730951) { m *= 0.5; exponent += 1; }
    f64 s = (m - 1) / (m + 1), square = s * s, sum = 0;
    for (int i = 23; i >= 1; i -= 2) sum = sum * square + 1.0 / i;
    return 2 * s * sum + exponent * 0.69314718055994531;
}

static u64 random_state = 0;

/* splitmix64 */
static u64 random_u64(void) {
    u64 z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Uniform in [-1, 1). */
static f64 random_f64(void) { return (f64)(random_u64() >> 11) * (2.0 / 9007199254740992.0) - 1; }

static void shuffle(u32 *items, u32 count) {
    for (u32 i = count; i > 1; i--) {
        u32 j = (u32)(random_u64() % i), keep = items[i - 1];
        items[i - 1] = items[j];
        items[j] = keep;
    }
}

/* ---- the network: parameters in one array, in the order of model.raw ---- */

static u32 dims, hidden, classes, param_count;
static f64 *params, *bias1, *bias2, *weights1, *weights2;
static f64 *layer, *layer_delta, *output, *row_copy;

static int lay_out(f64 *at) {
    u64 first = (u64)dims * hidden, last = (u64)(hidden ? hidden : dims) * classes;
    if (hidden + classes + first + last > 0x1000000u) return fail("The model is larger than 16777216 numbers.");
    param_count = (u32)(hidden + classes + first + last);
    params = at ? at : alloc_f64(param_count);
    layer = alloc_f64(hidden + 1);
    layer_delta = alloc_f64(hidden + 1);
    output = alloc_f64(classes);
    row_copy = alloc_f64(dims);
    if (!params || !layer || !layer_delta || !output || !row_copy) return fail_memory();
    bias1 = params;
    bias2 = bias1 + hidden;
    weights1 = bias2 + classes;
    weights2 = weights1 + first;
    return DONE;
}

/* to[0..n) += factor * from[0..n) */
static inline void add_scaled(f64 *restrict to, const f64 *restrict from, f64 factor, u32 n) {
    for (u32 i = 0; i < n; i++) to[i] += factor * from[i];
}

/* Leaves the class probabilities of one row in `output`. */
static void forward(const f64 *x) {
    const f64 *last = x;
    u32 width = dims;
    if (hidden) {
        copy_f64(layer, bias1, hidden);
        for (u32 j = 0; j < dims; j++) if (x[j] != 0) add_scaled(layer, weights1 + (u64)j * hidden, x[j], hidden);
        for (u32 k = 0; k < hidden; k++) if (!(layer[k] > 0)) layer[k] = 0;
        last = layer;
        width = hidden;
    }
    copy_f64(output, bias2, classes);
    for (u32 k = 0; k < width; k++) if (last[k] != 0) add_scaled(output, weights2 + (u64)k * classes, last[k], classes);
    f64 top = output[0], sum = 0;
    for (u32 c = 1; c < classes; c++) if (output[c] > top) top = output[c];
    for (u32 c = 0; c < classes; c++) sum += output[c] = exp_f64(output[c] - top);
    for (u32 c = 0; c < classes; c++) output[c] /= sum;
}

static f64 row_loss(u32 label) { return -log_f64(output[label] > 1e-12 ? output[label] : 1e-12); }

/* ---- training state ---- */

static u32 row_count, kept_count, epoch_count, epoch, batch;
static f64 *features, *gradient, *moment1, *moment2, *best, best_loss, last_loss;
static f64 learning_rate, momentum, l2, noise, power1, power2;
static u32 *labels, *order;
static int is_adam;

/* Adds the gradient of one row's loss; `forward` ran on it. */
static void backward(const f64 *x, u32 label) {
    f64 *g1 = gradient, *g2 = gradient + hidden, *w1 = g2 + classes, *w2 = w1 + (u64)dims * hidden;
    const f64 *last = hidden ? layer : x;
    u32 width = hidden ? hidden : dims;
    output[label] -= 1;
    add_scaled(g2, output, 1, classes);
    for (u32 k = 0; k < width; k++) if (last[k] != 0) add_scaled(w2 + (u64)k * classes, output, last[k], classes);
    if (!hidden) return;
    for (u32 k = 0; k < hidden; k++) {
        f64 sum = 0;
        if (layer[k] > 0) for (u32 c = 0; c < classes; c++) sum += output[c] * weights2[(u64)k * classes + c];
        layer_delta[k] = sum;
    }
    add_scaled(g1, layer_delta, 1, hidden);
    for (u32 j = 0; j < dims; j++) if (x[j] != 0) add_scaled(w1 + (u64)j * hidden, layer_delta, x[j], hidden);
}

/* One step of the optimiser; clears the gradient. Biases (the first hidden + classes numbers) have no l2. */
static void update(u32 rows, f64 rate) {
    f64 share = 1.0 / rows;
    power1 *= 0.9;
    power2 *= 0.999;
    f64 fix1 = 1 / (1 - power1), fix2 = 1 / (1 - power2);
    for (u32 i = 0; i < param_count; i++) {
        f64 g = gradient[i] * share + (i < hidden + classes ? 0 : l2 * params[i]);
        gradient[i] = 0;
        if (is_adam) {
            moment1[i] = 0.9 * moment1[i] + 0.1 * g;
            moment2[i] = 0.999 * moment2[i] + 0.001 * g * g;
            params[i] -= rate * moment1[i] * fix1 / (__builtin_sqrt(moment2[i] * fix2) + 1e-8);
        } else {
            moment1[i] = momentum * moment1[i] - rate * g;
            params[i] += moment1[i];
        }
    }
}

static int read_training_data(void) {
    struct array y;
    struct slice x_file = find_file("data/train/", "_x.npy");
    int code = read_features(x_file, decimal_param("params/scale", 1), &features, &row_count, &dims);
    if (code) return code;
    if (!read_npy(find_file("data/train/", "_y.npy"), &y) || !is_readable(&y) || y.columns != 1)
        return fail("The labels are not a readable npy column.");
    if (y.rows != row_count || row_count < 2) return fail("Features and labels differ in length, or are too few.");
    labels = alloc(row_count * 4);
    order = alloc(row_count * 4);
    if (!labels || !order) return fail_memory();
    classes = 0;
    for (u32 i = 0; i < row_count; i++) {
        f64 label = number_at(&y, i);
        if (!(label >= 0 && label < 65536) || label != __builtin_floor(label))
            return fail("A label is not a whole number from 0 to 65535.");
        labels[i] = (u32)label;
        if (labels[i] >= classes) classes = labels[i] + 1;
        order[i] = i;
    }
    return DONE;
}

static int read_settings(void) {
    i64 epochs = int_param("params/epochs", 40), size = int_param("params/batch", 32);
    i64 width = int_param("params/hidden", 0), percent = int_param("params/holdout_percent", 10);
    if (epochs < 1 || epochs > 1000000 || size < 1 || size > 65536 || width < 0 || width > 65536 || percent < 0 ||
        percent > 50)
        return fail("epochs, batch, hidden or holdout_percent is out of range.");
    epoch_count = (u32)epochs;
    batch = (u32)size;
    hidden = (u32)width;
    kept_count = row_count - (u32)((u64)row_count * (u64)percent / 100);
    is_adam = !text_param_is("params/optimizer", "sgd");
    learning_rate = decimal_param("params/learning_rate", is_adam ? 0.003 : 0.1);
    momentum = decimal_param("params/momentum", 0.9);
    l2 = decimal_param("params/l2", 0);
    noise = decimal_param("params/noise", 0);
    random_state = (u64)int_param("seed", 0) * 0x9e3779b97f4a7c15ull + 1;
    return check_params();
}

EXPORT("train") int train(const u8 *input, u32 input_len) {
    int code;
    if ((code = open_frame(input, input_len)) || (code = read_training_data()) || (code = read_settings()) ||
        (code = lay_out(0)))
        return code;
    gradient = alloc_f64(param_count);
    moment1 = alloc_f64(param_count);
    moment2 = alloc_f64(param_count);
    best = alloc_f64(param_count);
    if (!gradient || !moment1 || !moment2 || !best) return fail_memory();
    f64 spread1 = __builtin_sqrt(6.0 / dims), spread2 = __builtin_sqrt(3.0 / (hidden ? hidden : dims));
    for (u64 i = 0; i < (u64)dims * hidden; i++) weights1[i] = random_f64() * spread1;
    for (u64 i = 0; i < (u64)(hidden ? hidden : dims) * classes; i++) weights2[i] = random_f64() * spread2;
    shuffle(order, row_count); /* the rows after kept_count are held out */
    power1 = power2 = 1;
    epoch = 0;
    best_loss = last_loss = __builtin_inf();
    copy_f64(best, params, param_count);
    return MORE;
}

/* One epoch. The learning rate falls linearly to nothing over all epochs. */
EXPORT("step") int step(void) {
    f64 rate = learning_rate * (1 - (f64)epoch / epoch_count), sum = 0;
    shuffle(order, kept_count);
    for (u32 start = 0; start < kept_count; start += batch) {
        u32 rows = kept_count - start < batch ? kept_count - start : batch;
        for (u32 i = start; i < start + rows; i++) {
            const f64 *x = features + (u64)order[i] * dims;
            if (noise > 0) {
                for (u32 j = 0; j < dims; j++) row_copy[j] = x[j] + noise * random_f64();
                x = row_copy;
            }
            forward(x);
            sum += row_loss(labels[order[i]]);
            backward(x, labels[order[i]]);
        }
        update(rows, rate);
    }
    epoch++;
    last_loss = sum / kept_count;
    if (kept_count < row_count) {
        sum = 0;
        for (u32 i = kept_count; i < row_count; i++) {
            forward(features + (u64)order[i] * dims);
            sum += row_loss(labels[order[i]]);
        }
        last_loss = sum / (row_count - kept_count);
    }
    if (last_loss != last_loss) return fail("The training diverged: try a lower learning_rate.");
    if (last_loss < best_loss) {
        best_loss = last_loss;
        copy_f64(best, params, param_count);
    }
    return epoch < epoch_count ? MORE : DONE;
}

EXPORT("loss") f64 loss(void) { return last_loss; }

/* After training: the frame with model/model.raw. After predict the output is ready already. */
EXPORT("finish") int finish(void) {
    if (!best) return DONE;
    u8 *at = begin_frame("model/model.raw", param_count * 8);
    if (!at) return fail_memory();
    copy_bytes(at, best, param_count * 8);
    return DONE;
}

/* ---- prediction ---- */

static u32 print_u32(u8 *to, u32 value) {
    u8 digits[10];
    u32 n = 0;
    do digits[n++] = (u8)('0' + value % 10); while (value /= 10);
    for (u32 i = 0; i < n; i++) to[i] = digits[n - 1 - i];
    return n;
}

/* Writes the 128-byte npy 1.0 header of a float64 matrix. */
static void write_npy_header(u8 *to, u32 rows, u32 columns) {
    const char *open = "{'descr': '<f8', 'fortran_order': False, 'shape': (";
    u32 n = 10;
    for (u32 i = 0; i < 128; i++) to[i] = ' ';
    copy_bytes(to, "\x93NUMPY\x01\x00\x76\x00", 10);
    copy_bytes(to + n, open, text_length(open));
    n += text_length(open);
    n += print_u32(to + n, rows);
    copy_bytes(to + n, ", ", 2);
    n += 2;
    n += print_u32(to + n, columns);
    copy_bytes(to + n, "), }", 4);
    to[127] = '\n';
}

EXPORT("predict") int predict(const u8 *input, u32 input_len) {
    int code = open_frame(input, input_len);
    if (code) return code;
    f64 *x;
    struct slice x_file = find_file("data/test/", "_x.npy");
    code = read_features(x_file, decimal_param("params/scale", 1), &x, &row_count, &dims);
    if (code || (code = check_params())) return code;
    struct slice model = find_file("model/", "model.raw");
    i64 width = int_param("params/hidden", 0);
    i64 numbers = model.len / 8, first = width + (i64)dims * width, each = 1 + (width ? width : dims);
    if (!model.at || model.len % 8 || width < 0 || width > 65536 || numbers <= first || (numbers - first) % each)
        return fail("model.raw has not the size that the features and `hidden` ask for.");
    hidden = (u32)width;
    classes = (u32)((numbers - first) / each);
    if ((code = lay_out((f64 *)model.at))) return code;
    u64 bytes = (u64)row_count * classes * 8;
    u8 *to = bytes < 0x7fffff00u ? begin_frame("predictions.npy", 128 + (u32)bytes) : 0;
    if (!to) return fail_memory();
    write_npy_header(to, row_count, classes);
    for (u32 i = 0; i < row_count; i++) {
        forward(x + (u64)i * dims);
        copy_f64((f64 *)(to + 128) + (u64)i * classes, output, classes);
    }
    return DONE;
}

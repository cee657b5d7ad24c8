/* What is done for every byte, or every small file, of what enters the store: looking for hash
 * parts, and writing runs of files as NAR. search.py and files.py say what each does, and hold
 * the same in Python, which is used where this wasn't built.
 *
 * Files are opened and changed as root in trees that a hostile program has written. So nothing is
 * decided here: what isn't a plain small file is left to the caller, untouched. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* ---- looking for hash parts ---- */

enum { TEXT = 32, FILTER_BITS = 16 };

typedef enum { MISSING, FOUND, TOLD } State;

typedef struct {
    PyObject_HEAD
    Py_ssize_t count;
    uint8_t *texts;  /* sorted, TEXT bytes each */
    uint8_t *found;  /* a State for each */
    uint8_t *filter; /* a bit for each hash of the first eight bytes of some text */
    bool busy;
} Searcher;

/* Nix's base 32: no e, o, t, u. */
static const uint8_t is_digit[256] = {
    ['0'] = 1, ['1'] = 1, ['2'] = 1, ['3'] = 1, ['4'] = 1, ['5'] = 1, ['6'] = 1, ['7'] = 1,
    ['8'] = 1, ['9'] = 1, ['a'] = 1, ['b'] = 1, ['c'] = 1, ['d'] = 1, ['f'] = 1, ['g'] = 1,
    ['h'] = 1, ['i'] = 1, ['j'] = 1, ['k'] = 1, ['l'] = 1, ['m'] = 1, ['n'] = 1, ['p'] = 1,
    ['q'] = 1, ['r'] = 1, ['s'] = 1, ['v'] = 1, ['w'] = 1, ['x'] = 1, ['y'] = 1, ['z'] = 1,
};

static inline uint32_t hash_of(const uint8_t *text)
{
    uint64_t word;
    memcpy(&word, text, sizeof word);
    return (uint32_t)((word * UINT64_C(0x9E3779B97F4A7C15)) >> (64 - FILTER_BITS));
}

static int compare_texts(const void *left, const void *right)
{
    return memcmp(left, right, TEXT);
}

static void look_up(Searcher *self, const uint8_t *text)
{
    uint32_t hash = hash_of(text);
    if (!(self->filter[hash >> 3] >> (hash & 7) & 1))
        return;
    const uint8_t *at =
        bsearch(text, self->texts, (size_t)self->count, TEXT, compare_texts);
    if (at && self->found[(at - self->texts) / TEXT] == MISSING)
        self->found[(at - self->texts) / TEXT] = FOUND;
}

/* A digit string begins behind the last byte of the next 32 that is no digit: most data is skipped
 * 32 bytes at a time. In a run of digits each place is looked at once. */
static void search(Searcher *self, const uint8_t *data, size_t size)
{
    size_t at = 0;
    while (at + TEXT <= size) {
        size_t last = TEXT;
        while (last && is_digit[data[at + last - 1]])
            last--;
        if (last) {
            at += last;
            continue;
        }
        look_up(self, data + at);
        while (at + TEXT < size && is_digit[data[at + TEXT]])
            look_up(self, data + ++at);
        at += TEXT + 1;
    }
}

static void searcher_free(PyObject *object)
{
    Searcher *self = (Searcher *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_RawFree(self->texts);
    PyMem_RawFree(self->found);
    PyMem_RawFree(self->filter);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *searcher_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *given;
    if (keywords && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Searcher takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "O:Searcher", &given))
        return NULL;
    PyObject *list = PySequence_Tuple(given);
    if (!list)
        return NULL;
    Searcher *self = (Searcher *)type->tp_alloc(type, 0);
    if (!self)
        goto failed;
    self->count = PyTuple_GET_SIZE(list);
    self->texts = PyMem_RawMalloc((size_t)self->count * TEXT + 1);
    self->found = PyMem_RawCalloc((size_t)self->count + 1, 1);
    self->filter = PyMem_RawCalloc((1 << FILTER_BITS) / 8, 1);
    if (!self->texts || !self->found || !self->filter) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t index = 0; index < self->count; index++) {
        PyObject *text = PyTuple_GET_ITEM(list, index);
        if (!PyBytes_Check(text) || PyBytes_GET_SIZE(text) != TEXT) {
            PyErr_SetString(PyExc_ValueError, "each text must be bytes, 32 of them");
            goto failed;
        }
        memcpy(self->texts + index * TEXT, PyBytes_AS_STRING(text), TEXT);
        uint32_t hash = hash_of(self->texts + index * TEXT);
        self->filter[hash >> 3] |= (uint8_t)(1 << (hash & 7));
    }
    qsort(self->texts, (size_t)self->count, TEXT, compare_texts);
    Py_DECREF(list);
    return (PyObject *)self;
failed:
    Py_XDECREF(self);
    Py_DECREF(list);
    return NULL;
}

/* The texts that are known to occur by now and were not before; they're told once. */
static PyObject *take_found(Searcher *self)
{
    PyObject *found = PyList_New(0);
    for (Py_ssize_t index = 0; found && index < self->count; index++) {
        if (self->found[index] != FOUND)
            continue;
        PyObject *text =
            PyBytes_FromStringAndSize((char *)self->texts + index * TEXT, TEXT);
        if (!text || PyList_Append(found, text) < 0)
            Py_CLEAR(found);
        else
            self->found[index] = TOLD;
        Py_XDECREF(text);
    }
    return found;
}

static PyObject *searcher_search(PyObject *object, PyObject *given)
{
    Searcher *self = (Searcher *)object;
    Py_buffer data;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "two threads search with one Searcher");
        return NULL;
    }
    if (PyObject_GetBuffer(given, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    search(self, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    self->busy = false;
    PyBuffer_Release(&data);
    return take_found(self);
}

static PyMethodDef searcher_methods[] = {
    {"search", searcher_search, METH_O, "The texts that occur in the data and did not before."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot searcher_slots[] = {
    {Py_tp_new, searcher_new},
    {Py_tp_dealloc, searcher_free},
    {Py_tp_methods, searcher_methods},
    {Py_tp_doc, "Looks for many texts of 32 digits at once."},
    {0, NULL},
};

static PyType_Spec searcher_spec = {
    .name = "executor.native.compiled.Searcher",
    .basicsize = sizeof(Searcher),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = searcher_slots,
};

/* ---- runs of small files ---- */

/* The longest name, of which Linux has none; the room that the framing of one file takes. */
enum { MOST_FILES = 1024, LONGEST_NAME = 255, FRAMING = 512 };

#define WORD(length, text) length "\0\0\0\0\0\0\0" text
static const char ENTRY[] = WORD("\5", "entry\0\0\0") WORD("\1", "(\0\0\0\0\0\0\0")
    WORD("\4", "name\0\0\0\0");
static const char NODE[] = WORD("\4", "node\0\0\0\0") WORD("\1", "(\0\0\0\0\0\0\0")
    WORD("\4", "type\0\0\0\0") WORD("\7", "regular\0");
static const char EXECUTABLE[] = WORD("\12", "executable\0\0\0\0\0\0") WORD("\0", "");
static const char CONTENTS[] = WORD("\10", "contents");
static const char CLOSE[] = WORD("\1", ")\0\0\0\0\0\0\0") WORD("\1", ")\0\0\0\0\0\0\0");

typedef struct {
    int directory;
    int flags;
    bool canonical;         /* give files the metadata of store objects */
    bool any_owner;
    unsigned long first_uid, end_uid; /* those that files may belong to: first ≤ uid < end */
    uid_t uid;
    gid_t gid;
    size_t largest;         /* bytes of a file that is still taken here */
    uint8_t *out;
    size_t used, room;
} Run;

/* What became of one file. */
typedef enum {
    PACKED,
    LEFT,   /* to the caller: nothing was done to it */
    SHRANK, /* while it was read, when its metadata had been changed already */
    FAILED, /* likewise; errno tells */
} Fate;

static void put(Run *run, const void *data, size_t size)
{
    memcpy(run->out + run->used, data, size);
    run->used += size;
}

static void put_length(Run *run, uint64_t length)
{
    uint8_t bytes[8];
    for (int index = 0; index < 8; index++)
        bytes[index] = (uint8_t)(length >> (8 * index));
    put(run, bytes, sizeof bytes);
}

static void put_padding(Run *run, size_t size)
{
    static const uint8_t zeros[8];
    put(run, zeros, -size & 7);
}

/* Whether the file is one that a Canonicaliser would pass and remember nothing of. */
static bool is_plain(const Run *run, int fd, const struct stat *status)
{
    if (!run->any_owner
        && (status->st_uid < run->first_uid || status->st_uid >= run->end_uid))
        return false;
    if (status->st_nlink != 1)
        return false;
    ssize_t attributes = flistxattr(fd, NULL, 0);
    return attributes == 0 || (attributes < 0 && errno == ENOTSUP);
}

/* Zero, or -1 with errno. The owner first: a change of it clears set-id bits. */
static int make_canonical(const Run *run, int fd, const struct stat *status)
{
    mode_t mode = status->st_mode & 07777, wanted = mode & S_IXUSR ? 0555 : 0444;
    if (status->st_uid != run->uid && fchown(fd, run->uid, run->gid) < 0)
        return -1;
    if (mode != 0555 && mode != 0444 && fchmod(fd, wanted) < 0)
        return -1;
    if (status->st_mtim.tv_sec != 1 || status->st_mtim.tv_nsec != 0) {
        const struct timespec times[2] = {status->st_atim, {.tv_sec = 1}};
        if (futimens(fd, times) < 0)
            return -1;
    }
    return 0;
}

/* Whether so many bytes could be read. */
static bool read_all(int fd, uint8_t *to, size_t size)
{
    while (size) {
        ssize_t done = read(fd, to, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            if (!done)
                errno = 0;
            return false;
        }
        to += done;
        size -= (size_t)done;
    }
    return true;
}

static Fate pack_open(Run *run, int fd, const char *name, size_t length)
{
    struct stat status;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return LEFT;
    if (status.st_size < 0 || (uint64_t)status.st_size > run->largest)
        return LEFT;
    size_t size = (size_t)status.st_size, start = run->used;
    if (run->room - run->used < size + FRAMING + LONGEST_NAME)
        return LEFT;
    if (run->canonical) {
        if (!is_plain(run, fd, &status))
            return LEFT;
        if (make_canonical(run, fd, &status) < 0)
            return FAILED;
    }
    put(run, ENTRY, sizeof ENTRY - 1);
    put_length(run, length);
    put(run, name, length);
    put_padding(run, length);
    put(run, NODE, sizeof NODE - 1);
    if (status.st_mode & S_IXUSR)
        put(run, EXECUTABLE, sizeof EXECUTABLE - 1);
    put(run, CONTENTS, sizeof CONTENTS - 1);
    put_length(run, size);
    if (!read_all(fd, run->out + run->used, size)) {
        run->used = start;
        return errno ? FAILED : SHRANK;
    }
    run->used += size;
    put_padding(run, size);
    put(run, CLOSE, sizeof CLOSE - 1);
    return PACKED;
}

static Fate pack_file(Run *run, const char *name, size_t length)
{
    int fd = openat(run->directory, name, run->flags);
    if (fd < 0)
        return LEFT;
    Fate fate = pack_open(run, fd, name, length);
    int error = errno;
    close(fd);
    errno = error;
    return fate;
}

/* The names at the end of the list that may be packed, last first; how many. */
static Py_ssize_t take_names(PyObject *names, PyObject *others, PyObject **taken)
{
    Py_ssize_t size = PyList_GET_SIZE(names), count = 0;
    while (count < size && count < MOST_FILES) {
        PyObject *name = PyList_GET_ITEM(names, size - 1 - count);
        if (!PyBytes_Check(name) || PyBytes_GET_SIZE(name) > LONGEST_NAME
            || memchr(PyBytes_AS_STRING(name), 0, (size_t)PyBytes_GET_SIZE(name)))
            break;
        int other = PyDict_Contains(others, name);
        if (other < 0) {
            while (count)
                Py_DECREF(taken[--count]);
            return -1;
        }
        if (other)
            break;
        Py_INCREF(name);
        taken[count++] = name;
    }
    return count;
}

static PyObject *pack_files(PyObject *module, PyObject *arguments)
{
    (void)module;
    Run run = {.flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC};
    PyObject *names, *others, *taken[MOST_FILES];
    Py_ssize_t largest, room;
    long first, end;
    int no_atime, canonical;
    if (!PyArg_ParseTuple(arguments, "iO!O!nnppll:pack_files", &run.directory, &PyList_Type,
                          &names, &PyDict_Type, &others, &largest, &room, &no_atime, &canonical,
                          &first, &end))
        return NULL;
    if (largest < 0 || room < 0) {
        PyErr_SetString(PyExc_ValueError, "sizes must not be negative");
        return NULL;
    }
    run.flags |= no_atime ? O_NOATIME : 0;
    run.canonical = canonical;
    run.any_owner = first < 0;
    run.first_uid = (unsigned long)first;
    run.end_uid = (unsigned long)end;
    run.uid = geteuid();
    run.gid = getegid();
    run.largest = (size_t)largest;
    run.room = (size_t)room;
    PyObject *data = PyBytes_FromStringAndSize(NULL, room);
    if (!data)
        return NULL;
    run.out = (uint8_t *)PyBytes_AS_STRING(data);
    Py_ssize_t count = take_names(names, others, taken), done = 0;
    Fate fate = PACKED;
    int error = 0;
    if (count > 0) {
        Py_BEGIN_ALLOW_THREADS
        while (done < count && fate == PACKED) {
            fate = pack_file(&run, PyBytes_AS_STRING(taken[done]),
                             (size_t)PyBytes_GET_SIZE(taken[done]));
            done += fate == PACKED;
        }
        error = errno;
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t index = 0; index < count; index++)
        Py_DECREF(taken[index]);
    if (count < 0 || fate == FAILED) {
        Py_DECREF(data);
        if (count >= 0) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        return NULL;
    }
    if (_PyBytes_Resize(&data, (Py_ssize_t)run.used) < 0)
        return NULL;
    return Py_BuildValue("nNO", done, data, fate == SHRANK ? Py_True : Py_False);
}

/* ---- the module ---- */

static PyMethodDef functions[] = {
    {"pack_files", pack_files, METH_VARARGS, "Small files at the end of a list of names, as NAR."},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &searcher_spec, NULL);
    if (!type)
        return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return result;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, fill_module},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "executor.native.compiled",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_compiled(void)
{
    return PyModuleDef_Init(&module_definition);
}

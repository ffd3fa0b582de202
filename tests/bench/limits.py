"""The rows of the engine bench, and what each of them can reach at most: the model's bytes and operations by this machine's own peaks.

README.md beside this file derives the formulas.
"""
import collections
import statistics
import struct

# What bench_engine.c and the peers' programs time.
DECODE_SHORT = 128  # tokens from an empty cache
DECODE_DEEP = 64  # tokens at depth, and of each sequence of a batch
BATCH_PROMPT = 128  # tokens that each sequence of a batch has before

# n: prompt tokens, depth, or sequences.
Row = collections.namedtuple("Row", "name kind n threads")
ROWS = [Row("prefill_128", "prefill", 128, 2), Row("prefill_512", "prefill", 512, 2), Row("prefill_2048", "prefill", 2048, 2),
        Row("decode_d0", "decode", 0, 2), Row("decode_d2048", "decode", 2048, 2), Row("decode_d4096", "decode", 4096, 2),
        Row("batch_4", "batch", 4, 2), Row("batch_16", "batch", 16, 2), Row("batch_32", "batch", 32, 2),
        Row("prefill_512", "prefill", 512, 1), Row("decode_d0", "decode", 0, 1)]

# Of the pure int8 peak: what is left when each 32 products are scaled, as the accuracy contract wants (a scale and a minimum of the
# weights, a scale of the activations). A tuned micro-kernel's inner loop, without memory, reaches 305 to 322 of 426 to 442 GOP/s.
GROUP_SCALES = 0.72

Model = collections.namedtuple("Model", "layers heads kv_heads head_dim weight_bytes block_ops head_ops")
# Peaks for a number of threads, per second; None where the CPU lacks the instructions.
Machine = collections.namedtuple("Machine", "read int8 bf16")

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2)}  # tensor type: elements, bytes of a block


class _Reader:
    def __init__(self, file):
        self.file = file

    def scalar(self, kind):
        size = struct.calcsize("<" + kind)
        return struct.unpack("<" + kind, self.file.read(size))[0]

    def string(self):
        return self.file.read(self.scalar("Q")).decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, n = self.scalar("I"), self.scalar("Q")
            return [self.value(kind) for _ in range(n)]
        return self.scalar(SCALARS[kind])


def read_model(path):
    """The sizes in a GGUF file's header."""
    with open(path, "rb") as file:
        reader = _Reader(file)
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        reader.scalar("I")
        n_tensors, n_pairs = reader.scalar("Q"), reader.scalar("Q")
        pairs = {}
        for _ in range(n_pairs):
            key = reader.string()
            pairs[key] = reader.value(reader.scalar("I"))
        tensors = {}
        for _ in range(n_tensors):
            name = reader.string()
            dims = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
            kind, _ = reader.scalar("I"), reader.scalar("Q")
            n = 1
            for dim in dims:
                n *= dim
            elements, size = BLOCKS[kind]
            tensors[name] = (n, len(dims), n // elements * size)
    arch = pairs["general.architecture"]
    heads = pairs[f"{arch}.attention.head_count"]
    own_head = "output.weight" in tensors
    head = tensors["output.weight" if own_head else "token_embd.weight"]
    blocks = sum(n for name, (n, dims, _) in tensors.items() if dims == 2 and name not in ("output.weight", "token_embd.weight"))
    # Of an embedding that is not the head's as well, a step reads one line.
    weights = sum(size for name, (_, _, size) in tensors.items() if not (own_head and name == "token_embd.weight"))
    return Model(layers=pairs[f"{arch}.block_count"], heads=heads,
                 kv_heads=pairs.get(f"{arch}.attention.head_count_kv", heads),
                 head_dim=pairs.get(f"{arch}.attention.key_length", pairs[f"{arch}.embedding_length"] // heads),
                 weight_bytes=weights, block_ops=2 * blocks, head_ops=2 * head[0])


def kv_bytes(model, value_bytes=2):
    """Bytes of K and V that a token takes in all layers."""
    return 2 * model.layers * model.kv_heads * model.head_dim * value_bytes


def attention_ops(model, depth):
    """Of one token that sees `depth` tokens: a product and a sum for each dimension of each key, and of each value."""
    return 4 * model.layers * model.heads * model.head_dim * depth


def _linear_peak(machine, arithmetic):
    if arithmetic == "bf16":
        return machine.bf16
    return machine.int8 and GROUP_SCALES * machine.int8


def prefill_limit(model, machine, tokens, arithmetic="int8"):
    """Tokens per second; None where a peak is not known. Token i sees i + 1; the head is computed once."""
    linear = _linear_peak(machine, arithmetic)
    if not linear or not machine.bf16:
        return None
    seconds = (tokens * model.block_ops + model.head_ops) / linear
    seconds += tokens * attention_ops(model, (tokens + 1) / 2) / machine.bf16
    return tokens / seconds


def decode_limit(model, machine, sequences, depth, arithmetic="int8", kv=None):
    """Tokens per second of all sequences: the lower of what memory and what arithmetic allow. The weights are read once in a step."""
    kv = kv_bytes(model) if kv is None else kv
    bandwidth = sequences * machine.read / (model.weight_bytes + sequences * depth * kv)
    linear = _linear_peak(machine, arithmetic)
    if not linear or not machine.bf16:
        return bandwidth
    seconds = (model.block_ops + model.head_ops) / linear + attention_ops(model, depth) / machine.bf16
    return min(bandwidth, 1 / seconds)


def mean_depth(row):
    """Of the tokens that a row times: they see what was there and each other."""
    if row.kind == "batch":
        return BATCH_PROMPT + DECODE_DEEP / 2
    return row.n + (DECODE_DEEP if row.n else DECODE_SHORT) / 2


def limit(row, model, machine, arithmetic="int8", kv=None):
    if row.kind == "prefill":
        return prefill_limit(model, machine, row.n, arithmetic)
    return decode_limit(model, machine, row.n if row.kind == "batch" else 1, mean_depth(row), arithmetic, kv)


def machine_from(samples, threads):
    """The median of a run, as for the rows: they were timed on this machine as it was then. (Read bandwidth has been seen at twice its
    median for a moment, while the host's other guests were still.)"""
    peaks = {}
    for name in ("read", "int8", "bf16"):
        values = samples.get((f"limit_{name}", threads))
        peaks[name] = 1e9 * statistics.median(values) if values else None
    return Machine(**peaks)

"""Writes a peer's logits of every position of given prompts, f32 rows, in the arithmetic that it uses by default; as logits_of does
for Baton. A JSON line says which arithmetic that was.

  peer_logits.py llama.cpp|openvino MODEL THREADS TOKENS OUT
"""
import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

CHUNK = 512
CONTEXT = 2048


def llama_cpp_rows(model_path, threads, prompts):
    import llama_cpp
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, CHUNK, CHUNK
    params.n_threads = params.n_threads_batch = threads
    print(json.dumps({"arithmetic": "int8 activations per 32, f16 cache"}))
    ctx = llama_cpp.llama_init_from_model(model, params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    for tokens in prompts:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
        for at in range(0, len(tokens), CHUNK):
            part = tokens[at:at + CHUNK]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, at + i, 1, 0, 1
            code = llama_cpp.llama_decode(ctx, batch)
            llama_cpp.llama_batch_free(batch)
            if code:
                sys.exit(f"llama_decode: {code}")
            yield ctypes.string_at(llama_cpp.llama_get_logits(ctx), 4 * n_vocab * len(part))


def openvino_rows(model_path, threads, prompts):
    import numpy as np
    import openvino
    import openvino_genai
    with tempfile.TemporaryDirectory() as work:
        os.symlink(model_path, Path(work) / "model.gguf")  # what it converts the file to is put beside it
        openvino_genai.LLMPipeline(str(Path(work) / "model.gguf"), "CPU", enable_save_ov_model=True)
        core = openvino.Core()
        model = core.compile_model(core.read_model(Path(work) / "openvino_model.xml"), "CPU", {"INFERENCE_NUM_THREADS": threads})

        def said(name):
            value = model.get_property(name)
            return value.get_type_name() if hasattr(value, "get_type_name") else value

        print(json.dumps({"arithmetic": f"{said('INFERENCE_PRECISION_HINT')}, int8 activations per "
                                        f"{said('DYNAMIC_QUANTIZATION_GROUP_SIZE')}, {said('KV_CACHE_PRECISION')} cache"}))
        request = model.create_infer_request()
        for tokens in prompts:
            request.reset_state()
            for at in range(0, len(tokens), CHUNK):
                ids = np.array([tokens[at:at + CHUNK]], dtype=np.int64)
                n = ids.shape[1]
                out = request.infer({"input_ids": ids, "attention_mask": np.ones((1, at + n), np.int64),
                                     "position_ids": np.arange(at, at + n, dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32)})
                yield np.ascontiguousarray(out["logits"], dtype=np.float32).tobytes()


def main():
    engine, model, threads, tokens, out = sys.argv[1:]
    prompts = [[int(word) for word in line.split()] for line in Path(tokens).read_text().splitlines()]
    rows = {"llama.cpp": llama_cpp_rows, "openvino": openvino_rows}[engine]
    with open(out, "wb") as file:
        for block in rows(model, int(threads), prompts):
            file.write(block)


main()

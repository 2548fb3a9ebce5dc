"""llama-server, from the wheel `xllamacpp`, which has it as a class (`python llama_server.py MODEL.gguf PORT`)."""

import sys
import threading

from xllamacpp import CommonParams, Server, ggml_type

SLOTS, CONTEXT = 8, 1024

params = CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
# In float32 like the weights; the default is float16.
params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
server = Server(params)
threading.Event().wait()

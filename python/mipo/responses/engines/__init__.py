"""Engines: what answers prompts, a file per engine.

An engine has a function `sample(ids, model, tokenizer, sampling, batch_size, bar)`, as `local` has it. It gets the
token ids of each prompt (`mipo.tokenizer.chat.encode_prompts`) and returns a frame of one row per prompt, in their
order: response (text without special tokens), response_tokens (with the end of turn) and truncated. It advances `bar`
by the prompts that it has answered. `mipo.responses.generation` keeps its results in parts and resumes.
"""

"""Evaluation: problems and a model in; one record per sampled or scored response out.

prompts.py               question, method -> rendered prompt
requests.py              what an engine is asked, what it answers, how a record's seed is made
engine_transformers.py   batched generation with a key/value cache, entropy of every step
engine_vllm.py           the same through vLLM, entropy from inside its sampler
scoring.py               given responses -> entropies, teacher-forced, in bounded memory
records.py               the JSONL files: written so that a kill loses at most the batch in flight, read, resumed
settings.py              settings and provenance of a directory; a changed one is refused
answers.py               token ids, entropies -> record: text, TECA, extracted answer, grade
"""

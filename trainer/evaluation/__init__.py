"""Evaluation: problems and a model in; one record per sampled or scored response out.

run_generation.py        options -> every response that a directory lacks, generated
run_scoring.py           options -> every response of a file that a directory lacks, scored

benchmarks.py            benchmark name or local file -> problems
prompts.py               question, method -> rendered prompt
requests.py              what an engine is asked, what it answers, how a record's seed is made
loading.py               options -> tokenizer, model, engine
engine_transformers.py   batched generation with a key/value cache, entropy of every step
engine_vllm.py           the same through vLLM, entropy from inside its sampler
scoring.py               given responses -> entropies, teacher-forced, in bounded memory
scoring_input.py         a file of responses -> rows to score

answers.py               token ids, entropies -> record: text, TECA, extracted answer, grade
progress.py              the progress bar
"""

#!/usr/bin/env bash
# CER on GSM8K inside verl 0.9.1, with the hyperparameters published for the method (arXiv 2510.02249).
#
#     published_gsm8k.sh MODEL [hydra overrides]         for 8 GPUs of 80 GB; trainer.n_gpus_per_node=4 and so on follow
#
# Before it:  python -m cer_verl.prepare_data gsm8k --split train --output data/gsm8k/train.parquet
#             python -m cer_verl.prepare_data gsm8k --split test --output data/gsm8k/test.parquet
#
# A step: 128 prompts x 8 responses, used in 16 updates of 8 prompts (verl multiplies ppo_mini_batch_size by rollout.n).
# An epoch of 7473 problems: 58 steps; 5 epochs: 290.
# model_dtype stays float32 (verl's default), computed with in bfloat16: steps of 3e-6 are lost in bfloat16 LoRA weights.
set -euo pipefail
model=$1
shift

export VERL_USE_EXTERNAL_MODULES=cer_verl.plugin
exec python -m verl.trainer.main_ppo \
  trainer.v1.trainer_mode=cer_sync \
  +cer.reward=cer \
  +cer.weight=0.5 \
  reward.custom_reward_function.path=pkg://cer_verl.grading \
  reward.custom_reward_function.name=compute_score \
  algorithm.adv_estimator=grpo \
  algorithm.use_kl_in_reward=False \
  data.train_files=data/gsm8k/train.parquet \
  data.val_files=data/gsm8k/test.parquet \
  data.train_batch_size=128 \
  data.max_prompt_length=512 \
  data.max_response_length=4096 \
  data.filter_overlong_prompts=True \
  +data.apply_chat_template_kwargs.enable_thinking=True \
  actor_rollout_ref.model.path="$model" \
  actor_rollout_ref.model.lora_rank=64 \
  actor_rollout_ref.model.lora_alpha=32 \
  actor_rollout_ref.model.target_modules=all-linear \
  actor_rollout_ref.model.enable_gradient_checkpointing=True \
  actor_rollout_ref.model.use_remove_padding=True \
  actor_rollout_ref.model.use_fused_kernels=True \
  actor_rollout_ref.model.fused_kernel_options.impl_backend=torch \
  actor_rollout_ref.actor.strategy=fsdp2 \
  actor_rollout_ref.actor.optim.lr=3e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=8 \
  actor_rollout_ref.actor.use_dynamic_bsz=True \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=18432 \
  actor_rollout_ref.actor.use_kl_loss=True \
  actor_rollout_ref.actor.kl_loss_coef=0.001 \
  actor_rollout_ref.actor.kl_loss_type=low_var_kl \
  actor_rollout_ref.actor.entropy_coeff=0 \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.temperature=1.5 \
  actor_rollout_ref.rollout.top_p=1.0 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
  actor_rollout_ref.rollout.max_model_len=4608 \
  actor_rollout_ref.rollout.load_format=safetensors \
  actor_rollout_ref.rollout.val_kwargs.do_sample=True \
  actor_rollout_ref.rollout.val_kwargs.temperature=0.8 \
  actor_rollout_ref.rollout.val_kwargs.top_p=0.95 \
  trainer.total_epochs=5 \
  trainer.n_gpus_per_node=8 \
  trainer.nnodes=1 \
  trainer.save_freq=29 \
  trainer.test_freq=29 \
  'trainer.logger=[console,tensorboard]' \
  trainer.project_name=cer \
  "$@"

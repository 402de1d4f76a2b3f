"""What vLLM's rollouts cost and save, measured where vLLM is installed (.ci/vllm makes such an environment)."""

"""A tiny vision-language model, its processor and prompts with images, made on the spot from configurations."""

from __future__ import annotations

import torch
from datasets import Dataset
from PIL import Image
from tiny_models import ENDS, WORDS, make_tokenizer
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE, PATCH_SIZE = 16, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_processor() -> LlavaProcessor:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
    )


def make_vision_model(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """CLIP's tower and Qwen3, two layers each, random weights that are wide enough for the image to matter."""
    body = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**body, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=16),
            text_config=Qwen3Config(
                **body,
                vocab_size=len(processor.tokenizer),
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=64,
                initializer_range=0.4,
            ),
            image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    for module in (model.model.vision_tower, model.model.multi_modal_projector):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    model.generation_config.eos_token_id = ENDS
    model.generation_config.pad_token_id = 0
    return model.eval()


def pictures(count: int = 8) -> Dataset:
    """Prompts of unequal length, each about a picture of one colour of its own; `goal` is for the rewards."""
    rows = []
    for i in range(count):
        text = " ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(1 + i % 4))
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (30 * i, 255 - 30 * i, 90))
        rows.append({"prompt": [{"role": "user", "content": text}], "images": [image], "goal": i % 5})
    return Dataset.from_list(rows)

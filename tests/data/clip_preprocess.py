"""Pictures and prompts exactly as CLIP and LLaVA-1.5 were given them (transformers' PIL processors)."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from tokenizers import Tokenizer

from fi_jax.config import VitConfig
from fi_jax.errors import UserError
from fi_jax.models.batch import IMAGE_SLOT


def resize_and_crop(image: UInt8[np.ndarray, "y x 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Scales the shorter side to `size` pixels (PIL bicubic, aspect ratio kept) and cuts out the centre."""
    height, width = image.shape[:2]
    short = min(height, width)
    new_height, new_width = (int(size * side / short) for side in (height, width))
    scaled = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return scaled[top : top + size, left : left + size]


def clip_pixels(image: UInt8[np.ndarray, "y x 3"], size: int) -> Float[np.ndarray, "size size 3"]:
    """Resizes, crops and normalises a picture as transformers' `CLIPImageProcessorPil` does."""
    return (resize_and_crop(image, size).astype(np.float32) / 255.0 - VitConfig().pixel_mean) / VitConfig().pixel_std


def llava_prompt(
    tokenizer: Tokenizer, question: str, num_image_tokens: int, image_token: str = "<image>"
) -> Int[np.ndarray, "t"]:
    """Token ids of one LLaVA-1.5 turn, `USER: <image>…\\n{question} ASSISTANT:`, as `LlavaProcessor` makes them.

    The text is tokenised whole, with the tokenizer's own beginning-of-text token; the image tokens come back as
    `IMAGE_SLOT` (-1), to be filled by the connector. A tokenizer without `image_token` is a `UserError`.
    """
    image_id = tokenizer.token_to_id(image_token)
    if image_id is None:
        raise UserError(f"the tokenizer has no token '{image_token}'; use the tokenizer.json of a LLaVA checkpoint")
    text = f"USER: {image_token * num_image_tokens}\n{question} ASSISTANT:"
    ids = np.array(tokenizer.encode(text, add_special_tokens=True).ids, np.int32)
    return np.where(ids == image_id, IMAGE_SLOT, ids)

"""LLaVA-1.5-7B with a segmentation encoder: LoRA on every linear layer of the LLM, bfloat16, one 80 GB GPU or more.

`fi-jax train 7b --data.sources.0.root /data/celeba`; `fi-jax bench 7b` measures it with random weights.
"""

from dataclasses import replace

from fi_jax.config import (
    DataConfig,
    Experiment,
    KnowledgeConfig,
    LlmConfig,
    LoraConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
    VitConfig,
    WeightsConfig,
)

CLIP = "openai/clip-vit-large-patch14-336"

# The defaults of VitConfig and LlmConfig are CLIP ViT-L/14-336 and Vicuna-7B as LLaVA-1.5 uses them.
IMAGE_ENCODER = VitConfig()
# A map is not a photograph: CLIP's weights start this encoder, adapters of its own fit it to colour-coded maps.
SEGMENTATION_ENCODER = VitConfig(
    lora=LoraConfig(rank=16, alpha=32.0, targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))
)
LORA = LoraConfig(rank=128, alpha=256.0)
LLM = LlmConfig(lora=LORA)


def config() -> Experiment:
    return Experiment(
        name="7b",
        model=ModelConfig(
            IMAGE_ENCODER,
            SEGMENTATION_ENCODER,
            LLM,
            KnowledgeConfig(prompt_size=768),
            dtype="bfloat16",
            remat="dots",
            attention="flash",
            scan_layers=False,
        ),
        weights=WeightsConfig(llava="llava-hf/llava-1.5-7b-hf", segmentation_encoder=CLIP, text_encoder=CLIP),
        data=DataConfig(
            sources=(SourceConfig("celeba", root="data/celeba"),),
            vocabulary="celeba",
            frame="aligned",
            image_size=336,
            batch_size=16,
            questions_per_face=40,
            segment_length=64,
            template="vicuna",
        ),
        train=TrainConfig(
            steps=10000,
            learning_rate=2e-4,
            warmup_steps=300,
            # LLaVA-1.5's recipe: the pre-trained projector learns ten times slower than the adapters.
            learning_rate_scales=((r"image_connector/.*", 0.1),),
            weight_decay=0.0,
            # Micro-batches of 4 faces: what 80 GB hold of 40 questions a face.
            accumulate=4,
            trainable=(r".*/lora_[ab]", r".*connector/.*", r"knowledge/.*", r"head/.*"),
        ),
    )


def with_llm(
    name: str, llm: LlmConfig, checkpoint: str, template: str, encoder: tuple[VitConfig, str] = (IMAGE_ENCODER, CLIP)
) -> Experiment:
    """The same with another language model, and perhaps another image encoder (its config and checkpoint).

    The connector between them is learned from nothing.
    """
    base, (vit, tower) = config(), encoder
    segmentation = replace(vit, lora=SEGMENTATION_ENCODER.lora)
    return replace(
        base,
        name=name,
        model=replace(base.model, image_encoder=vit, segmentation_encoder=segmentation, llm=replace(llm, lora=LORA)),
        weights=WeightsConfig(llm=checkpoint, image_encoder=tower, segmentation_encoder=tower, text_encoder=CLIP),
        data=replace(base.data, template=template, image_size=vit.image_size),
        train=replace(base.train, learning_rate_scales=()),
    )

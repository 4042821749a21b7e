"""Folders of tiny random networks as a hub ships them: configuration, weights, processor and tokenizer files."""

import io
import json
import string
from pathlib import Path

import diffusers as df
import sentencepiece
import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from phantom_s2v.vision.embed import AESTHETIC_LAYERS

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BLOCK = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CHAT = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' %}{{- part.text }}{% endif %}{% endfor %}{% endif %}{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""  # Qwen's, without tools and videos
QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def write_json(file: Path, values: dict) -> None:
    file.write_text(json.dumps(values))


def qwen_tokenizer(folder: Path) -> dict[str, int]:
    """Bytes as tokens, and Qwen's special ones; returns the ids of these."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(list(QWEN_SPECIAL))
    tokens = tf.Qwen2TokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokens.save_pretrained(folder)
    return {name: inner.token_to_id(name) for name in QWEN_SPECIAL}


def qwen(folder: Path, version: str = "2.5") -> Path:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL, with chat_template.jinja and the video processor's file, which needs torchvision."""
    ids = qwen_tokenizer(folder)
    text = {
        **BLOCK, "vocab_size": max(ids.values()) + 1, "num_key_value_heads": 1, "max_position_embeddings": 8192,
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    marks = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    if version == "2":
        vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        config = tf.Qwen2VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **marks)
        model, patch = tf.Qwen2VLForConditionalGeneration(config), 4
    elif version == "2.5":
        vision = {
            "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16, "patch_size": 4,
            "window_size": 16, "fullatt_block_indexes": [0],
        }  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        config = tf.Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **marks)
        model, patch = tf.Qwen2_5_VLForConditionalGeneration(config), 4
    else:
        vision = {
            "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16, "patch_size": 4,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        }  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        config = tf.Qwen3VLConfig(text_config={**text, "head_dim": 8, "rope_parameters": rope}, vision_config=vision, **marks)
        model, patch = tf.Qwen3VLForConditionalGeneration(config), 4
    for weight in (each for each in model.parameters() if each.ndim > 1):
        torch.nn.init.normal_(weight, std=0.3)  # so that what is seen changes what is said
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = text["eos_token_id"], text["pad_token_id"]
    model.save_pretrained(folder)
    name = {"2": "Qwen2VLProcessor", "2.5": "Qwen2_5_VLProcessor", "3": "Qwen3VLProcessor"}[version]
    sizes = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": name, **sizes}
    write_json(folder / "preprocessor_config.json", image)
    video = "Qwen3VLVideoProcessor" if version == "3" else "Qwen2VLVideoProcessor"
    write_json(folder / "video_preprocessor_config.json", {"video_processor_type": video, "processor_class": name, **sizes})
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def grounding_dino(folder: Path) -> Path:
    """GroundingDINO; its text encoder knows '[CLS]', '[SEP]', '.' and '?' by BERT's numbers."""
    words = [f"[unused{i}]" for i in range(1060)]
    words[:5] = ["[PAD]", "[unused]", "[UNK]", "[MASK]", "[X]"]
    words[101], words[102], words[1012], words[1029] = "[CLS]", "[SEP]", ".", "?"
    letters = string.ascii_lowercase
    words[200 : 200 + 2 * len(letters)] = [*letters, *("##" + letter for letter in letters)]
    words[300:306] = ["red", "dog", "blue", "mug", "gray", "wolf"]
    tokens = tf.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True, model_max_length=256)
    image = tf.GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96})
    tf.GroundingDinoProcessor(image, tokens).save_pretrained(folder)
    text = tf.BertConfig(**BLOCK, vocab_size=len(words), max_position_embeddings=256)
    vision = tf.SwinConfig(
        image_size=48, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=3, out_indices=[2, 3, 4]
    )
    config = tf.GroundingDinoConfig(
        text_config=text, backbone_config=vision, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=1, num_feature_levels=3,
    )  # fmt: skip
    model = tf.GroundingDinoForObjectDetection(config)
    for head in (*model.model.decoder.bbox_embed, model.model.encoder_output_bbox_embed):  # its proposals lie within the image
        torch.nn.init.zeros_(head.layers[-1].weight)
        torch.nn.init.zeros_(head.layers[-1].bias)
    model.save_pretrained(folder)
    return folder


def clip_tokenizer(length: int = 16) -> tuple[tf.CLIPTokenizer, dict]:
    signs = [chr(c) for c in range(33, 127)]
    words = [*signs, *[sign + "</w>" for sign in signs], "<|startoftext|>", "<|endoftext|>"]  # pooled at the highest id
    marks = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    tokens = tf.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)
    return tokens, {**BLOCK, "vocab_size": len(words), "max_position_embeddings": length, **marks}


def owlv2(folder: Path) -> Path:
    tokens, text = clip_tokenizer()
    config = tf.Owlv2Config(text_config=text, vision_config={**BLOCK, "image_size": 64, "patch_size": 64}, projection_dim=16)
    model = tf.Owlv2ForObjectDetection(config)
    torch.nn.init.zeros_(model.box_head.dense2.weight)  # one box in the middle of the square
    torch.nn.init.constant_(model.box_head.dense2.bias, -9.21)
    model.save_pretrained(folder)
    tf.Owlv2Processor(tf.Owlv2ImageProcessorPil(size={"height": 64, "width": 64}), tokens).save_pretrained(folder)
    return folder


def clip(folder: Path, width: int = 12) -> Path:
    tokens, text = clip_tokenizer()
    config = tf.CLIPConfig(text_config=text, vision_config={**BLOCK, "image_size": 32, "patch_size": 16}, projection_dim=width)
    tf.CLIPModel(config).save_pretrained(folder)
    image = tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tf.CLIPProcessor(image, tokens).save_pretrained(folder)
    return folder


def clip_with_head(folder: Path) -> Path:
    """CLIP whose space is as wide as ViT-L/14's, and an aesthetic head on it, head.safetensors."""
    head = {f"layers.{i}.{part}": torch.randn(*((m, n) if part == "weight" else (m,))) / n**0.5
            for i, n, m in AESTHETIC_LAYERS for part in ("weight", "bias")}  # fmt: skip
    save_file(head, clip(folder, 768) / "head.safetensors")
    return folder


def inpainting(folder: Path) -> Path:
    """Stable Diffusion's inpainting pipeline at 64 pixels, in four steps."""
    tokens, text = clip_tokenizer()
    unet = df.UNet2DConditionModel(
        sample_size=32, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=8,
    )  # fmt: skip
    vae = df.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    encoder = tf.CLIPTextModel(tf.CLIPTextConfig(**text))
    df.StableDiffusionInpaintPipeline(
        vae, encoder, tokens, unet, df.DDIMScheduler(clip_sample=False, steps_offset=1), None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """SigLIP with a sentencepiece tokenizer, spiece.model."""
    words = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red dog", "the blue mug", "a gray wolf", string.ascii_lowercase]), model_writer=words,
        vocab_size=40, minloglevel=2, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(words.getvalue())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer", "model_max_length": 16})
    count = sentencepiece.SentencePieceProcessor(model_proto=words.getvalue()).get_piece_size()
    marks = {"vocab_size": count, "max_position_embeddings": 16, "projection_size": 16}
    text = {**BLOCK, **marks, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    config = tf.SiglipConfig(text_config=text, vision_config={**BLOCK, "image_size": 32, "patch_size": 16})
    tf.SiglipModel(config).save_pretrained(folder)
    tf.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    config = tf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    tf.Dinov2Model(config).save_pretrained(folder)
    image = tf.BitImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    image.save_pretrained(folder)
    return folder


def dinov3(folder: Path) -> Path:
    """DINOv3, whose processor exists for torchvision alone."""
    config = tf.DINOv3ViTConfig(**BLOCK, image_size=64, patch_size=16, num_register_tokens=2)
    tf.DINOv3ViTModel(config).save_pretrained(folder)
    sizes = {"size": {"height": 64, "width": 64}, "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2}
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "DINOv3ViTImageProcessorFast", **sizes, **IMAGENET})
    return folder


def sam2(folder: Path, video: bool = True) -> Path:
    """SAM2 on frames of 128 pixels a side: the video model, as hubs ship it, or the image model alone."""
    hiera = tf.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1] * 4,
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8] * 4,
        global_attention_blocks=[], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = tf.Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=128,
    )  # fmt: skip
    prompt = {"hidden_size": 128, "image_size": 128}
    decoder = {"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    if not video:
        config = tf.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
        tf.Sam2Model(config).save_pretrained(folder)
        return folder
    config = tf.Sam2VideoConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder, image_size=128,
        memory_attention_hidden_size=128, memory_attention_num_layers=1, memory_attention_num_attention_heads=1,
        memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[8, 8],
        memory_attention_downsample_rate=1, memory_encoder_hidden_size=128, memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128, memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32,
        enable_occlusion_spatial_embedding=True, enable_temporal_pos_encoding_for_object_pointers=True,
    )  # fmt: skip
    tf.Sam2VideoModel(config).save_pretrained(folder)
    return folder


NETWORKS = {
    "gme": lambda folder: qwen(folder, "2"),
    "qwen2.5-vl": qwen, "qwen3-vl": lambda folder: qwen(folder, "3"), "grounding-dino": grounding_dino, "owlv2": owlv2,
    "clip": clip, "clip-with-head": clip_with_head, "inpainting": inpainting, "siglip": siglip,
    "dinov2": dinov2, "dinov3": dinov3, "sam2": sam2,
}  # fmt: skip


def make(name: str, folder: Path) -> Path:
    """The folder of a network; its weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder.mkdir(parents=True, exist_ok=True)
        return NETWORKS[name](folder)

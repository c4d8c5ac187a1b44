"""Networks of the `transformers` package in tiny configurations: text, speech, images."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.architectures.parts import Architecture, lively

WIDTH, VOCABULARY = 32, 60
# Names that most configurations share.
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
LLAMA = {**BERT, "num_key_value_heads": 2}
T5 = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2,
    "num_heads": 4,
}  # fmt: skip
VIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
IDS = "input_ids:int64:2,9"
MASK = "attention_mask:int64:2,9"


class _Call(nn.Module):
    """A model of the package called by names, `outputs` of it taken."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]):
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)


def _make(kind: str, **config: Any) -> nn.Module:
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here
    import transformers

    cls = getattr(transformers, kind)
    return lively(cls(cls.config_class(**config)))


def _named(
    kind: str, inputs: str, outputs: str = "last_hidden_state", /, **config: Any
) -> nn.Module:
    return _Call(_make(kind, **config), tuple(inputs.split()), tuple(outputs.split()))


def bert() -> nn.Module:
    """Devlin et al. 2018."""
    outputs = "last_hidden_state pooler_output"
    return _named("BertModel", "input_ids attention_mask token_type_ids", outputs, **BERT)


def distilbert() -> nn.Module:
    """Sanh et al. 2019."""
    return _named(
        "DistilBertForSequenceClassification", "input_ids attention_mask", "logits",
        vocab_size=VOCABULARY, dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=48,
        max_position_embeddings=40,
    )  # fmt: skip


def roberta() -> nn.Module:
    """Positions are counted from the ids (Liu et al. 2019)."""
    return _named("RobertaForTokenClassification", "input_ids attention_mask", "logits", **BERT)


def albert() -> nn.Module:
    """One layer, repeated (Lan et al. 2019)."""
    return _named("AlbertModel", "input_ids attention_mask", embedding_size=16, **BERT)


def deberta() -> nn.Module:
    """Disentangled attention (He et al. 2020)."""
    return _named(
        "DebertaV2Model", "input_ids attention_mask", relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=8, **BERT,
    )  # fmt: skip


def mpnet() -> nn.Module:
    """Buckets of relative positions (Song et al. 2020)."""
    return _named("MPNetModel", "input_ids attention_mask", **BERT)


def modernbert() -> nn.Module:
    """Rotary positions, local and global layers (Warner et al. 2024)."""
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id"), 0)
    config = {"local_attention": 4, "sep_token_id": 0, **ids, **BERT}
    return _named("ModernBertModel", "input_ids attention_mask", **config)


class _Step(nn.Module):
    """One step of a decoder with the keys and values of earlier ones, [n, heads, t, d] each."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from transformers import DynamicCache

        past = DynamicCache([(key, value)])
        out = self.model(input_ids=ids, past_key_values=past, use_cache=True)
        layer = out.past_key_values.layers[0]
        return out.logits, layer.keys, layer.values


def gpt2_step() -> nn.Module:
    """Decoder with learnt positions, one token after eight (Radford et al. 2019)."""
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 1, "n_head": 4}
    return _Step(_make("GPT2LMHeadModel", n_positions=40, **sizes))


def llama_step() -> nn.Module:
    """RMS normalisation, rotary positions, grouped queries, one token (Touvron et al. 2023)."""
    return _Step(_make("LlamaForCausalLM", **{**LLAMA, "num_hidden_layers": 1}))


def llama() -> nn.Module:
    """The same, a whole prompt."""
    return _named(
        "LlamaForCausalLM", "input_ids attention_mask", "logits", use_cache=False, **LLAMA
    )


def mistral() -> nn.Module:
    """A sliding window (Jiang et al. 2023)."""
    config = {"sliding_window": 4, "use_cache": False, **LLAMA}
    return _named("MistralForCausalLM", "input_ids attention_mask", "logits", **config)


def qwen3() -> nn.Module:
    """Queries and keys normalised (Qwen team 2025)."""
    return _named(
        "Qwen3ForCausalLM",
        "input_ids attention_mask",
        "logits",
        head_dim=8,
        use_cache=False,
        **LLAMA,
    )


def gemma2() -> nn.Module:
    """Capped logits (Gemma team 2024)."""
    return _named(
        "Gemma2ForCausalLM",
        "input_ids attention_mask",
        "logits",
        head_dim=8,
        use_cache=False,
        **LLAMA,
    )


def phi() -> nn.Module:
    """Attention and perceptron in parallel, partial rotation (Li et al. 2023)."""
    return _named("PhiForCausalLM", "input_ids attention_mask", "logits", use_cache=False, **BERT)


def bloom() -> nn.Module:
    """Linear biases for positions (Press et al. 2021)."""
    return _named(
        "BloomForCausalLM", "input_ids attention_mask", "logits", vocab_size=VOCABULARY,
        hidden_size=WIDTH, n_layer=2, n_head=4, use_cache=False,
    )  # fmt: skip


def mixtral() -> nn.Module:
    """Experts chosen by token (Jiang et al. 2024)."""
    config = {"num_local_experts": 4, "use_cache": False, "experts_implementation": "batched_mm"}
    return _named("MixtralForCausalLM", "input_ids attention_mask", "logits", **config, **LLAMA)


def state_space() -> nn.Module:
    """The package's own selective scan (Gu and Dao 2023)."""
    return _named(
        "MambaForCausalLM", "input_ids", "logits", vocab_size=VOCABULARY, hidden_size=16,
        state_size=4, num_hidden_layers=1, use_cache=False,
    )  # fmt: skip


def t5_encoder() -> nn.Module:
    """Relative biases, RMS normalisation (Raffel et al. 2019)."""
    return _named("T5EncoderModel", "input_ids attention_mask", **T5)


def t5() -> nn.Module:
    """Encoder and decoder."""
    return _named(
        "T5ForConditionalGeneration", "input_ids decoder_input_ids", "logits", use_cache=False, **T5
    )


def bart() -> nn.Module:
    """Encoder and decoder with learnt positions (Lewis et al. 2019)."""
    return _named(
        "BartForConditionalGeneration", "input_ids decoder_input_ids", "logits", use_cache=False,
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=40, forced_eos_token_id=2,
    )  # fmt: skip


def _whisper() -> nn.Module:
    return _make(
        "WhisperModel", vocab_size=VOCABULARY, d_model=WIDTH, num_mel_bins=8, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_source_positions=20, max_target_positions=20, pad_token_id=0,
        use_cache=False, decoder_start_token_id=1,
    )  # fmt: skip


def whisper_encoder() -> nn.Module:
    """Log-mel frames to states (Radford et al. 2022)."""
    return _Call(_whisper().encoder, ("input_features",), ("last_hidden_state",))


def whisper() -> nn.Module:
    """Encoder and decoder."""
    names = ("input_features", "decoder_input_ids", "decoder_attention_mask")
    return _Call(_whisper(), names, ("last_hidden_state",))


def wav2vec2() -> nn.Module:
    """Audio samples through convolutions to a transformer (Baevski et al. 2020)."""
    return _named(
        "Wav2Vec2ForCTC", "input_values", "logits", vocab_size=12, hidden_size=WIDTH,
        num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, conv_dim=[12, 12],
        conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip


def hf_vit() -> nn.Module:
    """The package's vision transformer."""
    return _named("ViTForImageClassification", "pixel_values", "logits", **VIT)


def dinov2() -> nn.Module:
    """Layer scale, positions resized (Oquab et al. 2023)."""
    return _named("Dinov2Model", "pixel_values", **VIT)


def hf_swin() -> nn.Module:
    """The package's Swin, padding included."""
    return _named(
        "SwinForImageClassification", "pixel_values", "logits", image_size=40, patch_size=4,
        embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4,
    )  # fmt: skip


def convnextv2() -> nn.Module:
    """Global response normalisation (Woo et al. 2023)."""
    return _named(
        "ConvNextV2ForImageClassification", "pixel_values", "logits", num_stages=2,
        hidden_sizes=[12, 16], depths=[1, 1],
    )  # fmt: skip


def segformer() -> nn.Module:
    """Attention with reduced keys, perceptron decoder (Xie et al. 2021)."""
    return _named(
        "SegformerForSemanticSegmentation", "pixel_values", "logits", num_encoder_blocks=2,
        depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[16, 24], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=24, num_labels=5,
    )  # fmt: skip


def clip() -> nn.Module:
    """An image and texts, compared (Radford et al. 2021)."""
    text = {**BERT, "projection_dim": 16, "eos_token_id": 1}
    return _named(
        "CLIPModel", "input_ids pixel_values", "logits_per_image text_embeds", text_config=text,
        vision_config=VIT, projection_dim=16,
    )  # fmt: skip


def mobilevit() -> nn.Module:
    """Convolutions around a transformer over unfolded patches (Mehta and Rastegari 2021)."""
    return _named(
        "MobileViTForImageClassification", "pixel_values", "logits", hidden_sizes=[12, 16, 20],
        neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32], num_attention_heads=2, num_labels=5,
    )  # fmt: skip


def patch_tst() -> nn.Module:
    """Patches of several series (Nie et al. 2022)."""
    return _named(
        "PatchTSTForPrediction", "past_values", "prediction_outputs", num_input_channels=3,
        context_length=32, patch_length=8, patch_stride=4, prediction_length=6, d_model=WIDTH,
        num_attention_heads=4, num_hidden_layers=1, ffn_dim=48,
    )  # fmt: skip


_IMAGE = ("pixel_values:1,3,32,32",)
_row = partial(Architecture, needs="transformers")
_PAST = ("key:2,4,8,8", "value:2,4,8,8")

ARCHITECTURES = (
    _row(factory=bert, inputs=(IDS, MASK, "token_type_ids:int64:2,9")),
    _row(factory=distilbert, inputs=(IDS, MASK)),
    _row(factory=roberta, inputs=(IDS, MASK)),
    _row(factory=albert, inputs=(IDS, MASK)),
    _row(factory=deberta, inputs=(IDS, MASK)),
    _row(factory=mpnet, inputs=(IDS, MASK)),
    _row(factory=modernbert, inputs=(IDS, MASK)),
    _row(factory=gpt2_step, inputs=("ids:int64:2,1", *_PAST), sample="dynamo"),
    _row(factory=llama_step, inputs=("ids:int64:2,1", "key:2,2,8,8", "value:2,2,8,8")),
    _row(factory=llama, inputs=(IDS, MASK)),
    _row(factory=mistral, inputs=(IDS, MASK)),
    _row(factory=qwen3, inputs=(IDS, MASK)),
    _row(factory=gemma2, inputs=(IDS, MASK)),
    _row(factory=phi, inputs=(IDS, MASK)),
    _row(factory=bloom, inputs=(IDS, MASK)),
    _row(factory=mixtral, inputs=(IDS, MASK)),
    _row(factory=state_space, inputs=("input_ids:int64:1,6",)),
    _row(factory=t5_encoder, inputs=(IDS, MASK)),
    _row(factory=t5, inputs=(IDS, "decoder_input_ids:int64:2,5")),
    _row(factory=bart, inputs=(IDS, "decoder_input_ids:int64:2,5")),
    _row(factory=whisper_encoder, inputs=("input_features:1,8,40",)),
    _row(
        factory=whisper,
        inputs=(
            "input_features:1,8,40",
            "decoder_input_ids:int64:1,4",
            "decoder_attention_mask:int64:1,4",
        ),
    ),
    _row(factory=wav2vec2, inputs=("input_values:1,400",)),
    _row(factory=hf_vit, inputs=_IMAGE),
    _row(factory=dinov2, inputs=_IMAGE),
    _row(factory=hf_swin, inputs=("pixel_values:1,3,40,40",)),
    _row(factory=convnextv2, inputs=_IMAGE),
    _row(factory=segformer, inputs=_IMAGE),
    _row(factory=clip, inputs=("input_ids:int64:2,9", "pixel_values:1,3,32,32")),
    _row(factory=mobilevit, inputs=("pixel_values:1,3,64,64",)),
    _row(factory=patch_tst, inputs=("past_values:1,32,3",)),
)

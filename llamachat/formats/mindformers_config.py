"""MindFormers' ModelSpec, or a whole MindFormers YAML file -> ModelSpec and sampling.

Every parameter of MindFormers 1.0 to 2.1 (mindformers/models/llama/llama_config.py, its base class and its generation
settings) is either read in `translate` or stands in NO_EFFECT with the reason, and so is what its own YAML files carry
along that its Llama never reads. Absent ones, and those that are null, have MindFormers' defaults.
"""

from collections.abc import Mapping
from math import log
from typing import Any

from llamachat.checks import require_number
from llamachat.core.sampling import SamplingParams
from llamachat.core.spec import Dtype, Dtypes, ModelSpec, RopeScaling
from llamachat.errors import ConfigError
from llamachat.formats.mindformers_experts import experts
from llamachat.formats.quant_sources import quantization
from llamachat.formats.translated import Translated, feed_forward, head_share
from llamachat.system.metadata import Fields, names, naming

NO_EFFECT = {
    # the cache and the batch: how memory is divided, not what is computed
    "batch_size": "one dialog at a time",
    "use_past": "keys and values are always cached",
    "block_size": "the cache is one piece, sized by the context",
    "num_blocks": "as block_size",
    "chunk_prefill": "prompts are always prefilled in chunks",
    "is_dynamic": "shapes are always dynamic",
    **dict.fromkeys(("parallel_decoding_params", "parallel_decoding"), "finds the same tokens sooner"),
    **dict.fromkeys(("window_size", "level", "guess_set_size"), "of parallel_decoding"),
    **dict.fromkeys(("use_paged_attention", "use_kvcache_op", "use_past_shard"), "as block_size"),
    "is_flexible_shape": "as is_dynamic",
    "num_block": "MindFormers does not read it; num_blocks is meant",
    # how weights lie in a MindSpore checkpoint, which other formats have their own way of
    "qkv_concat": "whether its files hold q, k and v in one matrix",
    "param_init_type": "the type of weights before any are loaded",
    "embedding_init_type": "as param_init_type",
    **dict.fromkeys(("init_method_std", "initializer_range"), "the spread of weights before any are loaded"),
    "checkpoint_name_or_path": "a place; the caller names the files",
    "pretrained_model_dir": "as checkpoint_name_or_path",
    **dict.fromkeys(("name_or_path", "_name_or_path"), "as checkpoint_name_or_path"),
    # which kernel computes the same
    "use_flash_attention": "an exact attention kernel",
    **dict.fromkeys(
        ("use_ring_attention", "use_prompt_flash_attention", "use_incre_flash_attention"), "as use_flash_attention"
    ),
    "compute_in_2d": "the shape in which matrices are multiplied",
    "use_attn_mask_compression": "how the causal mask is passed to the kernel",
    "use_eod_attn_mask_compression": "as use_attn_mask_compression",
    "use_rope_slice": "how the halves of a head are swapped",
    "fused_rms_norm": "one kernel or several",
    "rmsnorm_compute_2d": "the shape in which the norm is computed",
    "llm_backend": "the inference library",
    # many devices
    "parallel_config": "devices",
    "parallel_optimizer": "devices",
    "fine_grain_interleave": "overlap of computing and communicating",
    "pp_interleave_num": "pipeline stages",
    **dict.fromkeys(("pipeline_stage", "start_stage", "stage_num"), "pipeline stages"),
    "offset": "layers per pipeline stage",
    **dict.fromkeys(("use_3d_tensor_parallel", "tp_x", "tp_y", "tp_z"), "devices"),
    # training
    "ignore_token_id": "the label left out of the loss",
    "calculate_per_token_loss": "the loss",
    "input_sliced_sig": "the labels",
    "emb_dropout_prob": "dropout",
    # what an answer may be long, and what is returned beside it
    "max_new_tokens": "an answer ends with its turn, or where -n says",
    **dict.fromkeys(("output_scores", "output_logits", "return_dict_in_generate"), "more outputs"),
    "renormalize_logits": "probabilities always add up to one",
    # of other models' configurations: MindFormers' Llama has max_position_embedding, theta and hidden_size / num_heads
    "max_position_embeddings": "MindFormers' Llama does not read it",
    **dict.fromkeys(("rotary_pct", "rotary_emb_base", "kv_channels"), "MindFormers' Llama does not read it"),
    # names and versions
    "type": "checked to be LlamaConfig",
    "model_type": "checked to be llama",
    "architectures": "a name",
    "auto_map": "where MindFormers finds the code of a tokenizer; nothing of that runs here",
    "tokenizer_class": "the tokenizer comes from its own file",
    "mindformers_version": "a version",
    "_commit_hash": "a version",
    "is_sample_acceleration": "sampling on the device",
}
# Of a YAML file, beside model: running, training and its devices.
YAML_NO_EFFECT = names(
    """
    auto_trans_ckpt auto_tune autotune_per_step balanced_load callbacks ckpt_use_legacy_format context data_size
    data_skip_steps do_eval eval_callbacks eval_dataset eval_dataset_task eval_epoch_interval eval_step_interval
    exclude_cann_cpu filepath_prefix ignore_data_skip infer infer_precision_sync init_start_profile input_data
    layer_decay layer_scale load_checkpoint load_ckpt_async load_ckpt_format local_rank lr_scale lr_scale_factor
    lr_schedule metric micro_batch_interleave_num moe_config monitor_config mstx only_save_strategy optimizer output_dir
    parallel parallel_config postprocess_use_numpy predict_batch_size pretrained_model_dir print_separate_loss processor
    profile profile_communication profile_level profile_memory profile_pipeline profile_rank_ids profile_start_step
    profile_stop_step profiler_level recompute_config remote_save_url resume_training run_mode runner_config
    runner_wrapper save_file src_strategy_path_or_dir strategy_load_checkpoint swap_config train_dataset
    train_dataset_task train_precision_sync trainer transform_process_num use_graceful_exit use_legacy use_parallel
    """
)
# What would choose other tokens and is not offered, with the values at which it does nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "pet_config": (),  # adapters, whose weights are not among the model's
    "quant": ("",),  # an old name of quantization
    "num_beams": (1,),
    "encoder_repetition_penalty": (1, 1.0),
    "min_length": (0,),
    "min_new_tokens": (0,),
}
DTYPES: dict[str, Dtype] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


def translate(source: Mapping[str, Any], where: str) -> Translated:
    """From a model_config, or the mapping of a YAML file that has one under `model`. Raises ConfigError."""
    if "model" not in source:
        return _model_config(Fields(source, where))
    file = Fields(source, where)
    model = file.inside("model")
    inner = model.inside("model_config") if model else None
    if model is None or inner is None:
        raise ConfigError(f"{where} has no model.model_config", "there is no model to build")
    if arch := model.inside("arch"):
        arch.choice("type", dict.fromkeys(("LlamaForCausalLM", "ParallelLlamaForCausalLM")))
        arch.finish(("auto_register",))
    file.neutral("adapter_id")
    translated = _model_config(inner, file.inside("moe_config"))  # which it puts in the place of model_config's own
    if file.get("seed") is not None:
        translated.sampling["seed"] = file.whole("seed", high=2**32 - 1)
    model.finish(())
    return Translated(
        translated.config, translated.sampling, file.finish(YAML_NO_EFFECT) + translated.ignored, translated.max_length
    )


def _model_config(fields: Fields, moe: Fields | None = None) -> Translated:
    fields = Fields({key: None if value == "None" else value for key, value in fields.raw.items()}, fields.where)
    fields.choice("type", {"LlamaConfig": None}, "LlamaConfig")
    fields.choice("model_type", {"llama": None}, "llama")
    for key, values in NEUTRAL.items():
        fields.neutral(key, *values)
    own = fields.inside("moe_config")
    moe = moe or own
    hidden, heads = fields.size("hidden_size", "hidden_size", 4096), fields.size("num_heads", "num_attention_heads", 32)
    sequence = fields.size("seq_length", "max_position_embeddings", 2048)
    theta, scaling, context = *_rope(fields), fields.size("max_position_embedding", "max_position_embeddings", sequence)
    width = _intermediate_size(fields, hidden)
    with naming(fields.where):
        config = ModelSpec(
            vocab_size=fields.size("vocab_size", "vocab_size", 32000),
            hidden_size=hidden,
            intermediate_size=width,
            experts=experts(moe, width),
            num_hidden_layers=fields.size("num_layers", "num_hidden_layers", 32),
            num_attention_heads=heads,
            num_key_value_heads=fields.size("n_kv_heads", "num_key_value_heads", heads),
            head_dim=head_share(fields, hidden, heads),
            max_position_embeddings=max(sequence, context),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=fields.flag("qkv_has_bias", False),
            attention_out_bias=fields.flag("attn_proj_has_bias", False),
            bos_token_id=fields.token("bos_token_id", 1),
            eos_token_ids=fields.tokens("eos_token_id", 2),
            pad_token_id=fields.token("pad_token_id", 0),
            return_hidden_states=fields.flag("return_hidden_states", False),
            dtypes=_dtypes(fields),
            quantization=_quantization(fields),
        )
    sampling, decode = _sampling(fields), fields.whole("max_decode_length", 1024, 1)
    max_length = fields.whole("max_length", decode, 1)
    ignored = fields.finish(
        NO_EFFECT.keys() | (set() if config.experts else {"moe_config"}) | _without_effect_on_rope(fields)
    )
    return Translated(config, sampling, ignored, min(max_length, sequence))


def _intermediate_size(fields: Fields, hidden: int) -> int:
    """As LlamaFeedForward: the multiplier comes before the two thirds, and a hundredth is added to it."""
    multiplier, width = fields.number("ffn_dim_multiplier", 0), 4 * hidden
    require_number(f"{fields.where}: ffn_dim_multiplier", multiplier, 0, 1e6)
    computed = feed_forward(fields, int(2 * (int((multiplier + 0.01) * width) if multiplier else width) / 3), 256)
    return fields.size("intermediate_size", "intermediate_size", computed)


def _dtypes(fields: Fields) -> Dtypes:
    return Dtypes(
        compute=fields.choice("compute_dtype", DTYPES, "float16"),
        norm=fields.choice("layernorm_compute_type", DTYPES, "float32"),
        softmax=fields.choice("softmax_compute_type", DTYPES, "float32"),
        rotary=fields.choice("rotary_dtype", DTYPES, "float32"),
        residual=fields.choice("residual_dtype", DTYPES) if fields.get("residual_dtype") is not None else None,
    )


def _quantization(fields: Fields) -> Any:
    """quant_config, or quantization_config or quantization as versions and YAML files call it; at most one of them."""
    given = [inner for key in ("quant_config", "quantization_config", "quantization") if (inner := fields.inside(key))]
    if len(given) > 1:
        raise ConfigError(
            f"{fields.where} has quant_config under {len(given)} names", "it is not clear which one holds"
        )
    return quantization(given[0].raw, given[0].where) if given else None


def _sampling(fields: Fields) -> dict[str, Any]:
    temperature = fields.number("temperature", 1.0)
    sampling: dict[str, Any] = {
        "repetition_penalty": fields.number("repetition_penalty", 1.0),
        "temperature": temperature if fields.flag("do_sample", True) else 0.0,
        "top_k": fields.whole("top_k", 5),
        "top_p": fields.number("top_p", 1.0),
    }
    with naming(fields.where):
        SamplingParams(**sampling)
    return sampling


# MindFormers' Llama hands every method to FreqsMgr, which has no branch for DYNAMIC_NTK (FreqsMgrDynamicNTK, in the same
# file, is built by other models alone): plain RoPE with the plain theta, at every length and position.
PLAIN = ("None", "DYNAMIC_NTK")
METHODS = {method: method for method in (*PLAIN, "PI", "NTK", "YARN", "LLAMA3")} | {"linear": "PI"}


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from theta, extend_method and scaling_factor, as FreqsMgr computes them."""
    theta, method = fields.number("theta", 10000.0), fields.choice("extend_method", METHODS, "None")
    scaled, old = fields.get("scaling_factor") is not None, fields.get("pretrain_seqlen") is not None
    if old and not scaled and method in ("PI", "NTK"):
        fields.refuse("pretrain_seqlen", "scaling_factor in its place, as since MindFormers 1.0")
    with naming(fields.where):
        match method:
            case "NTK":  # the base itself grows, with no exponent
                return theta * _factor(fields), None
            case "PI":
                return theta, RopeScaling("linear", _factor(fields))
            case "YARN":
                return theta, _yarn(_mapping(fields))
            case "LLAMA3":
                return theta, _llama3(_mapping(fields))
    return theta, None


def _without_effect_on_rope(fields: Fields) -> set[str]:
    """Keys that the chosen extend_method does not read; read or not, one at its default is not worth a word."""
    method, factor = fields.raw.get("extend_method") or "None", fields.raw.get("scaling_factor")
    unread = {"scaling_factor"} if method in PLAIN and factor not in (None, 1) else set()
    return unread | {"pretrain_seqlen"} | ({"extend_method"} if method == "DYNAMIC_NTK" else set())


def _factor(fields: Fields) -> float:
    """scaling_factor as a number, or as a mapping with nothing but a factor."""
    if not isinstance(fields.raw.get("scaling_factor"), Mapping):
        return fields.number("scaling_factor", 1.0)
    inner = _mapping(fields)
    factor = inner.number("factor")
    inner.finish(())
    return factor


def _mapping(fields: Fields) -> Fields:
    return fields.inside("scaling_factor") or Fields({}, f"{fields.where}: scaling_factor")


def _llama3(fields: Fields) -> RopeScaling:
    factor, original = fields.number("factor"), fields.whole("original_max_position_embeddings", low=1)
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    fields.finish(())
    return RopeScaling("llama3", factor, original, low, high)


def _yarn(fields: Fields) -> RopeScaling:
    """YaRN with MindFormers' scale of cosine and sine: a quotient also where transformers would use another formula."""
    factor, low, high = fields.number("factor"), fields.number("beta_slow"), fields.number("beta_fast")
    original = fields.whole("original_max_position_embeddings", low=1)
    mscale, mscale_all = ((0.1 * fields.number(key) * log(max(factor, 1)) + 1) for key in ("mscale", "mscale_all_dim"))
    fields.finish(())
    return RopeScaling("yarn", factor, original, beta_fast=high, beta_slow=low, attention_factor=mscale / mscale_all)

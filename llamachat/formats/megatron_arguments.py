"""Arguments of Megatron-LM's training script, as saved beside a T5 -> spec. Sources: its arguments.py and pretrain_t5.py, and
megatron-core's T5Model. What is only given to the script, or says how it ran, is known by name and ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamachat.core.spec import RopeScaling
from llamachat.errors import ConfigError
from llamachat.families.t5 import EncoderDecoderSpec, Inner, NormKind, Positions
from llamachat.formats.translated import head_share
from llamachat.system.metadata import Fields, names, naming

BESIDE = "megatron_config.json"  # says what the arguments leave open, in the words of Beside
TOKENIZER, EXTRA_IDS = "tokenizer_type", "vocab_extra_ids"
GELU: dict[bool, Inner] = {True: "gelu_pytorch_tanh", False: "gelu"}  # fused with its bias it is approximated
NORMS: dict[str, NormKind] = {"LayerNorm": "layer", "RMSNorm": "rms"}
POSITIONS: dict[str, Positions] = {"learned_absolute": "learned_absolute", "rope": "rope"}
HEADS = {"embedding": "embedding", "output_layer": "output_layer"}
NEUTRAL: dict[str, tuple[object, ...]] = {  # with the values at which T5Model does what is done here
    "add_position_embedding": (True, False),  # position_embedding_type has the last word
    "use_rotary_position_embeddings": (True, False),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "openai_gelu": (False,),
    "squared_relu": (False,),
    "add_qkv_bias": (False,),
    "qk_layernorm": (False,),
    "qk_l2_norm": (False,),
    "group_query_attention": (False,),
    "multi_latent_attention": (False,),
    "mtp_num_layers": (),
    "num_experts": (),
    "spec": (),
    "use_legacy_models": (False,),
    "use_rope_scaling": (False,),
    "no_rope_freq": (),
    "rotary_base": (10000, 10000.0),  # T5Model is not told of another
    "heterogeneous_layers_config_path": (),
    "heterogeneous_layers_config_encoded_json": (),
    "is_hybrid_model": (False,),
    "window_size": (),
    "tensor_model_parallel_size": (1,),
    "encoder_tensor_model_parallel_size": (0, 1),
    "pipeline_model_parallel_size": (1,),
    "encoder_pipeline_model_parallel_size": (0, 1),
    "pipeline_model_parallel_split_rank": (),
    "virtual_pipeline_model_parallel_size": (),
    "expert_model_parallel_size": (1,),
    "fp8": (),
}
NO_EFFECT = names(
    """
    accumulate_allreduce_grads_in_fp32 adlr_autoresume adlr_autoresume_interval align_grad_reduce align_param_gather
    app_tag_run_name app_tag_run_version apply_query_key_layer_scaling apply_rope_fusion async_save
    async_tensor_model_parallel_allreduce attention_backend attention_dropout attention_softmax_in_fp32
    auto_detect_ckpt_format barrier_with_L1_time bert_binary_head bert_embedder_type bert_load bf16 bias_dropout_fusion
    bias_swiglu_fusion block_data_path calc_ft_timeouts calculate_per_token_loss check_for_large_grads
    check_for_nan_in_loss_and_grad check_for_spiky_loss check_weight_hash_across_dp_replicas_interval classes_fraction
    clip_grad clone_scatter_output_in_embedding config_logger_dir context_parallel_size cp_comm_type
    create_attention_mask_in_dataloader cross_entropy_fusion_impl cross_entropy_loss_fusion curr_iteration data_args_path
    data_cache_path data_parallel_random_init data_parallel_sharding_strategy data_parallel_size data_path
    data_per_class_fraction data_sharding dataloader_type ddp_average_in_collective ddp_bucket_size ddp_num_buckets
    ddp_pad_buckets_for_high_nccl_busbw decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
    decoder_seq_length decoupled_lr decoupled_min_lr decrease_batch_size_if_needed defer_embedding_wgrad_compute
    delay_grad_reduce delay_param_gather deprecated_use_mcore_models deterministic_mode disable_bf16_reduced_precision_matmul
    disable_mamba_mem_eff_path disable_straggler_on_startup distribute_saved_activations distributed_backend
    distributed_timeout_minutes do_test do_train do_valid embedding_path empty_unused_memory_level enable_cuda_graph
    enable_ft_package enable_gloo_process_groups enable_msc enable_one_logger encoder_seq_length end_weight_decay
    eod_mask_loss error_injection_rate error_injection_type eval_interval eval_iters evidence_data_path exit_duration_in_mins
    exit_interval exit_on_missing_checkpoint exit_signal_handler exp_avg_dtype exp_avg_sq_dtype expert_tensor_parallel_size
    external_cuda_graph finetune first_last_layers_bf16 flash_decode fp16 fp16_lm_cross_entropy fp32_residual_connection
    fsdp_double_buffer global_batch_size grad_reduce_in_bf16 gradient_accumulation_fusion gradient_reduce_div_fusion
    head_lr_mult hidden_dropout hierarchical_context_parallel_sizes high_priority_stream_groups hybrid_attention_ratio
    hybrid_mlp_ratio hybrid_override_pattern hysteresis ict_head_size ict_load img_h img_w init_method_std
    init_method_xavier_uniform init_model_with_meta_device initial_loss_scale iter_per_epoch iteration iterations_to_skip
    keep_fp8_transpose_cache_when_using_custom_fsdp kv_lora_rank lazy_mpu_init load load_model_opt_format local_rank
    logging_level loss_scale loss_scale_window lr main_grads_dtype main_params_dtype make_vocab_size_divisible_by manual_gc
    manual_gc_eval manual_gc_interval mask_factor mask_prob mask_type masked_softmax_fusion max_tokens_to_oom
    memory_efficient_layer_norm memory_snapshot_path merge_file micro_batch_size microbatch_group_size_per_vp_stage
    mid_level_dataset_surplus min_loss_scale min_lr mlp_chunks_for_prefill mmap_bin_files mock_data model_type mrope_section
    mscale mscale_all_dim mtp_loss_scaling_factor nccl_all_reduce_for_prefill nccl_communicator_config_path nccl_ub
    no_load_optim no_load_rng no_persist_layer_norm no_save_optim no_save_rng num_channels num_classes
    num_dataset_builder_threads num_distributed_optimizer_instances num_floating_point_operations_so_far
    num_layers_at_end_in_bf16 num_layers_at_start_in_bf16 num_layers_per_virtual_pipeline_stage num_query_groups
    num_virtual_stages_per_pipeline_rank num_workers object_storage_cache_path onnx_safe optimizer optimizer_cpu_offload
    optimizer_offload_fraction output_bert_embeddings overlap_cpu_optimizer_d2h_h2d overlap_grad_reduce overlap_p2p_comm
    overlap_p2p_comm_warmup_flush overlap_param_gather overlap_param_gather_with_optimizer_step override_opt_param_scheduler
    params_dtype patch_dim per_split_data_args_path perform_initialization persist_layer_norm pin_cpu_grads pin_cpu_params
    pipeline_model_parallel_comm_backend pretrained_checkpoint q_lora_rank qk_head_dim qk_pos_emb_head_dim
    query_in_block_prob rampup_batch_size rank record_memory_history relative_attention_max_distance
    relative_attention_num_buckets replication replication_factor replication_jump rerun_mode reset_attention_mask
    reset_position_ids result_rejected_tracker_filename rope_scaling_factor rotary_scaling_factor run_workload_inspector_server
    s3_cache_path sample_rate save save_interval scatter_gather_tensors_in_pipeline seed seq_length sequence_parallel
    sgd_momentum short_seq_prob skip_train skipped_train_samples split start_weight_decay
    straggler_ctrlr_port straggler_minmax_count suggested_communication_unit_size swin_backbone_type symmetric_ar_type
    te_rng_tracker test_data_path test_mode tiktoken_num_special_tokens tiktoken_pattern tiktoken_special_tokens
    timing_log_level timing_log_option titles_data_path tokenizer_model torch_fsdp2_reshard_after_forward
    tp_comm_bootstrap_backend transformer_impl transformer_pipeline_model_parallel_size use_checkpoint_args
    use_checkpoint_opt_param_scheduler use_cpu_initialization use_custom_fsdp use_dist_ckpt use_dist_ckpt_deprecated
    use_distributed_optimizer use_flash_attn use_mp_args_from_checkpoint_args use_one_sent_docs use_persistent_ckpt_worker
    use_precision_aware_optimizer use_pytorch_profiler use_ring_exchange_p2p use_sharp
    use_tokenizer_model_from_checkpoint_args use_torch_fsdp2 use_torch_optimizer_for_cpu_offload use_tp_pp_dp_mapping
    v_head_dim valid_data_path variable_seq_lengths vocab_file vocab_size weight_decay
    weight_decay_incr_style wgrad_deferral_limit world_size yaml_cfg account_for_embedding_in_pipeline_split
    account_for_loss_in_pipeline_split train_data_path
    """
)
PREFIXES = tuple(  # of whole groups of arguments: other models', optimizer, devices, files, logs
    names(
        """
        adam_ biencoder_ ckpt_ consumed_ cuda_graph_ dino_ dist_ckpt_ fp8_ indexer_ inference_ inprocess_ log_ lr_ mamba_
        moe_ non_persistent_ one_logger_ profile recompute_ retriever_ retro_ tensorboard_ tp_comm_ train_ vision_ wandb_
        """
    )
)


@dataclass(frozen=True)
class Beside:
    """What the tokenizer says, or a file beside the checkpoint: `start` is what the decoder's text begins with."""

    start: int | None = None
    end: int | None = None
    pad: int | None = None
    head: str | None = None  # of a model whose head is its own: which matrix is used


def read_beside(raw: Mapping[str, Any], where: str) -> Beside:
    """`raw` is what is in BESIDE. Raises ConfigError."""
    fields = Fields(raw, where)
    start, end, pad = (fields.token(f"{name}_token_id") for name in ("decoder_start", "eos", "pad"))
    head = fields.choice("head", HEADS) if raw.get("head") is not None else None
    fields.finish(("head",))
    return Beside(start, end, pad, head)


def translate(
    arguments: Mapping[str, Any], where: str, encoder: int, decoder: int, beside: Beside
) -> tuple[EncoderDecoderSpec, tuple[str, ...]]:
    """The spec and the arguments ignored; `encoder` and `decoder` are the numbers of layers that there are weights of.

    Raises ConfigError for an argument that is unknown or asks for something else than T5Model computes here.
    """
    fields = Fields(arguments, where)
    for key, values in NEUTRAL.items():
        fields.neutral(key, *values)
    _check_layers(fields, encoder, decoder)
    hidden, heads = fields.size("hidden_size", "hidden_size"), fields.size("num_attention_heads", "num_attention_heads")
    share = head_share(fields, hidden, heads) if arguments.get("kv_channels") is None else None
    size = fields.size("kv_channels", "head_dim", share)
    bias = fields.flag("add_bias_linear", True)
    ways = _activation(fields) | _positions(fields, size)
    if beside.start is None:
        raise ConfigError(
            f"{where} do not say what the decoder's text begins with",
            "nothing can be answered",
            f'put Megatron\'s SentencePiece model beside it, or {{"decoder_start_token_id": ...}} in a {BESIDE}',
        )
    with naming(where):
        spec = EncoderDecoderSpec(
            vocab_size=fields.size("padded_vocab_size", "vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.size("ffn_hidden_size", "intermediate_size", 4 * hidden),
            num_hidden_layers=decoder,
            encoder_layers=encoder,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=size,
            attention_scale=size**-0.5,
            max_position_embeddings=fields.size("max_position_embeddings", "max_position_embeddings"),
            rms_norm_eps=fields.number("norm_epsilon", 1e-5),
            norm_kind=fields.choice("normalization", NORMS, "LayerNorm"),
            qkv_bias=bias,
            attention_out_bias=bias,
            mlp_bias=bias,
            **_head(fields, beside),
            decoder_start_token_id=beside.start,
            eos_token_ids=() if beside.end is None else (beside.end,),
            pad_token_id=beside.pad,
            **ways,
        )
    for key in (TOKENIZER, EXTRA_IDS):
        fields.get(key)
    known = {key for key in arguments if key in NO_EFFECT or key.startswith(PREFIXES)}
    return spec, fields.finish(known)


def _check_layers(fields: Fields, encoder: int, decoder: int) -> None:
    """Of a checkpoint that was cut short, layers are missing that the arguments tell of."""
    told = {key: fields.get(key) for key in ("num_layers", "encoder_num_layers", "decoder_num_layers")}
    for stack, count, keys in (
        ("encoder", encoder, ("encoder_num_layers", "num_layers")),
        ("decoder", decoder, ("decoder_num_layers", "num_layers")),
    ):
        said = [told[key] for key in keys if told[key] is not None]
        if count not in said:
            raise ConfigError(
                f"{fields.where}: the {stack} has {' or '.join(map(str, said)) or 'no number of'} layers",
                f"there are weights of {count}",
                "fetch the checkpoint again",
            )


def _activation(fields: Fields) -> dict[str, Any]:
    fused = fields.flag("bias_gelu_fusion", True)
    gated = fields.flag("swiglu", False)
    return {"activation": "silu" if gated else GELU[fused], "gated": gated}


def _positions(fields: Fields, size: int) -> dict[str, Any]:
    """How positions are told. Queries and keys rotate in self-attention, of both stacks, and never in cross attention."""
    positions = fields.choice("position_embedding_type", POSITIONS, "learned_absolute")
    share, factor = fields.number("rotary_percent", 1.0), fields.get("rotary_seq_len_interpolation_factor")
    fields.flag("rotary_interleaved", False)
    if positions != "rope":
        return {"positions": positions}
    scaling = None if factor is None else RopeScaling("linear", fields.number("rotary_seq_len_interpolation_factor"))
    return {"positions": positions, "rope_scaling": scaling, "rotary_dim": int(size * share) if share < 1 else None}


def _head(fields: Fields, beside: Beside) -> dict[str, Any]:
    """A head that shares the embedding has a bias. Of one that does not, Megatron-core up to 0.9 saves a matrix and uses the
    embedding all the same, later ones use it; nothing in a checkpoint tells."""
    untied = fields.flag("untie_embeddings_and_output_weights", False)
    if untied and beside.head is None:
        raise ConfigError(
            f"{fields.where}: untie_embeddings_and_output_weights is True, which Megatron-core up to 0.9 does not heed",
            "it cannot be known which matrix the head was trained with",
            f'put {{"head": "embedding"}} (0.9) or {{"head": "output_layer"}} in a {BESIDE} beside it',
        )
    return {"tie_word_embeddings": not untied or beside.head == "embedding", "head_bias": not untied}

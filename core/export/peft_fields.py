"""The fields of PEFT's adapter_config.json by kind, as peft 0.21 writes them, and which of them change the result."""

from __future__ import annotations

from typing import Any

PEFT_VERSION = "0.21.2"  # whose layout this is

# Every LORA field with its value in a file of ours; those that depend on the adapter are set in `peft_values`.
LORA_FIELDS: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": PEFT_VERSION,
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}

# What AdaLoRA has beside them; `total_step` is only for training, and peft wants it above 0.
ADALORA_FIELDS: dict[str, Any] = {
    **LORA_FIELDS,
    "beta1": 0.85,
    "beta2": 0.85,
    "deltaT": 1,
    "init_r": 12,
    "orth_reg_weight": 0.5,
    "target_r": 8,
    "tfinal": 0,
    "tinit": 0,
    "total_step": 1,
}

VERA_FIELDS: dict[str, Any] = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "d_initial": 0.1,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": None,
    "peft_type": "VERA",
    "peft_version": PEFT_VERSION,
    "projection_prng_key": 0,
    "r": 256,
    "revision": None,
    "save_projection": True,
    "target_modules": None,
    "task_type": None,
    "vera_dropout": 0.0,
}

FIELDS = {"LORA": LORA_FIELDS, "ADALORA": ADALORA_FIELDS, "VERA": VERA_FIELDS}

# Fields that change what the adapter computes, in ways this version does not.
REFUSED = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "ensure_weight_tying": "adapters that tied embeddings share",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "lora_bias": "a bias in lora_B",
    "megatron_config": "Megatron's parallel layers",
    "monteclora_config": "MonteCLoRA",
    "trainable_token_indices": "trainable tokens",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}

# Fields that say how the adapter was made or trained, not what it computes; old and new versions of peft have more.
IGNORED = {"enable_lora", "merge_weights", "runtime_config"}
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others move weight into or out of the base
